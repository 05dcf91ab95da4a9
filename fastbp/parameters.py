"""The flat vector of parameters, its views by layer, and its first values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import validation
from .kernels.problem import BATCH_NORM, DENSE, SCALE, SUM, Choice, Topology


class Views(NamedTuple):
    """Writable views on theta, and on the moving averages of batch normalizations, all in the order of the layers.

    Attributes
    ----------
    weights, biases : tuple of arrays
        (n_in, n_out) and (n_out,) by dense layer; no biases without bias.
    gains, shifts : tuple of arrays
        (n_out,) by normalization; shifts only where there are any.
    input_scale : (n_in,) array or None
    running_means, running_variances : tuple of arrays
        (n_out,) by batch normalization.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    gains: tuple[np.ndarray, ...]
    shifts: tuple[np.ndarray, ...]
    input_scale: np.ndarray | None
    running_means: tuple[np.ndarray, ...]
    running_variances: tuple[np.ndarray, ...]


def batch_units(topology: Topology) -> int:
    """Units of all batch normalizations."""
    return sum(layer.n_out for layer in topology.layers if layer.kind == BATCH_NORM)


def views(topology: Topology, theta: np.ndarray, moving: np.ndarray) -> Views:
    """What theta (n_parameters,) and moving (2, n_units) are made of."""
    found = defaultdict(list)
    input_scale, start, unit = None, 0, 0
    for layer in topology.layers:
        size = layer.n_in * layer.n_out
        matrix, bias = theta[start : start + size], theta[start + size : start + size + layer.bias * layer.n_out]
        start += size + bias.size
        if layer.kind == SUM:
            continue
        if layer.kind == SCALE:
            input_scale = matrix
            continue
        is_dense = layer.kind == DENSE
        found["weights" if is_dense else "gains"].append(matrix.reshape(-1, layer.n_out) if is_dense else matrix)
        if layer.bias:
            found["biases" if is_dense else "shifts"].append(bias)
        if layer.kind == BATCH_NORM:
            found["running_means"].append(moving[0, unit : unit + layer.n_out])
            found["running_variances"].append(moving[1, unit : unit + layer.n_out])
            unit += layer.n_out
    return Views(
        input_scale=input_scale, **{name: tuple(found[name]) for name in Views._fields if name != "input_scale"}
    )


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
    """First parameters, drawn from the topology's seed: weights by layer, biases and shifts 0, gains 1.

    ``initializer`` is a name, a number for all weights, an array for theta, or None for what fits the activation.
    Weights in front of a sine are what "siren" says divided by omega, in the first layer uniform up to 1/n_in: its z
    then has a variance of 1 (Sitzmann et al., 2020, section 3.2).

    Raises
    ------
    TypeError, ValueError
    """
    theta = np.zeros(topology.n_parameters, topology.dtype)
    parts = views(topology, theta, np.zeros((2, batch_units(topology))))
    if isinstance(initializer, (np.ndarray, list, tuple)):
        values = validation.canonical(validation.numeric("initializer", initializer), theta.dtype)
        validation.finite("initializer", values)
        if values.shape != theta.shape:
            raise ValueError(f"initializer must have shape {theta.shape}, it has shape {values.shape}")
        theta[:] = values
        return theta
    if isinstance(initializer, str):
        validation.choice("initializer", initializer, INITIALIZERS)
    elif initializer is not None:
        limit = float(np.finfo(theta.dtype).max)
        initializer = validation.number_in("initializer", initializer, above=-limit, below=limit)
    for gain in (*parts.gains, *([] if parts.input_scale is None else [parts.input_scale])):
        gain[:] = 1
    rng = np.random.default_rng(topology.seed)
    following = (*topology.activations, Choice("identity", 0.0))
    for depth, (W, activation) in enumerate(zip(parts.weights, following, strict=True)):
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
