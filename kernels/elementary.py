"""Elementary functions of one number that LLVM's loop vectoriser widens: exp, log, tanh and their kin.

``math.exp`` in a loop is one library call per element. These functions have no branch and no call, only
polynomials, bit operations and selects, so a loop around them becomes vector instructions. They are generic in
the type, float32 or float64, and can be called from any compiled function or from plain Python with a NumPy
scalar. Every step is correct whether or not the compiler fuses multiplications with additions; flags that let it
reassociate are off here whatever the caller's.

Errors stay below 4 units in the last place over each type's whole range, subnormal numbers included. NaN
propagates; overflow and the logarithm of zero give infinity.

The coefficients are minimax polynomials in the relative error of the function's value, found by Remez' algorithm in
multiple precision and rounded to the type.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype


class Format(NamedTuple):
    """A floating-point type, and constants for it; polynomials are tuples from the highest power down.

    Attributes
    ----------
    real, unsigned : type
        The type, and the unsigned integers of its width.
    shift : int
        Bits of the mantissa that are stored.
    sign, mantissa, one, root_half : int
        Bits: of the sign, of the mantissa, and of the numbers 1 and sqrt(1/2).
    bias : int
        Of the exponent.
    smallest : real
        The smallest normal number.
    log_zero, log_infinity : real
        Where exp is surely zero and infinity.
    tanh_one, erf_one : real
        Where the functions are surely 1.
    log2_e, ln2_high, ln2_low : real
        ``ln2_high`` has so many trailing zeros that its product with any exponent is exact.
    expm1 : tuple
        (expm1(r) - r) / r**2 for abs(r) <= log(2)/2.
    log : tuple
        (2 artanh(s) - 2 s) / s**3, of s**2, for s up to (sqrt(2) - 1)/(sqrt(2) + 1).
    log_erfc : tuple
        log(erfc(z)) / z up to ``erf_one``.
    """

    real: type
    unsigned: type
    shift: int
    sign: int
    mantissa: int
    one: int
    root_half: int
    bias: int
    smallest: float
    log_zero: float
    log_infinity: float
    tanh_one: float
    erf_one: float
    log2_e: float
    ln2_high: float
    ln2_low: float
    expm1: tuple
    log: tuple
    log_erfc: tuple


OPTIONS = {"error_model": "numpy", "fastmath": False, "forceinline": True}


def _format(real: type, unsigned: type, **numbers) -> Format:
    """Give every constant its type: a bare one would turn the arithmetic into double precision."""
    information = np.finfo(real)
    one, root_half = (int(real(number).view(unsigned)) for number in (1, 0.5**0.5))
    integers = {
        "shift": information.nmant,
        "sign": 1 << (information.bits - 1),
        "mantissa": (1 << information.nmant) - 1,
        "one": one,
        "root_half": root_half,
        "bias": one >> information.nmant,
    }
    numbers |= {"smallest": information.smallest_normal, "log2_e": 1.4426950408889634}
    return Format(
        real,
        unsigned,
        **{name: unsigned(value) for name, value in integers.items()},
        **{
            name: tuple(real(c) for c in value) if isinstance(value, tuple) else real(value)
            for name, value in numbers.items()
        },
    )


FLOAT32 = _format(
    np.float32,
    np.uint32,
    log_zero=-104,
    log_infinity=89,
    tanh_one=10,
    erf_one=3.95,
    ln2_high=0.693145751953125,
    ln2_low=1.4286068203094173e-06,
    expm1=(0.001388252, 0.008366527, 0.0416672, 0.16666543, 0.49999997),
    log=(0.2987173, 0.39977542, 0.66666776),
    log_erfc=(
        9.256264e-06,
        -0.00011764126,
        0.00063283683,
        -0.0016670274,
        0.00016039603,
        0.019153064,
        -0.10277783,
        -0.6366194,
        -1.1283792,
    ),
)
FLOAT64 = _format(
    np.float64,
    np.uint64,
    log_zero=-746,
    log_infinity=710,
    tanh_one=20,
    erf_one=5.95,
    ln2_high=0.6931471805598903,
    ln2_low=5.497923018708371e-14,
    expm1=(
        2.505377378895169e-08,
        2.762605163774217e-07,
        2.7557407582879586e-06,
        2.480150524101087e-05,
        0.0001984126971892811,
        0.001388888893159041,
        0.008333333333389599,
        0.04166666666657668,
        0.16666666666666588,
        0.5000000000000006,
    ),
    log=(
        0.14795949605652337,
        0.15314050565984208,
        0.18183564325358167,
        0.22222198573204674,
        0.28571428742387356,
        0.3999999999941468,
        0.6666666666666734,
    ),
    log_erfc=(
        3.5925723052641054e-15,
        -1.615028161213125e-13,
        3.3646527407315093e-12,
        -4.302144554513656e-11,
        3.761003631375289e-10,
        -2.3606885334194128e-09,
        1.0774132377214033e-08,
        -3.4587574933455535e-08,
        6.574101065195872e-08,
        1.1691962611487852e-08,
        -5.70604247282256e-07,
        2.037149493345144e-06,
        -3.1329198233218167e-06,
        -3.1697074055613008e-06,
        2.957569033593724e-05,
        -6.442048283847875e-05,
        -2.590449595195403e-05,
        0.0005901324291674583,
        -0.0016962076696831485,
        0.00020919485389926554,
        0.019128446993096692,
        -0.10277260330131553,
        -0.6366197723675909,
        -1.1283791670955126,
    ),
)


def polynomial(c):
    """The function of z and z**2 that sums the even and the odd powers apart: two short chains, not a long one.

    The sum is written out because LLVM unrolls a loop over a tuple only while it is short.
    """

    def nested(first):
        return functools.reduce(lambda p, k: f"({p}) * square + c[{k}]", range(first + 2, len(c), 2), f"c[{first}]")

    odd, even = (nested(first) for first in (len(c) % 2, 1 - len(c) % 2))
    return register_jitable(**OPTIONS)(eval(f"lambda z, square: ({odd}) * z + ({even})", {"c": c}))


def generic(make):
    """One function for all types from what makes it for a `Format`."""
    functions = {form.real: make(form) for form in (FLOAT32, FLOAT64)}

    @functools.wraps(functions[np.float32])
    def function(*args):
        return functions[type(args[0])](*args)

    @overload(function, strict=False, jit_options=OPTIONS)
    def choose(*args):
        return functions.get(as_dtype(args[0]).type)

    return function


@generic
def split_exponential(F):
    real, unsigned = F.real, F.unsigned
    # Adding this rounds to an integer and leaves it, plus 2 bias, in the low bits.
    rounder = real(1.5 * 2.0 ** float(F.shift) + 2 * float(F.bias))
    sum_of_powers = polynomial(F.expm1)

    def split_exponential(z):
        """For z = k log(2) + r with an integer k: bits that end in k + 2 bias, and expm1(r)."""
        rounded = z * F.log2_e + rounder
        k = rounded - rounder
        r = z - k * F.ln2_high - k * F.ln2_low
        square = r * r
        return real(rounded).view(unsigned), r + square * sum_of_powers(r, square)

    return split_exponential


@generic
def exp(F):
    real, unsigned = F.real, F.unsigned
    half = unsigned(1)

    def exp(z):
        """e**z."""
        z = F.log_infinity if z > F.log_infinity else z
        z = F.log_zero if z < F.log_zero else z
        k, p = split_exponential(z)
        # 2**k as a product of two: a single factor reaches neither subnormal results nor the largest.
        low = k >> half
        high = k - low
        return (real(1) + p) * unsigned(low << F.shift).view(real) * unsigned(high << F.shift).view(real)

    return exp


@generic
def half_expm1(F):
    real, unsigned = F.real, F.unsigned
    offset = unsigned(F.bias + unsigned(1))

    def half_expm1(z):
        """(e**z - 1) / 2 without overflow, for z from -40 to ``log_infinity``."""
        k, p = split_exponential(z)
        scale = unsigned((k - offset) << F.shift).view(real)
        return scale * p + (scale - real(0.5))

    return half_expm1


@generic
def expm1(F):
    real = F.real

    def expm1(z):
        """e**z - 1."""
        z = F.log_infinity if z > F.log_infinity else z
        z = real(-40) if z < real(-40) else z
        return real(2) * half_expm1(z)

    return expm1


@generic
def with_sign(F):
    real, unsigned = F.real, F.unsigned

    def with_sign(value, z):
        """``value`` with the sign of ``z``."""
        bits = (real(value).view(unsigned) & ~F.sign) | (real(z).view(unsigned) & F.sign)
        return unsigned(bits).view(real)

    return with_sign


@generic
def tanh(F):
    real = F.real

    def tanh(z):
        """expm1(2 z) / (expm1(2 z) + 2)."""
        size = abs(z)
        size = F.tanh_one if size > F.tanh_one else size
        half = half_expm1(size + size)
        return with_sign(half / (half + real(1)), z)

    return tanh


@generic
def logistic(F):
    real = F.real

    def logistic(z):
        """1 / (1 + e**-z)."""
        e = exp(-abs(z))
        return (e if z < real(0) else real(1)) / (real(1) + e)

    return logistic


@generic
def erf(F):
    real = F.real
    sum_of_powers = polynomial(F.log_erfc)

    def erf(z):
        """The error function, as -expm1(log(erfc(z)))."""
        size = abs(z)
        size = F.erf_one if size > F.erf_one else size
        return with_sign(real(-2) * half_expm1(size * sum_of_powers(size, size * size)), z)

    return erf


@generic
def split_logarithm(F):
    real, unsigned = F.real, F.unsigned
    # An integer k in the low bits of this is the number 2**shift + k.
    holder = unsigned((F.bias + F.shift) << F.shift)
    zero = real(2.0 ** float(F.shift) + float(F.bias))
    offset = unsigned(F.one - F.root_half)

    def split_logarithm(z):
        """For normal z = 2**k m, with sqrt(1/2) <= m < sqrt(2): the numbers k and m."""
        bits = unsigned(real(z).view(unsigned) + offset)
        m = unsigned((bits & F.mantissa) + F.root_half).view(real)
        return unsigned((bits >> F.shift) | holder).view(real) - zero, m

    return split_logarithm


@generic
def join_logarithm(F):
    real = F.real
    sum_of_powers = polynomial(F.log)

    def join_logarithm(k, f):
        """k log(2) + log(1 + f), by log(1 + f) = 2 artanh(s) with s = f / (2 + f)."""
        s = f / (real(2) + f)
        square = s * s
        rest = square * sum_of_powers(square, square * square)
        half = real(0.5) * f * f
        return k * F.ln2_high - ((half - (s * (half + rest) + k * F.ln2_low)) - f)

    return join_logarithm


@generic
def log(F):
    real = F.real
    infinity, nan = real(np.inf), real(np.nan)
    up = real(2.0 ** float(F.shift))
    by = real(F.shift)

    def log(z):
        """The natural logarithm."""
        k, m = split_logarithm(z * up if z < F.smallest else z)
        value = join_logarithm(k - by if z < F.smallest else k, m - real(1))
        value = value if z < infinity else z
        return value if z > real(0) else (-infinity if z == real(0) else nan)

    return log


@generic
def log_of_sum(F):
    real, unsigned = F.real, F.unsigned

    def log_of_sum(u, lost):
        """log(u + lost), where ``lost`` is what u has lost by rounding."""
        k, m = split_logarithm(u)
        scale = unsigned(real(m).view(unsigned) + F.one - real(u).view(unsigned)).view(real)
        return join_logarithm(k, (m - real(1)) + lost * scale)

    return log_of_sum


@generic
def log1p(F):
    real = F.real
    infinity, nan = real(np.inf), real(np.nan)

    def log1p(z):
        """log(1 + z)."""
        u = real(1) + z
        one = u - z
        value = log_of_sum(u, (real(1) - one) + (z - (u - one)))
        value = value if z < infinity else z
        return value if z > real(-1) else (-infinity if z == real(-1) else nan)

    return log1p


@generic
def softplus(F):
    real = F.real

    def softplus(z):
        """log(1 + e**z)."""
        e = exp(-abs(z))
        u = real(1) + e
        return (real(0) if z < real(0) else z) + log_of_sum(u, e - (u - real(1)))

    return softplus
