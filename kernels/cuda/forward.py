"""Forward pass: z[l] = a[l-1] @ W[l] + b[l], a[l] = f(z[l])."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from ..activations import ACTIVATIONS
from ..elementary import cos, log
from ..random import fold, uniform
from .compat import SIMULATED, cuda, device_function, kernel, numba_type, select
from .gemm import Tile
from .layout import (
    ACTIVATION,
    BASE,
    DROPOUT,
    KEPT_SCALE,
    KEY,
    N_IN,
    N_OUT,
    NODE_IN,
    NODE_OUT,
    POSITION,
    SETTING,
    STRIDE_IN,
    STRIDE_OUT,
    W,
)
from .ptx import ALIGNMENT
from .tensor import TensorTile

#: Threads of a block of kernels that go through numbers one by one, and of these, those that share a row.
THREADS, LANES = (4, 2) if SIMULATED else (256, 32)
#: Blocks of kernels that go on with the numbers after theirs, at most.
MOST_BLOCKS = 3 if SIMULATED else 2048
#: Bytes that masks are drawn by, as the other engine lays them out.
LINE_BYTES = 64

fold, uniform = device_function(fold), device_function(uniform)


@device_function
def start_of(chunk):
    """Where in the epoch the chunk's update begins."""
    return chunk.cursor[POSITION] + chunk.step * chunk.update_rows


@device_function
def key_of(chunk):
    """The generator's key of the chunk's update."""
    return fold(np.uint64(chunk.cursor[KEY]), start_of(chunk))


@device_function
def place_of(samples, chunk):
    """Where the chunk's first row is in the samples' order, or among the samples where they have none."""
    place = start_of(chunk) + chunk.first
    return place if samples.ordered else place - chunk.cursor[BASE]


def with_derivative(value: Callable, derivative: Callable) -> Callable:
    """A device function from z and p to f(z) and f'(z)."""
    value, derivative = device_function(value), device_function(derivative)

    def both(z, p):
        a = value(z, p)
        return a, derivative(z, a, p)

    return device_function(both)


activate_by_code = select(list(ACTIVATIONS.values()), lambda row: with_derivative(row.value, row.derivative))


def make_finish(dtype, activate: Callable) -> Callable:
    """A device function that takes one z through activation and dropout to where it belongs; ``key`` is `key_of` the
    chunk.
    """
    zero = dtype.type(0)
    width = LINE_BYTES // dtype.itemsize

    def finish(network, memory, chunk, key, depth, row, column, z, training):
        layer, numbers = network.layers[depth], network.numbers[depth]
        place = layer[NODE_OUT] + row * layer[STRIDE_OUT] + column
        a = slope = zero
        if column < layer[N_OUT]:
            a = z
            if layer[ACTIVATION] >= 0:
                a, slope = activate(layer[ACTIVATION], (z, numbers[SETTING]))
            if training and numbers[DROPOUT] > zero:
                panel_key = fold(fold(key, depth), column // width)
                bits = fold(fold(panel_key, chunk.first + row), column % width)
                kept = numbers[KEPT_SCALE] if uniform(bits) >= numbers[DROPOUT] else zero
                a *= kept
                slope *= kept
        memory.a[place] = a
        if training and layer[ACTIVATION] >= 0:
            memory.delta[place] = slope

    return device_function(finish)


@device_function
def input_of(network, memory, samples, chunk, depth, from_samples):
    """Where a layer's input lies: array and start, whether rows are found by the samples' order, and from where on."""
    layer = network.layers[depth]
    if from_samples and depth == 0:
        place = place_of(samples, chunk)
        if samples.ordered:
            return samples.X, 0, 1, place
        return samples.X, place * layer[STRIDE_IN], 0, 0
    return memory.a, layer[NODE_IN], 0, 0


@cache
def make_forward_tile(dtype, tile: Tile | TensorTile, finish: Callable) -> Callable:
    """A device function: the tile of a dense layer's output at a ``corner`` (first row, end row, first column).

    ``from_samples``: the first layer's input is X, not a node.
    """
    product = tile.product(dtype, left_along=False, right_along=True)
    accumulate, part, place = product.accumulate, product.part, product.place
    n_parts, part_size, threads = product.n_parts, product.part_size, tile.threads

    def forward_tile(network, memory, samples, chunk, depth, from_samples, training, corner, scratch):
        thread = cuda.threadIdx.x
        first_row, end_row, first_column = corner
        shared, sums = scratch
        layer = network.layers[depth]
        stride = layer[STRIDE_OUT]
        source, start, ordered, position = input_of(network, memory, samples, chunk, depth, from_samples)
        left = source, start, layer[STRIDE_IN], first_row, end_row, samples.order, ordered, position, -1
        right = memory.theta, layer[W], stride, first_column, stride, samples.order, 0, 0, -1
        accumulate(sums, shared, left, right, 0, layer[N_IN], thread)
        bias = layer[W] + layer[N_IN] * stride
        key = key_of(chunk)
        for k in range(n_parts):
            part(sums, shared, k, thread)
            for i in range(thread, part_size, threads):
                row, column = place(k, i)
                row += first_row
                column += first_column
                if row < end_row and column < stride:
                    z = shared[i] + memory.theta[bias + column]
                    finish(network, memory, chunk, key, depth, row, column, z, training)

    return device_function(forward_tile)


def make_forward(dtype, tile: Tile | TensorTile, finish: Callable, name: str | None):
    """Of one dense layer; a grid of row tiles by column tiles."""
    real = numba_type(dtype)
    n_sums, n_shared = tile.n_sums, tile.shared
    forward_tile = make_forward_tile(dtype, tile, finish)

    @kernel(tile.threads, name)
    def forward(network, memory, samples, chunk, depth, from_samples, training):
        scratch = cuda.shared.array(n_shared, real, ALIGNMENT), cuda.local.array(n_sums, real)
        corner = cuda.blockIdx.x * tile.rows, chunk.n_rows, cuda.blockIdx.y * tile.columns
        forward_tile(network, memory, samples, chunk, depth, from_samples, training, corner, scratch)

    return forward


def make_gather(dtype, name: str):
    """Copy samples into the first node, with noise in training."""
    one, two_pi, minus_two = dtype.type(1), dtype.type(6.283185307179586), dtype.type(-2)

    @kernel(THREADS, name)
    def gather(network, memory, samples, chunk, n_in, noise):
        stride, place = network.layers[0, STRIDE_IN], place_of(samples, chunk)
        key = fold(key_of(chunk), len(network.layers))
        for i in range(cuda.grid(1), chunk.n_rows * stride, cuda.gridsize(1)):
            row, column = i // stride, i % stride
            sample = place + row
            if samples.ordered:
                sample = samples.order[sample]
            x = samples.X[sample * stride + column]
            if noise > 0 and column < n_in:
                row_key = fold(key, chunk.first + row)
                radius = one - type(x)(uniform(fold(row_key, 2 * column)))
                angle = two_pi * type(x)(uniform(fold(row_key, 2 * column + 1)))
                x += noise * math.sqrt(minus_two * log(radius)) * cos(angle)
            memory.a[i] = x

    return gather
