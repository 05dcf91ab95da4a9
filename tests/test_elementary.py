"""Accuracy, special values and vectorisation of the elementary functions."""

from __future__ import annotations

import functools
import math
import platform
import re

import mpmath
import numpy as np
import pytest
from numba import njit

from fastbp.kernels import elementary

LIMIT = 4  # units in the last place
FORMATS = {form.real.__name__: form for form in (elementary.FLOAT32, elementary.FLOAT64)}
EXACT = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "tanh": mpmath.tanh,
    "logistic": lambda z: 1 / (1 + mpmath.exp(-z)),
    "erf": mpmath.erf,
    "softplus": lambda z: max(z, 0) + mpmath.log1p(mpmath.exp(-abs(z))),
    "sin": mpmath.sin,
    "cos": mpmath.cos,
}
DOUBLE = {
    **{name: getattr(np, name) for name in ("exp", "expm1", "log", "log1p", "tanh", "sin", "cos")},
    "logistic": lambda z: np.exp(-np.logaddexp(0, -z)),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "softplus": lambda z: np.logaddexp(0, z),
}
INFINITY, NAN = math.inf, math.nan
SPECIAL = {
    "exp": {-INFINITY: 0, -1e30: 0, 0: 1, 1e30: INFINITY, INFINITY: INFINITY},
    "expm1": {-INFINITY: -1, -1e30: -1, 0: 0, 1e30: INFINITY, INFINITY: INFINITY},
    "log": {-INFINITY: NAN, -1e-40: NAN, 0: -INFINITY, 1: 0, INFINITY: INFINITY},
    "log1p": {-INFINITY: NAN, -1.5: NAN, -1: -INFINITY, 0: 0, INFINITY: INFINITY},
    "tanh": {-INFINITY: -1, -1e30: -1, 0: 0, 1e30: 1, INFINITY: 1},
    "logistic": {-INFINITY: 0, -1e30: 0, 0: 0.5, 1e30: 1, INFINITY: 1},
    "erf": {-INFINITY: -1, -1e30: -1, 0: 0, 1e30: 1, INFINITY: 1},
    "softplus": {-INFINITY: 0, -1e30: 0, 1e30: 1e30, INFINITY: INFINITY},
    "sin": {-INFINITY: NAN, 0: 0, INFINITY: NAN},
    "cos": {-INFINITY: NAN, 0: 1, INFINITY: NAN},
}
#: Beyond these, sin and cos are not exact.
LARGEST = {"float32": 2e3, "float64": 1e5}

each_function = pytest.mark.parametrize("name", EXACT)
each_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


@functools.cache
def compiled_loop(name):
    function = getattr(elementary, name)

    @njit(error_model="numpy", _nrt=False)
    def loop(z, out):
        for i in range(z.size):
            out[i] = function(z[i])

    return loop


def evaluate(name, z):
    out = np.empty_like(z)
    compiled_loop(name)(z, out)
    return out


def in_domain(name, z):
    lowest = {"log": 0, "log1p": -1}.get(name, -INFINITY)
    highest = LARGEST[z.dtype.name] if name in ("sin", "cos") else INFINITY
    return z[np.isfinite(z) & (z > lowest) & (np.abs(z) < highest)]


def draw(rng, name, form, n):
    """Numbers of every size, and more of them wherever a function's formula changes."""
    about = np.finfo(form.real)
    sizes = np.ldexp(rng.uniform(0.5, 1, n), rng.integers(about.minexp - about.nmant, about.maxexp, n))
    k = np.arange(-200, 200)
    places = [
        (k + 0.5) * np.log(2),
        *(sign * 2.0 ** (k / 2.0) for sign in (-1, 1)),
        -1 + 2.0 ** -np.arange(1, 64),
        *(sign * limit for sign in (-1, 1) for limit in (form.exp_zero, form.exp_infinity)),
        *(sign * limit for sign in (-1, 1) for limit in (form.tanh_one, form.tanh_one / 2, form.erf_one)),
    ]
    near = np.concatenate([np.atleast_1d(place) for place in places])
    wide = 1.2 * float(form.exp_infinity)
    z = [sizes, -sizes, near, near * (1 + rng.normal(0, 2 * about.eps, near.size))]
    z += [rng.uniform(-width, width, n) for width in (0.5, 1, 3, wide)]
    z += [limit + rng.uniform(-2, 2, n // 4) for limit in (form.exp_zero, form.exp_infinity)]
    with np.errstate(over="ignore"):
        return in_domain(name, np.concatenate(z).astype(form.real))


def largest_error(actual, exact, rest=0.0):
    """In units in the last place of the exact value, which is ``exact + rest``."""
    with np.errstate(over="ignore"):
        nearest = exact.astype(actual.dtype)
    finite = np.isfinite(nearest)
    np.testing.assert_array_equal(actual[~finite], nearest[~finite])
    with np.errstate(invalid="ignore"):
        error = np.abs(actual.astype(np.float64) - exact - rest)
    return np.max(error[finite] / np.spacing(np.abs(nearest[finite])))


@each_format
@each_function
def test_error_against_multiple_precision(rng, name, form):
    z = draw(rng, name, form, 400)
    with mpmath.workprec(160):
        values = [EXACT[name](mpmath.mpf(float(x))) for x in z]
        exact = [float(value) for value in values]
        rest = [float(value - x) if math.isfinite(x) else 0.0 for value, x in zip(values, exact, strict=True)]
    assert largest_error(evaluate(name, z), np.array(exact), np.array(rest)) < LIMIT


@each_function
def test_error_over_all_of_float32(name):
    z = in_domain(name, np.arange(0, 2**32, 997, dtype=np.uint32).view(np.float32))
    with np.errstate(over="ignore", under="ignore"):
        exact = DOUBLE[name](z.astype(np.float64))
    assert largest_error(evaluate(name, z), exact) < LIMIT


@each_format
@each_function
def test_special_values(name, form):
    z = np.array([*SPECIAL[name], NAN, -NAN], form.real)
    wanted = np.array([*SPECIAL[name].values(), NAN, NAN], form.real)
    np.testing.assert_array_equal(evaluate(name, z), wanted)


@each_format
@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions_are_odd_to_the_last_bit(rng, name, form):
    z = np.append(draw(rng, name, form, 100), form.real(0))
    actual, mirrored = evaluate(name, z), -evaluate(name, -z)
    np.testing.assert_array_equal(actual.view(form.unsigned), mirrored.view(form.unsigned))


@each_format
@each_function
def test_plain_python_gives_the_same(rng, name, form):
    z = np.concatenate([draw(rng, name, form, 20)[::7], np.array([*SPECIAL[name], NAN], form.real)])
    with np.errstate(all="ignore"):
        values = [getattr(elementary, name)(x) for x in z]
    assert {type(value) for value in values} == {form.real}
    np.testing.assert_array_equal(values, evaluate(name, z))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@each_format
@each_function
def test_loops_become_vector_instructions(name, form):
    loop = compiled_loop(name)
    evaluate(name, np.ones(1, form.real))
    signature = next(signature for signature in loop.signatures if signature[0].dtype.name == form.real.__name__)
    # The kernel itself comes first, its wrapper for Python after it.
    assembly = loop.inspect_asm(signature).split(".Lfunc_end0")[0]
    single = form.real is np.float32
    assert re.search(r"\tv?mulps\t" if single else r"\tv?mulpd\t", assembly)
    assert not re.search(r"\tcall", assembly)
    assert not single or not re.search(r"\tv?(add|sub|mul|div|cvt\w*)[ps]d", assembly)
