"""The flat vector of parameters, its views by layer, and its first values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .kernels.problem import Topology


def views(topology: Topology, theta: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Writable views on theta: weights (n_in, n_out) and biases (n_out,) by layer; no biases without bias."""
    weights, biases, start = [], [], 0
    for n_in, n_out in topology.layers():
        weights.append(theta[start : start + n_in * n_out].reshape(n_in, n_out))
        start += n_in * n_out
        if topology.bias:
            biases.append(theta[start : start + n_out])
            start += n_out
    return tuple(weights), tuple(biases)


def glorot_uniform(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """Uniform with variance 2 / (n_in + n_out) (Glorot & Bengio, 2010, equation 16)."""
    bound = math.sqrt(6.0 / (n_in + n_out))
    return rng.uniform(-bound, bound, (n_in, n_out))


def he_uniform(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """Uniform with variance 2 / n_in (He et al., 2015, equation 10)."""
    bound = math.sqrt(6.0 / n_in)
    return rng.uniform(-bound, bound, (n_in, n_out))


INITIALIZERS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "glorot_uniform": glorot_uniform,
    "he_uniform": he_uniform,
}


def initialize(topology: Topology, initializer: str | None) -> np.ndarray:
    """First parameters, drawn from the topology's seed: weights by layer, biases zero.

    ``initializer`` None takes he_uniform in front of a relu and glorot_uniform elsewhere.
    """
    rng = np.random.default_rng(topology.seed)
    theta = np.zeros(topology.n_parameters, topology.dtype)
    following = (*topology.activations, None)
    for W, activation in zip(views(topology, theta)[0], following, strict=True):
        name = initializer or ("he_uniform" if activation == "relu" else "glorot_uniform")
        W[:] = INITIALIZERS[name](rng, *W.shape)
    return theta
