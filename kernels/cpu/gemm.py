"""Products made of register tiles: of panels, and of lines of samples with single numbers."""

import itertools

from numba.extending import register_jitable
from numba.types import UniTuple, int64

from .jit import Hook, routine
from .simd import FINISHES, LINE_BYTES, STORE, VECTORS, Shape, array_at, line_size, make_tile, tile_code


def _shapes(heights, panels, ones=(False,)):
    return [Shape(*shape) for shape in itertools.product(heights, panels, ones)]


def _halves(largest):
    """1, 2, 4, ... up to ``largest``, which is one of them."""
    return [1 << k for k in range(largest.bit_length())]


ROW_HEIGHTS = tuple(height for height in (VECTORS.rows, 2 * VECTORS.rows // 3, VECTORS.rows // 3) if height)
PANELS = range(VECTORS.panels, 0, -1)
#: A tile of a gradient must not cross a panel's edge.
COLUMN_HEIGHTS = (VECTORS.columns, VECTORS.columns // 2)
#: Sizes of the tiles of a gradient with samples in the lanes.
BLOCK_ROWS, BLOCK_PANELS = ((size, size // 2) for size in VECTORS.block)

#: L1 keeps 16 KB of the panels of a tile while rows go by, so many terms of their sums: longer ones are interrupted,
#: and go on when all rows have come so far.
NEAR_TERMS = (1 << 14) // (LINE_BYTES * VECTORS.panels)
#: L2 keeps so much of a block of rows while all panels go by: longer sums are interrupted there too.
BLOCK_BYTES = 1 << 19
#: Panels of so many lines or more may come from beyond L2, or from another core's: they are fetched while those before
#: them are multiplied.
FAR_DEPTH = 128

row_tile = make_tile(_shapes(ROW_HEIGHTS, PANELS), "row", FINISHES)
_UNIT_SHAPES = {
    *_shapes(_halves(VECTORS.units), _halves(VECTORS.lines)),
    *_shapes(_halves(VECTORS.single), [1]),
}
unit_tile = make_tile(sorted(_UNIT_SHAPES), "unit", FINISHES)


def _places(*sizes):
    """Types of an address and what follows it, so many words in all."""
    return [UniTuple(int64, size) for size in sizes]


@routine
def _multiply_rows(a, b, s, c, depth, n_rows, panels):
    """`product` of so many terms that L1 keeps B.

    ``b`` goes on with how far it is to what is wanted next, as much as B, or 0 for nothing.
    """
    a_array, a_start, a_panel = a
    b_array, b_start, b_panel, ahead = b
    s_array, s_start, s_row, s_panel = s
    c_array, c_start, c_panel, finish, guide = c
    width = line_size(a_array)
    tallest, lowest = ROW_HEIGHTS[0], ROW_HEIGHTS[-1]
    # So much with each term that all of what comes next is there when the last row has been multiplied.
    fetch = min(width, (VECTORS.panels * width * tallest + n_rows - 1) // n_rows) if ahead else 0
    row = 0
    while row < n_rows:
        left = (n_rows - row + lowest - 1) // lowest * lowest
        height = min(left, tallest if left != tallest + lowest else 2 * lowest)
        rows = (a_array, a_start + row * width, a_panel)
        weights = (b_array, b_start, width * width, b_panel, ahead, fetch)
        begin = (s_array, s_start + row * s_row, s_row, s_panel)
        out = (c_array, c_start + row * width, c_panel, finish, guide)
        row_tile(tile_code(height, panels, False), rows, weights, begin, out, depth, width)
        row += height
        ahead += fetch * depth


@register_jitable
def terms_at_once(depth, n_rows, width):
    """How many terms of a sum over ``depth`` `product` should be given at once, for rows in lines of ``width``."""
    row_bytes = n_rows * (LINE_BYTES // width)
    if depth * row_bytes <= BLOCK_BYTES:
        return depth
    return max(NEAR_TERMS, BLOCK_BYTES // row_bytes // NEAR_TERMS * NEAR_TERMS)


def product(a, b, s, part, c, depth, n_rows, panels, number):
    """C = S + A B for a block of rows and the panels of one tile, or fewer.

    ``a = (address, panel stride)`` is a block of rows in panels; ``b = (address, panel stride)`` is as many weights as
    the sums have terms, in panels behind which there are those that are wanted next; ``s = (address, row, panel)`` says
    how far it is to S's next row and panel. ``part = (address, panel stride)``, which holds sums that are to go on, and
    ``c = (address, panel stride, finish, guide)`` lie like A; see `make_tile`. Rows up to the next multiple of the
    lowest tile are computed too: their memory must exist. ``number`` is any of the type of all.
    """
    (a_at, a_panel), (b_at, b_panel), (s_at, s_row, s_panel), (part_at, part_panel) = a, b, s, part
    c_at, c_panel, finish, guide = c
    a_array, b_array, part_array = array_at(a_at, 0, number), array_at(b_at, 0, number), array_at(part_at, 0, number)
    s, c = (array_at(s_at, 0, number), 0, s_row, s_panel), (array_at(c_at, 0, number), 0, c_panel, finish, guide)
    width = line_size(a_array)
    step, begin, k = depth, s, 0
    if depth > NEAR_TERMS:
        pieces = (depth + NEAR_TERMS - 1) // NEAR_TERMS
        step = ((depth + pieces - 1) // pieces + width - 1) // width * width
    while k < depth:
        terms = min(step, depth - k)
        rows = a_array, k // width * a_panel, a_panel
        ahead = 0
        if depth >= FAR_DEPTH:
            over, line = divmod(VECTORS.panels * k, depth)
            ahead = (VECTORS.panels + over) * b_panel + (line - k) * width
        weights = b_array, k * width, b_panel, ahead
        out = (part_array, 0, part_panel, STORE, 0) if k + terms < depth else c
        _multiply_rows(rows, weights, begin, out, terms, n_rows, panels)
        begin = part_array, 0, width, part_panel
        k += terms


PRODUCT = Hook(product, lambda real: (*_places(2, 2, 3, 2, 4), int64, int64, int64, real))

#: S + a^T delta, and with a row of ones S + the sum of delta.
column_tile = make_tile(_shapes(COLUMN_HEIGHTS, PANELS, ones=(True, False)), "column", ("store",))


def unit_product(a, b, s, c, depth, n_rows, n_lines, number):
    """C = S + A B with samples in the lanes of B and C.

    ``a = (address, row, term)`` says how far it is to A's next row and term, ``s = (address, row)`` to S's next row,
    which is a single number; ``b = (address, stride)`` and ``c = (address, stride, finish, guide)`` say where rows of
    ``n_lines`` contiguous lines lie, and how far apart. For the rest see `make_tile`; ``number`` is any of the type of
    all.
    """
    (a_at, a_row, a_term), (b_at, b_stride), (s_at, s_row), (c_at, c_stride, finish, guide) = a, b, s, c
    a_array, b_array = array_at(a_at, 0, number), array_at(b_at, 0, number)
    s_array, c_array = array_at(s_at, 0, number), array_at(c_at, 0, number)
    width = line_size(b_array)
    line, lines = 0, VECTORS.lines
    while line < n_lines:
        while lines > n_lines - line:
            lines //= 2
        # One line needs a high tile to keep the multipliers busy, which takes longer to set up.
        row, height = 0, VECTORS.single if lines == 1 and depth > VECTORS.single else VECTORS.units
        while row < n_rows:
            while height > n_rows - row:
                height //= 2
            factors = a_array, row * a_row, a_row, a_term
            samples = b_array, line * width, b_stride
            out = c_array, row * c_stride + line * width, c_stride, finish, guide
            code = tile_code(height, lines, False)
            unit_tile(code, factors, samples, (s_array, row * s_row, s_row), out, depth, depth)
            row += height
        line += lines


UNIT_PRODUCT = Hook(unit_product, lambda real: (*_places(3, 2, 2, 4), int64, int64, int64, real))
call_product, call_unit_product = PRODUCT.call, UNIT_PRODUCT.call

#: a delta^T of lines of samples, and with a row of ones the sum of delta.
sample_tile = make_tile(_shapes(BLOCK_ROWS, BLOCK_PANELS, ones=(False, True)), "sample", ("sum",))
