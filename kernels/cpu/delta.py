"""Loss and delta recursion of a block of rows: delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])."""

from functools import cache

import numpy as np
from numba import int64

from ..elementary import exp, log
from ..losses import LOSSES, Loss, identity_link
from ..problem import DENSE
from .forward import block_start, sample
from .gemm import make_product
from .jit import Hook, embedded, inlined, new_variant, select
from .layers import call_apart, fill_line
from .layout import KIND, N_IN, N_OUT, NODE_IN, NODE_OUT, SKIP, WT, n_panels
from .simd import LINE_BYTES, address_of, array_at, max_line, sum_line, view

product_times_derivative = make_product(start="zero", finish="multiply")


def log_sum_exp(z, panel_step, size, n_out, lse, scratch, highest, total, number):
    """lse = log(sum_k exp(z_k)) of each row of a block, repeated over the row's line.

    ``z``, ``lse`` and ``scratch`` are the addresses of lines of ``size`` numbers, z's panels ``panel_step`` bytes
    apart, ``highest`` and ``total`` of one number a row; all but z are overwritten. ``number`` is any of their type.
    """
    lse, scratch = array_at(lse, size, number), array_at(scratch, size, number)
    width = LINE_BYTES // lse.itemsize
    n_rows = size // width
    highest, total = array_at(highest, n_rows, number), array_at(total, n_rows, number)
    zero, least = type(number)(0), type(number)(-np.inf)
    for r in range(n_rows):
        highest[r], total[r] = least, zero
    for panel in range(n_panels(n_out, width)):
        lanes = n_out - panel * width
        z_panel = array_at(z + panel * panel_step, size, number)
        for i in range(size):
            scratch[i] = z_panel[i] if (i & (width - 1)) < lanes else least
        for r in range(n_rows):
            highest[r] = max(highest[r], max_line(((scratch, r * width),)))
    for r in range(n_rows):
        fill_line(lse, r * width, highest[r])
    for panel in range(n_panels(n_out, width)):
        lanes = n_out - panel * width
        z_panel = array_at(z + panel * panel_step, size, number)
        for i in range(size):
            scratch[i] = exp(z_panel[i] - lse[i]) if (i & (width - 1)) < lanes else zero
        for r in range(n_rows):
            total[r] += sum_line(((scratch, r * width),))
    for r in range(n_rows):
        total[r] = highest[r] + log(total[r])
    for r in range(n_rows):
        fill_line(lse, r * width, total[r])


LOG_SUM_EXP = Hook(log_sum_exp, lambda real: (*[int64] * 8, real))
call_log_sum_exp = LOG_SUM_EXP.call


def _compile_loss(row, variant=""):
    value, derivative = inlined(row.value, variant), inlined(row.delta, variant)

    def panel_loss(z, target, lse, weight, loss, delta, p, lanes):
        width = LINE_BYTES // z.itemsize
        number = z.dtype.type
        for i in range(z.size):
            inside = (i & (width - 1)) < lanes
            loss[i] = weight[i] * value(z[i], target[i], lse[i], p) if inside else number(0)
            delta[i] = weight[i] * derivative(z[i], target[i], lse[i], p) if inside else number(0)

    def panel_loss_of_pairs(z, target, lse, weight, loss, delta, p, lanes):
        width = LINE_BYTES // z.itemsize
        number = z.dtype.type
        for i in range(0, z.size, 2):
            inside = (i & (width - 1)) < lanes
            slope, other_slope = derivative(z[i], z[i + 1], target[i], p)
            loss[i] = weight[i] * value(z[i], z[i + 1], target[i], p) if inside else number(0)
            loss[i + 1] = 0
            delta[i] = weight[i] * slope if inside else number(0)
            delta[i + 1] = weight[i] * other_slope if inside else number(0)

    return embedded(panel_loss_of_pairs if row.pairs else panel_loss, variant or row.value.__name__)


_panel_loss = select(list(LOSSES.values()), _compile_loss)


@inlined
def arrays_at(z, target, lse, weight, loss, delta, size, p):
    """The arrays of ``size`` numbers at these addresses."""
    return (
        array_at(z, size, p),
        array_at(target, size, p),
        array_at(lse, size, p),
        array_at(weight, size, p),
        array_at(loss, size, p),
        array_at(delta, size, p),
    )


def panel_loss(code, z, target, lse, weight, loss, delta, size, p, lanes):
    """Loss and delta, times weight, of the first ``lanes`` lanes of a panel's lines, and zero in the others.

    ``z`` to ``delta`` are the addresses of ``size`` numbers each, ``p`` is the loss's setting.
    """
    _panel_loss(code, (*arrays_at(z, target, lse, weight, loss, delta, size, p), p, lanes))


PANEL_LOSS = Hook(panel_loss, lambda real: (int64, *[int64] * 7, real, int64))
call_panel_loss = PANEL_LOSS.call


@cache
def custom_loss(custom):
    """The hook for a loss of the user's."""
    of_user, slope_of_user = custom

    def value(z, t, lse, p):
        return type(z)(of_user(z, t))

    def delta(z, t, lse, p):
        return type(z)(slope_of_user(z, t))

    run = _compile_loss(Loss(0, value, delta, identity_link), new_variant())

    def panel_loss(code, z, target, lse, weight, loss, delta, size, p, lanes):
        z, target, lse, weight, loss, delta = arrays_at(z, target, lse, weight, loss, delta, size, p)
        run(z, target, lse, weight, loss, delta, p, lanes)

    return PANEL_LOSS.replaced_by(panel_loss)


@inlined
def fill_targets(data, first, n_rows, column, lanes, width, n_classes, smoothing, target):
    """The targets of samples at positions ``first`` to ``first + n_rows``, from ``column`` on, as lines of a panel."""
    number = target.dtype.type
    keep, give = number(1.0 - smoothing), number(smoothing / n_classes)
    for r in range(n_rows):
        n = sample(data, first + r)
        if data.labels.size:
            fill_line(target, r * width, give)
            label = data.labels[n] - column
            if 0 <= label < width:
                target[r * width + label] = keep + give
        else:
            line, row = view(target, r * width, width), view(data.targets[n], column, min(lanes, width))
            for lane in range(row.size):
                line[lane] = keep * row[lane] + give


@embedded
def output_delta(network, data, work, block, first, position, n_rows, scale, thread):
    """Loss and output delta of a block, into ``work.loss`` and ``work.delta``.

    ``scale`` times a sample's weight is its share of the update. Precondition: ``work.a`` holds z.
    """
    layers = network.layers
    layer = layers[len(layers) - 1]
    n_out = layer[N_OUT]
    width = LINE_BYTES // work.a.itemsize
    panel_size = work.block_rows * width
    start = block_start(layers, work, block) + layer[NODE_OUT] * work.block_rows
    number = work.a.dtype.type
    n_classes = n_out if network.softmax else 2
    size = n_rows * width
    lines, rows = work.lines[thread], work.rows[thread]
    target, lse = view(lines[0], 0, size), view(lines[1], 0, size)
    weight, loss = view(lines[2], 0, size), view(lines[3], 0, size)
    lines_at = address_of(target, 0), address_of(lse, 0), address_of(weight, 0), address_of(loss, 0)
    if network.softmax:
        panels_at = address_of(work.a, start), panel_size * work.a.itemsize, size, n_out
        scratch_at = lines_at[1], lines_at[3], address_of(rows[0], 0), address_of(rows[1], 0)
        call_log_sum_exp(network.at.log_sum_exp, (*panels_at, *scratch_at, number(0)))
    sums = view(work.loss, block * work.block_rows, n_rows)
    for r in range(n_rows):
        share = number(scale)
        if data.weight.size:
            share *= data.weight[sample(data, first + position + r)]
        fill_line(weight, r * width, share)
        sums[r] = 0.0
    for panel in range(n_panels(n_out, width)):
        begin, lanes = start + panel * panel_size, n_out - panel * width
        fill_targets(data, first + position, n_rows, panel * width, lanes, width, n_classes, network.smoothing, target)
        places = address_of(work.a, begin), *lines_at, address_of(work.delta, begin)
        call_panel_loss(network.loss_at, (network.loss, *places, size, number(network.loss_setting), lanes))
        for r in range(n_rows):
            sums[r] += sum_line(((loss, r * width),))


@embedded
def delta(network, parameters, work, block, n_rows, span, thread):
    """Take a block's delta back through layers ``span[0]`` to ``span[1]``, without that of the inputs.

    Precondition: ``work.delta`` holds f'(z) of the layers before.
    """
    width = LINE_BYTES // work.a.itemsize
    start = block_start(network.layers, work, block)
    panel_size = work.block_rows * width
    for depth in range(span[1] - 1, max(span[0], 1) - 1, -1):
        layer = network.layers[depth]
        if layer[KIND] == DENSE:
            product_times_derivative(
                (work.delta, start + layer[NODE_OUT] * work.block_rows, panel_size),
                (parameters.WT, layer[WT], layer[N_OUT] * width),
                (work.delta, start + layer[NODE_IN] * work.block_rows, panel_size),
                layer[N_OUT],
                n_rows,
                n_panels(layer[N_IN], width),
            )
        if layer[KIND] != DENSE or layer[SKIP] >= 0:
            place = start, block * work.block_rows
            call_apart(network.at.delta, (layer, parameters, work, *place, network.epsilon[depth], n_rows, thread))
