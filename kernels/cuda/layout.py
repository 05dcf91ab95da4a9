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
) = range(12)
# Columns of Network.numbers.
SETTING, DROPOUT, KEPT_SCALE, EPSILON = range(4)


class Network(NamedTuple):
    """What is computed, in the GPU's memory.

    Attributes
    ----------
    layers : int64 (n_layers, 12)
        Per layer: its kind, n_in, n_out, whether it has a bias, strides and starts of its input and output node, where
        W starts, the activation's code (-1 for none), where the node starts that a sum adds or the sum that adds a dense
        layer's input (-1 for none), and where a normalization keeps its statistics.
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
    moving : moving averages of means, then of variances, in batch normalization
    statistics : of the chunk's rows or of the batch, in normalizations
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


def padded(n: int) -> int:
    return -(-n // VECTOR) * VECTOR


class Sizes(NamedTuple):
    """Numbers in theta, in a row of all nodes, units in batch normalizations, and normalizations of rows."""

    theta: int
    row: int
    units: int
    norms: int


def layer_table(layers: list[Layer], codes: list[int], rows: int) -> tuple[np.ndarray, Sizes]:
    """The table ``Network.layers`` for chunks of so many rows, and what memory it wants."""
    table = np.zeros((len(layers), STATISTICS + 1), np.int64)
    table[:, SKIP] = -1
    first = layers[0]
    stride_in = padded(first.n_in if first.kind == DENSE else first.n_out)
    node, end, w, units, norms, dense = 0, stride_in, 0, 0, 0, 0
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
            row[STATISTICS], units = units, units + layer.n_out
        else:
            row[STATISTICS], norms = norms, norms + 1
        stride_in, node, end = stride, end, end + stride
        w += stride * (layer.n_in + 1)
    return table, Sizes(w, end, units, norms)


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
