"""Counter-based random numbers: value = hash(where it is used), with no state to carry.

The same seed therefore gives the same bits on any number of threads and on any device, and a dropout mask
can be made again instead of being stored.
"""

import numpy as np
from numba.extending import register_jitable

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@register_jitable
def mix(x):
    """A bijection of 64-bit integers that scatters them.

    The finaliser of SplitMix64 (Steele, Lea & Flood, 2014, variant 13 of Stafford).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@register_jitable
def fold(key, counter):
    """The key of one more coordinate, so that a place (step, layer, row, column) is hashed one by one."""
    return mix(key + GOLDEN * (np.uint64(counter) + np.uint64(1)))


@register_jitable
def below(bits, bound):
    """An integer in [0, bound) from 64 random bits, for bound < 2**32; the bias is below bound / 2**32."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@register_jitable
def uniform(bits):
    """A number in [0, 1) with 24 bits, exact in every floating-point type."""
    return np.float32(bits >> np.uint64(40)) * np.float32(2.0**-24)


def permute(order, key):
    """Fisher-Yates shuffle of 0, 1, ..., n - 1; each engine compiles it for itself."""
    for i in range(order.size):
        order[i] = i
    for i in range(order.size - 1, 0, -1):
        j = below(fold(key, i), i + 1)
        order[i], order[j] = order[j], order[i]
