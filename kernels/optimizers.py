"""Update rules for one parameter.

``update(theta, grad, slots, h)`` returns the new parameter and its new state ``slots``, a tuple of as many
numbers as the row says. ``h`` holds ``N_SCALARS`` numbers for the whole step, which ``prepare(h, hyper,
learning_rate, step)`` writes in double precision: what can be computed once per step is not computed
per parameter. ``step`` counts updates from 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from numba.extending import register_jitable

N_SCALARS = 6


class Optimizer(NamedTuple):
    """A row of the table."""

    code: int
    n_slots: int
    prepare: Callable
    update: Callable


def sgd_prepare(h, hyper, learning_rate, step):
    h[0] = learning_rate
    h[1] = hyper[0]


def sgd(theta, grad, slots, h):
    return theta - h[0] * grad, slots


def momentum(theta, grad, slots, h):
    """Velocity form of Sutskever et al. (2013), with the learning rate outside, as in PyTorch."""
    v = h[1] * slots[0] + grad
    return theta - h[0] * v, (v,)


def nesterov(theta, grad, slots, h):
    v = h[1] * slots[0] + grad
    return theta - h[0] * (grad + h[1] * v), (v,)


def adam_prepare(h, hyper, learning_rate, step):
    """Bias corrections folded: m_hat/(sqrt(v_hat) + eps) = (m/c1) / (sqrt(v)/sqrt(c2) + eps)."""
    beta1, beta2, epsilon, weight_decay = hyper[0], hyper[1], hyper[2], hyper[3]
    h[0] = learning_rate / (1.0 - beta1**step)
    h[1] = 1.0 - beta1
    h[2] = 1.0 - beta2
    h[3] = 1.0 / math.sqrt(1.0 - beta2**step)
    h[4] = epsilon
    h[5] = learning_rate * weight_decay


@register_jitable
def adam(theta, grad, slots, h):
    """Kingma & Ba (2015), algorithm 1."""
    m = slots[0] + h[1] * (grad - slots[0])
    v = slots[1] + h[2] * (grad * grad - slots[1])
    return theta - h[0] * m / (math.sqrt(v) * h[3] + h[4]), (m, v)


def adamw(theta, grad, slots, h):
    """Loshchilov & Hutter (2019), algorithm 2: the decay acts on theta, not through the moments."""
    return adam(theta - h[5] * theta, grad, slots, h)


OPTIMIZERS = {
    "sgd": Optimizer(0, 0, sgd_prepare, sgd),
    "momentum": Optimizer(1, 1, sgd_prepare, momentum),
    "nesterov": Optimizer(2, 1, sgd_prepare, nesterov),
    "adam": Optimizer(3, 2, adam_prepare, adam),
    "adamw": Optimizer(4, 2, adam_prepare, adamw),
}
