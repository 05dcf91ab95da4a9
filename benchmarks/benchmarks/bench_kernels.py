"""The engine's kernels alone, on one thread.

The entry points below are the only code outside fastbp that knows the engine's inner signatures.
"""

from __future__ import annotations

import numpy as np

import fastbp
from fastbp.backend import Session, Update
from fastbp.kernels.cpu.gradient import UPDATE, call_gradient
from fastbp.kernels.cpu.jit import entry
from fastbp.kernels.cpu.rows import call_take_rows
from fastbp.kernels.cpu.simd import hold
from fastbp.kernels.problem import samples_alone
from fastbp.validation import canonical

from .timing import seconds_each

ROWS = 128
ALL, NONE = (0, 2), (0, 0)


@entry
def run_rows(network, parameters, data, work, forth, back, times):
    held, key, n_rows = hold((network, parameters, data, work)), np.uint64(0), len(data.X)
    for _ in range(times):
        for block in range((n_rows + work.block_rows - 1) // work.block_rows):
            first = block * work.block_rows
            place = block, first, 0, min(work.block_rows, n_rows - first)
            call_take_rows(network.at.take_rows, (held, *place, key, 0.0, 1, forth, False, back, 0))


@entry
def run_gradient(network, parameters, data, work, optimizer, times):
    held, rule, no_penalty = hold((network, parameters, data, work)), hold(optimizer), work.a.dtype.type(0)
    for _ in range(times):
        chunk = 0, len(data.X), UPDATE, 0, 0, 1
        call_gradient(network.at.gradient, (held, rule, no_penalty, no_penalty, *chunk))


class Kernels:
    """A network of three layers of the same width, and 128 samples.

    Deltas are zero, so that running a kernel again changes nothing.
    """

    params = ([16, 64, 100, 256, 512, 1024],)
    param_names = ("width",)
    unit = "seconds"

    def setup(self, width):
        net = fastbp.MLP((width,) * 3, initializer=0.01)
        X = np.random.default_rng(0).standard_normal((ROWS, width), np.float32)
        data = samples_alone(canonical(X, X.dtype))._replace(targets=canonical(np.zeros_like(X), X.dtype))
        slots = np.zeros((2, net.n_parameters), np.float32)
        with Session(net._topology, net.theta, np.zeros((2, 0)), ROWS) as session:
            session.start(
                data,
                Update("adam", np.zeros((1, 4)), np.ones(1), np.zeros((2, 2), np.int64)),
                slots,
                0,
                learning_rate=np.zeros((1, 1)),
                shuffle=False,
                first_epoch=0,
                theta=net.theta,
                moving=np.zeros((2, 0)),
            )
            session.work.scalars[:] = 1e-3
            self.args = session.network, session.parameters, data, session.work
            self.optimizer = session._optimizer

    def track_forward(self, width):
        return seconds_each(lambda times: run_rows(*self.args, ALL, NONE, times))

    def track_delta(self, width):
        return seconds_each(lambda times: run_rows(*self.args, NONE, ALL, times))

    def track_gradient_and_update(self, width):
        return seconds_each(lambda times: run_gradient(*self.args, self.optimizer, times))
