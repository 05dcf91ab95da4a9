"""Activation functions a = f(z) and their derivatives f'(z), both for one number.

A derivative receives z and a = f(z), and uses whichever is cheaper.
"""

from collections.abc import Callable
from typing import NamedTuple

from . import elementary


class Activation(NamedTuple):
    """A row of the table: ``value(z)`` and ``derivative(z, a)``."""

    code: int
    value: Callable
    derivative: Callable


def identity(z):
    return z


def identity_derivative(z, a):
    return type(z)(1)


def logistic(z):
    return elementary.logistic(z)


def logistic_derivative(z, a):
    return a * (type(z)(1) - a)


def tanh(z):
    return elementary.tanh(z)


def tanh_derivative(z, a):
    return type(z)(1) - a * a


def relu(z):
    # Written so that NaN stays NaN: a diverging network must show in its loss.
    return type(z)(0) if z < type(z)(0) else z


def relu_derivative(z, a):
    return type(z)(1) if z > type(z)(0) else type(z)(0)


ACTIVATIONS = {
    "identity": Activation(0, identity, identity_derivative),
    "logistic": Activation(1, logistic, logistic_derivative),
    "tanh": Activation(2, tanh, tanh_derivative),
    "relu": Activation(3, relu, relu_derivative),
}
