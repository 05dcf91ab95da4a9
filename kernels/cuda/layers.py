"""What few networks want: sums, and normalizations, y = x gain + shift, x being z standardised.

The equations stand in the CPU engine's file of this name. Normalizations of rows have LANES threads for each row;
those of the batch add up columns, LANES of them to a block.
"""

import math

from ..problem import BATCH_NORM, LAYER_NORM, SCALE
from .compat import cuda, device_function, kernel, numba_type
from .forward import LANES, THREADS, key_of
from .layout import EPSILON, KIND, MOVING, N_OUT, NODE_IN, NODE_OUT, SKIP, STATISTICS, STRIDE_OUT, W

#: What the moving averages take from each batch.
MOMENTUM = 0.1
# Rows of the statistics of batches.
MEAN, DEVIATION, DELTA, DELTA_X = range(4)


@device_function
def over_lanes(shared, lane, thread, value, highest):
    """Sum, or maximum, of a row's lanes, in the order of a tree; all of them get it."""
    cuda.syncthreads()
    shared[thread] = value
    cuda.syncthreads()
    span = LANES // 2
    while span > 0:
        if lane < span:
            other = shared[thread + span]
            shared[thread] = max(shared[thread], other) if highest else shared[thread] + other
        cuda.syncthreads()
        span //= 2
    return shared[thread - lane]


@device_function
def over_block(shared, thread, value):
    """Sum of all a block's threads, whose number is a power of two, in the order of a tree; all of them get it."""
    cuda.syncthreads()
    shared[thread] = value
    cuda.syncthreads()
    span = cuda.blockDim.x // 2
    while span > 0:
        if thread < span:
            shared[thread] += shared[thread + span]
        cuda.syncthreads()
        span //= 2
    return shared[0]


@device_function
def over_rows(shared, thread, value):
    """Sum of a column's threads, in the order of a tree; all of them get it."""
    cuda.syncthreads()
    shared[thread] = value
    cuda.syncthreads()
    span = THREADS // LANES // 2
    while span > 0:
        if thread // LANES < span:
            shared[thread] += shared[thread + span * LANES]
        cuda.syncthreads()
        span //= 2
    return shared[thread % LANES]


def make_normalize_rows(dtype, finish, name: str | None):
    """Layer normalization, or that by the mean square: z at the layer's input becomes x, and y goes on."""
    real = numba_type(dtype)
    zero, one = dtype.type(0), dtype.type(1)

    @kernel(THREADS, name)
    def normalize_rows(network, memory, chunk, depth, training):
        shared = cuda.shared.array(THREADS, real)
        thread = cuda.threadIdx.x
        lane = thread % LANES
        row = cuda.blockIdx.x * (THREADS // LANES) + thread // LANES
        inside = row < chunk.n_rows
        layer = network.layers[depth]
        n, stride = layer[N_OUT], layer[STRIDE_OUT]
        place = layer[NODE_IN] + row * stride
        mean = square = zero
        if layer[KIND] == LAYER_NORM:
            if inside:
                for k in range(lane, n, LANES):
                    mean += memory.a[place + k]
            mean = over_lanes(shared, lane, thread, mean, False) / type(mean)(n)
        if inside:
            for k in range(lane, n, LANES):
                square += (memory.a[place + k] - mean) * (memory.a[place + k] - mean)
        square = over_lanes(shared, lane, thread, square, False)
        deviation = one / math.sqrt(square / type(mean)(n) + network.numbers[depth, EPSILON])
        if inside:
            if lane == 0:
                memory.statistics[layer[STATISTICS] + row] = deviation
            key = key_of(chunk)
            for k in range(lane, stride, LANES):
                x = (memory.a[place + k] - mean) * deviation if k < n else zero
                memory.a[place + k] = x
                y = x * memory.theta[layer[W] + k] + memory.theta[layer[W] + stride + k]
                finish(network, memory, chunk, key, depth, row, k, y, training)

    return normalize_rows


def make_normalize_columns(dtype, finish, name: str | None):
    """The same for a batch's statistics, or without any."""
    zero, one = dtype.type(0), dtype.type(1)

    @kernel(THREADS, name)
    def normalize_columns(network, memory, chunk, depth, training):
        layer = network.layers[depth]
        n, stride = layer[N_OUT], layer[STRIDE_OUT]
        key = key_of(chunk)
        for i in range(cuda.grid(1), chunk.n_rows * stride, cuda.gridsize(1)):
            row, k = i // stride, i % stride
            x = memory.a[layer[NODE_IN] + i]
            if layer[KIND] == BATCH_NORM and k < n:
                unit = layer[STATISTICS] + k
                x = (x - memory.statistics[unit + MEAN * n]) * memory.statistics[unit + DEVIATION * n]
                memory.a[layer[NODE_IN] + i] = x
            y = x * memory.theta[layer[W] + k] + memory.theta[layer[W] + stride + k]
            finish(network, memory, chunk, key, depth, row, k, y, training)
            if layer[KIND] == SCALE and training:
                memory.delta[layer[NODE_OUT] + i] = one if k < n else zero

    return normalize_columns


def make_batch_moments(dtype, name: str):
    """Mean and deviation of z over the batch, or in inference from the moving averages, which a batch brings along.

    The variance that moves the average is the unbiased one, as in PyTorch.
    """
    real = numba_type(dtype)
    zero, one, momentum = dtype.type(0), dtype.type(1), dtype.type(MOMENTUM)

    @kernel(THREADS, name)
    def batch_moments(network, memory, n_rows, depth, training):
        shared = cuda.shared.array(THREADS, real)
        thread = cuda.threadIdx.x
        k = cuda.blockIdx.x * LANES + thread % LANES
        layer = network.layers[depth]
        n, stride = layer[N_OUT], layer[STRIDE_OUT]
        inside, unit, moving = k < n, layer[STATISTICS] + k, layer[MOVING] + k
        mean = variance = zero
        if training:
            if inside:
                for r in range(thread // LANES, n_rows, THREADS // LANES):
                    mean += memory.a[layer[NODE_IN] + r * stride + k]
            mean = over_rows(shared, thread, mean) / type(mean)(n_rows)
            if inside:
                for r in range(thread // LANES, n_rows, THREADS // LANES):
                    z = memory.a[layer[NODE_IN] + r * stride + k]
                    variance += (z - mean) * (z - mean)
            variance = over_rows(shared, thread, variance)
        if inside and thread < LANES:
            if training:
                unbiased = variance / type(mean)(max(n_rows - 1, 1))
                variance /= type(mean)(n_rows)
                memory.moving[moving] += momentum * (mean - memory.moving[moving])
                memory.moving[moving + n] += momentum * (unbiased - memory.moving[moving + n])
            else:
                mean, variance = memory.moving[moving], memory.moving[moving + n]
            deviation = one / math.sqrt(variance + network.numbers[depth, EPSILON])
            memory.statistics[unit + MEAN * n] = mean
            memory.statistics[unit + DEVIATION * n] = deviation

    return batch_moments


def make_gains_gradient(dtype, name: str):
    """The gradients of gains, sum(delta x), and of shifts, sum(delta), and their means that a batch's delta wants."""
    real = numba_type(dtype)
    zero = dtype.type(0)

    @kernel(THREADS, name)
    def gains_gradient(network, memory, chunk, depth):
        shared = cuda.shared.array(THREADS, real)
        thread = cuda.threadIdx.x
        k = cuda.blockIdx.x * LANES + thread % LANES
        layer = network.layers[depth]
        n, stride = layer[N_OUT], layer[STRIDE_OUT]
        inside = k < n
        total = total_x = zero
        if inside:
            for r in range(thread // LANES, chunk.n_rows, THREADS // LANES):
                delta = memory.delta[layer[NODE_OUT] + r * stride + k]
                total += delta
                total_x += delta * memory.a[layer[NODE_IN] + r * stride + k]
        total, total_x = over_rows(shared, thread, total), over_rows(shared, thread, total_x)
        if inside and thread < LANES:
            gain = layer[W] + k
            if layer[KIND] == BATCH_NORM:
                unit, scale = layer[STATISTICS] + k, memory.theta[gain] / type(total)(chunk.n_rows)
                memory.statistics[unit + DELTA * n] = scale * total
                memory.statistics[unit + DELTA_X * n] = scale * total_x
            memory.grad[gain] = total_x + (memory.grad[gain] if chunk.first else zero)
            memory.grad[gain + stride] = total + (memory.grad[gain + stride] if chunk.first else zero)

    return gains_gradient


def make_rows_back(dtype, name: str):
    """delta[y] at the output of a normalization of rows gives delta[z] at its input."""
    real = numba_type(dtype)
    zero = dtype.type(0)

    @kernel(THREADS, name)
    def rows_back(network, memory, n_rows, depth):
        shared = cuda.shared.array(THREADS, real)
        thread = cuda.threadIdx.x
        lane = thread % LANES
        row = cuda.blockIdx.x * (THREADS // LANES) + thread // LANES
        inside = row < n_rows
        layer = network.layers[depth]
        n, stride = layer[N_OUT], layer[STRIDE_OUT]
        place, out = layer[NODE_IN] + row * stride, layer[NODE_OUT] + row * stride
        centre = slope = zero
        if inside:
            for k in range(lane, n, LANES):
                g = memory.theta[layer[W] + k] * memory.delta[out + k]
                centre += g
                slope += g * memory.a[place + k]
        slope = over_lanes(shared, lane, thread, slope, False) / type(slope)(n)
        centre = over_lanes(shared, lane, thread, centre, False) / type(slope)(n)
        if layer[KIND] != LAYER_NORM:
            centre = zero
        if inside:
            deviation = memory.statistics[layer[STATISTICS] + row]
            for k in range(lane, n, LANES):
                g = memory.theta[layer[W] + k] * memory.delta[out + k]
                memory.delta[place + k] = deviation * (g - centre - memory.a[place + k] * slope)
            for k in range(n + lane, stride, LANES):
                memory.delta[place + k] = zero

    return rows_back


def make_columns_back(dtype, name: str):
    """The same for a batch's statistics. Precondition: `gains_gradient`."""
    zero = dtype.type(0)

    @kernel(THREADS, name)
    def columns_back(network, memory, n_rows, depth):
        layer = network.layers[depth]
        n, stride = layer[N_OUT], layer[STRIDE_OUT]
        for i in range(cuda.grid(1), n_rows * stride, cuda.gridsize(1)):
            k = i % stride
            result = zero
            if k < n:
                unit = layer[STATISTICS] + k
                g = memory.theta[layer[W] + k] * memory.delta[layer[NODE_OUT] + i]
                x_part = memory.a[layer[NODE_IN] + i] * memory.statistics[unit + DELTA_X * n]
                result = memory.statistics[unit + DEVIATION * n] * (g - memory.statistics[unit + DELTA * n] - x_part)
            memory.delta[layer[NODE_IN] + i] = result

    return columns_back


def make_add(dtype, name: str):
    """a[l] = a[l-1] + a[SKIP]; the derivative is 1."""
    zero, one = dtype.type(0), dtype.type(1)

    @kernel(THREADS, name)
    def add(network, memory, n_rows, depth, training):
        layer = network.layers[depth]
        stride = layer[STRIDE_OUT]
        for i in range(cuda.grid(1), n_rows * stride, cuda.gridsize(1)):
            memory.a[layer[NODE_OUT] + i] = memory.a[layer[NODE_IN] + i] + memory.a[layer[SKIP] + i]
            if training:
                memory.delta[layer[NODE_OUT] + i] = one if i % stride < layer[N_OUT] else zero

    return add


def make_split(dtype, name: str):
    """The delta of a sum goes to both its summands: times f'(z) to the last layer, and kept for the other."""

    @kernel(THREADS, name)
    def split(network, memory, n_rows, depth):
        layer = network.layers[depth]
        for i in range(cuda.grid(1), n_rows * layer[STRIDE_OUT], cuda.gridsize(1)):
            delta = memory.delta[layer[NODE_OUT] + i]
            memory.delta[layer[NODE_IN] + i] *= delta
            memory.delta[layer[NODE_OUT] + i] = delta * memory.delta[layer[SKIP] + i]

    return split
