"""The engine's kernels alone, on one thread.

The entry points below are the only code outside fastbp that knows the engine's inner signatures.
"""

from __future__ import annotations

import numpy as np

from fastbp.backend import Data, Topology, open_session
from fastbp.kernels.cpu.delta import delta
from fastbp.kernels.cpu.epoch import FUSED, Optimizer
from fastbp.kernels.cpu.forward import forward
from fastbp.kernels.cpu.gradient import UPDATE, gradient
from fastbp.kernels.cpu.jit import entry
from fastbp.kernels.optimizers import N_SCALARS, OPTIMIZERS

from .timing import seconds_each

ROWS = 128


@entry
def run_forward(network, parameters, data, work, times):
    n_rows = len(data.X)
    for _ in range(times):
        for block in range((n_rows + work.block_rows - 1) // work.block_rows):
            first = block * work.block_rows
            rows = min(work.block_rows, n_rows - first)
            forward(network, parameters, data, work, block, first, 0, rows, np.uint64(0), True)


@entry
def run_delta(network, parameters, data, work, times):
    n_rows = len(data.X)
    for _ in range(times):
        for block in range((n_rows + work.block_rows - 1) // work.block_rows):
            delta(network, parameters, work, block, min(work.block_rows, n_rows - block * work.block_rows))


@entry
def run_gradient(network, parameters, data, work, optimizer, h, times):
    for _ in range(times):
        gradient(network, parameters, work, optimizer, h, 0, len(data.X), UPDATE, 0, 0, 1)


class Kernels:
    """A network of three layers of the same width, and 128 samples.

    Deltas are zero, so that running a kernel again changes nothing.
    """

    params = ([16, 64, 100, 256, 512, 1024],)
    param_names = ("width",)
    unit = "seconds"

    def setup(self, width):
        f32 = np.dtype(np.float32)
        topology = Topology((width,) * 3, ("relu",), "squared_error", True, 0.0, f32, 0)
        X = np.random.default_rng(0).standard_normal((ROWS, width), f32)
        data = Data(X, np.zeros_like(X), np.zeros(0, np.int64), np.zeros(0, f32), np.zeros(0, np.int64))
        theta = np.full(topology.n_parameters, 0.01, f32)
        rule = OPTIMIZERS["adam"]
        with open_session("cpu", topology, theta, ROWS, threads=1) as session:
            slots = np.zeros((rule.n_slots, session.parameters.W.size), f32)
            parameters = session.parameters._replace(slots=slots)
            self.args = session.network, parameters, data, session.work
        self.update = Optimizer(rule.code, np.zeros(0), np.inf, FUSED), (f32.type(1e-3),) * N_SCALARS

    def track_forward(self, width):
        return seconds_each(lambda times: run_forward(*self.args, times))

    def track_delta(self, width):
        return seconds_each(lambda times: run_delta(*self.args, times))

    def track_gradient_and_update(self, width):
        return seconds_each(lambda times: run_gradient(*self.args, *self.update, times))
