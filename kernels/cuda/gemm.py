"""Products of matrices by tiles: a thread block goes through the depth of a product in slices that it brings into
shared memory, the next one while it multiplies the last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from numba import int64

from .compat import SIMULATED, cuda, device_function, numba_type
from .layout import VECTOR
from .ptx import load4, store, store4

#: Rows of a slice start in different banks of shared memory.
PAD = 4


class Tile(NamedTuple):
    """What a block computes, ``rows`` by ``columns``, in slices of ``depth``; each thread has VECTOR times ``groups``
    rows, and as many columns.
    """

    rows: int
    columns: int
    depth: int
    groups: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // self.n_sums

    @property
    def n_sums(self) -> int:
        """Numbers that each thread computes."""
        return (VECTOR * self.groups) ** 2

    @property
    def shared(self) -> int:
        """Numbers in shared memory: two slices of each operand."""
        return 2 * self.depth * (self.rows + self.columns + 2 * PAD)

    def product(self, dtype, left_along: bool, right_along: bool, with_ones: bool = False) -> Product:
        """Device functions of products by this tile; the arguments are those of `make_product`."""
        return make_product(dtype, self, left_along, right_along, with_ones)


#: By the size of a number: for products that give every multiprocessor its blocks, and for smaller ones.
TILES = {4: (Tile(128, 128, 8, 2), Tile(32, 32, 16, 1)), 8: (Tile(64, 64, 16, 1), Tile(32, 32, 16, 1))}
#: The same for the fused step, whose layers are narrow.
FUSED_TILES = {4: (Tile(128, 64, 8, 2), Tile(32, 32, 16, 1)), 8: (Tile(64, 64, 16, 1), Tile(32, 32, 16, 1))}
if SIMULATED:
    TILES = FUSED_TILES = dict.fromkeys((4, 8), (Tile(8, 8, 4, 1), Tile(8, 8, 4, 1)))


class Product(NamedTuple):
    """Device functions for one tile.

    Attributes
    ----------
    accumulate : callable
        ``accumulate(sums, shared, left, right, begin, end, thread)`` sets a thread's ``sums`` to those of products over
        the depth from ``begin`` to ``end``.
    part : callable
        ``part(sums, shared, k, thread)`` brings the ``k``-th of ``n_parts`` parts of the tile into shared memory, for
        all threads to finish.
    place : callable
        ``place(k, i)`` is the row and the column of number ``i`` of that part, of ``part_size``.
    """

    accumulate: Callable
    part: Callable
    place: Callable
    n_parts: int
    part_size: int


@cache
def make_product(dtype, tile: Tile, left_along: bool, right_along: bool, with_ones: bool = False) -> Product:
    """The product of ``left`` (rows, depth) and ``right`` (depth, columns).

    An operand is a tuple: array, start, stride, first row or column of the tile, bound of these, order, whether the
    sample that a row holds is found by ``order``, where the first of these is, and, for ``with_ones``, which row of
    ``left`` is all ones. It lies row after row, and a row goes along the depth, or, if ``along``, along the tile.

    Preconditions: starts and strides are multiples of VECTOR; what follows ``bound`` up to there is zero.
    """
    real = numba_type(dtype)
    threads, depth, size = tile.threads, tile.depth, VECTOR * tile.groups
    across, groups = tile.columns // size, tile.groups
    down = tile.rows // size
    left_line, right_line = tile.rows + PAD, tile.columns + PAD
    right_start = 2 * depth * left_line
    n_parts = 1 << (-(-tile.rows * tile.columns // tile.shared) - 1).bit_length()
    part_rows = size // n_parts

    def side(lines: int, along: bool, ones: bool, start: int) -> Side:
        find, fetch, vectors = make_fetch(dtype, lines, depth, threads, along, ones)
        return Side(find, fetch, _make_put(lines, tile, vectors, along), vectors, start, depth * (lines + PAD))

    def multiply(sums, shared, from_left, from_right, thread):
        a, b = cuda.local.array(size, real), cuda.local.array(size, real)
        from_left += thread // across * VECTOR
        from_right += thread % across * VECTOR
        for _ in range(depth):
            for g in range(groups):
                lanes = load4(shared, from_left + g * (tile.rows // groups))
                for j in range(VECTOR):
                    a[g * VECTOR + j] = lanes[j]
                lanes = load4(shared, from_right + g * (tile.columns // groups))
                for j in range(VECTOR):
                    b[g * VECTOR + j] = lanes[j]
            for i in range(size):
                for j in range(size):
                    sums[i * size + j] += a[i] * b[j]
            from_left += left_line
            from_right += right_line

    accumulate = make_accumulate(
        dtype,
        tile.n_sums,
        depth,
        side(tile.rows, left_along, with_ones, 0),
        side(tile.columns, right_along, False, right_start),
        device_function(multiply),
    )

    def part(sums, shared, k, thread):
        row, column = thread // across, thread % across * VECTOR
        cuda.syncthreads()
        for i in range(size):
            if i // part_rows == k:
                line = (i % part_rows * down + row) * tile.columns + column
                for g in range(groups):
                    for j in range(VECTOR):
                        store(shared, line + g * (tile.columns // groups) + j, sums[i * size + g * VECTOR + j])
        cuda.syncthreads()

    def place(k, i):
        line = i // tile.columns
        own = k * part_rows + line // down
        row = own // VECTOR * (tile.rows // groups) + line % down * VECTOR + own % VECTOR
        return row, i % tile.columns

    return Product(
        accumulate,
        device_function(part),
        device_function(place),
        n_parts,
        part_rows * down * tile.columns,
    )


class Side(NamedTuple):
    """One operand's device functions and memory: what `make_fetch` gives, ``put(shared, start, stage, thread)`` that
    brings what was fetched into shared memory, where its two slices begin there, and how many numbers each has.
    """

    find: Callable
    fetch: Callable
    put: Callable
    vectors: int
    start: int
    size: int


def make_accumulate(dtype, n_sums: int, depth: int, left_side: Side, right_side: Side, multiply: Callable) -> Callable:
    """`Product.accumulate` by slices of so many numbers in depth, the next one fetched while the last is in work.

    ``multiply(sums, shared, from_left, from_right, thread)`` adds the products of a slice.
    """
    real, zero = numba_type(dtype), dtype.type(0)
    find_left, fetch_left, put_left, vectors_left, left_start, left_size = left_side
    find_right, fetch_right, put_right, vectors_right, right_start, right_size = right_side
    n_left, n_right = vectors_left * VECTOR, vectors_right * VECTOR

    def accumulate(sums, shared, left, right, begin, end, thread):
        stage_left, stage_right = cuda.local.array(n_left, real), cuda.local.array(n_right, real)
        at_left, at_right = cuda.local.array(vectors_left, int64), cuda.local.array(vectors_right, int64)
        for i in range(n_sums):
            sums[i] = zero
        find_left(at_left, left, thread)
        find_right(at_right, right, thread)
        cuda.syncthreads()
        fetch_left(stage_left, left, at_left, begin, end, thread)
        fetch_right(stage_right, right, at_right, begin, end, thread)
        put_left(shared, left_start, stage_left, thread)
        put_right(shared, right_start, stage_right, thread)
        cuda.syncthreads()
        turn = 0
        for k in range(begin, end, depth):
            if k + depth < end:
                fetch_left(stage_left, left, at_left, k + depth, end, thread)
                fetch_right(stage_right, right, at_right, k + depth, end, thread)
            multiply(sums, shared, left_start + turn * left_size, right_start + turn * right_size, thread)
            turn = 1 - turn
            if k + depth < end:
                put_left(shared, left_start + turn * left_size, stage_left, thread)
                put_right(shared, right_start + turn * right_size, stage_right, thread)
            cuda.syncthreads()

    return device_function(accumulate)


@cache
def make_fetch(
    dtype, lines: int, depth: int, threads: int, along: bool, with_ones: bool = False, run: int = 1
) -> tuple[Callable, Callable, int]:
    """Functions for one operand, and how many vectors of a slice each thread has: ``find`` says where they start in the
    array, as far as the depth does not matter, and ``fetch`` brings them into registers.

    A thread's vectors come in runs of so many that follow each other in depth; its run ``q`` is number ``thread + q *
    threads`` of the slice, row after row as the operand lies.
    """
    zero, one = dtype.type(0), dtype.type(1)
    vectors = lines * depth // VECTOR // threads
    in_row = lines // VECTOR if along else depth // VECTOR // run
    if vectors % run or vectors * threads * VECTOR != lines * depth:
        raise ValueError(f"{threads} threads cannot share out {lines} by {depth} numbers")

    def find_along(at, operand, thread):
        first = operand[3]
        for q in range(vectors):
            at[q] = first + (thread + q // run * threads) % in_row * VECTOR

    def find_across(at, operand, thread):
        _, start, stride, first, bound, order, ordered, position, _ = operand
        for q in range(vectors):
            row = first + (thread + q // run * threads) // in_row
            at[q] = -1
            if row < bound:
                if ordered:
                    row = order[position + row]
                at[q] = start + row * stride

    def fetch_along(stage, operand, at, k, end, thread):
        array, start, stride, _, bound, order, ordered, position, ones = operand
        for q in range(vectors):
            row, column = k + (thread + q // run * threads) // in_row * run + q % run, at[q]
            for j in range(VECTOR):
                stage[q * VECTOR + j] = zero
            if row < end:
                if column < bound:
                    if ordered:
                        row = order[position + row]
                    lanes = load4(array, start + row * stride + column)
                    for j in range(VECTOR):
                        stage[q * VECTOR + j] = lanes[j]
                if with_ones:
                    for j in range(VECTOR):
                        if column + j == ones:
                            stage[q * VECTOR + j] = one

    def fetch_across(stage, operand, at, k, end, thread):
        for q in range(vectors):
            column = k + ((thread + q // run * threads) % in_row * run + q % run) * VECTOR
            for j in range(VECTOR):
                stage[q * VECTOR + j] = zero
            if at[q] >= 0 and column < end:
                lanes = load4(operand[0], at[q] + column)
                for j in range(VECTOR):
                    stage[q * VECTOR + j] = lanes[j]

    find, fetch = (find_along, fetch_along) if along else (find_across, fetch_across)
    return device_function(find), device_function(fetch), vectors


def _make_put(lines: int, tile: Tile, vectors: int, along: bool) -> Callable:
    """A function that brings what `make_fetch` has fetched into shared memory, transposed if the operand does not lie
    along the tile.
    """
    threads, line = tile.threads, lines + PAD
    in_row = (lines if along else tile.depth) // VECTOR

    def put(shared, start, stage, thread):
        for q in range(vectors):
            number = thread + q * threads
            place = q * VECTOR
            if along:
                lanes = stage[place], stage[place + 1], stage[place + 2], stage[place + 3]
                store4(shared, start + number // in_row * line + number % in_row * VECTOR, lanes)
            else:
                for j in range(VECTOR):
                    store(shared, start + (number % in_row * VECTOR + j) * line + number // in_row, stage[place + j])

    return device_function(put)
