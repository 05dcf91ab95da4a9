"""Products of panels, made of register tiles."""

from itertools import product

from .jit import routine
from .simd import VECTORS, Shape, line_size, make_tile, tile_code


def _shapes(heights, ones=(False,)):
    return [Shape(*shape) for shape in product(heights, range(VECTORS.panels, 0, -1), ones)]


ROW_HEIGHTS = tuple(height for height in (VECTORS.rows, 2 * VECTORS.rows // 3, VECTORS.rows // 3) if height)
#: A tile of a gradient must not cross a panel's edge.
COLUMN_HEIGHTS = (VECTORS.columns, VECTORS.columns // 2)


def make_product(start, finish):
    """Make ``multiply(a, b, c, depth, n_rows, n_panels)``: C = A B for a block of rows.

    ``a = (array, start, panel stride)`` and ``c`` alike are row blocks in panels; ``b = (array, start, panel stride)``
    is weights in panels with ``depth`` lines each. ``start`` and ``finish`` are those of ``make_tile``.
    Rows up to the next multiple of the lowest tile are computed too: their memory must exist.
    """
    tile = make_tile(_shapes(ROW_HEIGHTS), "row", start, finish)
    tallest, lowest = ROW_HEIGHTS[0], ROW_HEIGHTS[-1]
    widest = VECTORS.panels

    def multiply(a, b, c, depth, n_rows, n_panels):
        a_array, a_start, a_panel = a
        b_array, b_start, b_panel = b
        c_array, c_start, c_panel = c
        width = line_size(a_array)
        for panel in range(0, n_panels, widest):
            panels = min(widest, n_panels - panel)
            weights = (b_array, b_start + panel * b_panel, width * width, b_panel)
            row = 0
            while row < n_rows:
                left = (n_rows - row + lowest - 1) // lowest * lowest
                height = min(tallest, left)
                rows = (a_array, a_start + row * width, a_panel)
                out = (c_array, c_start + panel * c_panel + row * width, c_panel)
                tile(tile_code(height, panels, False), rows, weights, out, depth, width)
                row += height

    return routine(multiply, f"{start}, {finish}")


#: a^T delta, and with a row of ones the sum of delta.
column_tile = make_tile(_shapes(COLUMN_HEIGHTS, ones=(True, False)), "column", "zero", "store")
