"""The training loop, and the entry points that Python calls.

Every thread of a team runs an entry point to its end, with its number and the size of the team. All threads
take the same turns, because what a turn depends on is the same for all.
"""

import math
from typing import NamedTuple

import numpy as np

from .. import random
from ..random import fold, mix
from .forward import sample, transpose_square
from .gradient import (
    UPDATE,
    call_apply,
    call_gradient,
    call_norms,
    call_reduce,
    call_settle,
    clipping_scale,
    step_scalars,
)
from .jit import entry, inlined, routine
from .layers import call_batch, moving_moments
from .layout import NODE_OUT, convert
from .rows import call_take_rows
from .simd import (
    flush_subnormals,
    give_lanes,
    hold,
    line_size,
    look,
    restore_subnormals,
    view,
)
from .team import barrier

# Constants below are np.int64(...) where a callee is called elsewhere with a variable: for a literal, Numba would
# compile it once more.

# Optimizer.mode.
FUSED, IN_MEMORY, CLIPPED, NONE = range(4)
# Words of Run.cursor.
EPOCH, POSITION, STEP, DIVERGED, PUBLISHED = range(5)


class Optimizer(NamedTuple):
    """What the update needs.

    Attributes
    ----------
    code, prepare_at, update_at : int
        Code of the rule, and addresses of its two functions.
    hyper : float64 (n_groups, n)
        Settings of each group of parameters.
    rates : float64 (n_groups,)
        What multiplies the learning rate of each.
    clip_norm, clip_value : float
        Largest global norm of a gradient, and largest size of a number in it; infinite for none.
    mode : int
        ``FUSED`` to update from each tile of the gradient at once, ``IN_MEMORY`` to write the whole gradient to
        ``Parameters.grad`` first, ``CLIPPED`` to clip it there, ``NONE`` to leave it in its first row.
    """

    code: int
    prepare_at: int
    update_at: int
    hyper: np.ndarray
    rates: np.ndarray
    clip_norm: float
    clip_value: float
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
    learning_rate : float64 (n_epochs, 1) or (n_epochs, n_updates)
        One of each epoch, or of each update.
    average_from : int
        Updates before the first after which ``Parameters.average`` takes the parameters in.
    average_decay : float
        What it keeps of itself from then on; infinite to weigh all updates alike.
    loss : float64 (n_epochs,)
        Mean loss of each epoch.
    sums : float64 (2,)
        Of losses times weights, and of weights, so far in the running epoch.
    cursor : int64 (5,)
        Epochs done, position in the epoch, updates that the optimizer has made, 1 once diverged, and updates made when
        ``theta`` and ``slots`` were written.
    theta, slots, moving : 1-D, 2-D, 2-D
        Flat parameters, optimizer state and ``Parameters.moving`` at the end of the last finite epoch.
    """

    update_rows: int
    shuffle: int
    first_epoch: int
    learning_rate: np.ndarray
    average_from: int
    average_decay: float
    loss: np.ndarray
    sums: np.ndarray
    cursor: np.ndarray
    theta: np.ndarray
    slots: np.ndarray
    moving: np.ndarray


permute = routine(random.permute)


@inlined
def total_weight(data, first, n_rows):
    """Sum of the weights of the samples at positions ``first`` to ``first + n_rows``."""
    if data.weight.size == 0:
        return float(n_rows)
    total = 0.0
    for position in range(first, first + n_rows):
        total += data.weight[sample(data, position)]
    return total


@inlined
def take_blocks(held, rows, key, scale, parts, thread):
    """Take rows of an update forward, to their loss, and back: every ``step``-th block, ``parts`` being (start, step).

    ``rows`` is (base, first, begin, end): rows ``begin`` to ``end``, whose blocks' memory begins with number ``base``,
    of samples from position ``first`` of the epoch on. All blocks wait for each other where a normalization looks at
    the whole batch.
    """
    network, _, _, work = look(held)
    (base, first, begin, end), (start, step) = rows, parts
    stops, at = network.batch_norms, network.at
    block_rows, n_rows, n_stops = work.block_rows, end - begin, len(stops)
    for turn in range(2 * n_stops + 1):  # forward from stop to stop, in the last stretch back as well, then back
        k = min(turn, 2 * n_stops - turn)
        since = stops[k - 1] if k else 0
        until = stops[k] if k < n_stops else len(network.layers)
        forth = (since, until) if turn <= n_stops else (0, 0)
        back = (since + (k > 0), until + (turn > n_stops)) if turn >= n_stops else (0, 0)
        block = start
        while block * block_rows < n_rows:
            position = begin + block * block_rows
            place = base + block, first, position, min(block_rows, end - position)
            call_take_rows(at.take_rows, (held, *place, key, scale, 1, forth, turn == n_stops, back, thread))
            block += step
        if turn < 2 * n_stops:
            barrier(work.sync, step)
            is_back = np.int64(turn >= n_stops)
            call_batch(at.batch, (held, stops[k - is_back], is_back, n_rows, thread, step))
            barrier(work.sync, step)


@routine
def count_wrong(x):
    """How many numbers are not finite."""
    wrong = 0
    for i in range(x.size):
        wrong += x[i] - x[i] != 0
    return wrong


@inlined
def is_wrong(parameters, work, thread, n_threads):
    """Whether a parameter is not finite."""
    size = parameters.W.size
    begin, end = size * thread // n_threads, size * (thread + 1) // n_threads
    work.wrong[thread] = count_wrong(view(parameters.W, begin, end - begin))
    barrier(work.sync, n_threads)
    wrong = False
    for other in range(n_threads):
        wrong = wrong or work.wrong[other] > 0
    return wrong


@entry
def write(network, parameters, run, thread, n_threads):
    """Write parameters and optimizer state into ``run.theta`` and ``run.slots``."""
    convert(network.layers, run.theta, parameters.W, np.int64(0), thread, n_threads)
    for k in range(len(run.slots)):
        convert(network.layers, run.slots[k], parameters.slots[k], np.int64(0), thread, n_threads)
    if thread == 0:
        for k in range(2):
            for unit in range(parameters.moving.shape[1]):
                run.moving[k, unit] = parameters.moving[k, unit]
        run.cursor[PUBLISHED] = run.cursor[STEP]


@entry
def publish(network, parameters, work, run, thread, n_threads):
    """Write them as they stand, or set ``run.cursor[DIVERGED]`` if one is not finite."""
    diverged = is_wrong(parameters, work, thread, n_threads)
    if not diverged:
        write(network, parameters, run, thread, n_threads)
    if thread == 0:
        run.cursor[DIVERGED] = diverged


@inlined
def backpropagate(held, held_optimizer, first, n_rows, weight, key, share, thread, n_threads):
    """Both phases of an update over ``n_rows`` samples of that weight from position ``first``.

    Returns their mean loss. ``held`` are network, parameters, data and workspace. With the optimizer's mode ``FUSED``
    the parameters are updated at once, otherwise by way of ``parameters.grad[0]``, where ``NONE`` leaves the
    gradient.

    A batch that fits into one chunk is shared out by rows, then by parameters. A larger one is cut into slices of
    whole chunks, as many as its size says; each is one thread's for both phases, so that a chunk's activations
    never leave its cache, and the slices' gradients are added up in order.
    """
    (network, parameters, _, work), optimizer = look(held), look(held_optimizer)
    scale = 1.0 / weight if weight > 0.0 else 0.0
    number = parameters.W.dtype.type
    l1, l2 = number(network.l1), number(network.l2)
    if network.penalty_by_batch:
        l1, l2 = number(network.l1 * scale), number(network.l2 * scale)
    chunk_rows = work.chunk_rows
    shared = n_rows <= chunk_rows
    # Quotients are taken only where they are needed: the others were 3% of a small network's step.
    n_chunks, n_slices, base, k, step = 1, 1, 0, 0, 1
    part, n_parts = thread, n_threads
    if not shared:
        n_chunks = (n_rows + chunk_rows - 1) // chunk_rows
        n_slices = min(len(parameters.grad), n_chunks)
        base = thread * ((chunk_rows + work.block_rows - 1) // work.block_rows)
        k, step, part, n_parts = thread, n_threads, 0, 1
    while k < n_slices:
        slice_loss, first_chunk, last_chunk = 0.0, 0, 1
        if not shared:
            first_chunk, last_chunk = n_chunks * k // n_slices, n_chunks * (k + 1) // n_slices
        for chunk in range(first_chunk, last_chunk):
            begin, end = chunk * chunk_rows, min((chunk + 1) * chunk_rows, n_rows)
            into = UPDATE if shared and optimizer.mode == FUSED else 2 * k + (chunk == first_chunk)
            rows, parts = (base, first, begin, end), (part, n_parts)
            take_blocks(held, rows, key, scale, parts, thread)
            barrier(work.sync, n_parts)
            rules, place = (held_optimizer, l1, l2), (base, end - begin)
            call_gradient(network.at.gradient, (held, *rules, *place, into, thread, part, n_parts))
            for r in range(base * work.block_rows, base * work.block_rows + end - begin):
                slice_loss += work.loss[r]
        work.slice_loss[thread if shared else k] = slice_loss
        k += step
    barrier(work.sync, n_threads)
    if shared:  # every thread has summed for itself, next to a barrier that would have made it wait
        loss = work.slice_loss[thread]
    else:
        loss = 0.0
        for other in range(n_slices):
            loss += work.slice_loss[other]
    in_memory = not shared or optimizer.mode != FUSED
    if in_memory:
        call_reduce(network.at.reduce, (held, l1, l2, n_slices, thread, n_threads))
        if optimizer.mode == CLIPPED:
            call_norms(network.at.norms, (held, thread, n_threads))
        barrier(work.sync, n_threads)
    if l1 > 0 or l2 > 0:
        for penalty in work.penalty:
            loss += penalty
    if in_memory and optimizer.mode != NONE:
        clip = number(clipping_scale(parameters, optimizer.clip_norm) if optimizer.mode == CLIPPED else 1.0)
        limit = number(optimizer.clip_value)
        call_apply(network.at.apply, (held, held_optimizer, clip, limit, thread, n_threads))
        barrier(work.sync, n_threads)
    if optimizer.mode != NONE and (network.max_norm < np.inf or parameters.average.size > 0):
        call_settle(network.at.settle, (held, share, thread, n_threads))
        barrier(work.sync, n_threads)
    return loss


@entry
def train(network, parameters, data, work, optimizer, run, max_updates, max_epochs, thread, n_threads):
    """Make up to ``max_updates`` updates, until ``max_epochs`` epochs are done in all or a loss is not finite.

    Preconditions: WT is the transpose of W; ``parameters.grad`` has rows, or ``optimizer.mode`` is ``FUSED`` and no
    update has more than ``chunk_rows`` rows.
    """
    control = flush_subnormals()
    held, held_optimizer = hold((network, parameters, data, work)), hold(optimizer)
    n_samples = len(data.X)
    epoch, position, step = run.cursor[EPOCH], run.cursor[POSITION], run.cursor[STEP]
    loss_sum, weight_sum = run.sums[0], run.sums[1]
    diverged = False
    barrier(work.sync, n_threads)  # all have read the cursor before thread 0 writes it
    for _ in range(max_updates):
        if epoch >= max_epochs or diverged:
            break
        epoch_key = fold(mix(network.seed), run.first_epoch + epoch)
        if position == 0:
            loss_sum, weight_sum = 0.0, 0.0
            if run.shuffle:
                if thread == 0:
                    permute(data.order, epoch_key)
                barrier(work.sync, n_threads)
        rows = min(run.update_rows, n_samples - position)
        step += 1
        update = position // run.update_rows if run.learning_rate.shape[1] > 1 else 0
        step_scalars(optimizer, work, thread, run.learning_rate[epoch, update], step)
        key = fold(epoch_key, position)
        weight = total_weight(data, position, rows)
        share = 0.0
        if step > run.average_from:
            share = 1.0 / (step - run.average_from)
            if run.average_decay < 1.0 and share < 1.0:
                share = 1.0 - run.average_decay
        loss = backpropagate(held, held_optimizer, position, rows, weight, key, share, thread, n_threads)
        diverged = not math.isfinite(loss)
        loss_sum += loss * weight
        weight_sum += weight
        position += rows
        if position == n_samples and not diverged:
            if thread == 0:
                run.loss[epoch] = loss_sum / weight_sum
                run.cursor[STEP] = step
            diverged = is_wrong(parameters, work, thread, n_threads)
            if not diverged:
                write(network, parameters, run, thread, n_threads)
                epoch, position = epoch + 1, 0
    if thread == 0:
        run.cursor[EPOCH], run.cursor[POSITION], run.cursor[STEP] = epoch, position, step
        run.cursor[DIVERGED] = diverged
        run.sums[0], run.sums[1] = loss_sum, weight_sum
    restore_subnormals(control)


@inlined
def give_outputs(network, z, first, work, start, n_rows, thread):
    """Write a block's outputs, which begin at ``start``, into rows of ``z`` from ``first`` on."""
    n_out, width, block_rows = z.shape[1], line_size(work.a), work.block_rows
    for column in range(0, n_out, width):
        for row in range(0, n_rows, width):
            lines, line = work.a, start + column * block_rows + row * width
            if network.narrow:
                lines, line = work.square[thread], 0
                transpose_square(work.a, start + column * block_rows + row, block_rows, width, lines, line)
            for r in range(min(width, n_rows - row)):
                give_lanes((lines, line + r * width), (z[first + row + r], column), n_out - column)


@entry
def evaluate(network, parameters, data, work, z, losses, thread, n_threads):
    """Write outputs into ``z`` (n_samples, n_out), and each sample's loss times its weight into ``losses``.

    An empty ``z`` or ``losses`` is not wanted.
    """
    control = flush_subnormals()
    layer = network.layers[len(network.layers) - 1]
    start = thread * work.block_size + layer[NODE_OUT] * work.block_rows
    key = np.uint64(0)
    if len(network.batch_norms):
        barrier(work.sync, n_threads)
        if thread == 0:
            moving_moments(network, parameters, work)
        barrier(work.sync, n_threads)
    held, n_layers = hold((network, parameters, data, work)), len(network.layers)
    for first in range(thread * work.block_rows, len(data.X), n_threads * work.block_rows):
        rows = min(work.block_rows, len(data.X) - first)
        place, wants_loss, training = (thread, first, 0, rows), losses.size > 0, 0
        call_take_rows(
            network.at.take_rows, (held, *place, key, 1.0, training, (0, n_layers), wants_loss, (0, 0), thread)
        )
        if z.size:
            give_outputs(network, z, first, work, start, rows, thread)
        if losses.size:
            for r in range(rows):
                losses[first + r] = work.loss[thread * work.block_rows + r]
    restore_subnormals(control)
