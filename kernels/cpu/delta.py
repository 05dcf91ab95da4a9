"""Loss and delta recursion of a block of rows: delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])."""

import math

from ..losses import LOSSES
from .forward import block_start, sample
from .gemm import make_product
from .jit import inlined, routine, select
from .layout import N_IN, N_OUT, NODE_IN, NODE_OUT, WT, n_panels
from .simd import LINE_BYTES

product_times_derivative = make_product(start="zero", finish="multiply")


@inlined
def log_sum_exp(z, line, panel_size, width, n_out):
    highest = z[line]
    for k in range(n_out):
        highest = max(highest, z[line + k // width * panel_size + k % width])
    total = z.dtype.type(0)
    for k in range(n_out):
        total += math.exp(z[line + k // width * panel_size + k % width] - highest)
    return highest + math.log(total)


def _compile_loss(row):
    value, derivative, softmax = routine(row.value), routine(row.delta), row.softmax

    @inlined
    def row_loss(z, delta, line, panel_size, width, target, weight):
        lse = log_sum_exp(z, line, panel_size, width, target.size) if softmax else z.dtype.type(0)
        loss = 0.0
        for k in range(target.size):
            at = line + k // width * panel_size + k % width
            loss += value(z[at], target[k], lse)
            delta[at] = weight * derivative(z[at], target[k], lse)
        return loss

    return row_loss


#: ``row_loss(code, (z, delta, line, panel_size, width, target, weight))``: a row's loss; weight times its delta.
row_loss = select(list(LOSSES.values()), _compile_loss)


@routine
def output_delta(network, data, work, block, first, position, n_rows, scale, thread):
    """Loss and output delta of a block, into ``work.loss`` and ``work.delta``.

    ``scale`` times a sample's weight is its share of the update. Precondition: ``work.a`` holds z.
    """
    layers = network.layers
    layer = layers[len(layers) - 1]
    n_out = layer[N_OUT]
    width = LINE_BYTES // work.a.itemsize
    start = block_start(layers, work, block) + layer[NODE_OUT] * work.block_rows
    target = work.target[thread, :n_out]
    for r in range(n_rows):
        n = sample(data, first + position + r)
        if data.labels.size:
            for k in range(n_out):
                target[k] = data.labels[n] == k
        else:
            for k in range(n_out):
                target[k] = data.targets[n, k]
        weight = work.a.dtype.type(scale)
        if data.weight.size:
            weight *= data.weight[n]
        loss = row_loss(
            network.loss,
            (work.a, work.delta, start + r * width, work.block_rows * width, width, target, weight),
        )
        work.loss[block * work.block_rows + r] = loss * weight


@routine
def delta(network, parameters, work, block, n_rows):
    """Take the output delta back through the layers. Precondition: ``work.delta`` holds f'(z) of hidden layers."""
    layers = network.layers
    width = LINE_BYTES // work.a.itemsize
    start = block_start(layers, work, block)
    panel_size = work.block_rows * width
    for depth in range(len(layers) - 1, 0, -1):
        layer = layers[depth]
        product_times_derivative(
            (work.delta, start + layer[NODE_OUT] * work.block_rows, panel_size),
            (parameters.WT, layer[WT], layer[N_OUT] * width),
            (work.delta, start + layer[NODE_IN] * work.block_rows, panel_size),
            layer[N_OUT],
            n_rows,
            n_panels(layer[N_IN], width),
        )
