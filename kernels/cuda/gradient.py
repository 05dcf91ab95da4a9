"""Weight gradients, and the update of the parameters by them.

A gradient is summed by slices of the batch, as many as its shape says, which the update adds up in order.
"""

import math
from collections.abc import Callable
from functools import cache

from ..optimizers import OPTIMIZERS
from .compat import cuda, device_function, kernel, numba_type, select
from .forward import THREADS, input_of
from .gemm import Tile
from .layers import over_block
from .layout import BIAS, N_IN, NODE_OUT, STEP, STRIDE_IN, STRIDE_OUT, W
from .ptx import ALIGNMENT
from .tensor import TensorTile

# Columns of the table of tiles: layer, first row and first column.
LAYER, ROW, COLUMN = range(3)
# Columns of the table of chunks: the first parameter, how many there are, their group, and whether they are penalised.
FIRST, COUNT, GROUP, PENALISED = range(4)
#: Parameters of a block of the update.
CHUNK = 1024


@cache
def make_gradient_tile(dtype, tile: Tile | TensorTile) -> Callable:
    """A device function: one tile of a dense layer's gradient over rows ``span``, into a slice of ``memory.grad``.

    ``which`` is a row of the table of tiles; a chunk after an update's first adds to what is there.
    """
    product = tile.product(dtype, left_along=True, right_along=True, with_ones=True)
    zero = dtype.type(0)
    accumulate, part, place = product.accumulate, product.part, product.place
    n_parts, part_size, threads = product.n_parts, product.part_size, tile.threads

    def gradient_tile(network, memory, samples, chunk, which, span, number, from_samples, scratch):
        thread = cuda.threadIdx.x
        depth, first_row, first_column = which[LAYER], which[ROW], which[COLUMN]
        since, until = span
        shared, sums = scratch
        layer = network.layers[depth]
        n_in, stride, stride_in = layer[N_IN], layer[STRIDE_OUT], layer[STRIDE_IN]
        source, start, ordered, position = input_of(network, memory, samples, chunk, depth, from_samples)
        ones = n_in if layer[BIAS] else -1
        left = source, start, stride_in, first_row, stride_in, samples.order, ordered, position, ones
        right = memory.delta, layer[NODE_OUT], stride, first_column, stride, samples.order, 0, 0, -1
        accumulate(sums, shared, left, right, since, until, thread)
        into = number * memory.theta.size + layer[W]
        for k in range(n_parts):
            part(sums, shared, k, thread)
            for i in range(thread, part_size, threads):
                row, column = place(k, i)
                row += first_row
                column += first_column
                if row <= n_in and column < stride:
                    own = into + row * stride + column
                    memory.grad[own] = shared[i] + (memory.grad[own] if chunk.first else zero)

    return device_function(gradient_tile)


def make_gradient(dtype, tile: Tile | TensorTile, name: str):
    """grad_W[l] = a[l-1].T @ delta[l] and grad_b[l] of all dense layers; a grid of tiles by slices."""
    real = numba_type(dtype)
    n_sums, n_shared = tile.n_sums, tile.shared
    gradient_tile = make_gradient_tile(dtype, tile)

    @kernel(tile.threads, name)
    def gradient(network, memory, samples, chunk, tiles, from_samples):
        scratch = cuda.shared.array(n_shared, real, ALIGNMENT), cuda.local.array(n_sums, real)
        number, n_slices = cuda.blockIdx.y, cuda.gridDim.y
        span = chunk.n_rows * number // n_slices, chunk.n_rows * (number + 1) // n_slices
        which = tiles[cuda.blockIdx.x]
        gradient_tile(network, memory, samples, chunk, which, span, number, from_samples, scratch)

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


@cache
def make_collect(dtype):
    """A device function: the gradient of one parameter, the penalties' slopes included, and the penalties."""
    zero, half = dtype.type(0), dtype.type(0.5)

    def collect(memory, i, n_slices, penalty, scale):
        grad = memory.grad[i]
        for k in range(1, n_slices):
            grad += memory.grad[k * memory.theta.size + i]
        own = zero
        if scale > zero:
            l1, l2, w = scale * penalty.l1, scale * penalty.l2, memory.theta[i]
            own = l1 * abs(w) + half * l2 * w * w
            grad += (l1 if w > zero else zero) - (l1 if w < zero else zero) + l2 * w
        return grad, own

    return device_function(collect)


@cache
def make_scale_of(dtype):
    """A device function: what penalties count for a chunk of parameters, 0 where there are none."""
    zero, one = dtype.type(0), dtype.type(1)

    def scale_of(penalty, weight, penalised):
        if not penalised or (penalty.l1 == zero and penalty.l2 == zero):
            return zero
        if penalty.by_weight:
            return one / weight if weight > zero else zero
        return one

    return device_function(scale_of)


def make_update(dtype, update_of, name: str | None):
    """Add up the slices and the penalties, clip, and update; a block for each chunk of parameters.

    ``at`` is the cursor and the step.
    """
    real, zero = numba_type(dtype), dtype.type(0)
    collect, scale_of = make_collect(dtype), make_scale_of(dtype)

    @kernel(THREADS, name)
    def update(memory, chunks, at, n_slices, penalty, weights, rule):
        shared = cuda.shared.array(THREADS, real)
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        cursor, step = at
        number, chunk = cursor[STEP] + step, chunks[block]
        h = (
            rule.scalars[number, chunk[GROUP], 0],
            rule.scalars[number, chunk[GROUP], 1],
            rule.scalars[number, chunk[GROUP], 2],
            rule.scalars[number, chunk[GROUP], 3],
            rule.scalars[number, chunk[GROUP], 4],
            rule.scalars[number, chunk[GROUP], 5],
        )
        scale, own = scale_of(penalty, weights[number], chunk[PENALISED]), zero
        for i in range(chunk[FIRST] + thread, chunk[FIRST] + chunk[COUNT], THREADS):
            grad, part = collect(memory, i, n_slices, penalty, scale)
            own += part
            grad *= rule.clip[0]
            if grad > rule.limit:  # not by min and max, which take a limit for NaN
                grad = rule.limit
            elif grad < -rule.limit:
                grad = -rule.limit
            update_of(rule.code, (memory.theta, memory.slots, i, grad, h))
        if penalty.l1 > zero or penalty.l2 > zero:
            own = over_block(shared, thread, own)
            if thread == 0:
                penalty.parts[number, block] = own

    return update


def make_reduce(dtype, name: str):
    """Add up slices and penalties into the first slice, and the squares of each chunk's gradient."""
    real, zero = numba_type(dtype), dtype.type(0)
    collect, scale_of = make_collect(dtype), make_scale_of(dtype)

    @kernel(THREADS, name)
    def reduce(memory, chunks, at, n_slices, penalty, weights, squares):
        shared = cuda.shared.array(THREADS, real)
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        cursor, step = at
        number, chunk = cursor[STEP] + step, chunks[block]
        scale, own, square = scale_of(penalty, weights[number], chunk[PENALISED]), zero, zero
        for i in range(chunk[FIRST] + thread, chunk[FIRST] + chunk[COUNT], THREADS):
            grad, part = collect(memory, i, n_slices, penalty, scale)
            own += part
            square += grad * grad
            memory.grad[i] = grad
        square = over_block(shared, thread, square)
        own = over_block(shared, thread, own)
        if thread == 0:
            squares[block] = square
            if penalty.l1 > zero or penalty.l2 > zero:
                penalty.parts[number, block] = own

    return reduce


def make_clip(dtype, name: str):
    """What scales the gradient to a global norm of at most ``clip_norm``, from the chunks' squares; one block."""
    real, zero, one = numba_type(dtype), dtype.type(0), dtype.type(1)

    @kernel(THREADS, name)
    def find_clip(squares, clip_norm, clip):
        shared = cuda.shared.array(THREADS, real)
        square = zero
        for k in range(cuda.threadIdx.x, squares.size, THREADS):
            square += squares[k]
        square = over_block(shared, cuda.threadIdx.x, square)
        if cuda.threadIdx.x == 0:
            clip[0] = min(one, clip_norm / math.sqrt(square)) if square > zero else one

    return find_clip
