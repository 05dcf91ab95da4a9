"""Both phases of a network of narrow layers: samples are the lanes, so that no width leaves any of them idle.

What is computed row by row has the bits that it has in panels. A gradient is summed over lanes, in another order, or
from delta in panels, which takes no sums over lanes, but more multiply-adds where units do not fill them; or for some
units one way and for the others the other.
"""

from .delta import call_output_delta, times_derivative
from .forward import call_activate, is_rectified, take_columns, transpose_square
from .gemm import BLOCK_PANELS, BLOCK_ROWS, call_unit_product, column_tile, sample_tile
from .gradient import LOW, TALL, WIDE
from .jit import Hook, inlined
from .layers import fill
from .layout import ACTIVATE_AT, ACTIVATION, IN_PANELS, N_IN, N_OUT, NODE_IN, NODE_OUT, NODE_PANELS, W, n_panels
from .simd import RECTIFY, STORE, address_of, copy_line, line_size, look, tile_code, view


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


@inlined
def forward(held, block, first, position, n_rows, training, thread):
    """Take samples ``first + position`` to ``first + position + n_rows`` through all layers; see `forward.forward`."""
    network, parameters, data, work = look(held)
    width, block_rows = line_size(work.a), work.block_rows
    start, n_lines, number = block * work.block_size, n_panels(n_rows, width), work.a.dtype.type(0)
    gather(data, work, start, first + position, n_rows, thread)
    for depth in range(len(network.layers)):
        layer = network.layers[depth]
        n_out, out = layer[N_OUT], start + layer[NODE_OUT] * block_rows
        rectifies = is_rectified(network, depth)
        a = address_of(parameters.W, layer[W]), 1, n_out
        b = address_of(work.a, start + layer[NODE_IN] * block_rows), block_rows
        bias = address_of(parameters.W, layer[W] + layer[N_IN] * n_out), 1
        c = address_of(work.a, out), block_rows, RECTIFY if rectifies else STORE, 0
        call_unit_product(network.at.product, (a, b, bias, c, layer[N_IN], n_out, n_lines, number))
        if layer[ACTIVATE_AT] and not rectifies:
            size = (n_out - 1) * block_rows + n_lines * width
            setting = type(number)(network.setting[depth])
            places = address_of(work.a, out), address_of(work.delta, out)
            call_activate(layer[ACTIVATE_AT], (layer[ACTIVATION], *places, size, setting, training))


@inlined
def delta(held, block, n_rows):
    """Take a block's delta back through all layers, without that of the inputs, and into panels; see `delta.delta`."""
    network, parameters, _, work = look(held)
    width, start, block_rows = line_size(work.a), block * work.block_size, work.block_rows
    number = work.a.dtype.type(0)
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
            a = address_of(parameters.W, layer[W]), n_out, 1
            b, zero = (address_of(work.delta, out), block_rows), (address_of(work.zeros, 0), 0)
            c = address_of(work.delta, start + layer[NODE_IN] * block_rows), block_rows, finish, guide
            size = n_out, layer[N_IN], n_panels(n_rows, width)
            call_unit_product(network.at.product, (a, b, zero, c, *size, number))


@inlined
def sum_lanes(layer, work, base, n_rows, first, last, with_bias, strip):
    """`sum_strip` for units that are not in panels: samples are in the lanes, which are summed at the end."""
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
    """`sum_strip` for units that are in panels."""
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


def sum_strip(held, depth, base, n_rows, group, first, last, with_bias, fetch, thread):
    """Sum rows ``first`` to ``last`` of a layer's grad_W, and maybe grad_b, into the thread's strip.

    Tiles go over the ends of rows into the next one, and are written in the order that mends this: last units first.
    """
    network, _, _, work = look(held)
    layer, strip = network.layers[depth], work.strip[thread]
    if layer[IN_PANELS] < layer[N_OUT]:
        sum_lanes(layer, work, base, n_rows, first, last, with_bias, strip)
    if layer[IN_PANELS] > 0:
        sum_panels(layer, work, base, n_rows, first, last, with_bias, strip)
    width, size = line_size(work.a), (last - first + with_bias) * layer[N_OUT]
    fill(view(strip, size, n_panels(size, width) * width - size), strip.dtype.type(0))


def take_rows(held, block, first, position, n_rows, key, scale, training, forth, wants_loss, back, thread):
    """Take a block through all layers, to its loss if wanted, and back to where ``back`` has an end; see `rows`."""
    network, _, _, _ = look(held)
    if forth[1] > 0:
        forward(held, block, first, position, n_rows, training, thread)
    if wants_loss:
        call_output_delta(network.at.output_delta, (held, block, first, position, n_rows, scale, thread))
    if back[1] > 0:
        delta(held, block, n_rows)


TAKE_ROWS, SUM_STRIP = Hook(take_rows), Hook(sum_strip)
