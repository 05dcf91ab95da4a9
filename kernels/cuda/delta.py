"""Loss and delta recursion: delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])."""

import math

from ..elementary import exp, log
from ..losses import LOSSES
from .compat import cuda, device_function, kernel, numba_type, select
from .forward import LANES, POSITION, STEP, THREADS
from .gemm import Tile, make_product
from .layers import over_lanes
from .layout import N_IN, N_OUT, NODE_IN, NODE_OUT, SKIP, STRIDE_IN, STRIDE_OUT, W


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


def make_output_delta(dtype, loss_of, name: str | None):
    """Loss and output delta; LANES threads for each row."""
    real = numba_type(dtype)
    zero, one, lowest = dtype.type(0), dtype.type(1), dtype.type(-math.inf)
    lanes, rows, threads = LANES, THREADS // LANES, THREADS

    @kernel(threads, name)
    def output_delta(
        network, memory, samples, cursor, step, update_rows, first, n_rows, depth, loss, setting, options, weights, losses, part
    ):
        """``options``: label smoothing by class, what is kept of a target, whether there is a softmax, whether outputs
        come in pairs. ``losses`` (updates, parts) receives the sum over each block's rows from ``part`` on; ``weights``
        has the weight of each update.
        """
        shared = cuda.shared.array(threads, real)
        smoothing, keep, softmax, pairs = options
        thread = cuda.threadIdx.x
        lane, own = thread % lanes, thread // lanes
        row = cuda.blockIdx.x * rows + own
        inside = row < n_rows
        layer = network.layers[depth]
        n_out, stride = layer[N_OUT], layer[STRIDE_OUT]
        place = layer[NODE_OUT] + row * stride
        number = cursor[STEP] + step
        sample = cursor[POSITION] + step * update_rows + first + row
        weight, label, lse, total = zero, 0, zero, zero
        if inside:
            if samples.ordered:
                sample = samples.order[sample]
            if samples.labelled:
                label = samples.labels[sample]
            weight = samples.weight[sample] if samples.weighted else one
            weight = weight / weights[number] if weights[number] > zero else zero
        if softmax:
            highest = lowest
            if inside:
                for k in range(lane, n_out, lanes):
                    highest = max(highest, memory.a[place + k])
            highest = over_lanes(shared, lane, thread, highest, True)
            if inside:
                for k in range(lane, n_out, lanes):
                    total += exp(memory.a[place + k] - highest)
            total = over_lanes(shared, lane, thread, total, False)
            lse = highest + log(total)
        value = zero
        if inside:
            width = 2 if pairs else 1
            for k in range(lane * width, stride, lanes * width):
                delta = other = zero
                if k < n_out:
                    target = smoothing
                    if samples.labelled:
                        target += keep if label == k else zero
                    else:
                        target += keep * samples.targets[sample * n_out + k]
                    z1 = memory.a[place + k + width - 1]
                    own_loss, delta, other = loss_of(loss, (memory.a[place + k], z1, target, lse, setting))
                    value += weight * own_loss
                memory.delta[place + k] = weight * delta
                if pairs:
                    memory.delta[place + k + 1] = weight * other
        value = over_lanes(shared, lane, thread, value, False)
        cuda.syncthreads()
        shared[thread] = value
        cuda.syncthreads()
        if thread == 0:
            total = zero
            for r in range(rows):
                total += shared[r * lanes]
            losses[number, part + cuda.blockIdx.x] = total

    return output_delta


def make_delta(dtype, tile: Tile, name: str):
    """Back through one dense layer; a grid of column tiles by row tiles of its input."""
    real = numba_type(dtype)
    product = make_product(dtype, tile, left_along=False, right_along=False)
    zero, n_sums, n_shared = dtype.type(0), product.n_sums, tile.shared
    accumulate, part, place = product.accumulate, product.part, product.place
    n_parts, part_size, threads = product.n_parts, product.part_size, tile.threads

    @kernel(threads, name)
    def delta(network, memory, order, n_rows, depth):
        """Precondition: ``memory.delta`` holds f'(z) at the layer's input."""
        thread = cuda.threadIdx.x
        shared = cuda.shared.array(n_shared, real)
        sums = cuda.local.array(n_sums, real)
        for i in range(n_sums):
            sums[i] = zero
        layer = network.layers[depth]
        first_row, first_column = cuda.blockIdx.y * tile.rows, cuda.blockIdx.x * tile.columns
        stride, stride_in = layer[STRIDE_OUT], layer[STRIDE_IN]
        left = memory.delta, layer[NODE_OUT], stride, first_row, n_rows, order, 0, 0, -1
        right = memory.theta, layer[W], stride, first_column, layer[N_IN], order, 0, 0, -1
        accumulate(sums, shared, left, right, 0, layer[N_OUT], thread)
        for k in range(n_parts):
            part(sums, shared, k, thread)
            for i in range(thread, part_size, threads):
                row, column = place(k, i)
                row += first_row
                column += first_column
                if row < n_rows and column < stride_in:
                    own = row * stride_in + column
                    result = shared[i] * memory.delta[layer[NODE_IN] + own]
                    if layer[SKIP] >= 0:  # what a sum has kept for its summand
                        result += memory.delta[layer[SKIP] + own]
                    memory.delta[layer[NODE_IN] + own] = result

    return delta
