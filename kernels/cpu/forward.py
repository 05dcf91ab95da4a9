"""Forward pass of a block of rows: z[l] = a[l-1] @ W[l] + b[l], a[l] = f(z[l])."""

from functools import cache

from numba import int64

from ..activations import ACTIVATIONS, Activation
from ..problem import DENSE
from ..random import fold, uniform
from .gemm import call_product, terms_at_once
from .jit import Hook, embedded, inlined, new_variant, select
from .layers import call_apart, call_perturb
from .layout import ACTIVATE_AT, ACTIVATION, KIND, N_IN, N_OUT, NODE_IN, NODE_OUT, RECTIFIES, W, n_panels
from .simd import (
    QUAD,
    RECTIFY,
    STORE,
    VECTORS,
    address_of,
    array_at,
    copy_line,
    lane_count,
    line_size,
    look,
    prefetch_to_read,
    take_lanes,
    transpose_lines,
    transpose_quads,
    vector_size,
    view,
)

#: Rows that are fetched ahead of the one that is copied: more than hide the way to memory.
AHEAD = 16
#: Features of up to so many numbers in all are close enough without prefetching.
NEAR_SIZE = 1 << 16


def _compile_activation(row, variant=""):
    value, derivative = inlined(row.value, variant), inlined(row.derivative, variant)

    def activate(a, delta, p, training):
        if training:
            for i in range(a.size):
                z = a[i]
                a[i] = value(z, p)
                delta[i] = derivative(z, a[i], p)
        else:
            for i in range(a.size):
                a[i] = value(a[i], p)

    return embedded(activate, variant or row.value.__name__)


_activate = select(list(ACTIVATIONS.values()), _compile_activation)


def activate(code, a, delta, size, p, training):
    """z to f(z) in place, and in training f'(z) into delta, where the recursion wants it.

    ``a`` and ``delta`` are the addresses of ``size`` numbers, ``p`` is f's setting.
    """
    _activate(code, (array_at(a, size, p), array_at(delta, size, p), p, training))


ACTIVATE = Hook(activate, lambda real: (int64, int64, int64, int64, real, int64))
call_activate = ACTIVATE.call


@cache
def custom_activation(custom):
    """The hook for a function of the user's."""
    of_user, slope_of_user = custom

    def value(z, p):
        return type(z)(of_user(z))

    def derivative(z, a, p):
        return type(z)(slope_of_user(z))

    run = _compile_activation(Activation(0, value, derivative), new_variant())

    def activate(code, a, delta, size, p, training):
        run(array_at(a, size, p), array_at(delta, size, p), p, training)

    return ACTIVATE.replaced_by(activate)


@inlined
def sample(data, position):
    """The row of the data at a position of the epoch."""
    return data.order[position] if data.order.size else position


@inlined
def transpose_square(source, start, stride, count, target, to):
    """As many lines as a line has numbers, which begin so far apart, become the columns of such lines one after the
    other; those from number ``count`` on are taken for zeros.
    """
    width, step = line_size(source), vector_size(source)
    for line in range(0, width, step):
        transpose_lines((source, start + line * stride, stride), (target, to + line), count - line)


@inlined
def take_columns(rows, data, first, n_rows, last, square, columns):
    """Turn the rows of samples at positions ``first`` to ``first + n_rows``, at most a line's lanes, into lines.

    Positions past ``last`` repeat it. Lines up to the next multiple of a line's size may be written.
    """
    n, width = rows.shape[1], line_size(columns)
    for column in range(0, n, width):
        count = min(width, n - column)
        step = QUAD if count <= QUAD else width
        for r in range(n_rows):
            take_lanes((rows[sample(data, min(first + r, last))], column), (square, r * step), count)
        if count <= QUAD:
            transpose_quads((square, 0), (columns, column * width))
        else:
            transpose_square(square, 0, width, width, columns, column * width)


@inlined
def prefetch_sample(data, position, panels):
    """Fetch a sample from wherever it lies in memory: its features now, its targets for the loss."""
    n = sample(data, position)
    for panel in range(panels):
        prefetch_to_read(((data.X[n], panel * line_size(data.X)),))
    prefetch_to_read(((data.X[n], data.X.shape[1] - 1),))  # rows start anywhere in a line
    if data.labels.size:
        prefetch_to_read(((data.labels, n),))
    elif data.targets.size:
        prefetch_to_read(((data.targets[n], 0),))


@inlined
def gather(data, work, start, first, n_rows):
    """Copy the samples at positions ``first`` to ``first + n_rows`` into the panels at ``a[start]``."""
    n_in = data.X.shape[1]
    width = line_size(work.a)
    panels, panel_size = n_panels(n_in, width), work.block_rows * width
    is_far = data.X.size > NEAR_SIZE
    for r in range(n_rows):
        if is_far:
            prefetch_sample(data, first + min(r + AHEAD, n_rows - 1), panels)
        x, line = data.X[sample(data, first + r)], start + r * width
        for panel in range(panels - 1):
            copy_line(((x, panel * width), (work.a, line)))
            line += panel_size
        take_lanes((x, (panels - 1) * width), (work.a, line), n_in - (panels - 1) * width)


def drop(held, depth, start, key, first, n_rows):
    """Inverted dropout: zero each of a panel's activations with the layer's probability, scale the others up.

    The panel lies at ``start``, ``key`` is that of its first column; rows are counted from ``first`` within the
    update. The mask is applied to f'(z) as well, and so to the delta.
    """
    network, _, _, work = look(held)
    rate, width = network.dropout[depth], line_size(work.a)
    a, delta = view(work.a, start, n_rows * width), view(work.delta, start, n_rows * width)
    scale = a.dtype.type(1.0 / (1.0 - rate))
    for r in range(n_rows):
        row_key = fold(key, first + r)
        for lane in range(lane_count(a)):
            kept = scale if uniform(fold(row_key, lane)) >= rate else a.dtype.type(0)
            a[r * width + lane] *= kept
            delta[r * width + lane] *= kept


DROP = Hook(drop)
call_drop = DROP.call


@inlined
def activate_panels(held, start, depth, first_panel, last_panel, key, first, n_rows, training):
    """Take some panels of a layer's z through its activation, if it has one, and its dropout."""
    network, _, _, work = look(held)
    layer, setting = network.layers[depth], work.a.dtype.type(network.setting[depth])
    if layer[ACTIVATE_AT] == 0:
        return
    width = line_size(work.a)
    panel_size = work.block_rows * width
    begin = start + layer[NODE_OUT] * work.block_rows + first_panel * panel_size
    for panel in range(first_panel, last_panel):
        places = address_of(work.a, begin), address_of(work.delta, begin)
        call_activate(layer[ACTIVATE_AT], (layer[ACTIVATION], *places, n_rows * width, setting, training))
        if training and network.dropout[depth] > 0.0:
            panel_key = fold(fold(key, depth), panel)
            call_drop(network.at.drop, (held, depth, begin, panel_key, first, n_rows))
        begin += panel_size


@inlined
def is_rectified(network, depth):
    """Whether the tiles of a layer's outputs rectify them, and those of its delta pass what f'(z) of relu would."""
    return network.layers[depth, RECTIFIES] and network.dropout[depth] == 0.0


@inlined
def forward(held, block, first, position, n_rows, key, training, span, thread):
    """Take samples ``first + position`` to ``first + position + n_rows`` through layers ``span[0]`` to ``span[1]``.

    Leaves a[l] of each layer in ``work.a``, which for the output layer is z; in training, f'(z[l]) in ``work.delta``,
    but for layers that `is_rectified` names. ``key`` is the update's dropout key, ``position`` the block's first row
    within the update.
    """
    network, parameters, data, work = look(held)
    since, until = span
    width = line_size(work.a)
    start = block * work.block_size
    panel_size, number = work.block_rows * width, work.a.dtype.type(0)
    if since == 0 and until > 0:
        gather(data, work, start, first + position, n_rows)
        if training and network.noise > 0.0:
            noise_key = fold(key, len(network.layers))
            call_perturb(network.at.perturb, (held, start, noise_key, position, n_rows))
    for depth in range(since, until):
        layer = network.layers[depth]
        n_in, panels, rectifies = layer[N_IN], n_panels(layer[N_OUT], width), is_rectified(network, depth)
        if layer[KIND] != DENSE:
            call_apart(network.at.forward_apart, (held, depth, block, n_rows, thread))
            activate_panels(held, start, depth, 0, panels, key, position, n_rows, training)
            continue
        n_terms, panel_weights = terms_at_once(n_in, n_rows, width), (n_in + 1) * width
        term = 0
        while term < n_in:
            is_last = term + n_terms >= n_in
            for panel in range(0, panels, VECTORS.panels):
                last_panel = min(panel + VECTORS.panels, panels)
                weights = layer[W] + panel * panel_weights
                place = address_of(work.a, start + layer[NODE_OUT] * work.block_rows + panel * panel_size)
                bias = address_of(parameters.W, weights + n_in * width)
                of_terms = start + layer[NODE_IN] * work.block_rows + term // width * panel_size
                a, b = address_of(work.a, of_terms), address_of(parameters.W, weights + term * width)
                s = (place, width, panel_size) if term else (bias, 0, panel_weights)
                c = place, panel_size, RECTIFY if is_last and rectifies else STORE, 0
                size = min(n_terms, n_in - term), n_rows, last_panel - panel
                places = (a, panel_size), (b, panel_weights), s, (place, panel_size), c
                call_product(network.at.product, (*places, *size, number))
                if is_last and not rectifies:  # while z is in L1
                    activate_panels(held, start, depth, panel, last_panel, key, position, n_rows, training)
            term += n_terms
