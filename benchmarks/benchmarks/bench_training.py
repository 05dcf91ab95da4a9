"""Training: throughput, distance to the machine's limit, memory, and what options cost."""

from __future__ import annotations

import os

import fastbp

from . import machine
from .timing import seconds_each
from .workloads import WORKLOADS, Training

OPTIMIZERS = {
    "sgd": fastbp.SGD,
    "nesterov": lambda: fastbp.SGD(momentum=0.9, nesterov=True),
    "adam": fastbp.Adam,
    "adamw": fastbp.AdamW,
}


class Throughput:
    """The workloads, on one thread and on as many as fastbp chooses (None)."""

    params = (list(WORKLOADS), [1, None])
    param_names = ("workload", "threads")

    def setup(self, name, threads):
        self.training = Training(WORKLOADS[name], threads)

    def track_samples_per_second(self, name, threads):
        return WORKLOADS[name].samples / seconds_each(self.training.run)

    track_samples_per_second.unit = "samples/s"

    def track_time_over_floor(self, name, threads):
        workload, cores = WORKLOADS[name], threads or os.cpu_count()
        floor = workload.floor(machine.peak(cores), machine.bandwidth(cores))
        return seconds_each(self.training.run) / workload.steps / floor

    track_time_over_floor.unit = "times the floor"


class Latency:
    """One update by a call of its own."""

    params = (list(WORKLOADS),)
    param_names = ("workload",)

    def setup(self, name):
        workload = WORKLOADS[name]
        self.net = workload.network()
        self.batch = [part[: workload.batch] for part in workload.data()]
        self.net.train_on_batch(*self.batch)

    def time_train_on_batch(self, name):
        self.net.train_on_batch(*self.batch)


class Memory:
    """The process at its largest, Python, Numba and the data included."""

    params = (list(WORKLOADS),)
    param_names = ("workload",)

    def setup(self, name):
        self.training = Training(WORKLOADS[name], None)

    def peakmem_epoch(self, name):
        self.training.run(1)


class Options:
    """A step of one workload with other settings than the table's."""

    params = (["relu", "tanh", "logistic"], ["float32", "float64"], list(OPTIMIZERS))
    param_names = ("activation", "dtype", "optimizer")
    unit = "seconds"

    def setup(self, activation, dtype, optimizer):
        self.training = Training(WORKLOADS["tabular"], 1, OPTIMIZERS[optimizer](), activation=activation, dtype=dtype)

    def track_step(self, activation, dtype, optimizer):
        return seconds_each(self.training.run) / WORKLOADS["tabular"].steps
