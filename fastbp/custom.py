"""Activations and losses of the user's own, fused into the kernels like built-in ones."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher
from numba.core.errors import NumbaError

from .kernels.losses import Loss as Row
from .kernels.losses import identity_link
from .kernels.problem import Custom

#: Where derivatives are checked: numbers at which nobody puts a kink.
PLACES = np.linspace(-3.9, 3.8, 29) + 0.01 * np.sqrt(2)
STEP = 1e-6
#: Largest error of a derivative, relative to its size or 1.
TOLERANCE = 1e-5


class DerivativeError(ValueError):
    """A derivative that the user gave is not that of the function."""


def compiled(name: str, function: Any) -> Callable:
    """A function of the user's as Numba compiles it on first use.

    Raises
    ------
    TypeError
    """
    if not isinstance(function, (FunctionType, Dispatcher)):
        raise TypeError(f"{name} must be a Python function, plain or compiled by numba.njit, it is {function!r}")
    return function if isinstance(function, Dispatcher) else njit(error_model="numpy")(function)


def reason(problem: Exception) -> str:
    """The one of a compiler's many lines that says what is wrong: its second, or the only one."""
    return str(problem).splitlines()[:2][-1]


def _check(name: str, value: Callable, derivative: Callable, *others: float) -> None:
    """Compare a derivative by the first argument with central differences; raises DerivativeError."""
    worst, place = 0.0, 0.0
    for z in PLACES.tolist():
        try:
            slope = (value(z + STEP, *others) - value(z - STEP, *others)) / (2 * STEP)
            error = abs(derivative(z, *others) - slope) / max(1.0, abs(slope))
        except (NumbaError, TypeError) as problem:
            raise TypeError(
                f"{name} does not compile as a function of {1 + len(others)} numbers: {reason(problem)}"
            ) from problem
        if not error <= worst:  # NaN included
            worst, place = error, z
    if not worst <= TOLERANCE:
        at = f"z = {place:.3g}" + "".join(f", t = {t:g}" for t in others)
        raise DerivativeError(f"{name}'s derivative differs from a finite difference by {worst:.3g} at {at}")


class Activation:
    """An activation of one's own: ``MLP(..., activation=Activation(value, derivative))``.

    It is compiled on first use in every process, and a network with it cannot be saved.

    Parameters
    ----------
    value, derivative : callable
        f(z) and f'(z) for one number, plain Python or compiled by ``numba.njit``.

    Raises
    ------
    TypeError
        If they cannot be compiled.
    DerivativeError
        If ``derivative`` is not that of ``value``, by finite differences.
    """

    def __init__(self, value: Callable, derivative: Callable):
        self._row = Custom(compiled("value", value), compiled("derivative", derivative))
        _check("activation", *self._row)


class Loss:
    """A loss of one's own, summed over outputs and averaged over samples: ``MLP(..., loss=Loss(value, derivative))``.

    It is compiled on first use in every process, and a network with it cannot be saved.

    Parameters
    ----------
    value, derivative : callable
        The loss of one output z for the real target t, and its derivative by z: functions of (z, t), plain Python or
        compiled by ``numba.njit``.
    link : callable, optional
        NumPy function from outputs (n_samples, n_out) to predictions of the same shape; None leaves them as they are.

    Raises
    ------
    TypeError
        If they cannot be compiled, or ``link`` cannot be called.
    DerivativeError
        If ``derivative`` is not that of ``value``, by finite differences.
    """

    def __init__(self, value: Callable, derivative: Callable, link: Callable | None = None):
        if link is not None and not callable(link):
            raise TypeError(f"link must be a function of an array, or None, it is {link!r}")
        self._row = Custom(compiled("value", value), compiled("derivative", derivative))
        for t in (0.3, 1.7):
            _check("loss", *self._row, t)
        self._table_row = Row(0, *self._row, identity_link if link is None else link)
