"""Where everything lies in the GPU's memory, and the way between the flat vector theta and padded rows.

Rows of every matrix are padded to whole vectors of four numbers:

- weights          W  [n_in + 1][stride]   row n_in is the bias; layer by layer
- activations      a  [node][row][stride]  deltas alike; a node is what a layer gives, the first one the inputs
- samples          X  [n_samples][stride]

The padding of W, a, delta and X holds zeros and stays so, since its gradient is zero. Optimizer slots and gradients
are laid out like W. The gains of a normalization are a W of one row, and its shifts the bias; its input is overwritten
by what the gains multiply.
"""

from typing import Any, NamedTuple

import numpy as np

from ..problem import BATCH_NORM, DENSE, SUM, Layer

VECTOR = 4

# Columns of Network.layers.
(
    KIND,
    N_IN,
    N_OUT,
    BIAS,
    STRIDE_IN,
    STRIDE_OUT,
    NODE_IN,
    NODE_OUT,
    W,
    ACTIVATION,
    SKIP,
    STATISTICS,
    MOVING,
) = range(13)
# Columns of Network.numbers.
SETTING, DROPOUT, KEPT_SCALE, EPSILON = range(4)
# Words of Chunk.cursor.
POSITION, BASE, KEY, STEP = range(4)


class Network(NamedTuple):
    """What is computed, in the GPU's memory.

    Attributes
    ----------
    layers : int64 (n_layers, 13)
        Per layer: its kind, n_in, n_out, whether it has a bias, strides and starts of its input and output node, where
        W starts, the activation's code (-1 for none), where the node starts that a sum adds or the sum that adds a
        dense layer's input (-1 for none), and where a normalization keeps its statistics and moving averages.
    numbers : real (n_layers, 4)
        Per layer: the activation's setting, the probability of dropping a unit, what scales those that are kept, and
        what a normalization adds to the variance.
    """

    layers: Any
    numbers: Any


class Memory(NamedTuple):
    """Arrays of the numbers that training changes, 1-D.

    Attributes
    ----------
    a, delta : activations and deltas of one chunk
    theta : parameters
    slots : the optimizer's state, slot by slot
    grad : gradients of a batch's slices, each laid out like ``theta``
    average : average of ``theta``
    moving : moving averages of means, then of variances, of each batch normalization
    statistics : of the chunk's rows, or four vectors of the batch's, of each normalization
    """

    a: Any
    delta: Any
    theta: Any
    slots: Any
    grad: Any
    average: Any
    moving: Any
    statistics: Any


class Samples(NamedTuple):
    """The data: X padded, targets (n_samples, n_out) or labels, weights, and the epoch's order; flat.

    ``labelled``, ``weighted`` and ``ordered`` say which of these are to be looked at.
    """

    X: Any
    targets: Any
    labels: Any
    weight: Any
    order: Any
    labelled: int
    weighted: int
    ordered: int


class Chunk(NamedTuple):
    """Rows of an update that are in work together.

    Attributes
    ----------
    cursor : int64 (4,)
        Where in the epoch updates begin to be counted, where in the epoch the samples begin that are there, the epoch's
        key, and the number within the turn of the update that steps are counted from.
    step : int
        Updates since the cursor.
    update_rows : int
    first, n_rows : int
        The chunk's first row within the update, and how many there are.
    """

    cursor: Any
    step: int
    update_rows: int
    first: int
    n_rows: int


class Loss(NamedTuple):
    """Its code and setting, what each class gets and what is kept of a target (label smoothing), whether there is a
    softmax, and whether outputs come in pairs.
    """

    code: int
    setting: Any
    smoothing: Any
    keep: Any
    softmax: int
    pairs: int


class Reports(NamedTuple):
    """What updates of a turn leave behind: their weights, and parts of their losses (updates, parts)."""

    weights: Any
    losses: Any


class Penalty(NamedTuple):
    """Factors of sum |W| and of sum W**2 / 2, whether they are divided by an update's weight, and where the chunks of
    parameters leave their parts: (updates, chunks), unless both factors are zero.
    """

    l1: Any
    l2: Any
    by_weight: int
    parts: Any


class Rule(NamedTuple):
    """The optimizer's code and scalars (updates, groups, N_SCALARS), what scales the gradient, (1,), and where it is
    cut off.
    """

    code: int
    scalars: Any
    clip: Any
    limit: Any


def padded(n: int) -> int:
    return -(-n // VECTOR) * VECTOR


class Sizes(NamedTuple):
    """Numbers in theta, in a row of all nodes, and in the statistics and moving averages of normalizations."""

    theta: int
    row: int
    statistics: int
    moving: int


def layer_table(layers: list[Layer], codes: list[int], rows: int) -> tuple[np.ndarray, Sizes]:
    """The table ``Network.layers`` for chunks of so many rows, and what memory it wants."""
    table = np.zeros((len(layers), MOVING + 1), np.int64)
    table[:, SKIP] = -1
    first = layers[0]
    stride_in = padded(first.n_in if first.kind == DENSE else first.n_out)
    node, end, w, statistics, moving, dense = 0, stride_in, 0, 0, 0, 0
    for depth, (row, layer) in enumerate(zip(table, layers, strict=True)):
        stride = padded(layer.n_out)
        row[[KIND, N_IN, N_OUT, BIAS]] = layer.kind, layer.n_in, layer.n_out, layer.bias
        row[[STRIDE_IN, STRIDE_OUT, NODE_IN, NODE_OUT]] = stride_in, stride, node * rows, end * rows
        row[[W, ACTIVATION]] = w, codes[depth]
        if layer.kind == DENSE:
            dense = depth
        elif layer.kind == SUM:
            row[SKIP], table[dense, SKIP] = table[dense, NODE_IN], end * rows
        elif layer.kind == BATCH_NORM:
            row[[STATISTICS, MOVING]] = statistics, moving
            statistics, moving = statistics + 4 * layer.n_out, moving + 2 * layer.n_out
        else:
            row[STATISTICS], statistics = statistics, statistics + rows
        stride_in, node, end = stride, end, end + stride
        w += stride * (layer.n_in + 1)
    return table, Sizes(w, end, statistics, moving)


def pack_moving(layers: list[Layer], moving: np.ndarray) -> np.ndarray:
    """Moving averages (2, n_units) layer by layer."""
    widths = [layer.n_out for layer in layers if layer.kind == BATCH_NORM]
    parts = np.split(moving, np.cumsum(widths)[:-1], axis=1) if widths else []
    return np.concatenate([part.ravel() for part in parts] or [np.zeros(0)])


def unpack_moving(layers: list[Layer], flat: np.ndarray, moving: np.ndarray) -> None:
    """Write what `pack_moving` gave into ``moving``."""
    start = 0
    for layer in layers:
        if layer.kind == BATCH_NORM:
            n = layer.n_out
            moving[:, start : start + n] = flat[2 * start : 2 * (start + n)].reshape(2, n)
            start += n


def pack(layers: list[Layer], theta: np.ndarray) -> np.ndarray:
    """The flat vector theta, or a slot laid out like it, with rows padded by zeros."""
    parts = []
    start = 0
    for layer in layers:
        n_rows = layer.n_in + layer.bias
        rows = np.zeros((layer.n_in + 1, padded(layer.n_out)), theta.dtype)
        rows[:n_rows, : layer.n_out] = theta[start : start + n_rows * layer.n_out].reshape(n_rows, layer.n_out)
        start += n_rows * layer.n_out
        parts.append(rows.ravel())
    return np.concatenate(parts)


def unpack(layers: list[Layer], rows: np.ndarray, theta: np.ndarray) -> None:
    """Write what `pack` gave into ``theta``."""
    start = place = 0
    for layer in layers:
        n_rows, stride = layer.n_in + layer.bias, padded(layer.n_out)
        part = rows[place : place + n_rows * stride].reshape(n_rows, stride)
        theta[start : start + n_rows * layer.n_out] = part[:, : layer.n_out].ravel()
        start += n_rows * layer.n_out
        place += (layer.n_in + 1) * stride
