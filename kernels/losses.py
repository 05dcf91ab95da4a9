"""Losses of one output unit as functions of z, the network's output before the link, and the target t.

Taking the loss in z, not in the linked output, keeps logarithms and exponentials from overflowing and
makes the output delta dLoss/dz as simple as the textbooks have it.

Each function also receives ``lse``, the row's log(sum_k exp(z_k)) where the row of the table says that
the loss couples its outputs by a softmax, and zero elsewhere; and ``p``, the loss's setting, where it has one. A loss
with a softmax depends on ``z - lse`` alone, and may be given that as z, with zero for ``lse``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from . import elementary
from .elementary import exp, expm1, log, log1p
from .problem import Setting


class Loss(NamedTuple):
    """A row of the table: ``value(z, t, lse, p)``, ``delta(z, t, lse, p)`` = dvalue/dz, and what predictions are.

    Attributes
    ----------
    link : callable
        NumPy function from z (n_samples, n_out) to predictions of the same shape.
    targets : str
        What the targets are: "real", "counts" (at least 0), "positive", "labels" (integers, or one distribution per
        sample) or "binary" (from 0 to 1).
    softmax : bool
        The outputs of a row are coupled by a softmax: ``lse`` is computed.
    pairs : bool
        Each target has two outputs, side by side: ``value(z0, z1, t, p)``, and ``delta`` gives both derivatives.
    """

    code: int
    value: Callable
    delta: Callable
    link: Callable
    targets: str = "real"
    softmax: bool = False
    setting: Setting | None = None
    pairs: bool = False


def squared_error(z, t, lse, p):
    return type(z)(0.5) * (z - t) * (z - t)


def squared_error_delta(z, t, lse, p):
    return z - t


def absolute_error(z, t, lse, p):
    return abs(z - t)


def absolute_error_delta(z, t, lse, p):
    zero, one = type(z)(0), type(z)(1)
    return (one if z > t else zero) - (one if z < t else zero)


def huber(z, t, lse, p):
    """1/2 e**2 up to abs(e) = delta, and delta (abs(e) - delta/2) beyond: Huber (1964)."""
    half, size = type(z)(0.5), abs(z - t)
    return half * size * size if size <= p else p * (size - half * p)


def huber_delta(z, t, lse, p):
    error = z - t
    error = p if error > p else error
    return -p if error < -p else error


def log_cosh(z, t, lse, p):
    """log(cosh(z - t)), which is about 1/2 e**2 for a small error and abs(e) - log(2) for a large one."""
    size = abs(z - t)
    large = size > type(z)(20)
    near = type(z)(20) if large else size
    m = expm1(-near)
    return size - type(z)(0.6931471805599453) if large else log1p(type(z)(0.5) * m * m * exp(near))


def log_cosh_delta(z, t, lse, p):
    return elementary.tanh(z - t)


def quantile(z, t, lse, p):
    """The pinball loss q max(t - z, 0) + (1 - q) max(z - t, 0): Koenker & Bassett (1978)."""
    return (type(z)(1) - p) * (z - t) if z > t else p * (t - z)


def quantile_delta(z, t, lse, p):
    below = type(z)(0) if z == t else -p
    return type(z)(1) - p if z > t else below


def poisson(z, t, lse, p):
    """exp(z) - t z: the deviance of counts, halved and without what depends on t alone; predictions are exp(z)."""
    return exp(z) - t * z


def poisson_delta(z, t, lse, p):
    return exp(z) - t


def gamma(z, t, lse, p):
    """z + t exp(-z): the same of a gamma distribution."""
    return z + t * exp(-z)


def gamma_delta(z, t, lse, p):
    return type(z)(1) - t * exp(-z)


def cross_entropy(z, t, lse, p):
    """-t log softmax(z); the targets of a row must sum to one."""
    return t * (lse - z)


def cross_entropy_delta(z, t, lse, p):
    return exp(z - lse) - t


def binary_cross_entropy(z, t, lse, p):
    """-t log s - (1 - t) log(1 - s), s = logistic(z), as softplus(z) - t z in a form that cannot overflow."""
    return elementary.softplus(z) - t * z


def binary_cross_entropy_delta(z, t, lse, p):
    return elementary.logistic(z) - t


@register_jitable
def hinge(z, t, lse, p):
    """max(0, 1 - (2 t - 1) z)."""
    margin = type(z)(1) - (t + t - type(z)(1)) * z
    return type(z)(0) if margin < type(z)(0) else margin


def hinge_delta(z, t, lse, p):
    sign = t + t - type(z)(1)
    return -sign if sign * z < type(z)(1) else type(z)(0)


def squared_hinge(z, t, lse, p):
    margin = hinge(z, t, lse, p)
    return margin * margin


def squared_hinge_delta(z, t, lse, p):
    return type(z)(-2) * (t + t - type(z)(1)) * hinge(z, t, lse, p)


def focal(z, t, lse, p):
    """-t (1 - s)**gamma log s - (1 - t) s**gamma log(1 - s), s = logistic(z): Lin et al. (2017), equation 4."""
    one = type(z)(1)
    log_s, log_rest = -elementary.softplus(-z), -elementary.softplus(z)
    return -t * exp(p * log_rest) * log_s - (one - t) * exp(p * log_s) * log_rest


def focal_delta(z, t, lse, p):
    one = type(z)(1)
    s, rest = elementary.logistic(z), elementary.logistic(-z)
    log_s, log_rest = -elementary.softplus(-z), -elementary.softplus(z)
    hit = exp(p * log_rest) * (p * s * log_s - rest)
    miss = exp(p * log_s) * (s - p * rest * log_rest)
    return t * hit + (one - t) * miss


def gaussian_nll(mean, log_variance, t, p):
    """1/2 (log(v) + (mean - t)**2 / v), v = exp(log_variance) + p: Nix & Weigend (1994). p keeps v above 0."""
    variance = exp(log_variance) + p
    return type(t)(0.5) * (log(variance) + (mean - t) * (mean - t) / variance)


def gaussian_nll_delta(mean, log_variance, t, p):
    variance = exp(log_variance) + p
    slope = (mean - t) / variance
    return slope, type(t)(0.5) * (variance - p) * (type(t)(1) / variance - slope * slope)


def identity_link(z):
    return z


def exp_link(z):
    return np.exp(z)


def logistic_link(z):
    return np.exp(-np.logaddexp(0, -z))


def softmax_link(z):
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def gaussian_link(z):
    predictions = z.copy()
    predictions[:, 1::2] = np.exp(z[:, 1::2])
    return predictions


#: Targets become (1 - label_smoothing) t + label_smoothing / number of classes: Szegedy et al. (2016), section 7.
SMOOTHING = Setting("label_smoothing", 0.0, at_least=0, below=1)

LOSSES = {
    "squared_error": Loss(0, squared_error, squared_error_delta, identity_link),
    "cross_entropy": Loss(1, cross_entropy, cross_entropy_delta, softmax_link, "labels", True, SMOOTHING),
    "binary_cross_entropy": Loss(
        2, binary_cross_entropy, binary_cross_entropy_delta, logistic_link, "binary", setting=SMOOTHING
    ),
    "absolute_error": Loss(3, absolute_error, absolute_error_delta, identity_link),
    "huber": Loss(4, huber, huber_delta, identity_link, setting=Setting("delta", 1.0, above=0)),
    "log_cosh": Loss(5, log_cosh, log_cosh_delta, identity_link),
    "quantile": Loss(6, quantile, quantile_delta, identity_link, setting=Setting("q", 0.5, above=0, below=1)),
    "poisson": Loss(7, poisson, poisson_delta, exp_link, "counts"),
    "gamma": Loss(8, gamma, gamma_delta, exp_link, "positive"),
    "hinge": Loss(9, hinge, hinge_delta, identity_link, "binary"),
    "squared_hinge": Loss(10, squared_hinge, squared_hinge_delta, identity_link, "binary"),
    "focal": Loss(11, focal, focal_delta, logistic_link, "binary", setting=Setting("gamma", 2.0, at_least=0)),
    "gaussian_nll": Loss(
        12, gaussian_nll, gaussian_nll_delta, gaussian_link, setting=Setting("epsilon", 1e-6, at_least=0), pairs=True
    ),
}
