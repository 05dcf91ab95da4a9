"""Parameter phase: grad_W[l] = a[l-1].T @ delta[l], and the optimizer on the tile while it is in cache.

The sum of a tile runs over the rows in order, whichever thread owns it.
"""

import math
from functools import cache

from ..optimizers import OPTIMIZERS
from .forward import block_start
from .gemm import COLUMN_HEIGHTS, column_tile
from .jit import inlined, routine, select
from .layout import N_IN, N_OUT, NODE_IN, NODE_OUT, W, n_panels, transpose_rows
from .simd import LINE_BYTES, VECTORS

TALL, LOW = COLUMN_HEIGHTS
WIDE = VECTORS.panels


@routine
def _no_views(slots, start, stop):
    return ()


@routine
def _load_nothing(views, i):
    return ()


@routine
def _store_nothing(views, i, values):
    pass


@cache
def _slot_access(n_slots):
    """``view(slots, start, stop)``, ``load(views, i)`` and ``store(views, i, values)`` for tuples of ``n_slots``."""
    if n_slots == 0:
        return _no_views, _load_nothing, _store_nothing
    last = n_slots - 1
    view_others, load_others, store_others = _slot_access(last)

    def view(slots, start, stop):
        return (*view_others(slots, start, stop), slots[last][start:stop])

    def load(views, i):
        return (*load_others(views, i), views[last][i])

    def store(views, i, values):
        store_others(views, i, values)
        views[last][i] = values[last]

    view, load, store = (inlined(function, str(n_slots)) for function in (view, load, store))
    return view, load, store


_compile = cache(routine)


def _compile_update(row):
    rule, (view, load, store) = routine(row.update), _slot_access(row.n_slots)

    def update(W, slots, start, grad, h):
        # Views that begin at 0: an index that might be negative would keep the loop from being vectorised.
        W = W[start : start + grad.size]
        views = view(slots, start, start + grad.size)
        for i in range(grad.size):
            theta, values = rule(W[i], grad[i], load(views, i), h)
            W[i] = theta
            store(views, i, values)

    return inlined(update, row.update.__name__)


#: ``update(code, (W, slots, start, grad, h))``: the optimizer on ``grad.size`` parameters from ``W[start]``.
update = select(list(OPTIMIZERS.values()), _compile_update)
#: ``prepare(code, (h, hyper, learning_rate, step))``: the scalars of one step.
prepare = select(list(OPTIMIZERS.values()), lambda row: _compile(row.prepare))


@routine
def step_scalars(optimizer, work, thread, learning_rate, step):
    """A step's optimizer scalars in the precision of the parameters."""
    h = work.scalars[thread]
    prepare(optimizer.code, (h, optimizer.hyper, learning_rate, step))
    number = work.a.dtype.type
    return number(h[0]), number(h[1]), number(h[2]), number(h[3]), number(h[4]), number(h[5])


@inlined
def tiles_down(layer, bias):
    """Tiles of one column of a layer's grid: those over n_in, then the bias."""
    return (layer[N_IN] + TALL - 1) // TALL + bias


@inlined
def sum_tile(layer, work, block_size, n_rows, group, first, count, thread):
    """Sum rows ``first`` to ``first + count`` of grad_W over the minibatch, for one group of panels.

    Row n_in of the grid is the bias, whose activation is 1. Leaves the tile in ``work.tile[thread]``, panel by
    panel, and returns its height in lines.
    """
    block_rows = work.block_rows
    width = LINE_BYTES // work.a.itemsize
    panel_size = block_rows * width
    delta = (work.delta, layer[NODE_OUT] * block_rows + group * WIDE * panel_size, block_size, panel_size)
    height = TALL if count > LOW else LOW
    code = 8 * height + min(WIDE, n_panels(layer[N_OUT], width) - group * WIDE)
    tile = (work.tile[thread], 0, height * width)
    if first < layer[N_IN]:
        line = layer[NODE_IN] * block_rows + first // width * panel_size + first % width
        column_tile(code, (work.a, line, block_size), delta, tile, n_rows, block_rows)
    else:
        column_tile(code, (work.ones, 0, 0), delta, tile, n_rows, block_rows)
    return height


@routine
def gradient(network, parameters, work, optimizer, h, n_rows, is_first, is_last, thread, n_threads):
    """Gradient of a chunk of rows, and the update after the last chunk.

    With ``parameters.grad`` empty there is one chunk and the update happens here. Otherwise the gradient is added up
    in ``parameters.grad`` over chunks, and updated here after the last one if ``optimizer.fused``.
    """
    width = LINE_BYTES // work.a.itemsize
    block_size = block_start(network.layers, work, 1)
    update_now = is_last and optimizer.fused
    total = 0
    for layer in network.layers:
        total += (n_panels(layer[N_OUT], width) + WIDE - 1) // WIDE * tiles_down(layer, network.bias)
    begin, end = total * thread // n_threads, total * (thread + 1) // n_threads
    for depth in range(len(network.layers)):
        layer = network.layers[depth]
        n_in, panels = layer[N_IN], n_panels(layer[N_OUT], width)
        down = tiles_down(layer, network.bias)
        n_tiles = (panels + WIDE - 1) // WIDE * down
        for number in range(max(begin, 0), min(end, n_tiles)):
            group, first = number // down, number % down * TALL
            count = min(TALL, n_in - first)
            if network.bias and number % down == down - 1:
                first, count = n_in, 1
            height = sum_tile(layer, work, block_size, n_rows, group, first, count, thread)
            for p in range(min(WIDE, panels - group * WIDE)):
                panel = group * WIDE + p
                start = layer[W] + (panel * (n_in + 1) + first) * width
                grad = work.tile[thread, p * height * width : p * height * width + count * width]
                if not is_first:
                    for i in range(grad.size):
                        grad[i] += parameters.grad[start + i]
                if update_now:
                    update(optimizer.code, (parameters.W, parameters.slots, start, grad, h))
                    if depth > 0 and first < n_in:
                        transpose_rows(parameters, layer, panel, first, first + count)
                else:
                    for i in range(grad.size):
                        parameters.grad[start + i] = grad[i]
        begin, end = begin - n_tiles, end - n_tiles


@inlined
def panel_of(layers, number, width):
    """The layer and panel with this number, counted through all layers, and where it starts and ends in W."""
    depth = 0
    while number >= n_panels(layers[depth, N_OUT], width):
        number -= n_panels(layers[depth, N_OUT], width)
        depth += 1
    size = (layers[depth, N_IN] + 1) * width
    start = layers[depth, W] + number * size
    return depth, number, start, start + size


@routine
def square_norms(network, parameters, thread, n_threads):
    """Squared norm of each panel of ``parameters.grad``."""
    width = LINE_BYTES // parameters.W.itemsize
    for number in range(thread, parameters.norms.size, n_threads):
        _, _, start, end = panel_of(network.layers, number, width)
        total = 0.0
        for i in range(start, end):
            total += parameters.grad[i] * parameters.grad[i]
        parameters.norms[number] = total


@routine
def clipped_update(network, parameters, optimizer, h, thread, n_threads):
    """Scale the gradient to a global norm of at most ``clip_norm``, then update. Precondition: ``square_norms``."""
    width = LINE_BYTES // parameters.W.itemsize
    total = 0.0
    for square in parameters.norms:
        total += square
    norm = math.sqrt(total)
    scale = parameters.W.dtype.type(min(1.0, optimizer.clip_norm / norm) if norm > 0.0 else 1.0)
    for number in range(thread, parameters.norms.size, n_threads):
        depth, panel, start, end = panel_of(network.layers, number, width)
        grad = parameters.grad[start:end]
        for i in range(grad.size):
            grad[i] *= scale
        update(optimizer.code, (parameters.W, parameters.slots, start, grad, h))
        if depth > 0:
            transpose_rows(parameters, network.layers[depth], panel, 0, network.layers[depth, N_IN])
