"""Weight gradients, and the update of the parameters by them.

A gradient is summed by slices of the batch, as many as its shape says, which the update adds up in order.
"""

import math
from collections.abc import Callable

from ..optimizers import OPTIMIZERS
from .compat import cuda, device_function, kernel, numba_type, select
from .forward import POSITION, STEP, THREADS
from .gemm import Tile
from .layers import over_block
from .layout import BIAS, N_IN, NODE_IN, NODE_OUT, STRIDE_IN, STRIDE_OUT, W
from .tensor import TensorTile

# Columns of the table of tiles: layer, first row and first column.
LAYER, ROW, COLUMN = range(3)
# Columns of the table of chunks: the first parameter, how many there are, their group, and whether they are penalised.
FIRST, COUNT, GROUP, PENALISED = range(4)
#: Parameters of a block of the update.
CHUNK = 1024


def make_gradient_tile(dtype, tile: Tile | TensorTile) -> Callable:
    """A device function: one tile of a dense layer's gradient over rows ``since`` to ``until``, into ``memory.grad``.

    ``first`` and ``from_samples`` are as in the forward pass; a chunk after the first adds to what is there.
    """
    product = tile.product(dtype, left_along=True, right_along=True, with_ones=True)
    zero, n_sums = dtype.type(0), tile.n_sums
    accumulate, part, place = product.accumulate, product.part, product.place
    n_parts, part_size, threads = product.n_parts, product.part_size, tile.threads

    def gradient_tile(
        network,
        memory,
        samples,
        start,
        first,
        since,
        until,
        depth,
        first_row,
        first_column,
        into,
        from_samples,
        shared,
        sums,
    ):
        thread = cuda.threadIdx.x
        for i in range(n_sums):
            sums[i] = zero
        layer = network.layers[depth]
        n_in, stride, stride_in = layer[N_IN], layer[STRIDE_OUT], layer[STRIDE_IN]
        source, begin, ordered, position = memory.a, layer[NODE_IN], 0, 0
        if from_samples and depth == 0:
            source, ordered = samples.X, samples.ordered
            begin, position = (0, start + first) if ordered else ((start + first) * stride_in, 0)
        ones = n_in if layer[BIAS] else -1
        left = source, begin, stride_in, first_row, stride_in, samples.order, ordered, position, ones
        right = memory.delta, layer[NODE_OUT], stride, first_column, stride, samples.order, 0, 0, -1
        accumulate(sums, shared, left, right, since, until, thread)
        into += layer[W]
        for k in range(n_parts):
            part(sums, shared, k, thread)
            for i in range(thread, part_size, threads):
                row, column = place(k, i)
                row += first_row
                column += first_column
                if row <= n_in and column < stride:
                    own = into + row * stride + column
                    memory.grad[own] = shared[i] + (memory.grad[own] if first else zero)

    return device_function(gradient_tile)


def make_gradient(dtype, tile: Tile | TensorTile, name: str):
    """grad_W[l] = a[l-1].T @ delta[l] and grad_b[l] of all dense layers; a grid of tiles by slices."""
    real = numba_type(dtype)
    n_sums, n_shared = tile.n_sums, tile.shared
    gradient_tile = make_gradient_tile(dtype, tile)

    @kernel(tile.threads, name)
    def gradient(network, memory, samples, cursor, step, update_rows, first, n_rows, tiles, from_samples):
        shared = cuda.shared.array(n_shared, real)
        sums = cuda.local.array(n_sums, real)
        number, n_slices = cuda.blockIdx.y, cuda.gridDim.y
        own = tiles[cuda.blockIdx.x]
        start = cursor[POSITION] + step * update_rows
        since, until = n_rows * number // n_slices, n_rows * (number + 1) // n_slices
        gradient_tile(
            network,
            memory,
            samples,
            start,
            first,
            since,
            until,
            own[LAYER],
            own[ROW],
            own[COLUMN],
            number * memory.theta.size,
            from_samples,
            shared,
            sums,
        )

    return gradient


def make_take(n: int):
    """A device function: number ``i`` of each of ``n`` slots, as a tuple."""
    if n == 0:
        return device_function(lambda slots, i, size: ())
    others = make_take(n - 1)
    return device_function(lambda slots, i, size: (*others(slots, i, size), slots[(n - 1) * size + i]))


def make_put(n: int):
    """A device function that writes what `make_take` takes."""
    if n == 0:
        return device_function(lambda slots, i, size, values: None)
    others, last = make_put(n - 1), n - 1

    def put(slots, i, size, values):
        others(slots, i, size, values)
        slots[last * size + i] = values[last]

    return device_function(put)


def with_slots(row):
    """A device function that updates parameter ``i`` and its slots by a rule."""
    rule, take, put = device_function(row.update), make_take(row.n_slots), make_put(row.n_slots)

    def run(theta, slots, i, grad, h):
        theta[i], values = rule(theta[i], grad, take(slots, i, theta.size), h)
        put(slots, i, theta.size, values)

    return device_function(run)


update_by_code = select(list(OPTIMIZERS.values()), with_slots)


def make_collect(dtype):
    """A device function: the gradient of one parameter, the penalties' slopes included, and the penalties."""
    zero, half = dtype.type(0), dtype.type(0.5)

    def collect(memory, i, n_slices, l1, l2, penalised):
        grad = memory.grad[i]
        for k in range(1, n_slices):
            grad += memory.grad[k * memory.theta.size + i]
        penalty = zero
        if penalised and (l1 > zero or l2 > zero):
            w = memory.theta[i]
            penalty = l1 * abs(w) + half * l2 * w * w
            grad += (l1 if w > zero else zero) - (l1 if w < zero else zero) + l2 * w
        return grad, penalty

    return device_function(collect)


def make_update(dtype, update_of, name: str | None):
    """Add up the slices and the penalties, clip, and update; a block for each chunk of parameters."""
    zero, one = dtype.type(0), dtype.type(1)
    collect, real = make_collect(dtype), numba_type(dtype)

    @kernel(THREADS, name)
    def update(
        memory, chunks, cursor, step, code, scalars, n_slices, penalties, l1, l2, by_batch, weights, clip, limit
    ):
        """``penalties`` (updates, chunks) receives each chunk's, unless there are none; ``scalars`` are the optimizer's
        (updates, groups, N_SCALARS). The gradient is scaled by ``clip[0]`` and cut off at ``limit``.
        """
        shared = cuda.shared.array(THREADS, real)
        block = cuda.blockIdx.x
        first, count, group = chunks[block, FIRST], chunks[block, COUNT], chunks[block, GROUP]
        number = cursor[STEP] + step
        h = (
            scalars[number, group, 0],
            scalars[number, group, 1],
            scalars[number, group, 2],
            scalars[number, group, 3],
            scalars[number, group, 4],
            scalars[number, group, 5],
        )
        scale = one
        if by_batch:
            scale = one / weights[number] if weights[number] > zero else zero
        own = zero
        for i in range(first + cuda.threadIdx.x, first + count, cuda.blockDim.x):
            grad, penalty = collect(memory, i, n_slices, l1 * scale, l2 * scale, chunks[block, PENALISED])
            own += penalty
            grad = min(max(grad * clip[0], -limit), limit)
            update_of(code, (memory.theta, memory.slots, i, grad, h))
        if l1 > zero or l2 > zero:
            own = over_block(shared, cuda.threadIdx.x, own)
            if cuda.threadIdx.x == 0:
                penalties[number, block] = own

    return update


def make_reduce(dtype, name: str):
    """Add up slices and penalties into the first slice, and the squares of each chunk's gradient."""
    zero, one = dtype.type(0), dtype.type(1)
    collect, real = make_collect(dtype), numba_type(dtype)

    @kernel(THREADS, name)
    def reduce(memory, chunks, cursor, step, n_slices, penalties, l1, l2, by_batch, weights, squares):
        shared = cuda.shared.array(THREADS, real)
        block = cuda.blockIdx.x
        first, count = chunks[block, FIRST], chunks[block, COUNT]
        number = cursor[STEP] + step
        scale = one
        if by_batch:
            scale = one / weights[number] if weights[number] > zero else zero
        square = own = zero
        for i in range(first + cuda.threadIdx.x, first + count, cuda.blockDim.x):
            grad, penalty = collect(memory, i, n_slices, l1 * scale, l2 * scale, chunks[block, PENALISED])
            own += penalty
            square += grad * grad
            memory.grad[i] = grad
        square = over_block(shared, cuda.threadIdx.x, square)
        own = over_block(shared, cuda.threadIdx.x, own)
        if cuda.threadIdx.x == 0:
            squares[block] = square
            if l1 > zero or l2 > zero:
                penalties[number, block] = own

    return reduce


def make_clip(dtype, name: str):
    """What scales the gradient to a global norm of at most ``clip_norm``, from the chunks' squares; one block."""
    zero, one = dtype.type(0), dtype.type(1)
    real = numba_type(dtype)

    @kernel(THREADS, name)
    def find_clip(squares, clip_norm, clip):
        shared = cuda.shared.array(THREADS, real)
        square = zero
        for k in range(cuda.threadIdx.x, squares.size, cuda.blockDim.x):
            square += squares[k]
        square = over_block(shared, cuda.threadIdx.x, square)
        if cuda.threadIdx.x == 0:
            clip[0] = min(one, clip_norm / math.sqrt(square)) if square > zero else one

    return find_clip
