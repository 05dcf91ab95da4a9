"""Elementary functions of one number that LLVM's loop vectoriser widens: exp, log, tanh and their kin.

``math.exp`` in a loop is a call per element. These functions are polynomials, operations on bits and selects,
without a branch or a call, so that a loop around them becomes vector instructions. They take float32 and float64
and return the same, and are called from compiled functions or, with NumPy scalars, from plain Python.

The error is below 4 units in the last place everywhere, subnormal numbers included, but for sin and cos of large
numbers; NaN gives NaN, overflow infinity. No step needs multiplications and additions to be fused, or to be apart.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

# Not left to the first caller. Too long for LLVM to inline unasked, and a call would keep a loop scalar.
OPTIONS = {"error_model": "numpy", "fastmath": False, "forceinline": True}


class Format(NamedTuple):
    """A floating-point type, and constants in this type or in unsigned integers of its width.

    A polynomial is a tuple, from the highest power down: the one with the least largest relative error in the
    function's value, found by Remez' algorithm in multiple precision, its coefficients then rounded.

    Attributes
    ----------
    real, unsigned : type
    shift : unsigned
        How many bits the mantissa has.
    sign, mantissa : unsigned
        Masks of bits.
    one, root_half : unsigned
        The bits of 1 and of sqrt(1/2).
    bias : unsigned
        What the exponent of 1 is stored as.
    smallest : real
        The smallest number that is not subnormal.
    exp_zero, exp_infinity, tanh_one, erf_one : real
        Beyond these, the functions are zero, infinity and one.
    log2_e, ln2_high, ln2_low : real
        log2(e), and log(2) in two parts: the product of ``ln2_high`` and an exponent is exact.
    expm1 : tuple
        (expm1(r) - r) / r**2, for abs(r) <= log(2)/2.
    artanh : tuple
        (2 artanh(s) - 2 s) / s**3 as a polynomial in s**2, for 1/sqrt(2) <= (1 + s)/(1 - s) <= sqrt(2).
    log_erfc : tuple
        log(erfc(z))/z + 1, for 0 <= z <= erf_one.
    half_pi : tuple
        pi/2 in three parts: the products of the first two and an integer that is not large are exact.
    sine, cosine : tuple
        (sin(r) - r) / r**3 and (cos(r) - 1 + r**2/2) / r**4 as polynomials in r**2, for abs(r) <= pi/4.
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
    exp_zero: float
    exp_infinity: float
    tanh_one: float
    erf_one: float
    log2_e: float
    ln2_high: float
    ln2_low: float
    expm1: tuple
    artanh: tuple
    log_erfc: tuple
    half_pi: tuple
    sine: tuple
    cosine: tuple


def _format(real: type, unsigned: type, **numbers) -> Format:
    """Give every constant its type: a bare number would turn the arithmetic into double precision."""
    about = np.finfo(real)
    one, root_half = (int(real(number).view(unsigned)) for number in (1, 0.5**0.5))
    bits = {
        "shift": about.nmant,
        "sign": 1 << (about.bits - 1),
        "mantissa": (1 << about.nmant) - 1,
        "one": one,
        "root_half": root_half,
        "bias": one >> about.nmant,
    }
    numbers |= {"smallest": about.smallest_normal, "log2_e": 1.4426950408889634}
    typed: dict[str, Any] = {name: unsigned(x) for name, x in bits.items()}
    typed |= {name: tuple(map(real, x)) if isinstance(x, tuple) else real(x) for name, x in numbers.items()}
    return Format(real, unsigned, **typed)


FLOAT32 = _format(
    np.float32,
    np.uint32,
    exp_zero=-104,
    exp_infinity=89,
    tanh_one=10,
    erf_one=3.95,
    ln2_high=0.693145751953125,
    ln2_low=1.4286068203094173e-06,
    expm1=(0.001388252, 0.008366527, 0.0416672, 0.16666543, 0.49999997),
    artanh=(0.2987173, 0.39977542, 0.66666776),
    log_erfc=(
        9.256264e-06,
        -0.00011764126,
        0.00063283683,
        -0.0016670274,
        0.00016039603,
        0.019153064,
        -0.10277783,
        -0.6366194,
        -0.12837917,
    ),
    half_pi=(1.5703125, 0.0004837512969970703, 7.549790126404332e-08),
    sine=(-0.00019515218, 0.00833216, -0.16666655),
    cosine=(2.4433082e-05, -0.0013887315, 0.041666646),
)
FLOAT64 = _format(
    np.float64,
    np.uint64,
    exp_zero=-746,
    exp_infinity=710,
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
    artanh=(
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
        -0.12837916709551256,
    ),
    half_pi=(1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21),
    sine=(
        1.5896197635833298e-10,
        -2.5050747218202254e-08,
        2.7557313618017424e-06,
        -0.00019841269829580166,
        0.008333333333322108,
        -0.1666666666666663,
    ),
    cosine=(
        -1.1358513910110192e-11,
        2.0875700415244958e-09,
        -2.75573141762335e-07,
        2.4801587288841377e-05,
        -0.001388888888887304,
        0.041666666666666595,
    ),
)


def generic(make):
    """One function for both types from what makes it for a `Format`."""
    functions = {form.real: make(form) for form in (FLOAT32, FLOAT64)}

    @functools.wraps(functions[np.float32])
    def function(*args):
        return functions[type(args[0])](*args)

    @overload(function, strict=False, jit_options=OPTIONS)
    def choose(*args):
        return functions.get(as_dtype(args[0]).type)

    return function


def polynomial(F, name):
    """A polynomial of z and z**2, the sums of its even and odd powers apart: two short chains, not a long one.

    It is written out because LLVM unrolls a loop over a tuple only while it is short.
    """
    coefficients = {f"c{k}": c for k, c in enumerate(getattr(F, name))}
    terms = list(coefficients)
    parity = len(terms) % 2
    even, odd = (functools.reduce("({}) * square + {}".format, terms[k::2]) for k in (1 - parity, parity))
    function = eval(f"lambda z, square: ({odd}) * z + ({even})", {"__name__": __name__, **coefficients})
    function.__name__ = function.__qualname__ = name  # what its machine code is known by
    return register_jitable(**OPTIONS)(function)


@generic
def split_exponential(F):
    real, unsigned = F.real, F.unsigned
    log2_e, ln2_high, ln2_low = F.log2_e, F.ln2_high, F.ln2_low
    # Added to a small number, rounds it to an integer k and leaves k + 2 bias in the low bits.
    rounder = real(1.5 * 2.0 ** float(F.shift) + 2.0 * float(F.bias))
    quotient = polynomial(F, "expm1")

    def split_exponential(z):
        """For z = k log(2) + r with an integer k: an integer that ends in k + 2 bias, and expm1(r)."""
        rounded = z * log2_e + rounder
        k = rounded - rounder
        r = z - k * ln2_high - k * ln2_low
        square = r * r
        return real(rounded).view(unsigned), r + square * quotient(r, square)

    return split_exponential


@generic
def exp(F):
    real, unsigned, shift, one = F.real, F.unsigned, F.shift, F.unsigned(1)
    lowest, highest = F.exp_zero, F.exp_infinity

    def exp(z):
        """e**z."""
        vanishes = z < lowest
        # Zero by a select: a product that underflows takes longer than all the rest.
        z = real(0) if vanishes else z
        k, p = split_exponential(highest if z > highest else z)
        # 2**k in two factors: one alone reaches neither the subnormal numbers nor the largest.
        low = k >> one
        value = (real(1) + p) * unsigned(low << shift).view(real) * unsigned((k - low) << shift).view(real)
        return real(0) if vanishes else value

    return exp


@generic
def half_expm1(F):
    real, unsigned, shift = F.real, F.unsigned, F.shift
    offset = F.bias + unsigned(1)

    def half_expm1(z):
        """(e**z - 1) / 2, which does not overflow where e**z does, for -40 <= z <= exp_infinity."""
        k, p = split_exponential(z)
        scale = unsigned((k - offset) << shift).view(real)
        return scale * p + (scale - real(0.5))

    return half_expm1


@generic
def expm1(F):
    real = F.real
    lowest, highest = real(-40), F.exp_infinity

    def expm1(z):
        """e**z - 1."""
        z = highest if z > highest else z
        return real(2) * half_expm1(lowest if z < lowest else z)

    return expm1


@generic
def logistic(F):
    real = F.real

    def logistic(z):
        """1 / (1 + e**-z)."""
        e = exp(-abs(z))
        return (e if z < real(0) else real(1)) / (real(1) + e)

    return logistic


@generic
def with_sign(F):
    real, unsigned, sign, rest = F.real, F.unsigned, F.sign, ~F.sign

    def with_sign(size, z):
        """``size`` with the sign of ``z``."""
        bits = (real(size).view(unsigned) & rest) | (real(z).view(unsigned) & sign)
        return unsigned(bits).view(real)

    return with_sign


@generic
def tanh(F):
    real, highest = F.real, F.tanh_one

    def tanh(z):
        """expm1(2 z) / (expm1(2 z) + 2)."""
        size = abs(z)
        size = highest if size > highest else size
        half = half_expm1(size + size)
        return with_sign(half / (half + real(1)), z)

    return tanh


@generic
def erf(F):
    real, highest = F.real, F.erf_one
    quotient = polynomial(F, "log_erfc")

    def erf(z):
        """-expm1(log(erfc(z)))."""
        size = abs(z)
        size = highest if size > highest else size
        log_erfc = size * quotient(size, size * size) - size
        return with_sign(real(-2) * half_expm1(log_erfc), z)

    return erf


@generic
def split_logarithm(F):
    real, unsigned, shift = F.real, F.unsigned, F.shift
    mantissa, root_half = F.mantissa, F.root_half
    # The number 2**shift, whose last bits hold an integer, and what to take away again.
    holder = (F.bias + F.shift) << F.shift
    excess = real(2.0 ** float(F.shift) + float(F.bias))
    offset = F.one - F.root_half

    def split_logarithm(z):
        """For a normal z = 2**k m with sqrt(1/2) <= m < sqrt(2): the numbers k and m."""
        bits = unsigned(real(z).view(unsigned) + offset)
        m = unsigned((bits & mantissa) + root_half).view(real)
        return unsigned((bits >> shift) | holder).view(real) - excess, m

    return split_logarithm


@generic
def join_logarithm(F):
    real, ln2_high, ln2_low = F.real, F.ln2_high, F.ln2_low
    quotient = polynomial(F, "artanh")

    def join_logarithm(k, f):
        """k log(2) + log(1 + f), where log(1 + f) = 2 artanh(s) = f - s f + (2 artanh(s) - 2 s) and s = f/(2 + f)."""
        s = f / (real(2) + f)
        square = s * s
        half = real(0.5) * f * f
        rest = square * quotient(square, square * square)
        return k * ln2_high - ((half - (s * (half + rest) + k * ln2_low)) - f)

    return join_logarithm


@generic
def log(F):
    real, smallest = F.real, F.smallest
    infinity, nan = real(np.inf), real(np.nan)
    scale, exponent = real(2.0 ** float(F.shift)), real(F.shift)

    def log(z):
        """The natural logarithm."""
        k, m = split_logarithm(z * scale if z < smallest else z)
        value = join_logarithm(k - exponent if z < smallest else k, m - real(1))
        value = value if z < infinity else z
        return value if z > real(0) else (-infinity if z == real(0) else nan)

    return log


@generic
def log_of_sum(F):
    real, unsigned = F.real, F.unsigned
    two = F.one + (unsigned(1) << F.shift)

    def log_of_sum(u, lost):
        """log(u + lost), ``lost`` being what u has lost by rounding."""
        k, m = split_logarithm(u)
        # Twice m / u = 2**-k, which itself is no normal number for the largest u.
        scale = unsigned(real(m).view(unsigned) + two - real(u).view(unsigned)).view(real)
        return join_logarithm(k, (m - real(1)) + real(0.5) * lost * scale)

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


@generic
def turned_sine(F):
    real, unsigned, shift = F.real, F.unsigned, F.shift
    one, top = unsigned(1), unsigned(np.finfo(F.real).bits - 1)
    rounder = real(1.5 * 2.0 ** float(shift))
    quarter = real(2 / np.pi)
    high, middle, low = F.half_pi
    odd, even = polynomial(F, "sine"), polynomial(F, "cosine")

    def turned_sine(z, turns):
        """sin(z + turns pi/2)."""
        rounded = z * quarter + rounder
        k = rounded - rounder
        r = z - k * high - k * middle - k * low
        square = r * r
        sine = r + r * square * odd(square, square * square)
        cosine = real(1) - (real(0.5) * square - square * square * even(square, square * square))
        turns = unsigned(real(rounded).view(unsigned) + unsigned(turns))
        value = cosine if turns & one else sine
        flip = unsigned((turns >> one) << top)
        return unsigned(real(value).view(unsigned) ^ flip).view(real)

    return turned_sine


@generic
def sin(F):
    def sin(z):
        """The sine; beyond 2,000 in float32 and 10**5 in float64 it loses digits."""
        return turned_sine(z, 0)

    return sin


@generic
def cos(F):
    def cos(z):
        """The cosine, as exact as `sin`."""
        return turned_sine(z, 1)

    return cos
