"""The workloads: networks with synthetic data to train them on."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

import fastbp

SEED = 0


class Workload(NamedTuple):
    """A relu network, trained by Adam in float32.

    Attributes
    ----------
    sizes : tuple of int
        Widths from input to output.
    samples : int
        A multiple of ``batch``: all steps are alike.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    loss: str
    samples: int

    @property
    def shape(self) -> str:
        """The sizes in words; a width that stands more than four times in a row is counted."""
        runs = [(n, len(list(run))) for n, run in groupby(self.sizes)]
        return "-".join("-".join([str(n)] * count) if count <= 4 else f"{n}x{count}" for n, count in runs)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.samples // self.batch

    @property
    def parameters(self) -> int:
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(self.sizes))

    @property
    def flops_per_step(self) -> int:
        """Three products a layer, and two in the first, which hands no delta on."""
        products = 6 * sum(n_in * n_out for n_in, n_out in pairwise(self.sizes))
        return self.batch * (products - 2 * self.sizes[0] * self.sizes[1])

    @property
    def bytes_per_step(self) -> int:
        """What Adam must move: theta, m and v, each read and written."""
        return 6 * np.dtype(np.float32).itemsize * self.parameters

    def floor(self, peak: float, bandwidth: float) -> float:
        """Seconds of a step at ``peak`` FLOP/s and ``bandwidth`` bytes/s."""
        return self.flops_per_step / peak + self.bytes_per_step / bandwidth

    def network(self, **settings: Any) -> fastbp.MLP:
        """The network to start from; ``settings`` of `fastbp.MLP` may override the workload's."""
        return fastbp.MLP(self.sizes, **{"loss": self.loss, "random_state": SEED, **settings})

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Normal features, and targets that a single layer gives with noise: labels or real numbers."""
        rng = np.random.default_rng(SEED)
        X = rng.standard_normal((self.samples, self.sizes[0]), np.float32)
        teacher = rng.standard_normal((self.sizes[0], self.sizes[-1]), np.float32) / np.float32(self.sizes[0] ** 0.5)
        y = X @ teacher + rng.standard_normal((self.samples, self.sizes[-1]), np.float32) / 2
        return X, y.argmax(axis=1) if self.loss == "cross_entropy" else np.tanh(y)


WORKLOADS = {
    row.name: row
    for row in (
        Workload("iris", (4, 16, 3), 16, "cross_entropy", 144),
        Workload("digits", (64, 64, 10), 32, "cross_entropy", 1792),
        Workload("policy", (17, 256, 256, 6), 256, "squared_error", 4096),
        Workload("tabular", (54, 256, 256, 7), 256, "cross_entropy", 8192),
        Workload("field", (32, 64, 64, 64, 64, 4), 8192, "squared_error", 65536),
        Workload("deep", (128,) * 9 + (10,), 128, "cross_entropy", 8192),
        Workload("images", (784, 512, 512, 10), 128, "cross_entropy", 8192),
        Workload("wide", (1024, 2048, 2048, 1024), 512, "squared_error", 4096),
    )
}


class Training:
    """fastbp at work on a workload; ``threads`` None lets it choose, ``settings`` are those of `fastbp.MLP`."""

    def __init__(self, workload: Workload, threads: int | None, optimizer: Any = None, **settings: Any):
        self.workload, self.threads = workload, threads
        self.X, self.y = workload.data()
        self.net = workload.network(**settings)
        self.optimizer = optimizer or fastbp.Adam()

    def run(self, epochs: int) -> None:
        """Go on for a number of epochs, in one call of ``fit``."""
        self.net.fit(
            self.X,
            self.y,
            optimizer=self.optimizer,
            batch_size=self.workload.batch,
            epochs=epochs,
            threads=self.threads,
            progress=False,
        )
