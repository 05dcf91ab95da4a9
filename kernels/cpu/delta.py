"""Loss and delta recursion of a block of rows: delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])."""

from functools import cache

import numpy as np
from numba import int64

from ..elementary import exp, log
from ..losses import LOSSES, Loss, identity_link
from ..problem import DENSE
from .forward import is_rectified, sample, take_columns, transpose_square
from .gemm import call_product, terms_at_once
from .jit import Hook, embedded, inlined, new_variant, select
from .layers import call_apart, fill
from .layout import KIND, N_IN, N_OUT, NODE_IN, NODE_OUT, SKIP, WT, n_panels
from .simd import (
    LINE_BYTES,
    MULTIPLY,
    PASS,
    STORE,
    VECTORS,
    add_line,
    address_of,
    array_at,
    copy_line,
    fill_line,
    lane_count,
    line_size,
    look,
    multiply_line,
    raise_line,
    subtract_line,
    take_lanes,
    view,
)


def log_softmax(z, powers, lines, size, number):
    """z -= log(sum_k exp(z_k)) for each lane of the lines of ``size`` numbers at address ``z``.

    ``powers`` and ``lines`` are the addresses of as many numbers, and of two lines, to work with. ``number`` is any of
    their type.
    """
    z, powers = array_at(z, size, number), array_at(powers, size, number)
    width = line_size(z)
    lines = array_at(lines, 2 * width, number)
    highest, total = view(lines, 0, width), view(lines, width, width)
    fill_line(highest, 0, type(number)(-np.inf))
    fill_line(total, 0, type(number)(0))
    for k in range(0, size, width):
        raise_line(((z, k), (highest, 0)))
    for k in range(0, size, width):
        subtract_line(((highest, 0), (z, k)))
    for i in range(size):
        powers[i] = exp(z[i])
    for k in range(0, size, width):
        add_line(((powers, k), (total, 0)))
    for lane in range(lane_count(total)):
        total[lane] = log(total[lane])
    for k in range(0, size, width):
        subtract_line(((total, 0), (z, k)))


LOG_SOFTMAX = Hook(log_softmax, lambda real: (int64, int64, int64, int64, real))
call_log_softmax = LOG_SOFTMAX.call


def _compile_loss(row, variant=""):
    value, derivative = inlined(row.value, variant), inlined(row.delta, variant)

    def columns_loss(z, t, p):
        zero = type(p)(0)
        for i in range(z.size):
            output, target = z[i], t[i]
            z[i] = value(output, target, zero, p)
            t[i] = derivative(output, target, zero, p)

    def columns_loss_of_pairs(z, t, p):
        width = line_size(z)
        for k in range(0, z.size, 2 * width):
            for i in range(k, k + width):
                output, other, target = z[i], z[i + width], t[i]
                z[i], z[i + width] = value(output, other, target, p), type(p)(0)
                t[i], t[i + width] = derivative(output, other, target, p)

    return embedded(columns_loss_of_pairs if row.pairs else columns_loss, variant or row.value.__name__)


_columns_loss = select(list(LOSSES.values()), _compile_loss)


def columns_loss(code, z, t, size, p):
    """The loss in place of z, and its derivative by z in place of the target, by the addresses of ``size`` numbers.

    A line holds one output of as many samples; with a softmax z is its logarithm. ``p`` is the loss's setting.
    """
    _columns_loss(code, (array_at(z, size, p), array_at(t, size, p), p))


COLUMNS_LOSS = Hook(columns_loss, lambda real: (int64, int64, int64, int64, real))
call_columns_loss = COLUMNS_LOSS.call


@cache
def custom_loss(custom):
    """The hook for a loss of the user's."""
    of_user, slope_of_user = custom

    def value(z, t, lse, p):
        return type(z)(of_user(z, t))

    def delta(z, t, lse, p):
        return type(z)(slope_of_user(z, t))

    run = _compile_loss(Loss(0, value, delta, identity_link), new_variant())

    def columns_loss(code, z, t, size, p):
        run(array_at(z, size, p), array_at(t, size, p), p)

    return COLUMNS_LOSS.replaced_by(columns_loss)


@inlined
def target_columns(data, first, n_rows, n_out, n_classes, smoothing, square, targets):
    """The targets of samples at positions ``first`` to ``first + n_rows``, at most a line's lanes, as columns.

    What lies past ``n_out`` lines stays zero, or becomes so.
    """
    width = line_size(targets)
    number = targets.dtype.type
    keep, give = number(1.0 - smoothing), number(smoothing / n_classes)
    used = view(targets, 0, n_out * width)
    if data.labels.size:
        for k in range(0, n_out * width, width):
            fill_line(used, k, give)
        for r in range(n_rows):
            used[data.labels[sample(data, first + r)] * width + r] = keep + give
        return
    take_columns(data.targets, data, first, n_rows, first + n_rows - 1, square, targets)
    if smoothing > 0.0:
        for i in range(used.size):
            used[i] = keep * used[i] + give


@inlined
def weigh(data, first, n_rows, scale, weight):
    """What samples at positions ``first`` to ``first + n_rows`` count for, as a line."""
    fill_line(weight, 0, weight.dtype.type(scale))
    if data.weight.size:
        for r in range(n_rows):
            weight[r] *= data.weight[sample(data, first + r)]


def output_delta(held, block, first, position, n_rows, scale, thread):
    """Loss and output delta of a block, into ``work.loss`` and ``work.delta``.

    ``held`` are network, parameters, data and workspace; ``scale`` times a sample's weight is its share of the update.
    As many rows as a line has lanes are taken at a time, and transposed: so few outputs fill the vectors, and a softmax
    sums over lines. Precondition: ``work.a`` holds z.
    """
    network, _, data, work = look(held)
    layers = network.layers
    layer = layers[len(layers) - 1]
    n_out = layer[N_OUT]
    width = line_size(work.a)
    panel_size, square_size = work.block_rows * width, width * width
    start = block * work.block_size + layer[NODE_OUT] * work.block_rows
    number = work.a.dtype.type
    panels, n_classes = n_panels(n_out, width), n_out if network.softmax else 2
    z, targets, powers = work.columns[thread][0], work.columns[thread][1], work.columns[thread][2]
    square, lines = work.square[thread], work.lines[thread]
    weight, total = view(lines[0], 0, width), view(lines[1], 0, width)
    z_at, targets_at, size = address_of(z, 0), address_of(targets, 0), n_out * width
    scratch_at = address_of(powers, 0), address_of(square, 0)
    for row in range(0, n_rows, width):
        rows, begin, place = min(width, n_rows - row), start + row * width, first + position + row
        target_columns(data, place, rows, n_out, n_classes, network.smoothing, square, targets)
        if network.narrow:
            for k in range(n_out):
                copy_line(((work.a, start + k * work.block_rows + row), (z, k * width)))
        else:
            for panel in range(panels):
                transpose_square(work.a, begin + panel * panel_size, width, width, z, panel * square_size)
        if network.softmax:
            call_log_softmax(network.at.log_softmax, (z_at, *scratch_at, size, number(0)))
        call_columns_loss(network.loss_at, (network.loss, z_at, targets_at, size, number(network.loss_setting)))
        weigh(data, place, rows, scale, weight)
        sums = view(work.loss, block * work.block_rows + row, rows)
        fill(sums, 0.0)
        for panel in range(panels):
            fill_line(total, 0, number(0))
            for k in range(panel * square_size, min((panel + 1) * square_size, size), width):
                add_line(((z, k), (total, 0)))
                multiply_line(((weight, 0), (targets, k)))
            for r in range(rows):
                sums[r] += total[r] * weight[r]
            if not network.narrow:
                transpose_square(targets, panel * square_size, width, width, square, 0)
                for r in range(rows):
                    copy_line(((square, r * width), (work.delta, begin + panel * panel_size + r * width)))
        if network.narrow:
            for k in range(n_out):
                take_lanes((targets, k * width), (work.delta, start + k * work.block_rows + row), rows)


OUTPUT_DELTA = Hook(output_delta)
call_output_delta = OUTPUT_DELTA.call


@inlined
def times_derivative(network, work, depth):
    """How tiles of a layer's delta come to be multiplied by f'(z): their finish and guide; see `make_tile`."""
    to_a = (address_of(work.a, 0) - address_of(work.delta, 0)) // (LINE_BYTES // line_size(work.a))
    return (PASS, to_a) if is_rectified(network, depth) else (MULTIPLY, 0)


@inlined
def delta(held, block, n_rows, span, thread):
    """Take a block's delta back through layers ``span[0]`` to ``span[1]``, without that of the inputs.

    Precondition: ``work.delta`` holds f'(z) of the layers before, but for those that `is_rectified` names.
    """
    network, parameters, _, work = look(held)
    width = line_size(work.a)
    start = block * work.block_size
    panel_size, number = work.block_rows * width, work.a.dtype.type(0)
    for depth in range(span[1] - 1, max(span[0], 1) - 1, -1):
        layer = network.layers[depth]
        if layer[KIND] == DENSE:
            n_out, panels = layer[N_OUT], n_panels(layer[N_IN], width)
            n_terms, panel_weights = terms_at_once(n_out, n_rows, width), n_panels(n_out, width) * width * width
            finish, guide = times_derivative(network, work, depth - 1)
            term = 0
            while term < n_out:
                is_last = term + n_terms >= n_out
                for panel in range(0, panels, VECTORS.panels):
                    of_terms = start + layer[NODE_OUT] * work.block_rows + term // width * panel_size
                    place = start + layer[NODE_IN] * work.block_rows + panel * panel_size
                    # All panels' sums are kept only if all of them are interrupted.
                    sums = address_of(work.sums[thread], panel * panel_size if n_terms < n_out else 0)
                    weights = layer[WT] + panel * panel_weights + term * width
                    a, b = address_of(work.delta, of_terms), address_of(parameters.WT, weights)
                    s = (sums, width, panel_size) if term else (address_of(work.zeros, 0), 0, 0)
                    out = address_of(work.delta, place)
                    c = (out, panel_size, finish, guide) if is_last else (sums, panel_size, STORE, 0)
                    size = min(n_terms, n_out - term), n_rows, min(VECTORS.panels, panels - panel)
                    places = (a, panel_size), (b, panel_weights), s, (sums, panel_size), c
                    call_product(network.at.product, (*places, *size, number))
                term += n_terms
        if layer[KIND] != DENSE or layer[SKIP] >= 0:
            call_apart(network.at.delta_apart, (held, depth, block, n_rows, thread))
