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


def momentum_of_steps(theta, grad, slots, h):
    """The same with the learning rate inside, as in scikit-learn and Keras."""
    v = h[1] * slots[0] - h[0] * grad
    return theta + v, (v,)


def nesterov_of_steps(theta, grad, slots, h):
    v = h[1] * slots[0] - h[0] * grad
    return theta + h[1] * v - h[0] * grad, (v,)


@register_jitable
def bias_correction(beta, step):
    """1 - beta**step, without the power where it is below exp(-40), and the difference is 1."""
    return 1.0 if step * (1.0 - beta) > 40.0 else 1.0 - beta**step


@register_jitable
def adam_prepare(h, hyper, learning_rate, step):
    """Bias corrections folded: m_hat/(sqrt(v_hat) + eps) = (m/c1) / (sqrt(v)/sqrt(c2) + eps).

    An epsilon below 0 is added to sqrt(v) instead, as in scikit-learn.
    """
    beta1, beta2, epsilon, weight_decay = hyper[0], hyper[1], hyper[2], hyper[3]
    h[0] = learning_rate / bias_correction(beta1, step)
    h[1] = 1.0 - beta1
    h[2] = 1.0 - beta2
    h[3] = 1.0 / math.sqrt(bias_correction(beta2, step))
    h[4] = epsilon if epsilon > 0.0 else -epsilon * h[3]
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


def amsgrad(theta, grad, slots, h):
    """Reddi et al. (2018), algorithm 2, with Adam's bias corrections, as in PyTorch."""
    m = slots[0] + h[1] * (grad - slots[0])
    v = slots[1] + h[2] * (grad * grad - slots[1])
    highest = max(slots[2], v)
    return theta - h[5] * theta - h[0] * m / (math.sqrt(highest) * h[3] + h[4]), (m, v, highest)


def nadam_prepare(h, hyper, learning_rate, step):
    """Dozat (2016), algorithm 8: mu_t = beta1 (1 - 0.96**(0.004 t) / 2), whose product corrects the bias."""
    adam_prepare(h, hyper, learning_rate, step)
    decay = 0.96 ** hyper[3]
    power, product = 1.0, 1.0
    for _ in range(step):
        power *= decay
        product *= hyper[0] * (1.0 - 0.5 * power)
        if product < 1e-20:
            break
    mu = hyper[0] * (1.0 - 0.5 * decay**step)
    following = hyper[0] * (1.0 - 0.5 * decay ** (step + 1))
    h[0] = learning_rate * (1.0 - mu) / (1.0 - product)
    h[5] = learning_rate * following / (1.0 - product * following)


def nadam(theta, grad, slots, h):
    m = slots[0] + h[1] * (grad - slots[0])
    v = slots[1] + h[2] * (grad * grad - slots[1])
    return theta - (h[0] * grad + h[5] * m) / (math.sqrt(v) * h[3] + h[4]), (m, v)


def radam_prepare(h, hyper, learning_rate, step):
    """Liu et al. (2020), algorithm 2: while the variance of the step is unknown, momentum alone."""
    adam_prepare(h, hyper, learning_rate, step)
    decayed = hyper[1] ** step
    longest = 2.0 / (1.0 - hyper[1]) - 1.0
    length = longest - 2.0 * step * decayed / (1.0 - decayed)
    h[3], h[5] = 0.0, 1.0
    if length > 5.0:
        ratio = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        h[3], h[5] = math.sqrt(ratio * (1.0 - decayed)), 0.0


def radam(theta, grad, slots, h):
    m = slots[0] + h[1] * (grad - slots[0])
    v = slots[1] + h[2] * (grad * grad - slots[1])
    return theta - h[0] * m * (h[3] / (math.sqrt(v) + h[4]) + h[5]), (m, v)


def lion_prepare(h, hyper, learning_rate, step):
    h[0] = learning_rate
    h[1], h[2] = 1.0 - hyper[0], 1.0 - hyper[1]
    h[5] = learning_rate * hyper[2]


def lion(theta, grad, slots, h):
    """Chen et al. (2023), algorithm 2."""
    m, zero = slots[0], type(grad)(0)
    direction = m + h[1] * (grad - m)
    sign = (h[0] if direction > zero else zero) - (h[0] if direction < zero else zero)
    return theta - h[5] * theta - sign, (m + h[2] * (grad - m),)


def adagrad_prepare(h, hyper, learning_rate, step):
    h[0] = learning_rate
    h[4] = hyper[0]


def adagrad(theta, grad, slots, h):
    """Duchi et al. (2011)."""
    v = slots[0] + grad * grad
    return theta - h[0] * grad / (math.sqrt(v) + h[4]), (v,)


def adadelta_prepare(h, hyper, learning_rate, step):
    h[0] = learning_rate
    h[2] = 1.0 - hyper[0]
    h[4] = hyper[1]


def adadelta(theta, grad, slots, h):
    """Zeiler (2012), algorithm 1."""
    v = slots[0] + h[2] * (grad * grad - slots[0])
    change = math.sqrt(slots[1] + h[4]) / math.sqrt(v + h[4]) * grad
    return theta - h[0] * change, (v, slots[1] + h[2] * (change * change - slots[1]))


def rmsprop_prepare(h, hyper, learning_rate, step):
    h[0] = learning_rate
    h[2] = 1.0 - hyper[0]
    h[4] = hyper[1]
    h[1] = hyper[2]


def rmsprop(theta, grad, slots, h):
    """Hinton (2012), lecture 6.5."""
    v = slots[0] + h[2] * (grad * grad - slots[0])
    return theta - h[0] * grad / (math.sqrt(v) + h[4]), (v,)


def rmsprop_momentum(theta, grad, slots, h):
    v = slots[0] + h[2] * (grad * grad - slots[0])
    velocity = h[1] * slots[1] + grad / (math.sqrt(v) + h[4])
    return theta - h[0] * velocity, (v, velocity)


def rmsprop_centered(theta, grad, slots, h):
    """Graves (2013), equations 38 to 40: the variance of the gradient in place of its mean square."""
    v = slots[0] + h[2] * (grad * grad - slots[0])
    mean = slots[2] + h[2] * (grad - slots[2])
    variance = max(v - mean * mean, type(grad)(0))
    velocity = h[1] * slots[1] + grad / (math.sqrt(variance) + h[4])
    return theta - h[0] * velocity, (v, velocity, mean)


OPTIMIZERS = {
    "sgd": Optimizer(0, 0, sgd_prepare, sgd),
    "momentum": Optimizer(1, 1, sgd_prepare, momentum),
    "nesterov": Optimizer(2, 1, sgd_prepare, nesterov),
    "adam": Optimizer(3, 2, adam_prepare, adam),
    "adamw": Optimizer(4, 2, adam_prepare, adamw),
    "amsgrad": Optimizer(5, 3, adam_prepare, amsgrad),
    "nadam": Optimizer(6, 2, nadam_prepare, nadam),
    "radam": Optimizer(7, 2, radam_prepare, radam),
    "lion": Optimizer(8, 1, lion_prepare, lion),
    "adagrad": Optimizer(9, 1, adagrad_prepare, adagrad),
    "adadelta": Optimizer(10, 2, adadelta_prepare, adadelta),
    "rmsprop": Optimizer(11, 1, rmsprop_prepare, rmsprop),
    "rmsprop_momentum": Optimizer(12, 2, rmsprop_prepare, rmsprop_momentum),
    "rmsprop_centered": Optimizer(13, 3, rmsprop_prepare, rmsprop_centered),
    "momentum_of_steps": Optimizer(14, 1, sgd_prepare, momentum_of_steps),
    "nesterov_of_steps": Optimizer(15, 1, sgd_prepare, nesterov_of_steps),
}
