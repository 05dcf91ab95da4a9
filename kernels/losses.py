"""Losses of one output unit as functions of z, the network's output before the link, and the target t.

Taking the loss in z, not in the linked output, keeps logarithms and exponentials from overflowing and
makes the output delta dLoss/dz as simple as the textbooks have it.

Each function also receives ``lse``, the row's log(sum_k exp(z_k)) where the row of the table says that
the loss couples its outputs by a softmax, and zero elsewhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .elementary import exp, logistic, softplus


class Loss(NamedTuple):
    """A row of the table: ``value(z, t, lse)``, ``delta(z, t, lse)`` = dvalue/dz, and what predictions are.

    Attributes
    ----------
    softmax : bool
        The outputs of a row are coupled by a softmax: ``lse`` is computed.
    link : callable
        NumPy function from z (n_samples, n_out) to predictions of the same shape.
    targets : str
        What the targets are: "real", "labels" (integers, or one distribution per sample) or "binary".
    """

    code: int
    value: Callable
    delta: Callable
    softmax: bool
    link: Callable
    targets: str


def squared_error(z, t, lse):
    return type(z)(0.5) * (z - t) * (z - t)


def squared_error_delta(z, t, lse):
    return z - t


def cross_entropy(z, t, lse):
    """-t log softmax(z); the targets of a row must sum to one."""
    return t * (lse - z)


def cross_entropy_delta(z, t, lse):
    return exp(z - lse) - t


def binary_cross_entropy(z, t, lse):
    """-t log s - (1 - t) log(1 - s), s = logistic(z), as softplus(z) - t z in a form that cannot overflow."""
    return softplus(z) - t * z


def binary_cross_entropy_delta(z, t, lse):
    return logistic(z) - t


def identity_link(z):
    return z


def logistic_link(z):
    return np.exp(-np.logaddexp(0, -z))


def softmax_link(z):
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


LOSSES = {
    "squared_error": Loss(0, squared_error, squared_error_delta, False, identity_link, "real"),
    "cross_entropy": Loss(1, cross_entropy, cross_entropy_delta, True, softmax_link, "labels"),
    "binary_cross_entropy": Loss(2, binary_cross_entropy, binary_cross_entropy_delta, False, logistic_link, "binary"),
}
