"""Activation functions a = f(z) and their derivatives f'(z), both for one number.

A derivative receives z and a = f(z), and uses whichever is cheaper. ``p`` is the function's setting, where it has one.
Names and definitions are PyTorch's, where it has them.
"""

from collections.abc import Callable
from typing import NamedTuple

from numba.extending import register_jitable

from . import elementary
from .problem import Setting


class Activation(NamedTuple):
    """A row of the table: ``value(z, p)`` and ``derivative(z, a, p)``."""

    code: int
    value: Callable
    derivative: Callable
    setting: Setting | None = None


def identity(z, p):
    return z


def identity_derivative(z, a, p):
    return type(z)(1)


def logistic(z, p):
    return elementary.logistic(z)


def logistic_derivative(z, a, p):
    return a * (type(z)(1) - a)


def tanh(z, p):
    return elementary.tanh(z)


def tanh_derivative(z, a, p):
    return type(z)(1) - a * a


def relu(z, p):
    # Written so that NaN stays NaN, here and below: a diverging network must show in its loss.
    return type(z)(0) if z < type(z)(0) else z


def relu_derivative(z, a, p):
    return type(z)(1) if z > type(z)(0) else type(z)(0)


def leaky_relu(z, p):
    return p * z if z < type(z)(0) else z


def leaky_relu_derivative(z, a, p):
    return type(z)(1) if z > type(z)(0) else p


def elu(z, p):
    """Clevert et al. (2016)."""
    return p * elementary.expm1(z) if z < type(z)(0) else z


def elu_derivative(z, a, p):
    return type(z)(1) if z > type(z)(0) else a + p


#: Klambauer et al. (2017), equation 14.
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def selu(z, p):
    return type(z)(SELU_SCALE) * (type(z)(SELU_ALPHA) * elementary.expm1(z) if z < type(z)(0) else z)


def selu_derivative(z, a, p):
    return type(z)(SELU_SCALE) if z > type(z)(0) else a + type(z)(SELU_SCALE * SELU_ALPHA)


def celu(z, p):
    """Barron (2017)."""
    return p * elementary.expm1(z / p) if z < type(z)(0) else z


def celu_derivative(z, a, p):
    return type(z)(1) if z > type(z)(0) else a / p + type(z)(1)


def gelu(z, p):
    """z Phi(z), Phi being the normal distribution function: Hendrycks & Gimpel (2016)."""
    return type(z)(0.5) * z * (type(z)(1) + elementary.erf(z * type(z)(0.7071067811865476)))


def gelu_derivative(z, a, p):
    half = type(z)(0.5)
    distribution = half + half * elementary.erf(z * type(z)(0.7071067811865476))
    return distribution + z * type(z)(0.3989422804014327) * elementary.exp(-half * z * z)


def gelu_tanh(z, p):
    """The approximation of gelu in the same paper."""
    u = type(z)(0.7978845608028654) * (z + type(z)(0.044715) * z * z * z)
    return type(z)(0.5) * z * (type(z)(1) + elementary.tanh(u))


def gelu_tanh_derivative(z, a, p):
    half, one, root, cubic = type(z)(0.5), type(z)(1), type(z)(0.7978845608028654), type(z)(0.044715)
    t = elementary.tanh(root * (z + cubic * z * z * z))
    return half * (one + t) + half * z * (one - t * t) * root * (one + type(z)(3) * cubic * z * z)


def silu(z, p):
    """z logistic(z), also called swish."""
    return z * elementary.logistic(z)


def silu_derivative(z, a, p):
    s = elementary.logistic(z)
    return s + a * (type(z)(1) - s)


@register_jitable
def mish_parts(z):
    """exp(z), n and d with tanh(softplus(z)) = n / d, for z up to where that is 1."""
    e = elementary.exp(type(z)(20) if z > type(z)(20) else z)
    n = e * (e + type(z)(2))
    return e, n, n + type(z)(2)


def mish(z, p):
    """z tanh(softplus(z)): Misra (2019)."""
    _, n, d = mish_parts(z)
    return z * (n / d)


def mish_derivative(z, a, p):
    e, n, d = mish_parts(z)
    return n / d + z * (type(z)(4) * e * (e + type(z)(1)) / (d * d))


def softplus(z, p):
    return elementary.softplus(z)


def softplus_derivative(z, a, p):
    return elementary.logistic(z)


def softsign(z, p):
    return z / (type(z)(1) + abs(z))


def softsign_derivative(z, a, p):
    slope = type(z)(1) / (type(z)(1) + abs(z))
    return slope * slope


@register_jitable
def hard_sigmoid(z, p):
    a = z * type(z)(1 / 6) + type(z)(0.5)
    a = type(z)(0) if a < type(z)(0) else a
    return type(z)(1) if a > type(z)(1) else a


def hard_sigmoid_derivative(z, a, p):
    return type(z)(1 / 6) if abs(z) < type(z)(3) else type(z)(0)


def hard_swish(z, p):
    """Howard et al. (2019)."""
    return z * hard_sigmoid(z, p)


def hard_swish_derivative(z, a, p):
    slope = z * type(z)(1 / 3) + type(z)(0.5)
    slope = type(z)(0) if z < type(z)(-3) else slope
    return type(z)(1) if z > type(z)(3) else slope


def relu6(z, p):
    a = type(z)(0) if z < type(z)(0) else z
    return type(z)(6) if a > type(z)(6) else a


def relu6_derivative(z, a, p):
    return type(z)(1) if z > type(z)(0) and z < type(z)(6) else type(z)(0)


def sine(z, p):
    """sin(omega z): Sitzmann et al. (2020)."""
    return elementary.sin(p * z)


def sine_derivative(z, a, p):
    return p * elementary.cos(p * z)


ACTIVATIONS = {
    "identity": Activation(0, identity, identity_derivative),
    "logistic": Activation(1, logistic, logistic_derivative),
    "tanh": Activation(2, tanh, tanh_derivative),
    "relu": Activation(3, relu, relu_derivative),
    "leaky_relu": Activation(4, leaky_relu, leaky_relu_derivative, Setting("negative_slope", 0.01, at_least=0)),
    "elu": Activation(5, elu, elu_derivative, Setting("alpha", 1.0, above=0)),
    "selu": Activation(6, selu, selu_derivative),
    "celu": Activation(7, celu, celu_derivative, Setting("alpha", 1.0, above=0)),
    "gelu": Activation(8, gelu, gelu_derivative),
    "gelu_tanh": Activation(9, gelu_tanh, gelu_tanh_derivative),
    "silu": Activation(10, silu, silu_derivative),
    "mish": Activation(11, mish, mish_derivative),
    "softplus": Activation(12, softplus, softplus_derivative),
    "softsign": Activation(13, softsign, softsign_derivative),
    "hard_sigmoid": Activation(14, hard_sigmoid, hard_sigmoid_derivative),
    "hard_swish": Activation(15, hard_swish, hard_swish_derivative),
    "relu6": Activation(16, relu6, relu6_derivative),
    "sine": Activation(17, sine, sine_derivative, Setting("omega", 30.0, above=0)),
}
