"""Parameter phase: grad_W[l] = a[l-1].T @ delta[l], and the optimizer on the tile while it is in cache.

The sum of a tile runs over the rows in order, whichever thread owns it.
"""

import math
from functools import cache

import numpy as np
from numba.types import UniTuple, float64, int64

from ..optimizers import N_SCALARS, OPTIMIZERS, Optimizer
from ..problem import DENSE
from .gemm import BLOCK_BYTES, COLUMN_HEIGHTS, NEAR_TERMS, column_tile
from .jit import Hook, embedded, inlined, new_variant, routine, select
from .layers import call_gains, fill
from .layout import (
    BIAS,
    BIAS_GROUP,
    GROUP,
    KIND,
    LANES,
    N_IN,
    NODE_IN,
    NODE_OUT,
    PANELS,
    STRIP,
    STRIP_LINES,
    STRIPS,
    WT,
    W,
    is_far,
    n_panels,
    size_in_memory,
    transpose_rows,
)
from .simd import (
    STREAMS,
    VECTORS,
    add_line,
    address_of,
    array_at,
    copy_line,
    lane_count,
    line_size,
    look,
    multiply_line,
    prefetch_into_l2,
    prefetch_to_write,
    sum_line,
    tile_code,
    view,
)

#: `gradient`'s word for updating on the spot.
UPDATE = -1
#: Flags of the update rules alone, whose bits do not depend on what else is compiled: the hook is a library of its own.
#: The processor's one unit for roots and quotients takes as long as others do for all the rest of a rule. With these,
#: vectors of float32 are multiplied by reciprocals, also those of roots, that one step of Newton's makes exact to a bit
#: or two, and multiply-adds are fused.
QUICK = {"afn", "arcp", "contract", "ninf"}
#: Parameters and slots of up to this size are close enough without prefetching; of larger ones W and WT are fetched,
#: which other threads read and must give up. If all come from memory, slots are fetched too, into L2, since L1 is full
#: of what is summed (from nearer by, the processor itself fetches them), and WT is written past the caches.
NEAR_BYTES = 1 << 18
#: What a strip takes with W alone, and if WT has to be written too: shares of threads are as large by these.
ALONE, TRANSPOSED = 7, 8
TALL, LOW = COLUMN_HEIGHTS
WIDE = VECTORS.panels


@routine
def _no_views(slots, stride, size, number):
    return ()


@routine
def _load_nothing(views, i):
    return ()


@routine
def _store_nothing(views, i, values):
    pass


@cache
def _slot_access(n_slots):
    """For ``n_slots`` at addresses ``slots``, ``slots + stride`` and so on, what makes views, loads and stores them."""
    if n_slots == 0:
        return _no_views, _load_nothing, _store_nothing
    last = n_slots - 1
    view_others, load_others, store_others = _slot_access(last)

    def views(slots, stride, size, number):
        return (*view_others(slots, stride, size, number), array_at(slots + last * stride, size, number))

    def load(views, i):
        return (*load_others(views, i), views[last][i])

    def store(views, i, values):
        store_others(views, i, values)
        views[last][i] = values[last]

    views, load, store = (embedded(function, str(n_slots)) for function in (views, load, store))
    return views, load, store


def _compile_update(row, variant=""):
    rule, (slot_views, load, store) = inlined(row.update, variant), _slot_access(row.n_slots)

    def update(W, slots, stride, grad, h):
        views = slot_views(slots, stride, grad.size, h[0])
        for i in range(grad.size):
            theta, values = rule(W[i], grad[i], load(views, i), h)
            W[i] = theta
            store(views, i, values)

    return embedded(update, variant or row.update.__name__, fastmath=QUICK)


_update = select(list(OPTIMIZERS.values()), _compile_update)
_compile = cache(routine)
_prepare = select(list(OPTIMIZERS.values()), lambda row: _compile(row.prepare))


def update(code, W, slots, stride, grad, size, h):
    """The optimizer on ``size`` parameters, by the addresses of the first of W, of the first slot and of the gradient.

    ``stride`` bytes lie between one slot and the next; ``h`` holds the step's scalars.
    """
    _update(code, (array_at(W, size, h[0]), slots, stride, array_at(grad, size, h[0]), h))


def prepare(code, h, hyper, learning_rate, step):
    """The scalars of one step."""
    _prepare(code, (h, hyper, learning_rate, step))


UPDATE_RULE = Hook(update, lambda real: (*[int64] * 6, UniTuple(real, N_SCALARS)))
PREPARE = Hook(prepare, lambda real: (int64, float64[::1], float64[::1], float64, int64))
call_update, call_prepare = UPDATE_RULE.call, PREPARE.call


@cache
def custom_rule(custom):
    """The hooks that prepare and carry out a rule of the user's."""
    of_user, n_slots = custom

    def prepare(code, h, hyper, learning_rate, step):
        h[0], h[1] = learning_rate, step
        for k in range(hyper.size):
            h[2 + k] = hyper[k]

    def rule(theta, grad, slots, h):
        return of_user(theta, grad, slots, h)

    run = _compile_update(Optimizer(0, n_slots, prepare, rule), new_variant())

    def update(code, W, slots, stride, grad, size, h):
        run(array_at(W, size, h[0]), slots, stride, array_at(grad, size, h[0]), h)

    return PREPARE.replaced_by(prepare), UPDATE_RULE.replaced_by(update)


@inlined
def update_from(parameters, optimizer, start, grad, h):
    """Update ``grad.size`` parameters from ``W[start]``."""
    slots, stride = np.int64(0), np.int64(0)
    if len(parameters.slots):
        slots, stride = address_of(parameters.slots[0], start), parameters.slots.strides[0]
    places = address_of(parameters.W, start), slots, stride, address_of(grad, 0)
    call_update(optimizer.update_at, (optimizer.code, *places, grad.size, h))


@inlined
def update_lines(parameters, optimizer, work, thread, layer, start, grad, size):
    """Update lines of a panel: ``size`` numbers of W from ``start``, then the bias if ``grad`` goes on."""
    group, bias_group = layer[GROUP], layer[BIAS_GROUP]
    if group == bias_group:
        size = grad.size
    update_from(parameters, optimizer, start, view(grad, 0, size), scalars(work, thread, group))
    if size < grad.size:
        rest = view(grad, size, grad.size - size)
        update_from(parameters, optimizer, start + size, rest, scalars(work, thread, bias_group))


@inlined
def scalars(work, thread, group):
    """A group's optimizer scalars in the precision of the parameters."""
    h, number = work.scalars[thread, group], work.a.dtype.type
    return number(h[0]), number(h[1]), number(h[2]), number(h[3]), number(h[4]), number(h[5])


@embedded
def step_scalars(optimizer, work, thread, learning_rate, step):
    """Prepare a step's optimizer scalars."""
    for group in range(len(optimizer.hyper)):
        h, hyper = work.scalars[thread, group], optimizer.hyper[group]
        rate = learning_rate * optimizer.rates[group]
        call_prepare(optimizer.prepare_at, (optimizer.code, h, hyper, rate, step))


@inlined
def sum_tile(layer, work, base, n_rows, group, first, count, ones, goes_on, strip, line):
    """Sum rows ``first`` to ``first + count`` of grad_W over ``n_rows`` samples from ``base`` on, for one group of
    panels.

    They come to lie in ``strip`` from ``line`` on, with ``STRIP_LINES`` lines to a panel; with ``ones`` grad_b follows.
    They are added to what is there if the sum ``goes_on``. The samples are those of whole blocks, or all of one.
    """
    block_rows = work.block_rows
    width = line_size(work.a)
    panel_size = block_rows * width
    column = base + layer[NODE_OUT] * block_rows + group * WIDE * panel_size
    row = base + layer[NODE_IN] * block_rows + first // width * panel_size + first % width
    panels = min(WIDE, layer[PANELS] - group * WIDE)
    height = TALL if count > LOW else LOW
    sums = strip, line * width, width, STRIP_LINES * width, count * width
    column_tile(
        tile_code(height, panels, ones),
        (work.a, row, 1, width, work.block_size),
        (work.delta, column, work.block_size, panel_size),
        sums if goes_on else (work.zeros, 0, 0, 0, 0),
        sums,
        n_rows,
        block_rows,
    )


@inlined
def prefetch_parameters(parameters, layer, panel, first, count):
    """Fetch what an update of rows ``first`` to ``first + count`` of one panel writes, while its gradient is summed.

    Rows are within one panel of WT.
    """
    width = line_size(parameters.W)
    far = is_far(parameters)
    start = layer[W] + (panel * (layer[N_IN] + 1) + first) * width
    square = layer[WT] + (first // width * layer[PANELS] + panel) * width * width + first % width * width
    for line in range(0, count * width, width):
        prefetch_to_write(((parameters.W, start + line),))
        if layer[WT] >= 0 and not (STREAMS and far):
            prefetch_to_write(((parameters.WT, square + line),))
        if far:
            for k in range(len(parameters.slots)):
                prefetch_into_l2(((parameters.slots[k], start + line),))


def sum_strip(held, depth, base, n_rows, group, first, last, with_bias, fetch, thread):
    """Sum rows ``first`` to ``last`` of a layer's grad_W, and maybe grad_b, for one group of panels into the thread's
    strip.

    The samples are ``n_rows`` from ``base`` on; ``fetch`` says whether what the update writes is out of reach.
    """
    network, parameters, _, work = look(held)
    layer, strip = network.layers[depth], work.strip[thread]
    width, first_panel = line_size(work.a), group * WIDE
    last_panel = min(first_panel + WIDE, layer[PANELS])
    if layer[KIND] != DENSE:
        for panel in range(first_panel, last_panel):
            line = (panel - first_panel) * STRIP_LINES * width
            call_gains(network.at.gains, (held, depth, base, n_rows, panel, thread, line))
        return
    block_rows, place, done = work.block_rows, base, 0
    # Pieces are whole blocks, or parts of one that is larger.
    in_blocks = n_rows if n_rows <= NEAR_TERMS else NEAR_TERMS // block_rows * block_rows
    while True:
        rows = min(in_blocks or min(NEAR_TERMS, block_rows - done % block_rows), n_rows - done)
        for row in range(first, last, TALL):
            count = min(TALL, last - row)
            ones = with_bias & (row + count == last)
            if fetch and done == 0:
                for panel in range(first_panel, last_panel):
                    prefetch_parameters(parameters, layer, panel, row, count)
            sum_tile(layer, work, place, rows, group, row, count, ones, done > 0, strip, row - first)
        done += rows
        if done == n_rows:
            break
        place = base + done // block_rows * work.block_size + done % block_rows * width


SUM_STRIP = Hook(sum_strip)
call_sum_strip = SUM_STRIP.call


def gradient(held, optimizer, l1, l2, block, n_rows, into, thread, part, n_parts):
    """Gradient of a chunk of rows, whose blocks begin with ``block``, part ``part`` of ``n_parts`` of all strips.

    ``held`` are network, parameters, data and workspace; ``optimizer`` is held too. ``into`` says what becomes of the
    gradient: with the penalties' share ``UPDATE`` the parameters, or else ``slot, is_first = divmod(into, 2)``: set
    ``parameters.grad[slot]``, or add to it.
    """
    network, parameters, _, work = look(held)
    optimizer = look(optimizer)
    width = line_size(work.a)
    base = block * work.block_size
    fetch = into == UPDATE and size_in_memory(parameters) > NEAR_BYTES
    total = 0
    for layer in network.layers:
        total += cost(layer)
    begin, end = 0, total
    if n_parts > 1:
        begin, end = total * part // n_parts, total * (part + 1) // n_parts
    strip = work.strip[thread]
    before = 0
    for depth in range(len(network.layers)):
        layer = network.layers[depth]
        n_in, lanes, panels, down = layer[N_IN], layer[LANES], layer[PANELS], layer[STRIPS]
        groups, across = n_groups(layer), strips_at_once(layer, n_rows, parameters.W.itemsize)
        first_number = n_before(begin, layer)
        left, group, side = 0, 0, 0
        if first_number > 0:
            left = first_number // (groups * across) * across
            group, side = divmod(first_number - left * groups, min(across, down - left))
        for number in range(first_number, n_before(end, layer)):
            # All groups go by some strips, then by the next.
            if side == min(across, down - left):
                group, side = group + 1, 0
            if group == groups:
                left, group = left + across, 0
            first = (left + side) * layer[STRIP]
            last = min(first + layer[STRIP], n_in)
            with_bias = layer[BIAS] & (last == n_in)
            first_panel, last_panel = group * WIDE, min(group * WIDE + WIDE, panels)
            penalty = 0.0
            place = base, n_rows, group, first, last, with_bias, int(fetch), thread
            call_sum_strip(network.at.sum_strip, (held, depth, *place))
            for panel in range(first_panel, last_panel):
                start = layer[W] + (panel * (n_in + 1) + first) * lanes
                line = (panel - first_panel) * STRIP_LINES * width
                size = (last - first) * lanes
                # Whole lines: a narrow layer's last strip may end within one, and has zeros up to its end.
                grad = view(strip, line, n_panels((last - first + with_bias) * lanes, width) * width)
                if into == UPDATE:
                    if layer[KIND] == DENSE and (l1 > 0 or l2 > 0):
                        penalty += penalize_from(network, parameters, work, start, grad, size, l1, l2, thread)
                    update_lines(parameters, optimizer, work, thread, layer, start, grad, size)
                    if layer[WT] >= 0:
                        transpose_rows(parameters, layer, panel, first, last)
                else:
                    keep(view(parameters.grad[into // 2], start, grad.size), grad, into % 2)
            work.penalty[before + number] = penalty
            side += 1
        begin, end, before = begin - cost(layer), end - cost(layer), before + groups * down


GRADIENT = Hook(gradient)
call_gradient = GRADIENT.call


@inlined
def n_groups(layer):
    """Groups of ``WIDE`` panels of a layer's outputs."""
    return (layer[PANELS] + WIDE - 1) // WIDE


@inlined
def cost(layer):
    """What the gradient and the update of a layer take, by number of parameters."""
    return layer[N_IN] * layer[PANELS] * layer[LANES] * (TRANSPOSED if layer[WT] >= 0 else ALONE)


@inlined
def strips_at_once(layer, n_rows, itemsize):
    """How many strips side by side, whose activations L2 keeps, all groups should go by."""
    row_bytes = n_rows * itemsize
    if layer[N_IN] * row_bytes <= BLOCK_BYTES:
        return layer[STRIPS]
    return max(1, BLOCK_BYTES // (layer[STRIP] * row_bytes))


@inlined
def n_before(place, layer):
    """How many of a layer's strips begin before ``place``, counted in its cost."""
    n_strips = n_groups(layer) * layer[STRIPS]
    if place <= 0:
        return 0
    return n_strips if place >= cost(layer) else -(-place * n_strips // cost(layer))


def penalize(W, grad, total, size, l1, l2):
    """Add the slopes of the penalties for ``size`` weights to their gradient, by the addresses of both, and write the
    penalties into the line at ``total``.
    """
    W, grad = array_at(W, size, l1), array_at(grad, size, l1)
    width = line_size(W)
    half, zero = type(l1)(0.5) * l2, type(l1)(0)
    total = array_at(total, width, l1)
    fill(total, zero)
    for line in range(0, size, width):
        n = min(width, size - line)
        W_line, grad_line = view(W, line, n), view(grad, line, n)
        for lane in range(n):
            w = W_line[lane]
            total[lane] += l1 * abs(w) + half * w * w
            grad_line[lane] += (l1 if w > zero else zero) - (l1 if w < zero else zero) + l2 * w


PENALIZE = Hook(penalize, lambda real: (*[int64] * 4, real, real))
call_penalize = PENALIZE.call


@inlined
def penalize_from(network, parameters, work, start, grad, size, l1, l2, thread):
    """Penalize ``size`` weights from ``W[start]``; returns the penalties."""
    total = view(work.lines[thread][0], 0, line_size(grad))
    places = address_of(parameters.W, start), address_of(grad, 0), address_of(total, 0)
    call_penalize(network.at.penalize, (*places, size, l1, l2))
    return float(sum_line(((total, 0),)))


@inlined
def keep(grad, part, is_first):
    """Set a part of the gradient, whole lines of it, or add to it."""
    for line in range(0, part.size, line_size(part)):
        if is_first:
            copy_line(((part, line), (grad, line)))
        else:
            add_line(((part, line), (grad, line)))


@inlined
def panel_of(layers, number):
    """The layer and panel with this number, counted through all layers, and where it starts and ends in W."""
    depth = 0
    while number >= layers[depth, PANELS]:
        number -= layers[depth, PANELS]
        depth += 1
    size = (layers[depth, N_IN] + 1) * layers[depth, LANES]
    start = layers[depth, W] + number * size
    return depth, number, start, start + size


def reduce(held, l1, l2, n_slices, thread, n_threads):
    """Add the slices' gradients, in order, and the penalties' into the first; each thread its share of the panels."""
    network, parameters, _, work = look(held)
    for number in range(thread, parameters.norms.size, n_threads):
        depth, _, start, end = panel_of(network.layers, number)
        grad = view(parameters.grad[0], start, end - start)
        for k in range(1, n_slices):
            other = view(parameters.grad[k], start, end - start)
            for i in range(grad.size):
                grad[i] += other[i]
        if network.layers[depth, KIND] == DENSE and (l1 > 0 or l2 > 0):
            size = grad.size - network.layers[depth, LANES]
            work.penalty[number] = penalize_from(network, parameters, work, start, grad, size, l1, l2, thread)


def square_norms(held, thread, n_threads):
    """Squared norm of each panel of the gradient. Precondition: `reduce`."""
    network, parameters, _, _ = look(held)
    for number in range(thread, parameters.norms.size, n_threads):
        _, _, start, end = panel_of(network.layers, number)
        total = 0.0
        for value in view(parameters.grad[0], start, end - start):
            total += value * value
        parameters.norms[number] = total


@inlined
def clipping_scale(parameters, clip_norm):
    """What scales the gradient to a global norm of at most ``clip_norm``. Precondition: `square_norms`."""
    total = 0.0
    for square in parameters.norms:
        total += square
    return min(1.0, clip_norm / math.sqrt(total)) if total > 0.0 else 1.0


def apply(held, optimizer, scale, limit, thread, n_threads):
    """Update from ``scale`` times the gradient, clipped to ``limit``; each thread has the panels it has in `reduce`.

    ``optimizer`` is held too.
    """
    network, parameters, _, work = look(held)
    optimizer = look(optimizer)
    for number in range(thread, parameters.norms.size, n_threads):
        depth, panel, start, end = panel_of(network.layers, number)
        grad = view(parameters.grad[0], start, end - start)
        if scale != 1.0:
            for i in range(grad.size):
                grad[i] *= scale
        if limit < np.inf:
            for i in range(grad.size):
                grad[i] = min(max(grad[i], -limit), limit)
        layer = network.layers[depth]
        update_lines(parameters, optimizer, work, thread, layer, start, grad, grad.size - layer[LANES])
        if layer[WT] >= 0:
            transpose_rows(parameters, layer, panel, 0, layer[N_IN])


def settle(held, share, thread, n_threads):
    """After an update bring the norms of columns down to ``max_norm``, and the average along by ``share``; each thread
    has the panels it has in `reduce`.
    """
    network, parameters, _, work = look(held)
    width = line_size(parameters.W)
    number = parameters.W.dtype.type
    for k in range(thread, parameters.norms.size, n_threads):
        depth, panel, start, end = panel_of(network.layers, k)
        layer = network.layers[depth]
        if layer[KIND] == DENSE and network.max_norm < np.inf:
            W, scale = view(parameters.W, start, end - start - width), view(work.lines[thread][0], 0, width)
            fill(scale, number(0))
            for i in range(0, W.size, width):
                line = view(W, i, width)
                for lane in range(lane_count(line)):
                    scale[lane] += line[lane] * line[lane]
            for lane in range(lane_count(scale)):
                norm = math.sqrt(scale[lane])
                scale[lane] = number(network.max_norm) / norm if norm > number(network.max_norm) else number(1)
            for i in range(0, W.size, width):
                multiply_line(((scale, 0), (W, i)))
            if layer[WT] >= 0:
                transpose_rows(parameters, layer, panel, 0, layer[N_IN])
        if parameters.average.size:
            W, average = view(parameters.W, start, end - start), view(parameters.average, start, end - start)
            for i in range(W.size):
                average[i] += number(share) * (W[i] - average[i])


REDUCE, NORMS, APPLY, SETTLE = Hook(reduce), Hook(square_norms), Hook(apply), Hook(settle)
call_reduce, call_norms, call_apply, call_settle = REDUCE.call, NORMS.call, APPLY.call, SETTLE.call
