"""Where everything lies in memory, and the way between the flat vector theta and panels.

A *panel* is one cache line of neighbouring features, P = 64 bytes / itemsize wide. Panels make every product read
contiguous lines, whatever the widths:

- weights          W   [n_out/P][n_in + 1][P]   row n_in is the bias
- their transpose  WT  [n_in/P][n_out][P]       for the delta, in whole panels of rows; none for the first layer
- activations      a   [block][layer][n/P][block_rows][P], deltas alike

Lanes past a layer's width hold zeros in W, WT and delta, and stay so under every optimizer, since their
gradient is zero. Optimizer slots and gradients are laid out like W. The gains of a normalization are a W of one row,
and its shifts the bias; its input is overwritten by what the gains multiply.

Where layers are so narrow that these lanes would be most of the work, samples are the lanes:

- weights          W   [n_in + 1][n_out]        as in theta, padded to whole lines; no transpose
- activations      a   [block][layer][n][block_rows], deltas alike, and some of them in panels as well

Lanes past a block's samples repeat the last one, with a delta of zero.
"""

import math
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ..activations import ACTIVATIONS
from ..problem import BATCH_NORM, DENSE, SUM, Layer
from .jit import entry, inlined
from .simd import (
    LINE_BYTES,
    VECTORS,
    copy_line,
    fill_line,
    give_lanes,
    line_size,
    stream_transposed,
    take_lanes,
    transpose_lines,
    vector_size,
)

# Columns of Network.layers.
(
    KIND,
    N_IN,
    N_OUT,
    BIAS,
    NODE_IN,
    NODE_OUT,
    W,
    WT,
    THETA,
    ACTIVATION,
    ACTIVATE_AT,
    SKIP,
    STATISTICS,
    GROUP,
    BIAS_GROUP,
    LANES,
    PANELS,
    STRIP,
    STRIPS,
    NODE_PANELS,
    IN_PANELS,
    RECTIFIES,
) = range(22)

#: Larger parameters and slots than this are kept by no cache; see `is_far`.
FAR_BYTES = 1 << 25
#: Memory that an arena keeps for the next session, at most.
KEPT_BYTES = 1 << 28
#: Rows of grad_W that are summed, tile by tile, before the update runs over them: enough to forget what a loop costs
#: to start, few enough to stay in L1.
STRIP_ROWS = 4 * VECTORS.columns
#: Lines of a strip in one panel: the rows, and grad_b.
STRIP_LINES = STRIP_ROWS + 1
#: The same rows where samples are the lanes: as many whole lines of numbers, whatever the layer's width.
NARROW_STRIP = 32
#: Rows are padded to a multiple of this, so that the lowest tile always fits.
ROW_STEP = max(1, VECTORS.rows // 3)


class Addresses(NamedTuple):
    """Where the hooks lie: first those that samples in the lanes take another way."""

    take_rows: int = 0
    product: int = 0
    sum_strip: int = 0
    output_delta: int = 0
    gradient: int = 0
    forward_apart: int = 0
    delta_apart: int = 0
    batch: int = 0
    perturb: int = 0
    reduce: int = 0
    norms: int = 0
    apply: int = 0
    settle: int = 0
    gains: int = 0
    penalize: int = 0
    drop: int = 0
    log_softmax: int = 0


class Network(NamedTuple):
    """What is computed: topology and options as runtime tables, so that no network compiles anything.

    Attributes
    ----------
    narrow : int
        1 if samples are the lanes, else 0.
    layers : int64 (n_layers, 22)
        Per layer: its kind, n_in, n_out, whether it has a bias, the lanes that precede its input and its output in a
        block, where W, WT (-1 for none) and theta start, the activation's code and address (both 0 for none), which
        node a sum adds or which sum adds a dense layer's input (-1 for none), where a normalization keeps its
        statistics, the groups of the optimizer that W and b belong to, the columns of W in a panel and the number of
        panels, the rows in a strip of the gradient and the number of strips down a panel, and, where samples are the
        lanes, the lanes that precede its delta in panels in a block, and how many units are in these; last, whether its
        activation is relu and a dense layer is alone to take it.
    setting, epsilon : float64 (n_layers,)
        The activations' settings, and the normalizations'.
    batch_norms : int64
        Which layers look at the whole batch.
    loss, loss_at, loss_setting : int, int, float
        Code, address and setting of the loss.
    softmax : int
        1 if the loss couples the outputs of a row by a softmax, else 0.
    smoothing : float
        What share of a target's weight goes to all classes alike.
    dropout : float64 (n_layers,)
        Probability of dropping each layer's outputs.
    noise : float
        Standard deviation of what is added to the inputs in training.
    max_norm : float
        Largest norm of a column of a dense layer's W.
    l1, l2 : float
        Factors of sum |W| and of sum W**2 / 2, over weights alone, in the loss.
    penalty_by_batch : int
        1 if they are divided by the weight of each batch, as scikit-learn does it, else 0.
    seed : uint64
        Key of the counter-based generator.
    at : Addresses
    """

    narrow: int
    layers: np.ndarray
    setting: np.ndarray
    epsilon: np.ndarray
    batch_norms: np.ndarray
    loss: int
    loss_at: int
    loss_setting: float
    softmax: int
    smoothing: float
    dropout: np.ndarray
    noise: float
    max_norm: float
    l1: float
    l2: float
    penalty_by_batch: int
    seed: np.uint64
    at: Addresses


class Parameters(NamedTuple):
    """Parameters and optimizer state in panels.

    Attributes
    ----------
    W, WT : 1-D
    slots : 2-D (n_slots, W.size)
    grad : 2-D (n_slices, W.size)
        Gradients of a batch's slices, where a gradient has to be seen before the update; else no rows.
    norms : float64 (n_panels,)
        Squared norms of the gradient by panel, through all layers.
    average : 1-D
        Average of W over updates; empty for none.
    moving : float64 (2, n_units)
        Moving averages of mean and variance in batch normalization, whole lines for each layer.
    """

    W: np.ndarray
    WT: np.ndarray
    slots: np.ndarray
    grad: np.ndarray
    norms: np.ndarray
    average: np.ndarray
    moving: np.ndarray


class Workspace(NamedTuple):
    """Scratch memory of one training or evaluation, allocated once.

    Attributes
    ----------
    a, delta : 1-D
        Activations and deltas, in blocks of ``block_rows``: of one chunk, or of one for each thread.
    loss : float64 (rows of all blocks,)
        Loss of each row times its weight.
    slice_loss : float64 (max(n_slices, n_threads),)
        Loss of each slice of a batch of many chunks, or of the batch as each thread has summed it.
    strip : 2-D (n_threads, ...)
        Each thread's part of the gradient on its way to the update.
    penalty : float64
        What each strip, or panel, of the weights adds to the loss.
    lines : 3-D (n_threads, 3, ...)
        Each thread's lines of a panel.
    sums : 2-D (n_threads, ...)
        Each thread's sums in the delta recursion that are to go on: of a tile's panels, or of all of a layer's.
    columns : 3-D (n_threads, 3, ...)
        Each thread's outputs and targets of a few rows, transposed, and the exponentials of a softmax.
    square : 2-D (n_threads, panel width squared)
        What each thread transposes.
    scalars : float64 (n_threads, n_groups, 8)
        Each thread's optimizer scalars of a step, by groups of parameters.
    deviation : 2-D (n_norms, rows of all blocks)
        One over the standard deviation, or root mean square, of each row in the normalizations of rows.
    moments : 2-D (4, n_units)
        Of the batch, in batch normalization: mean, one over the standard deviation, and the means over samples of
        delta, and of delta times what the gains multiply.
    totals : float64 (n_threads, 2, panel width)
        Each thread's sums over the batch.
    wrong : int64 (n_threads,)
        Parameters that each thread found to be not finite.
    zeros : 1-D
        A line of them, for sums to start from.
    sync : int64
        The team's barrier.
    block_rows, chunk_rows : int
    block_size : int
        Numbers of ``a`` in a block.
    """

    a: np.ndarray
    delta: np.ndarray
    loss: np.ndarray
    slice_loss: np.ndarray
    strip: np.ndarray
    penalty: np.ndarray
    lines: np.ndarray
    sums: np.ndarray
    columns: np.ndarray
    square: np.ndarray
    scalars: np.ndarray
    deviation: np.ndarray
    moments: np.ndarray
    totals: np.ndarray
    wrong: np.ndarray
    zeros: np.ndarray
    sync: np.ndarray
    block_rows: int
    chunk_rows: int
    block_size: int


def panel_width(dtype) -> int:
    return LINE_BYTES // np.dtype(dtype).itemsize


def round_up(n: int, step: int) -> int:
    return -(-n // step) * step


class Arena:
    """A piece of memory that one session after another uses: to fault in fresh pages can cost more than a step does."""

    def __init__(self):
        self._memory = np.empty(0, np.int8)

    def arrays(self, dtype, zeros: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Arrays of zeros, then arrays of whatever lies there, in place of those that were given out before.

        Each starts on a cache line; a square panel past its end there is memory to read, as transpositions do.
        """
        width, dtype, shapes = panel_width(dtype), np.dtype(dtype), [*zeros, *others]
        starts = list(accumulate((round_up(math.prod(shape), width) for shape in shapes), initial=0))
        n_bytes = (starts[-1] + width + width**2) * dtype.itemsize
        if n_bytes > KEPT_BYTES:
            memory = np.zeros(n_bytes, np.int8)
        elif n_bytes > self._memory.size:
            memory = self._memory = np.zeros(n_bytes, np.int8)
        else:
            memory = self._memory[:n_bytes]
            memory[: LINE_BYTES + starts[len(zeros)] * dtype.itemsize] = 0
        first = -memory.ctypes.data % LINE_BYTES
        lines = memory[first : first + starts[-1] * dtype.itemsize].view(dtype)
        parts = zip(starts[:-1], shapes, strict=True)
        return [lines[start:][: math.prod(shape)].reshape(shape) for start, shape in parts]


class Sizes(NamedTuple):
    """Numbers in W, WT, a row of all activations, units in batch normalizations, normalizations of rows, panels of W,
    strips of a gradient, and the largest strip.
    """

    W: int
    WT: int
    lanes: int
    units: int
    norms: int
    panels: int
    strips: int
    strip: int


def layer_table(
    layers: list[Layer], activations, dtype, narrow: bool, in_panels: list[int]
) -> tuple[np.ndarray, Sizes]:
    """The table ``Network.layers``, and what memory it wants.

    ``activations`` holds code and address of each layer's; ``in_panels`` says how many units of each want delta in
    panels as well, in a narrow network.
    """
    width = panel_width(dtype)
    table = np.zeros((len(layers), RECTIFIES + 1), np.int64)
    table[:, [SKIP, WT]] = -1
    node = end = w = wt = theta = units = norms = dense = panels = strips = strip = 0
    for depth, (row, layer) in enumerate(zip(table, layers, strict=True)):
        padded = round_up(layer.n_out, width)
        if depth == 0:
            n_first = layer.n_in if layer.kind == DENSE else layer.n_out
            end = n_first if narrow else round_up(n_first, width)
        row[[KIND, N_IN, N_OUT, BIAS]] = layer.kind, layer.n_in, layer.n_out, layer.bias
        row[[NODE_IN, NODE_OUT, W, THETA]] = node, end, w, theta
        row[[ACTIVATION, ACTIVATE_AT]] = activations[depth]
        lanes, rows = (layer.n_out, NARROW_STRIP) if narrow else (width, STRIP_ROWS)
        across, down = -(-layer.n_out // lanes), -(-layer.n_in // rows)
        row[[LANES, PANELS, STRIP, STRIPS]] = lanes, across, rows, down
        if layer.kind == DENSE:
            dense = depth
            if depth > 0 and not narrow:
                row[WT], wt = wt, wt + round_up(layer.n_in, width) * padded
        elif layer.kind == SUM:
            row[SKIP], table[dense, SKIP] = table[dense, NODE_IN], end
        elif layer.kind == BATCH_NORM:
            row[STATISTICS], units = units, units + padded
        else:
            row[STATISTICS], norms = norms, norms + 1
        node, end = end, end + (layer.n_out if narrow else padded)
        if narrow:
            row[[NODE_PANELS, IN_PANELS]], end = (end, in_panels[depth]), end + round_up(in_panels[depth], width)
        w += round_up(layer.n_out * (layer.n_in + 1), width) if narrow else padded * (layer.n_in + 1)
        theta += (layer.n_in + layer.bias) * layer.n_out
        panels, strips = panels + across, strips + down * -(-across // VECTORS.panels)
        # A narrow tile may write past the last row and column.
        lines = (NARROW_STRIP + 1 + 3) * layer.n_out + width if narrow else VECTORS.panels * STRIP_LINES * width
        strip = max(strip, round_up(lines, width))
    for row, following in pairwise(table):
        alone = row[KIND] == following[KIND] == DENSE and following[SKIP] < 0
        row[RECTIFIES] = alone and row[ACTIVATION] == ACTIVATIONS["relu"].code
    return table, Sizes(w, wt, end, units, norms, panels, strips, strip)


@inlined
def n_panels(n, width):
    return (n + width - 1) // width


@entry
def convert(layers, theta, panels, into_panels, thread, n_threads):
    """Copy theta, or a slot laid out like it, into panels (1), whose padding becomes zero, or back (0); each thread
    copies its share.
    """
    width = line_size(panels)
    for row in layers:
        n_in, n_out, bias = row[N_IN], row[N_OUT], row[BIAS]
        if row[LANES] == n_out:  # no matter whose lanes they are
            size, lines = (n_in + bias) * n_out, n_panels((n_in + 1) * n_out, width)
            for k in range(lines * thread // n_threads * width, lines * (thread + 1) // n_threads * width, width):
                if into_panels:
                    take_lanes((theta, row[THETA] + k), (panels, row[W] + k), size - k)
                else:
                    give_lanes((panels, row[W] + k), (theta, row[THETA] + k), size - k)
            continue
        whole = n_panels(n_out, width) - 1
        # Row by row: theta is walked through as it lies, and the panels' pages stay in the translation buffer.
        for i in range((n_in + bias) * thread // n_threads, (n_in + bias) * (thread + 1) // n_threads):
            flat, line = row[THETA] + i * n_out, row[W] + i * width
            for _ in range(whole):
                if into_panels:
                    copy_line(((theta, flat), (panels, line)))
                else:
                    copy_line(((panels, line), (theta, flat)))
                flat += width
                line += (n_in + 1) * width
            if into_panels:
                take_lanes((theta, flat), (panels, line), n_out - whole * width)
            else:
                give_lanes((panels, line), (theta, flat), n_out - whole * width)
        if into_panels and not bias and thread == 0:
            for panel in range(whole + 1):
                fill_line(panels, row[W] + (panel * (n_in + 1) + n_in) * width, panels.dtype.type(0))


@inlined
def size_in_memory(parameters):
    """Bytes of W and of the slots."""
    return parameters.W.size * (1 + len(parameters.slots)) * parameters.W.itemsize


@inlined
def is_far(parameters):
    """Whether these come from memory at every step, and go there."""
    return size_in_memory(parameters) > FAR_BYTES


@inlined
def transpose_rows(parameters, layer, panel, first, last):
    """Copy rows ``first`` to ``last`` of one panel of a layer's W into WT, and zeros after the last of all.

    ``first`` is that of a gradient's strip.
    """
    width, step = line_size(parameters.W), vector_size(parameters.W)
    n_in, panels = layer[N_IN], n_panels(layer[N_OUT], width)
    streams = is_far(parameters)
    for i in range(first, n_panels(n_in, width) * width if last == n_in else last, step):
        line = layer[W] + (panel * (n_in + 1) + i) * width
        column = layer[WT] + (i // width * panels + panel) * width * width + i % width
        if streams:
            stream_transposed((parameters.W, line, width), (parameters.WT, column), last - i)
        else:
            transpose_lines((parameters.W, line, width), (parameters.WT, column), last - i)


@entry
def transpose(layers, parameters, thread, n_threads):
    """Write all of WT from W; each thread its share."""
    width = line_size(parameters.W)
    for layer in layers:
        if layer[WT] >= 0:
            panels = n_panels(layer[N_OUT], width)
            for panel in range(panels * thread // n_threads, panels * (thread + 1) // n_threads):
                transpose_rows(parameters, layer, panel, 0, layer[N_IN])
