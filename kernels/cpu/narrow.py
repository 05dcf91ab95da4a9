"""Both phases of a network of narrow layers: samples are the lanes, so that no width leaves any of them idle.

What is computed row by row has the bits that it has in panels. A gradient is summed over lanes, in another order, or
from delta in panels, which takes no sums over lanes, but more multiply-adds where units do not fill them; or for some
units one way and for the others the other.
"""

import numpy as np

from .delta import output_delta, times_derivative
from .forward import call_activate, is_rectified, take_columns, transpose_square
from .gemm import BLOCK_PANELS, BLOCK_ROWS, column_tile, make_unit_product, sample_tile
from .gradient import LOW, TALL, WIDE, make_gradient
from .jit import embedded, inlined
from .layers import fill
from .layout import ACTIVATE_AT, ACTIVATION, IN_PANELS, N_IN, N_OUT, NODE_IN, NODE_OUT, NODE_PANELS, W, n_panels
from .simd import RECTIFY, STORE, address_of, copy_line, line_size, tile_code, view
from .team import barrier

product_plus_bias = make_unit_product("bias", ("store", "rectify"))
product_times_derivative = make_unit_product("zero", ("multiply", "pass"))


@inlined
def gather(data, work, start, first, n_rows, thread):
    """Turn the samples at positions ``first`` to ``first + n_rows`` into the lines at ``a[start]``.

    The last one is repeated to the end of its lines: whatever becomes of it is finite if the network's outputs are.
    """
    width, columns = line_size(work.a), work.columns[thread][0]
    for row in range(0, n_rows, width):
        take_columns(data.X, data, first + row, width, first + n_rows - 1, work.square[thread], columns)
        for k in range(data.X.shape[1]):
            copy_line(((columns, k * width), (work.a, start + k * work.block_rows + row)))


@embedded
def forward(network, parameters, data, work, block, first, position, n_rows, training, thread):
    """Take samples ``first + position`` to ``first + position + n_rows`` through all layers; see `forward.forward`."""
    width, block_rows = line_size(work.a), work.block_rows
    start, n_lines = block * work.block_size, n_panels(n_rows, line_size(work.a))
    gather(data, work, start, first + position, n_rows, thread)
    for depth in range(len(network.layers)):
        layer = network.layers[depth]
        n_out, out = layer[N_OUT], start + layer[NODE_OUT] * block_rows
        rectifies = is_rectified(network, depth)
        product_plus_bias(
            (parameters.W, layer[W], 1, n_out),
            (work.a, start + layer[NODE_IN] * block_rows, block_rows),
            (work.a, out, block_rows, RECTIFY if rectifies else STORE, np.int64(0)),
            layer[N_IN],
            n_out,
            n_lines,
        )
        if layer[ACTIVATE_AT] and not rectifies:
            size = (n_out - 1) * block_rows + n_lines * width
            setting = work.a.dtype.type(network.setting[depth])
            places = address_of(work.a, out), address_of(work.delta, out)
            call_activate(layer[ACTIVATE_AT], (layer[ACTIVATION], *places, size, setting, training))


@embedded
def delta(network, parameters, work, block, n_rows):
    """Take a block's delta back through all layers, without that of the inputs, and into panels; see `delta.delta`."""
    width, start, block_rows = line_size(work.a), block * work.block_size, work.block_rows
    for depth in range(len(network.layers) - 1, -1, -1):
        layer = network.layers[depth]
        n_out, out = layer[N_OUT], start + layer[NODE_OUT] * block_rows
        panels = start + layer[NODE_PANELS] * block_rows
        for column in range(0, layer[IN_PANELS], width):
            lines, panel = out + column * block_rows, panels + column * block_rows
            for row in range(0, n_rows, width):
                count, line = n_out - column, panel + row * width
                transpose_square(work.delta, lines + row, block_rows, count, work.delta, line)
        if depth > 0:
            finish, guide = times_derivative(network, work, depth - 1)
            product_times_derivative(
                (parameters.W, layer[W], n_out, 1),
                (work.delta, out, block_rows),
                (work.delta, start + layer[NODE_IN] * block_rows, block_rows, finish, guide),
                n_out,
                layer[N_IN],
                n_panels(n_rows, width),
            )


@inlined
def sum_lanes(layer, work, base, n_rows, first, last, with_bias, strip):
    """`sum_samples` for units that are not in panels: samples are in the lanes, which are summed at the end."""
    width, n_out, block_rows = line_size(work.a), layer[N_OUT], work.block_rows
    (tallest, lowest), (widest, narrowest) = BLOCK_ROWS, BLOCK_PANELS
    n_samples, done = n_panels(n_rows, width) * width, layer[IN_PANELS]
    for row in range(first, last, tallest):
        ones = with_bias & (row + tallest >= last)
        height = tallest if last - row > lowest else lowest
        for column in range(done + (n_out - done - 1) // widest * widest, done - 1, -widest):
            across = widest if n_out - column > narrowest else narrowest
            sample_tile(
                tile_code(height, across, ones),
                (work.a, base + (layer[NODE_IN] + row) * block_rows, block_rows, work.block_size),
                (work.delta, base + (layer[NODE_OUT] + column) * block_rows, block_rows, work.block_size),
                (),
                (strip, (row - first) * n_out + column, n_out, (last - row) * n_out),
                n_samples,
                block_rows,
            )


@inlined
def sum_panels(layer, work, base, n_rows, first, last, with_bias, strip):
    """`sum_samples` for units that are in panels."""
    width, n_out, block_rows = line_size(work.a), layer[N_OUT], work.block_rows
    across = n_panels(layer[IN_PANELS], width)
    for row in range(first, last, TALL):
        ones = with_bias & (row + TALL >= last)
        height = TALL if last - row > LOW else LOW
        for panel in range((across - 1) // WIDE * WIDE, -1, -WIDE):
            panels, column = min(WIDE, across - panel), panel * width
            column_tile(
                tile_code(height, panels, ones),
                (work.a, base + (layer[NODE_IN] + row) * block_rows, block_rows, 1, work.block_size),
                (work.delta, base + (layer[NODE_PANELS] + column) * block_rows, work.block_size, block_rows * width),
                (),
                (strip, (row - first) * n_out + column, n_out, width, (last - row) * n_out),
                n_rows,
                block_rows,
            )


@inlined
def sum_samples(network, parameters, layer, work, base, n_rows, group, first, last, with_bias, fetch, strip):
    """Sum rows ``first`` to ``last`` of grad_W, and maybe grad_b, into a strip.

    Tiles go over the ends of rows into the next one, and are written in the order that mends this: last units first.
    """
    if layer[IN_PANELS] < layer[N_OUT]:
        sum_lanes(layer, work, base, n_rows, first, last, with_bias, strip)
    if layer[IN_PANELS] > 0:
        sum_panels(layer, work, base, n_rows, first, last, with_bias, strip)
    width, size = line_size(work.a), (last - first + with_bias) * layer[N_OUT]
    fill(view(strip, size, n_panels(size, width) * width - size), strip.dtype.type(0))


gradient = make_gradient(sum_samples, "narrow")


@inlined
def take_chunk(network, parameters, data, work, optimizer, penalties, rows, key, scale, into, share):
    """Take rows ``begin`` to ``end`` of an update through both phases; see `epoch.take_chunk`."""
    (l1, l2), (base, first, begin, end), (part, n_parts, thread) = penalties, rows, share
    block_rows = work.block_rows
    for block in range(part, (end - begin + block_rows - 1) // block_rows, n_parts):
        position = begin + block * block_rows
        n_rows = min(block_rows, end - position)
        forward(network, parameters, data, work, base + block, first, position, n_rows, np.int64(1), thread)
        output_delta(network, data, work, base + block, first, position, n_rows, scale, thread)
        delta(network, parameters, work, base + block, n_rows)
    barrier(work.sync, n_parts)
    gradient(network, parameters, work, optimizer, l1, l2, base, end - begin, into, thread, part, n_parts)
