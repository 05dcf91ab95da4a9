"""Products of float32 matrices by tensor cores, which round the operands to tf32 or bf16 and add up in float32.

They go by tiles and slices as in ``gemm.py``. In shared memory a slice consists of words (``ptx.py``), and each warp of
the block multiplies fragments of it.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from .compat import SIMULATED, cuda, device_function, numba_type
from .gemm import Product, Side, make_accumulate, make_fetch
from .layout import VECTOR
from .ptx import (
    COLUMNS,
    ROWS,
    WARP,
    WORDS,
    load,
    mma_bf16,
    mma_tf32,
    place_a,
    place_b,
    place_c,
    store,
    store4,
    to_bf16x2,
    to_tf32,
)

#: A slice has a line for each word, and a lane reads word lane % 4 of row or column lane // 4 of a fragment: where each
#: line starts 8 banks after the last one, no two lanes of a warp share a bank.
PAD = 8
#: Numbers of a fragment of the result.
FRAGMENT = ROWS * COLUMNS


class TensorTile(NamedTuple):
    """What a block computes, ``rows`` by ``columns``, in slices of ``depth`` words; each warp has ``warp_rows`` by
    ``warp_columns`` of it. ``precision`` is a key of PRECISIONS.
    """

    precision: str
    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // self.n_sums

    @property
    def n_sums(self) -> int:
        """Numbers that each thread computes."""
        return self.warp_rows * self.warp_columns // WARP

    @property
    def shared(self) -> int:
        """Words in shared memory: two slices of each operand."""
        return 2 * self.depth * (self.rows + self.columns + 2 * PAD)

    def product(self, dtype, left_along: bool, right_along: bool, with_ones: bool = False) -> Product:
        return make_tensor_product(dtype, self, left_along, right_along, with_ones)


class Precision(NamedTuple):
    """How many numbers a word has, the device function ``word(stage, i, step)`` that makes one from numbers ``i`` and
    ``i + step`` of an array, and the product of fragments.
    """

    numbers: int
    word: Callable
    mma: Callable


PRECISIONS = {
    "tf32": Precision(1, device_function(lambda stage, i, step: to_tf32(stage[i])), mma_tf32),
    "bf16": Precision(2, device_function(lambda stage, i, step: to_bf16x2(stage[i], stage[i + step])), mma_bf16),
}

#: By precision: for products that give every multiprocessor its blocks, and for smaller ones.
TENSOR_TILES = {
    name: (TensorTile(name, 128, 128, 16, 64, 32), TensorTile(name, 64, 64, 16, 32, 32)) for name in PRECISIONS
}
if SIMULATED:
    TENSOR_TILES = {name: 2 * (TensorTile(name, 16, 8, 16, 16, 8),) for name in PRECISIONS}

place_a, place_b, place_c = device_function(place_a), device_function(place_b), device_function(place_c)


@cache
def make_tensor_product(
    dtype, tile: TensorTile, left_along: bool, right_along: bool, with_ones: bool = False
) -> Product:
    """As `make_product`, for float32.

    A thread's sums are its numbers of its warp's fragments, 4 of each, row after row of fragments. A part of the tile
    in shared memory is one fragment after the other, warp by warp, each row after row: 8 columns are 32 bytes, which is
    what global memory is read and written by.
    """
    real = numba_type(dtype)
    numbers, _, mma = PRECISIONS[tile.precision]
    threads, depth, slice_depth = tile.threads, tile.depth, tile.depth * numbers
    left_line, right_line = tile.rows + PAD, tile.columns + PAD
    right_start = 2 * depth * left_line
    down, across = tile.warp_rows // ROWS, tile.warp_columns // COLUMNS
    warps_across = tile.columns // tile.warp_columns
    n_a, n_b = 4 * down, 2 * across
    n_parts = 1 << (-(-tile.rows * tile.columns // tile.shared) - 1).bit_length()
    part_down = down // n_parts

    def side(lines: int, along: bool, ones: bool, start: int) -> Side:
        find, fetch, vectors = make_fetch(dtype, lines, slice_depth, threads, along, ones, numbers)
        return Side(find, fetch, _make_put(lines, tile, vectors, along), vectors, start, depth * (lines + PAD))

    def multiply(sums, shared, from_left, from_right, thread):
        a, b = cuda.local.array(n_a, real), cuda.local.array(n_b, real)
        warp, lane = thread // WARP, thread % WARP
        from_left += warp // warps_across * tile.warp_rows
        from_right += warp % warps_across * tile.warp_columns
        for _ in range(0, depth, WORDS):
            for r in range(4):
                row, word = place_a(lane, r)
                for m in range(down):
                    a[m * 4 + r] = load(shared, from_left + word * left_line + m * ROWS + row)
            for r in range(2):
                word, column = place_b(lane, r)
                for n in range(across):
                    b[n * 2 + r] = load(shared, from_right + word * right_line + n * COLUMNS + column)
            for m in range(down):
                of_a = a[m * 4], a[m * 4 + 1], a[m * 4 + 2], a[m * 4 + 3]
                for n in range(across):
                    i = (m * across + n) * 4
                    own = mma(of_a, (b[n * 2], b[n * 2 + 1]), (sums[i], sums[i + 1], sums[i + 2], sums[i + 3]))
                    for r in range(4):
                        sums[i + r] = own[r]
            from_left += WORDS * left_line
            from_right += WORDS * right_line

    accumulate = make_accumulate(
        dtype,
        tile.n_sums,
        slice_depth,
        side(tile.rows, left_along, with_ones, 0),
        side(tile.columns, right_along, False, right_start),
        device_function(multiply),
    )

    def part(sums, shared, k, thread):
        row, column = place_c(thread % WARP, 0)  # to which each number adds the same, whatever the lane
        start = thread // WARP * part_down * across * FRAGMENT + row * COLUMNS + column
        cuda.syncthreads()
        for m in range(down):
            if m // part_down == k:
                for n in range(across):
                    for r in range(4):
                        row, column = place_c(0, r)
                        i = (m % part_down * across + n) * FRAGMENT + row * COLUMNS + column
                        store(shared, start + i, sums[(m * across + n) * 4 + r])
        cuda.syncthreads()

    def place(k, i):
        fragment = i // FRAGMENT
        m, n = k * part_down + fragment // across % part_down, fragment % across
        warp = fragment // across // part_down
        row = warp // warps_across * tile.warp_rows + m * ROWS + i % FRAGMENT // COLUMNS
        return row, warp % warps_across * tile.warp_columns + n * COLUMNS + i % COLUMNS

    return Product(
        accumulate,
        device_function(part),
        device_function(place),
        n_parts,
        tile.rows * tile.columns // n_parts,
    )


def _make_put(lines: int, tile: TensorTile, vectors: int, along: bool) -> Callable:
    """A function that makes words of what `make_fetch` has fetched, four from each run of vectors, and brings them into
    shared memory.

    Word ``w`` of a slice is line ``w % 4 * (depth // 4) + w // 4``. Any order would do that both operands share; in
    this one a warp's lanes put their words into different banks, also where each of them has four in depth.
    """
    threads, line = tile.threads, lines + PAD
    numbers, word, _ = PRECISIONS[tile.precision]
    in_depth = tile.depth // VECTOR
    in_row = lines // VECTOR if along else in_depth
    # How far apart the numbers of a word are, and the words' first numbers.
    step, stride = (VECTOR, 1) if along else (1, numbers)

    def put(shared, start, stage, thread):
        for q in range(vectors // numbers):
            i = q * numbers * VECTOR
            row, own = (thread + q * threads) // in_row, (thread + q * threads) % in_row
            if along:
                words = (
                    word(stage, i, step),
                    word(stage, i + stride, step),
                    word(stage, i + 2 * stride, step),
                    word(stage, i + 3 * stride, step),
                )
                store4(shared, start + (row % VECTOR * in_depth + row // VECTOR) * line + own * VECTOR, words)
            else:
                for j in range(VECTOR):
                    store(shared, start + (j * in_depth + own) * line + row, word(stage, i + j * stride, step))

    return device_function(put)
