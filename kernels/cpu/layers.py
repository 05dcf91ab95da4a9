"""What few networks want, compiled apart: sums, noise, and normalizations, y = x gain + shift, x being z standardised.

    layer_norm   x = (z - mean) / sqrt(var + epsilon), over the units of a sample   Ba, Kiros & Hinton (2016)
    rms_norm     x = z / sqrt(mean(z**2) + epsilon), over the units of a sample     Zhang & Sennrich (2019)
    batch_norm   x = (z - mean) / sqrt(var + epsilon), over the samples of a batch  Ioffe & Szegedy (2015)
    scale        x = z

x takes the place of z, and the way back is the same for all: with g = gain delta[y], and the means taken over what the
statistics were taken over, delta[z] = (g - mean(g) - x mean(g x)) / sqrt(...); rms_norm has no mean(g).
"""

import math

import numpy as np

from ..elementary import cos, log
from ..problem import BATCH_NORM, DENSE, LAYER_NORM, RMS_NORM, SCALE, SUM
from ..random import fold, uniform
from .jit import Hook, inlined, routine
from .layout import KIND, N_IN, N_OUT, NODE_IN, NODE_OUT, SKIP, STATISTICS, W, n_panels
from .simd import add_line, add_product, copy_line, fill_line, lane_count, line_size, look, sum_line, view

#: What the moving averages take from each batch.
MOMENTUM = 0.1
# Rows of Workspace.moments.
MEAN, DEVIATION, DELTA, DELTA_X = range(4)
#: What `sum_rows` adds up; not literals, for each of which Numba would compile it once more.
SUMS, PRODUCTS = np.arange(2)


@routine
def fill(lines, value):
    for i in range(lines.size):
        lines[i] = value


@routine
def repeat_line(source, start, lines, n_rows):
    """Copy one line into all rows."""
    width = line_size(lines)
    for r in range(n_rows):
        copy_line(((source, start), (lines, r * width)))


@routine
def average_rows(lines, n_rows, n):
    """Each row's sum over n, in all its lanes."""
    width = line_size(lines)
    for r in range(n_rows):
        fill_line(lines, r * width, sum_line(((lines, r * width),)) / lines.dtype.type(n))


@inlined
def panel(array, node, number, work, start, n_rows):
    """A block's lines of one panel of a node."""
    width = line_size(array)
    begin = start + node * work.block_rows + number * work.block_rows * width
    return view(array, begin, n_rows * width)


def perturb(held, start, key, first, n_rows):
    """Add Gaussian noise to the inputs of a block, by the method of Box & Muller (1958); counted like `drop`'s."""
    network, _, data, work = look(held)
    number = work.a.dtype.type
    n_in, width = data.X.shape[1], line_size(work.a)
    for r in range(n_rows):
        row_key = fold(key, first + r)
        for column in range(0, n_in, width):
            line = view(work.a, start + (column * work.block_rows + r * width), min(width, n_in - column))
            for lane in range(line.size):
                radius = number(1) - number(uniform(fold(row_key, 2 * (column + lane))))
                angle = number(2 * math.pi) * number(uniform(fold(row_key, 2 * (column + lane) + 1)))
                line[lane] += number(network.noise) * math.sqrt(number(-2) * log(radius)) * cos(angle)


@inlined
def add(layer, work, start, n_rows):
    """a[l] = a[l-1] + a[SKIP]; the derivative is 1."""
    for k in range(n_panels(layer[N_OUT], line_size(work.a))):
        left = panel(work.a, layer[NODE_IN], k, work, start, n_rows)
        right = panel(work.a, layer[SKIP], k, work, start, n_rows)
        out = panel(work.a, layer[NODE_OUT], k, work, start, n_rows)
        slope = panel(work.delta, layer[NODE_OUT], k, work, start, n_rows)
        for i in range(out.size):
            out[i] = left[i] + right[i]
            slope[i] = 1


@inlined
def split(layer, work, start, n_rows):
    """The delta of a sum goes to both its summands: times f'(z) to the last layer, and kept for `join` to the other."""
    for k in range(n_panels(layer[N_OUT], line_size(work.a))):
        left = panel(work.delta, layer[NODE_IN], k, work, start, n_rows)
        right = panel(work.delta, layer[SKIP], k, work, start, n_rows)
        out = panel(work.delta, layer[NODE_OUT], k, work, start, n_rows)
        for i in range(out.size):
            left[i] *= out[i]
            out[i] *= right[i]


@inlined
def join(layer, work, start, n_rows):
    """Add what `split` kept for a dense layer's input."""
    for k in range(n_panels(layer[N_IN], line_size(work.a))):
        delta = panel(work.delta, layer[NODE_IN], k, work, start, n_rows)
        kept = panel(work.delta, layer[SKIP], k, work, start, n_rows)
        for i in range(delta.size):
            delta[i] += kept[i]


@inlined
def normalize(layer, parameters, work, start, first, epsilon, n_rows, thread):
    """One block: z at the layer's input becomes x, and y comes to lie at its output.

    ``first`` is the block's first row in ``work.deviation``. Precondition: ``work.moments`` holds the batch's mean and
    deviation.
    """
    width = line_size(work.a)
    number = work.a.dtype.type
    kind, n, panels = layer[KIND], layer[N_OUT], n_panels(layer[N_OUT], width)
    mean, scale = view(work.lines[thread][0], 0, n_rows * width), view(work.lines[thread][1], 0, n_rows * width)
    fill(mean, number(0))
    fill(scale, number(kind == SCALE))
    if kind == LAYER_NORM:
        for k in range(panels):
            z = panel(work.a, layer[NODE_IN], k, work, start, n_rows)
            for i in range(z.size):
                mean[i] += z[i]
        average_rows(mean, n_rows, n)
    if kind in (LAYER_NORM, RMS_NORM):
        for k in range(panels):
            z, lanes = panel(work.a, layer[NODE_IN], k, work, start, n_rows), n - k * width
            for i in range(z.size):
                scale[i] += (z[i] - mean[i]) * (z[i] - mean[i]) if (i & (width - 1)) < lanes else number(0)
        average_rows(scale, n_rows, n)
        for i in range(scale.size):
            scale[i] = number(1) / math.sqrt(scale[i] + number(epsilon))
        for r in range(n_rows):
            work.deviation[layer[STATISTICS], first + r] = scale[r * width]
    for k in range(panels):
        if kind == BATCH_NORM:
            repeat_line(work.moments[MEAN], layer[STATISTICS] + k * width, mean, n_rows)
            repeat_line(work.moments[DEVIATION], layer[STATISTICS] + k * width, scale, n_rows)
        x = panel(work.a, layer[NODE_IN], k, work, start, n_rows)
        y = panel(work.a, layer[NODE_OUT], k, work, start, n_rows)
        gain = view(parameters.W, layer[W] + 2 * k * width, width)
        shift = view(parameters.W, layer[W] + (2 * k + 1) * width, width)
        for i in range(x.size):
            x[i] = (x[i] - mean[i]) * scale[i]
        for r in range(n_rows):
            x_line, y_line = view(x, r * width, width), view(y, r * width, width)
            for lane in range(lane_count(y_line)):
                y_line[lane] = x_line[lane] * gain[lane] + shift[lane]
        if kind == SCALE:
            fill(panel(work.delta, layer[NODE_OUT], k, work, start, n_rows), number(1))


@inlined
def normalize_back(layer, parameters, work, start, first, n_rows, thread):
    """One block: delta[y] at the layer's output gives delta[z] at its input.

    Precondition: in batch normalization ``work.moments`` holds the means of delta and of delta x.
    """
    width = line_size(work.a)
    number = work.a.dtype.type
    kind, n, panels = layer[KIND], layer[N_OUT], n_panels(layer[N_OUT], width)
    lines = work.lines[thread]
    size = n_rows * width
    centre, slope, scale = view(lines[0], 0, size), view(lines[1], 0, size), view(lines[2], 0, size)
    fill(centre, number(0))
    fill(slope, number(0))
    for k in range(panels):
        gain = view(parameters.W, layer[W] + 2 * k * width, width)
        x = panel(work.a, layer[NODE_IN], k, work, start, n_rows)
        y_delta = panel(work.delta, layer[NODE_OUT], k, work, start, n_rows)
        delta = panel(work.delta, layer[NODE_IN], k, work, start, n_rows)
        for r in range(n_rows):
            line, y_line = view(delta, r * width, width), view(y_delta, r * width, width)
            for lane in range(lane_count(line)):
                line[lane] = y_line[lane] * gain[lane]
        if kind != BATCH_NORM:
            for i in range(x.size):
                centre[i] += delta[i]
                slope[i] += delta[i] * x[i]
    if kind != BATCH_NORM:
        average_rows(slope, n_rows, n)
        average_rows(centre, n_rows, n)
        if kind == RMS_NORM:
            fill(centre, number(0))
        for r in range(n_rows):
            fill_line(scale, r * width, work.deviation[layer[STATISTICS], first + r])
    for k in range(panels):
        if kind == BATCH_NORM:
            place = layer[STATISTICS] + k * width
            repeat_line(work.moments[DELTA], place, centre, n_rows)
            repeat_line(work.moments[DELTA_X], place, slope, n_rows)
            repeat_line(work.moments[DEVIATION], place, scale, n_rows)
        x = panel(work.a, layer[NODE_IN], k, work, start, n_rows)
        delta = panel(work.delta, layer[NODE_IN], k, work, start, n_rows)
        lanes = n - k * width
        for i in range(x.size):
            inside = (i & (width - 1)) < lanes
            delta[i] = scale[i] * (delta[i] - centre[i] - x[i] * slope[i]) if inside else number(0)


@routine
def sum_rows(total, what, x, lines, x_column, column, work, n_rows):
    """Add up a panel's lines over the rows of a batch (``SUMS``), or their products with those of ``x`` (``PRODUCTS``).

    ``column`` and ``x_column`` are where the panels begin in the first block.
    """
    width = line_size(lines)
    for first in range(0, n_rows, work.block_rows):
        for r in range(min(work.block_rows, n_rows - first)):
            line, x_line = view(lines, column + r * width, width), view(x, x_column + r * width, width)
            if what == PRODUCTS:
                for lane in range(lane_count(line)):
                    total[lane] += line[lane] * x_line[lane]
            else:
                for lane in range(lane_count(line)):
                    total[lane] += line[lane]
        column += work.block_size
        x_column += work.block_size


@inlined
def batch_moments(layer, parameters, work, epsilon, n_rows, thread, n_threads):
    """Mean and deviation of z over the batch, and the moving averages; each thread its share of the panels.

    The variance that moves the average is the unbiased one, as in PyTorch.
    """
    width = line_size(work.a)
    number = work.a.dtype.type
    mean, variance = work.totals[thread, 0], work.totals[thread, 1]
    moving_mean, moving_variance = parameters.moving[0], parameters.moving[1]
    for k in range(thread, n_panels(layer[N_OUT], width), n_threads):
        place, column = layer[STATISTICS] + k * width, (layer[NODE_IN] + k * width) * work.block_rows
        fill(mean, 0.0)
        fill(variance, 0.0)
        sum_rows(mean, SUMS, work.a, work.a, column, column, work, n_rows)
        for lane in range(lane_count(work.a)):
            mean[lane] /= n_rows
        for first in range(0, n_rows, work.block_rows):
            for r in range(min(work.block_rows, n_rows - first)):
                z = view(work.a, column + r * width, width)
                for lane in range(lane_count(work.a)):
                    variance[lane] += (z[lane] - mean[lane]) ** 2
            column += work.block_size
        for lane in range(lane_count(work.a)):
            work.moments[MEAN, place + lane] = number(mean[lane])
            work.moments[DEVIATION, place + lane] = number(1.0 / math.sqrt(variance[lane] / n_rows + epsilon))
            moving_mean[place + lane] += MOMENTUM * (mean[lane] - moving_mean[place + lane])
            unbiased = variance[lane] / max(n_rows - 1, 1)
            moving_variance[place + lane] += MOMENTUM * (unbiased - moving_variance[place + lane])


@inlined
def batch_deltas(layer, parameters, work, n_rows, thread, n_threads):
    """Means over the batch of delta[y] gain, and of that times x; each thread its share of the panels."""
    width = line_size(work.a)
    number = work.a.dtype.type
    total, total_x = work.totals[thread, 0], work.totals[thread, 1]
    for k in range(thread, n_panels(layer[N_OUT], width), n_threads):
        place = layer[STATISTICS] + k * width
        x_column = (layer[NODE_IN] + k * width) * work.block_rows
        column = (layer[NODE_OUT] + k * width) * work.block_rows
        fill(total, 0.0)
        fill(total_x, 0.0)
        sum_rows(total, SUMS, work.a, work.delta, x_column, column, work, n_rows)
        sum_rows(total_x, PRODUCTS, work.a, work.delta, x_column, column, work, n_rows)
        for lane in range(lane_count(work.a)):
            gain = parameters.W[layer[W] + 2 * k * width + lane]
            work.moments[DELTA, place + lane] = gain * number(total[lane] / n_rows)
            work.moments[DELTA_X, place + lane] = gain * number(total_x[lane] / n_rows)


@routine
def moving_moments(network, parameters, work):
    """Mean and deviation for inference, from the moving averages."""
    number = work.a.dtype.type
    width = line_size(work.a)
    for depth in network.batch_norms:
        layer = network.layers[depth]
        for lane in range(layer[STATISTICS], layer[STATISTICS] + n_panels(layer[N_OUT], width) * width):
            deviation = 1.0 / math.sqrt(parameters.moving[1, lane] + network.epsilon[depth])
            work.moments[MEAN, lane] = number(parameters.moving[0, lane])
            work.moments[DEVIATION, lane] = number(deviation)


def forward_apart(held, depth, block, n_rows, thread):
    """The forward pass of a block through a layer that is not dense."""
    network, parameters, _, work = look(held)
    layer, start, first = network.layers[depth], block * work.block_size, block * work.block_rows
    if layer[KIND] == SUM:
        add(layer, work, start, n_rows)
    else:
        normalize(layer, parameters, work, start, first, network.epsilon[depth], n_rows, thread)


def delta_apart(held, depth, block, n_rows, thread):
    """The way back through it, or through what is left of a dense one whose input goes into a sum."""
    network, parameters, _, work = look(held)
    layer, start, first = network.layers[depth], block * work.block_size, block * work.block_rows
    if layer[KIND] == DENSE:
        join(layer, work, start, n_rows)
    elif layer[KIND] == SUM:
        split(layer, work, start, n_rows)
    else:
        normalize_back(layer, parameters, work, start, first, n_rows, thread)


def look_at_batch(held, depth, is_back, n_rows, thread, n_threads):
    """What batch normalization takes from a whole batch, forward or back."""
    network, parameters, _, work = look(held)
    layer = network.layers[depth]
    if is_back:
        batch_deltas(layer, parameters, work, n_rows, thread, n_threads)
    else:
        batch_moments(layer, parameters, work, network.epsilon[depth], n_rows, thread, n_threads)


def sum_gains(held, depth, base, n_rows, k, thread, line):
    """The gradient of one panel's gains, sum(delta x), and of shifts, sum(delta), over a chunk, into a strip."""
    network, _, _, work = look(held)
    layer, strip = network.layers[depth], work.strip[thread]
    width = line_size(work.a)
    x_column = base + (layer[NODE_IN] + k * width) * work.block_rows
    column = base + (layer[NODE_OUT] + k * width) * work.block_rows
    fill_line(strip, line, strip.dtype.type(0))
    fill_line(strip, line + width, strip.dtype.type(0))
    for first in range(0, n_rows, work.block_rows):
        for r in range(0, min(work.block_rows, n_rows - first) * width, width):
            delta = work.delta, column + r
            add_product((delta, (work.a, x_column + r), (strip, line)))
            add_line((delta, (strip, line + width)))
        column += work.block_size
        x_column += work.block_size


FORWARD_APART, DELTA_APART = Hook(forward_apart), Hook(delta_apart)
LOOK_AT_BATCH, PERTURB, SUM_GAINS = Hook(look_at_batch), Hook(perturb), Hook(sum_gains)
call_apart, call_batch, call_perturb = FORWARD_APART.call, LOOK_AT_BATCH.call, PERTURB.call
call_gains = SUM_GAINS.call
