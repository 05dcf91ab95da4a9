"""The training loop, and the entry points that Python calls.

Every thread of a team runs an entry point to its end, with its number and the size of the team. All threads
take the same turns, because what a turn depends on is the same for all.
"""

import math
from typing import NamedTuple

import numpy as np

from ..random import below, fold, mix
from .delta import delta, output_delta
from .forward import block_start, forward, sample
from .gradient import UPDATE, apply, clipping_scale, gradient, reduce, square_norms, step_scalars
from .jit import entry, inlined, routine
from .layout import N_OUT, NODE_OUT, convert, n_panels
from .simd import LINE_BYTES, flush_subnormals, restore_subnormals
from .team import barrier

# Constants below are np.int64(...) where a callee is called elsewhere with a variable: for a literal, Numba would
# compile it once more.

# Optimizer.mode.
FUSED, CLIPPED, NONE = range(3)
# Words of Run.cursor.
EPOCH, POSITION, STEP, DIVERGED, PUBLISHED = range(5)


class Optimizer(NamedTuple):
    """What the update needs.

    Attributes
    ----------
    code : int
    hyper : float64 (n,)
    clip_norm : float
        Largest global norm of a gradient; infinite for none.
    mode : int
        ``FUSED`` to update with no look at the whole gradient, ``CLIPPED`` to clip it first, ``NONE`` to leave it in
        ``Parameters.grad[0]``.
    """

    code: int
    hyper: np.ndarray
    clip_norm: float
    mode: int


class Run(NamedTuple):
    """Where a training stands, and what it reports.

    Attributes
    ----------
    update_rows : int
        Samples of one update.
    shuffle : int
        1 for a fresh permutation in every epoch.
    first_epoch : int
        Epochs that the network had seen before: they key the generator.
    learning_rate : float64 (n_epochs,)
    loss : float64 (n_epochs + 1,)
        Mean loss of each epoch; the last is the sum so far of the running one.
    cursor : int64 (5,)
        Epochs done, position in the epoch, updates that the optimizer has made, 1 once diverged, and updates made when
        ``theta`` and ``slots`` were written.
    theta, slots : 1-D, 2-D
        Flat parameters and optimizer state at the end of the last finite epoch.
    """

    update_rows: int
    shuffle: int
    first_epoch: int
    learning_rate: np.ndarray
    loss: np.ndarray
    cursor: np.ndarray
    theta: np.ndarray
    slots: np.ndarray


@routine
def permute(order, key):
    """Fisher-Yates shuffle of 0, 1, ..., n - 1."""
    for i in range(order.size):
        order[i] = i
    for i in range(order.size - 1, 0, -1):
        j = below(fold(key, i), i + 1)
        order[i], order[j] = order[j], order[i]


@routine
def total_weight(data, first, n_rows):
    """Sum of the weights of the samples at positions ``first`` to ``first + n_rows``."""
    if data.weight.size == 0:
        return float(n_rows)
    total = 0.0
    for position in range(first, first + n_rows):
        total += data.weight[sample(data, position)]
    return total


@inlined
def take_block(network, parameters, data, work, block, first, position, n_rows, key, scale, thread):
    """The whole way of a block of rows: forward, loss, and back."""
    forward(network, parameters, data, work, block, first, position, n_rows, key, np.int64(1))
    output_delta(network, data, work, block, first, position, n_rows, scale, thread)
    delta(network, parameters, work, block, n_rows)


@inlined
def backpropagate(network, parameters, data, work, optimizer, h, first, n_rows, key, thread, n_threads):
    """Both phases of one update over ``n_rows`` samples from position ``first``; returns their mean loss.

    With ``optimizer.mode`` ``FUSED`` the parameters are updated, otherwise the gradient is in ``parameters.grad[0]``.

    A batch that fits into one chunk is shared out by rows, then by parameters. A larger one is cut into slices of
    whole chunks, as many as its size says; each is one thread's for both phases, so that a chunk's activations never
    leave its cache, and the slices' gradients are added up in order.
    """
    total = total_weight(data, first, n_rows)
    scale = 1.0 / total if total > 0.0 else 0.0
    loss = 0.0
    block_rows, chunk_rows = work.block_rows, work.chunk_rows
    if n_rows <= chunk_rows:
        for block in range(thread, (n_rows + block_rows - 1) // block_rows, n_threads):
            position = block * block_rows
            rows = min(block_rows, n_rows - position)
            take_block(network, parameters, data, work, block, first, position, rows, key, scale, thread)
        barrier(work.sync, n_threads)
        into = UPDATE if optimizer.mode == FUSED else 1
        gradient(network, parameters, work, optimizer, h, np.int64(0), n_rows, into, thread, thread, n_threads)
        for r in range(n_rows):  # every thread for itself, so that all know of a divergence
            loss += work.loss[r]
        barrier(work.sync, n_threads)
        return loss

    n_chunks = (n_rows + chunk_rows - 1) // chunk_rows
    n_slices = min(len(parameters.grad), n_chunks)
    blocks_each = (chunk_rows + block_rows - 1) // block_rows
    base = thread * blocks_each
    for k in range(thread, n_slices, n_threads):
        slice_loss = 0.0
        begin, end = n_chunks * k // n_slices, n_chunks * (k + 1) // n_slices
        for chunk in range(begin, end):
            chunk_first = chunk * chunk_rows
            rows = min(chunk_rows, n_rows - chunk_first)
            for block in range((rows + block_rows - 1) // block_rows):
                position = chunk_first + block * block_rows
                in_block = min(block_rows, chunk_first + rows - position)
                take_block(network, parameters, data, work, base + block, first, position, in_block, key, scale, thread)
            into = 2 * k + (chunk == begin)
            gradient(network, parameters, work, optimizer, h, base, rows, into, thread, np.int64(0), np.int64(1))
            for r in range(rows):
                slice_loss += work.loss[base * block_rows + r]
        work.slice_loss[k] = slice_loss
    barrier(work.sync, n_threads)
    reduce(network, parameters, n_slices, thread, n_threads)
    if optimizer.mode == FUSED:
        apply(network, parameters, optimizer, h, parameters.W.dtype.type(1), thread, n_threads)
    for k in range(n_slices):
        loss += work.slice_loss[k]
    barrier(work.sync, n_threads)
    return loss


@routine
def count_wrong(x):
    """How many numbers are not finite."""
    wrong = 0
    for number in x:
        wrong += number - number != 0
    return wrong


@entry
def publish(network, parameters, run, thread, n_threads):
    """Write parameters and optimizer state into ``run.theta`` and ``run.slots``."""
    convert(network.layers, network.bias, run.theta, parameters.W, np.int64(0), thread, n_threads)
    for k in range(len(run.slots)):
        convert(network.layers, network.bias, run.slots[k], parameters.slots[k], np.int64(0), thread, n_threads)
    if thread == 0:
        run.cursor[PUBLISHED] = run.cursor[STEP]


@entry
def train(network, parameters, data, work, optimizer, run, max_updates, max_epochs, thread, n_threads):
    """Make up to ``max_updates`` updates, until ``max_epochs`` epochs are done in all or a loss is not finite.

    Preconditions: WT is the transpose of W; ``parameters.grad`` has a row if an update has more than ``chunk_rows``
    rows or ``optimizer.mode`` is not ``FUSED``.
    """
    control = flush_subnormals()
    n_samples = len(data.X)
    epoch, position, step = run.cursor[EPOCH], run.cursor[POSITION], run.cursor[STEP]
    loss_sum = run.loss[-1]
    diverged = False
    barrier(work.sync, n_threads)  # all have read the cursor before thread 0 writes it
    for _ in range(max_updates):
        if epoch >= max_epochs or diverged:
            break
        epoch_key = fold(mix(network.seed), run.first_epoch + epoch)
        if position == 0:
            loss_sum = 0.0
            if run.shuffle:
                if thread == 0:
                    permute(data.order, epoch_key)
                barrier(work.sync, n_threads)
        rows = min(run.update_rows, n_samples - position)
        step += 1
        h = step_scalars(optimizer, work, thread, run.learning_rate[epoch], step)
        key = fold(epoch_key, position)
        loss = backpropagate(network, parameters, data, work, optimizer, h, position, rows, key, thread, n_threads)
        if optimizer.mode == CLIPPED:
            square_norms(network, parameters, thread, n_threads)
            barrier(work.sync, n_threads)
            scale = parameters.W.dtype.type(clipping_scale(parameters, optimizer.clip_norm))
            apply(network, parameters, optimizer, h, scale, thread, n_threads)
            barrier(work.sync, n_threads)
        diverged = not math.isfinite(loss)
        loss_sum += loss * total_weight(data, position, rows)
        position += rows
        if position == n_samples and not diverged:
            size = parameters.W.size
            share = parameters.W[size * thread // n_threads : size * (thread + 1) // n_threads]
            work.wrong[thread] = count_wrong(share)
            if thread == 0:
                run.loss[epoch] = loss_sum / total_weight(data, 0, n_samples)
                run.cursor[STEP] = step
            barrier(work.sync, n_threads)
            for other in range(n_threads):
                diverged = diverged or work.wrong[other] > 0
            if not diverged:
                publish(network, parameters, run, thread, n_threads)
                epoch, position = epoch + 1, 0
    if thread == 0:
        run.cursor[EPOCH], run.cursor[POSITION], run.cursor[STEP] = epoch, position, step
        run.cursor[DIVERGED] = diverged
        run.loss[-1] = loss_sum
    restore_subnormals(control)


@entry
def evaluate(network, parameters, data, work, z, losses, thread, n_threads):
    """Write outputs into ``z`` (n_samples, n_out), and each sample's loss times its weight into ``losses``.

    An empty ``z`` or ``losses`` is not wanted.
    """
    control = flush_subnormals()
    layer = network.layers[len(network.layers) - 1]
    width = LINE_BYTES // work.a.itemsize
    start = block_start(network.layers, work, thread) + layer[NODE_OUT] * work.block_rows
    key = np.uint64(0)
    for first in range(thread * work.block_rows, len(data.X), n_threads * work.block_rows):
        rows = min(work.block_rows, len(data.X) - first)
        forward(network, parameters, data, work, thread, first, np.int64(0), rows, key, np.int64(0))
        if z.size:
            for panel in range(n_panels(layer[N_OUT], width)):
                for r in range(rows):
                    line = start + (panel * work.block_rows + r) * width
                    for lane in range(min(width, layer[N_OUT] - panel * width)):
                        z[first + r, panel * width + lane] = work.a[line + lane]
        if losses.size:
            output_delta(network, data, work, thread, first, np.int64(0), rows, 1.0, thread)
            for r in range(rows):
                losses[first + r] = work.loss[thread * work.block_rows + r]
    restore_subnormals(control)
