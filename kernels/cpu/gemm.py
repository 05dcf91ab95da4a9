"""Products made of register tiles: of panels, and of lines of samples with single numbers."""

from itertools import product

from .jit import routine
from .simd import VECTORS, Shape, line_size, make_tile, tile_code


def _shapes(heights, panels, ones=(False,)):
    return [Shape(*shape) for shape in product(heights, panels, ones)]


def _halves(largest):
    """1, 2, 4, ... up to ``largest``, which is one of them."""
    return [1 << k for k in range(largest.bit_length())]


ROW_HEIGHTS = tuple(height for height in (VECTORS.rows, 2 * VECTORS.rows // 3, VECTORS.rows // 3) if height)
PANELS = range(VECTORS.panels, 0, -1)
#: A tile of a gradient must not cross a panel's edge.
COLUMN_HEIGHTS = (VECTORS.columns, VECTORS.columns // 2)
#: Sizes of the tiles of a gradient with samples in the lanes.
BLOCK_ROWS, BLOCK_PANELS = ((size, size // 2) for size in VECTORS.block)

#: Panels of so many lines or more may come from beyond L2: they are fetched while those before them are multiplied.
FAR_DEPTH = 512


def make_product(start, finish):
    """Make ``multiply(a, b, c, depth, n_rows, n_panels)``: C = A B for a block of rows.

    ``a = (array, start, panel stride)`` and ``c`` alike are row blocks in panels; ``b = (array, start, panel stride)``
    is weights in panels with ``depth`` lines each; the ones that lie behind them are what is wanted next. ``start`` and
    ``finish`` are those of ``make_tile``.
    Rows up to the next multiple of the lowest tile are computed too: their memory must exist.
    """
    tile = make_tile(_shapes(ROW_HEIGHTS, PANELS), "row", start, finish)
    tallest, lowest = ROW_HEIGHTS[0], ROW_HEIGHTS[-1]
    widest = VECTORS.panels

    def multiply(a, b, c, depth, n_rows, n_panels):
        a_array, a_start, a_panel = a
        b_array, b_start, b_panel = b
        c_array, c_start, c_panel = c
        width = line_size(a_array)
        behind, fetch = 0, 0
        if depth >= FAR_DEPTH:  # as much by row that all of it has come with the last one
            behind, fetch = widest * b_panel, min(width, (widest * width * tallest + n_rows - 1) // n_rows)
        for panel in range(0, n_panels, widest):
            panels = min(widest, n_panels - panel)
            first, ahead, row = b_start + panel * b_panel, behind, 0
            while row < n_rows:
                left = (n_rows - row + lowest - 1) // lowest * lowest
                height = min(tallest, left)
                rows = (a_array, a_start + row * width, a_panel)
                weights = (b_array, first, width * width, b_panel, ahead, fetch)
                out = (c_array, c_start + panel * c_panel + row * width, c_panel)
                tile(tile_code(height, panels, False), rows, weights, out, depth, width)
                row += height
                ahead += fetch * depth

    return routine(multiply, f"{start}, {finish}")


#: a^T delta, and with a row of ones the sum of delta.
column_tile = make_tile(_shapes(COLUMN_HEIGHTS, PANELS, ones=(True, False)), "column", "zero", "store")


def make_unit_product(start, finish):
    """Make ``multiply(a, b, c, depth, n_rows, n_lines)``: C = A B with samples in the lanes of B and C.

    ``a = (array, start, row, term)`` says how far it is to A's next row and term, ``b = (array, start, stride)`` and
    ``c = (array, start, stride)`` where rows of ``n_lines`` contiguous lines lie, and how far apart. ``start`` and
    ``finish`` are those of ``make_tile``.
    """
    tallest, widest, single = VECTORS.units, VECTORS.lines, VECTORS.single
    shapes = {*_shapes(_halves(tallest), _halves(widest)), *_shapes(_halves(single), [1])}
    tile = make_tile(sorted(shapes), "unit", start, finish)

    def multiply(a, b, c, depth, n_rows, n_lines):
        a_array, a_start, a_row, a_term = a
        b_array, b_start, b_stride = b
        c_array, c_start, c_stride = c
        width = line_size(b_array)
        line, lines = 0, widest
        while line < n_lines:
            while lines > n_lines - line:
                lines //= 2
            # One line needs a high tile to keep the multipliers busy, which takes longer to set up.
            row, height = 0, single if lines == 1 and depth > single else tallest
            while row < n_rows:
                while height > n_rows - row:
                    height //= 2
                factors = (a_array, a_start + row * a_row, a_row, a_term)
                samples = (b_array, b_start + line * width, b_stride)
                out = (c_array, c_start + row * c_stride + line * width, c_stride)
                tile(tile_code(height, lines, False), factors, samples, out, depth, depth)
                row += height
            line += lines

    return routine(multiply, f"{start}, {finish}")


#: a delta^T of lines of samples, and with a row of ones the sum of delta.
sample_tile = make_tile(_shapes(BLOCK_ROWS, BLOCK_PANELS, ones=(False, True)), "sample", "zero", "sum")
