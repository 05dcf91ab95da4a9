"""Loss and delta recursion: delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])."""

import math
from collections.abc import Callable
from functools import cache

from ..elementary import exp, log
from ..losses import LOSSES
from .compat import cuda, device_function, kernel, numba_type, select
from .forward import LANES, THREADS, place_of
from .gemm import Tile
from .layers import over_block, over_lanes
from .layout import N_IN, N_OUT, NODE_IN, NODE_OUT, SKIP, STEP, STRIDE_IN, STRIDE_OUT, W
from .ptx import ALIGNMENT
from .tensor import TensorTile


def with_delta(row):
    """A device function from z, its partner, t, lse and p to the loss and its derivatives by z and by its partner."""
    value, slope = device_function(row.value), device_function(row.delta)

    def one(z, z1, t, lse, p):
        return value(z, t, lse, p), slope(z, t, lse, p), type(z)(0)

    def pair(z, z1, t, lse, p):
        own, other = slope(z, z1, t, p)
        return value(z, z1, t, p), own, other

    return device_function(pair if row.pairs else one)


loss_by_code = select(list(LOSSES.values()), with_delta)


@cache
def make_output_row(dtype, loss_of) -> Callable:
    """A device function: loss and output delta of a row of the chunk by LANES threads; each gets its part of the loss.

    All threads of a block have to come along, also those whose row is beyond ``end_row``.
    """
    zero, one, lowest = dtype.type(0), dtype.type(1), dtype.type(-math.inf)

    def output_row(network, memory, samples, chunk, loss, total_weight, row, end_row, shared):
        thread = cuda.threadIdx.x
        lane, inside = thread % LANES, row < end_row
        layer = network.layers[len(network.layers) - 1]
        n_out, stride = layer[N_OUT], layer[STRIDE_OUT]
        place = layer[NODE_OUT] + row * stride
        sample, weight, label, lse = place_of(samples, chunk) + row, zero, 0, zero
        if inside:
            if samples.ordered:
                sample = samples.order[sample]
            if samples.labelled:
                label = samples.labels[sample]
            weight = samples.weight[sample] if samples.weighted else one
            weight = weight / total_weight if total_weight > zero else zero
        if loss.softmax:
            highest, total = lowest, zero
            if inside:
                for k in range(lane, n_out, LANES):
                    highest = max(highest, memory.a[place + k])
            highest = over_lanes(shared, lane, thread, highest, True)
            if inside:
                for k in range(lane, n_out, LANES):
                    total += exp(memory.a[place + k] - highest)
            lse = highest + log(over_lanes(shared, lane, thread, total, False))
        value = zero
        if inside:
            width = 2 if loss.pairs else 1
            for k in range(lane * width, stride, LANES * width):
                delta = other = zero
                if k < n_out:
                    target = loss.smoothing
                    if samples.labelled:
                        target += loss.keep if label == k else zero
                    else:
                        target += loss.keep * samples.targets[sample * n_out + k]
                    z, z1 = memory.a[place + k], memory.a[place + k + width - 1]
                    own, delta, other = loss_of(loss.code, (z, z1, target, lse, loss.setting))
                    value += weight * own
                memory.delta[place + k] = weight * delta
                if loss.pairs:
                    memory.delta[place + k + 1] = weight * other
        return value

    return device_function(output_row)


def make_output_delta(dtype, loss_of, name: str | None):
    """Loss and output delta; LANES threads for each row. Each block's sum of losses is a part, from ``part`` on."""
    real = numba_type(dtype)
    output_row = make_output_row(dtype, loss_of)

    @kernel(THREADS, name)
    def output_delta(network, memory, samples, chunk, loss, reports, part):
        shared = cuda.shared.array(THREADS, real)
        thread = cuda.threadIdx.x
        row, number = cuda.blockIdx.x * (THREADS // LANES) + thread // LANES, chunk.cursor[STEP] + chunk.step
        weight = reports.weights[number]
        own = output_row(network, memory, samples, chunk, loss, weight, row, chunk.n_rows, shared)
        own = over_block(shared, thread, own)
        if thread == 0:
            reports.losses[number, part + cuda.blockIdx.x] = own

    return output_delta


@cache
def make_delta_tile(dtype, tile: Tile | TensorTile) -> Callable:
    """A device function: the tile of the delta at a dense layer's input at a ``corner`` (first row, end row, first
    column).
    """
    product = tile.product(dtype, left_along=False, right_along=False)
    accumulate, part, place = product.accumulate, product.part, product.place
    n_parts, part_size, threads = product.n_parts, product.part_size, tile.threads

    def delta_tile(network, memory, order, depth, corner, scratch):
        thread = cuda.threadIdx.x
        first_row, end_row, first_column = corner
        shared, sums = scratch
        layer = network.layers[depth]
        stride, stride_in = layer[STRIDE_OUT], layer[STRIDE_IN]
        left = memory.delta, layer[NODE_OUT], stride, first_row, end_row, order, 0, 0, -1
        right = memory.theta, layer[W], stride, first_column, layer[N_IN], order, 0, 0, -1
        accumulate(sums, shared, left, right, 0, layer[N_OUT], thread)
        for k in range(n_parts):
            part(sums, shared, k, thread)
            for i in range(thread, part_size, threads):
                row, column = place(k, i)
                row += first_row
                column += first_column
                if row < end_row and column < stride_in:
                    own = row * stride_in + column
                    result = shared[i] * memory.delta[layer[NODE_IN] + own]
                    if layer[SKIP] >= 0:  # what a sum has kept for its summand
                        result += memory.delta[layer[SKIP] + own]
                    memory.delta[layer[NODE_IN] + own] = result

    return device_function(delta_tile)


def make_delta(dtype, tile: Tile | TensorTile, name: str):
    """Back through one dense layer; a grid of row tiles by column tiles of its input."""
    real = numba_type(dtype)
    n_sums, n_shared = tile.n_sums, tile.shared
    delta_tile = make_delta_tile(dtype, tile)

    @kernel(tile.threads, name)
    def delta(network, memory, order, n_rows, depth):
        """Precondition: ``memory.delta`` holds f'(z) at the layer's input."""
        scratch = cuda.shared.array(n_shared, real, ALIGNMENT), cuda.local.array(n_sums, real)
        corner = cuda.blockIdx.x * tile.rows, n_rows, cuda.blockIdx.y * tile.columns
        delta_tile(network, memory, order, depth, corner, scratch)

    return delta
