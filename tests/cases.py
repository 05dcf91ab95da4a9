"""Random networks with data to train them on, for fastbp and for the oracle alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import reference

import fastbp
from fastbp.kernels.losses import LOSSES

WIDTHS = (1, 2, 3, 5, 7, 17, 33, 65, 100)
BATCHES = (1, 2, 7, 31, 64)

#: Rows of the tables as users give them, with settings that are not the default.
SETTINGS = {
    "leaky_relu": "negative_slope=0.2",
    "elu": "alpha=0.7",
    "celu": "alpha=1.3",
    "sine": "omega=2",
    "cross_entropy": "label_smoothing=0.1",
    "binary_cross_entropy": "label_smoothing=0.2",
    "huber": "delta=0.8",
    "quantile": "q=0.3",
    "focal": "gamma=1.5",
    "gaussian_nll": "epsilon=0.01",
    "layer_norm": "epsilon=0.1",
    "rms_norm": "epsilon=0.2",
    "batch_norm": "epsilon=0.3",
}


def specs(table):
    """Every row of a table, with a setting where it has one."""
    return [f"{name}({SETTINGS[name]})" if name in SETTINGS else name for name in table]


# name -> (class, oracle's rule, settings, settings of the class alone)
OPTIMIZERS = {
    "sgd": (fastbp.SGD, "sgd", {"learning_rate": 0.05}, {}),
    "momentum": (fastbp.SGD, "sgd", {"learning_rate": 0.02, "momentum": 0.9}, {}),
    "nesterov": (fastbp.SGD, "sgd", {"learning_rate": 0.02, "momentum": 0.9, "nesterov": True}, {}),
    "momentum_of_steps": (fastbp.SGD, "sgd", {"learning_rate": 0.02, "momentum": 0.9, "rate_in_velocity": True}, {}),
    "nesterov_of_steps": (
        fastbp.SGD,
        "sgd",
        {"learning_rate": 0.02, "momentum": 0.9, "nesterov": True, "rate_in_velocity": True},
        {},
    ),
    "adam": (fastbp.Adam, "adam", {"learning_rate": 0.003, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6}, {}),
    "adamw": (fastbp.AdamW, "adamw", {"learning_rate": 0.003, "weight_decay": 0.1}, {}),
    "amsgrad": (fastbp.Adam, "amsgrad", {"learning_rate": 0.003, "beta2": 0.9}, {"amsgrad": True}),
    "nadam": (fastbp.NAdam, "nadam", {"learning_rate": 0.003, "momentum_decay": 0.01}, {}),
    "radam": (fastbp.RAdam, "radam", {"learning_rate": 0.003, "beta2": 0.99}, {}),
    "lion": (fastbp.Lion, "lion", {"learning_rate": 0.001, "weight_decay": 0.1}, {}),
    "adagrad": (fastbp.Adagrad, "adagrad", {"learning_rate": 0.01, "epsilon": 1e-6}, {}),
    "adadelta": (fastbp.Adadelta, "adadelta", {"learning_rate": 0.5, "rho": 0.8}, {}),
    "rmsprop": (fastbp.RMSprop, "rmsprop", {"learning_rate": 0.002, "alpha": 0.9, "epsilon": 1e-4}, {}),
    "rmsprop_momentum": (
        fastbp.RMSprop,
        "rmsprop",
        {"learning_rate": 0.001, "alpha": 0.9, "epsilon": 1e-4, "momentum": 0.7},
        {},
    ),
    "rmsprop_centered": (
        fastbp.RMSprop,
        "rmsprop",
        {"learning_rate": 0.001, "alpha": 0.9, "epsilon": 1e-2, "momentum": 0.5, "centered": True},
        {},
    ),
}


def optimizer(name):
    """A fresh fastbp optimizer for a row of OPTIMIZERS."""
    kind, _, settings, extra = OPTIMIZERS[name]
    return kind(**settings, **extra)


class Case(NamedTuple):
    """A network and its data in the network's dtype, with what the oracle needs of them."""

    net: fastbp.MLP
    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    @property
    def network(self):
        net = self.net
        return reference.Network(
            net.layer_sizes,
            net.activations,
            net.loss,
            net.bias,
            net.l1,
            net.l2,
            net.penalty_by_batch,
            net.normalization,
            net.residual,
            net.scale_inputs,
        )

    @property
    def exact(self):
        """(network, theta, X) in float64: the first arguments of the oracle."""
        return self.network, self.net.theta.astype(np.float64), self.X.astype(np.float64)

    @property
    def exact_weight(self):
        return None if self.weight is None else self.weight.astype(np.float64)


def make_case(
    rng,
    sizes,
    loss="squared_error",
    *,
    activation="tanh",
    n_samples=31,
    dtype="float64",
    bias=True,
    soft=False,
    weighted=False,
    **settings,
):
    """Draw parameters and samples; soft targets are probabilities where there would be classes."""
    net = fastbp.MLP(
        sizes,
        activation=activation,
        loss=loss,
        bias=bias,
        dtype=dtype,
        random_state=int(rng.integers(2**31)),
        **settings,
    )
    for W in net.weights:
        W[...] = rng.normal(size=W.shape) / np.sqrt(len(W))
    for b in (*net.biases, *net.shifts):
        b[...] = 0.3 * rng.normal(size=b.shape)
    for gain in (*net.gains, *([] if net.input_scale is None else [net.input_scale])):
        gain[...] = rng.uniform(0.5, 1.5, gain.shape)
    X = rng.normal(size=(4 * n_samples, sizes[0])).astype(dtype)
    X = X[np.argsort(-smallest_z(net, X))[:n_samples]]
    pairs = loss.startswith("gaussian_nll")
    y = draw_targets(rng, loss, n_samples, sizes[-1] // 2 if pairs else sizes[-1], soft)
    weight = rng.uniform(0.2, 2.0, n_samples).astype(dtype) if weighted else None
    return Case(net, X, y if y.dtype.kind == "i" else y.astype(dtype), weight)


def draw_targets(rng, loss, n_samples, n_out, soft):
    match LOSSES[loss.partition("(")[0]].targets:
        case "labels":
            return rng.dirichlet(np.ones(n_out), n_samples) if soft else rng.integers(n_out, size=n_samples)
        case "binary":
            y = rng.uniform(size=(n_samples, n_out))
            return y if soft else np.round(y)
        case "counts":
            return rng.poisson(2.0, size=(n_samples, n_out)).astype(float)
        case "positive":
            return rng.gamma(2.0, size=(n_samples, n_out))
        case "real":
            return rng.normal(size=(n_samples, n_out))


#: Where an activation has no derivative, besides 0.
KINKS = {"hard_sigmoid": (-3, 3), "hard_swish": (-3, 3), "relu6": (6,)}


def smallest_z(net, X):
    """The smallest |z| of each sample: near z = 0 relu has no derivative and an output no relative error.

    A z of exactly 0 comes from units that are off, and stays 0. Other kinks count like 0. By the oracle, since the
    engine is what is tested; in batch normalization the batch will be another one.
    """
    network = Case(net, X, None, None).network
    y, _ = reference.forward(network, net.theta.astype(np.float64), X.astype(np.float64))
    smallest = np.full(len(X), np.inf)
    for depth, z in enumerate(y):
        spec = net.activations[depth].partition("(")[0] if depth < len(net.activations) else ""
        for kink in (0, *KINKS.get(spec, ())):
            smallest = np.minimum(smallest, np.where(z == 0, np.inf, np.abs(z - kink)).min(axis=1))
    return smallest


def distance_to_kink(loss, z, t):
    """How far each sample, (n_samples,), is from where the loss has no derivative, or not a smooth one."""
    name = loss.partition("(")[0]
    if name in ("absolute_error", "quantile"):
        return np.abs(z - t).min(axis=1)
    if name == "huber":
        return np.abs(np.abs(z - t) - reference.read(loss, reference.LOSSES)[1]).min(axis=1)
    if name in ("hinge", "squared_hinge"):
        return np.abs(1 - (2 * t - 1) * z).min(axis=1)
    return np.full(len(z), np.inf)


def slopes(case, directions):
    """The loss's derivatives along directions of theta, by central differences with the error of order h^2
    extrapolated away.
    """
    net, start, h = case.net, case.net.theta.copy(), 1e-3

    def loss_at(theta):
        net.theta[:] = theta
        return net.loss_and_gradients(case.X, case.y, case.weight)[0]

    def central_difference(direction, h):
        return (loss_at(start + h * direction) - loss_at(start - h * direction)) / (2 * h)

    result = [(4 * central_difference(d, h / 2) - central_difference(d, h)) / 3 for d in directions]
    net.theta[:] = start
    return result


def relative_error(actual, expected):
    """The norm of the difference over the norm of what is expected."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), np.finfo(np.float64).tiny)


def batches(n_samples, batch_size, epochs=1):
    """The row numbers of every update of an unshuffled training."""
    return [np.arange(i, min(i + batch_size, n_samples)) for i in range(0, n_samples, batch_size)] * epochs
