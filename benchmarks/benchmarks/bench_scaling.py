"""How the time of a step goes with threads, batch size and width."""

from __future__ import annotations

import os

from .timing import seconds_each
from .workloads import WORKLOADS, Training, Workload


def step_seconds(workload: Workload, threads: int | None) -> float:
    return seconds_each(Training(workload, threads).run) / workload.steps


class Threads:
    params = (["digits", "policy", "deep", "images"], list(range(1, (os.cpu_count() or 1) + 1)))
    param_names = ("workload", "threads")
    unit = "seconds"

    def track_step(self, name, threads):
        return step_seconds(WORKLOADS[name], threads)


class BatchSize:
    params = ([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048],)
    param_names = ("batch",)
    unit = "seconds"

    def track_step(self, batch):
        return step_seconds(WORKLOADS["tabular"]._replace(batch=batch), None)


class Width:
    """Powers of two with their neighbours: neither a ragged edge nor a stride may cost much."""

    params = ([8, 16, 31, 32, 33, 45, 48, 63, 64, 65, 100, 112, 127, 128, 129, 255, 256, 257, 272, 384, 512],)
    param_names = ("width",)
    unit = "seconds"

    def track_step(self, width):
        return step_seconds(Workload("square", (width,) * 4, 128, "squared_error", 1024), None)
