"""The flat vector of parameters, its views by layer, and its first values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import validation
from .kernels.problem import Choice, Topology


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


def uniform(variance: Callable[[int, int], float]) -> Callable:
    """The initialiser that draws from a uniform distribution of that variance, a function of n_in and n_out."""

    def draw(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
        bound = math.sqrt(3.0 * variance(n_in, n_out))
        return rng.uniform(-bound, bound, (n_in, n_out))

    return draw


def normal(variance: Callable[[int, int], float]) -> Callable:
    """The same from a normal distribution."""

    def draw(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
        return rng.normal(0.0, math.sqrt(variance(n_in, n_out)), (n_in, n_out))

    return draw


def glorot(n_in: int, n_out: int) -> float:
    """Glorot & Bengio (2010), equation 12."""
    return 2.0 / (n_in + n_out)


def he(n_in: int, n_out: int) -> float:
    """He et al. (2015), equation 10."""
    return 2.0 / n_in


def lecun(n_in: int, n_out: int) -> float:
    """LeCun et al. (1998), equation 16."""
    return 1.0 / n_in


def orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """Orthonormal columns or rows, whichever are fewer, of uniform direction (Saxe et al., 2014)."""
    Q, R = np.linalg.qr(rng.normal(size=(max(n_in, n_out), min(n_in, n_out))))
    Q *= np.sign(np.diag(R))
    return Q if n_in >= n_out else Q.T


def zeros(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    return np.zeros((n_in, n_out))


INITIALIZERS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "glorot_uniform": uniform(glorot),
    "glorot_normal": normal(glorot),
    "he_uniform": uniform(he),
    "he_normal": normal(he),
    "lecun_uniform": uniform(lecun),
    "lecun_normal": normal(lecun),
    "orthogonal": orthogonal,
    "siren": uniform(he),
    "zeros": zeros,
}
#: Activations that another initialiser than glorot_uniform fits.
FITTING = {
    **dict.fromkeys(("relu", "leaky_relu", "relu6", "elu", "celu", "gelu", "gelu_tanh", "silu", "mish"), "he_uniform"),
    "hard_swish": "he_uniform",
    "selu": "lecun_normal",
    "sine": "siren",
}


def initialize(topology: Topology, initializer: Any) -> np.ndarray:
    """First parameters, drawn from the topology's seed: weights by layer, biases zero.

    ``initializer`` is a name, a number for all weights, an array for theta, or None for what fits the activation.
    Weights in front of a sine are what "siren" says divided by omega, in the first layer uniform up to 1/n_in: its z
    then has a variance of 1 (Sitzmann et al., 2020, section 3.2).

    Raises
    ------
    TypeError, ValueError
    """
    theta = np.zeros(topology.n_parameters, topology.dtype)
    if isinstance(initializer, (np.ndarray, list, tuple)):
        values = validation.finite("initializer", validation.numeric("initializer", initializer))
        if values.shape != theta.shape:
            raise ValueError(f"initializer must have shape {theta.shape}, it has shape {values.shape}")
        theta[:] = values
        return theta
    if isinstance(initializer, str):
        validation.choice("initializer", initializer, INITIALIZERS)
    elif initializer is not None:
        initializer = validation.number_in("initializer", initializer)
    rng = np.random.default_rng(topology.seed)
    following = (*topology.activations, Choice("identity", 0.0))
    for depth, (W, activation) in enumerate(zip(views(topology, theta)[0], following, strict=True)):
        if isinstance(initializer, float):
            W[:] = initializer
            continue
        fits, omega = "glorot_uniform", 1.0
        if isinstance(activation, Choice):
            fits = FITTING.get(activation.name, fits)
            omega = activation.setting if activation.name == "sine" else omega
        name = initializer or fits
        W[:] = INITIALIZERS[name](rng, *W.shape)
        if name == "siren":
            W *= math.sqrt(1.0 / (6.0 * len(W))) if depth == 0 else 1.0 / omega
    return theta
