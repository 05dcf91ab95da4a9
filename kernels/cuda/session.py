"""A network at work on a GPU: memory, and the launches of the kernels."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit

from .. import random
from ..digest import DIGEST
from ..optimizers import N_SCALARS
from ..problem import BATCH_NORM, DENSE, SCALE, SUM, Choice, Data, Progress, Topology, Update, samples_alone
from . import compat, delta, epoch, forward, fused, gradient, layers, layout
from .compat import n_blocks
from .feed import Feed
from .forward import LANES, MOST_BLOCKS, THREADS
from .functions import activations_of, loss_of, rule_of
from .layout import Chunk, Memory, Network, Penalty, Reports, Rule, Samples
from .plan import make_plan
from .resident import borrow

__all__ = ["Session", "borrow", "compat"]

#: Updates of a turn, at most: so many losses and scalars are kept.
TURN = 1024
#: Updates in a CUDA graph, at most.
GRAPH_STEPS = 16
#: The compute capability that brought tf32 and bf16.
OLDEST_WITH_TENSOR_CORES = (8, 0)


def _compiled(function: Callable) -> Any:
    dispatcher: Any = njit(cache=True, nogil=True)(function)
    dispatcher._cache._cache_file._source_stamp = DIGEST
    return dispatcher


def epoch_key(seed, number):
    """The key of an epoch."""
    return random.fold(random.mix(seed), number)


_epoch_key, _permute = _compiled(epoch_key), _compiled(random.permute)
#: Draws the next permutation while the launches of this one's epoch go on.
_drawer = ThreadPoolExecutor(1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back to the end: between launches, the host's counts are not those of the GPU."""
    of_python = signal.getsignal(signal.SIGINT) is not None
    if not of_python or threading.current_thread() is not threading.main_thread():
        yield
        return
    held_back = []
    handler = signal.signal(signal.SIGINT, lambda *args: held_back.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held_back:
        signal.raise_signal(signal.SIGINT)


class Session:
    """One network's parameters in a GPU's memory, with workspace for batches of one size.

    Parameters
    ----------
    topology, theta, moving, batch_rows, update_rows
        As for the CPU's session.
    precision : str or None
        A key of `tensor.PRECISIONS`, for products by tensor cores; None for products in the network's own precision.
    fused : bool or None
        Whether a step is one launch and the update; None lets a cost model choose, where it can be.
    graph_steps : int
        Updates that are captured in a CUDA graph, at most; 0 for plain launches.

    Raises
    ------
    DeviceError
        If there is no GPU, or none that can do it.
    """

    def __init__(
        self,
        topology: Topology,
        theta: np.ndarray,
        moving: np.ndarray,
        batch_rows: int,
        update_rows: int | None = None,
        precision: str | None = None,
        *,
        fused: bool | None = None,
        graph_steps: int = GRAPH_STEPS,
    ):
        compat.require_gpu(OLDEST_WITH_TENSOR_CORES if precision else compat.OLDEST)
        self.topology, self.update_rows = topology, update_rows or batch_rows
        self._layers, self._dtype = topology.layers, topology.dtype
        self.dropout = np.array([layer.dropout for layer in self._layers])
        whole = any(layer.kind == BATCH_NORM for layer in self._layers)  # which sees an update's rows at once
        self._rows = self.update_rows if whole else min(batch_rows, self.update_rows)
        codes, self._finish = activations_of(self._layers, self._dtype)
        self._table, self._sizes = layout.layer_table(self._layers, codes, self._rows)
        self._loss, self._loss_of = loss_of(topology)
        self._noise = topology.input_noise
        adds_samples = any(row[layout.KIND] == SUM and row[layout.SKIP] == 0 for row in self._table)
        self._wants_samples_gathered = self._layers[0].kind != DENSE or adds_samples
        if self._rows < self.update_rows or not self._reads_samples(training=True):
            fused = False
        self._plan = make_plan(self._layers, self._sizes.theta, self._rows, self._dtype, precision, fused)
        self._graph_steps = graph_steps
        self._feeds: list[Feed] = []
        self._graphs: dict[tuple[int, int, int], compat.Graph] = {}
        self._drawn: Future = Future()
        self._drawn.set_result(None)
        with compat.device_errors():
            self._stream = compat.new_stream()
            self._network = Network(
                compat.to_device(self._table, self._stream),
                compat.zeros((len(self._layers), 4), self._dtype, self._stream),
            )
            self._tiles = compat.to_device(self._plan.tiles, self._stream)
            self._cursor = compat.zeros(4, np.int64, self._stream)
            self._one = compat.to_device(np.ones(1, self._dtype), self._stream)
            # Of no interest between trainings: allocated for each, they would be there twice meanwhile.
            lengths = {
                "a": self._sizes.row * self._rows,
                "delta": self._sizes.row * self._rows,
                "grad": self._plan.n_slices * self._sizes.theta,
                "statistics": self._sizes.statistics,
            }
            self._work = {name: compat.zeros(n, self._dtype, self._stream) for name, n in lengths.items()}
            self._allocate(0, False)
            self._memory.theta.copy_to_device(self._pack(theta), stream=self._stream)
            if moving.size:
                flat = layout.pack_moving(self._layers, moving).astype(self._dtype)
                self._memory.moving.copy_to_device(flat, stream=self._stream)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception) -> None:
        self._drawn.result()
        self._feeds, self._graphs = [], {}

    def _pack(self, theta: np.ndarray) -> np.ndarray:
        return layout.pack(self._layers, theta)

    def _allocate(self, n_slots: int, has_average: bool) -> None:
        """Memory for a training with so many slots; parameters that were in it are lost."""
        theta, moving = self._sizes.theta, self._sizes.moving
        parts = np.cumsum([0, theta, moving, n_slots * theta, has_average * theta])
        self._state = compat.zeros(parts[-1], self._dtype, self._stream)
        views = [self._state[a:b] if b > a else self._one for a, b in pairwise(parts)]
        self._memory = Memory(theta=views[0], slots=views[2], average=views[3], moving=views[1], **self._work)

    def load(self, theta: np.ndarray) -> None:
        """Take over other parameters."""
        with compat.device_errors():
            self._memory.theta.copy_to_device(self._pack(theta), stream=self._stream)

    def _feed(self, data: Data, shuffle: bool) -> Feed:
        """What brings these samples; it is kept for as long as the session lasts."""
        for feed in self._feeds:
            same = all(a is b for a, b in zip(feed.data, data, strict=True))
            alone = data.X is feed.data.X and not data.targets.size and not data.labels.size
            if (same or alone) and feed.shuffle == shuffle:
                return feed
        self._feeds.append(Feed(data, self._stream, shuffle, self.update_rows))
        return self._feeds[-1]

    def start(
        self,
        data: Data,
        update: Update,
        slots: np.ndarray,
        step: int,
        *,
        learning_rate: np.ndarray,
        shuffle: bool,
        first_epoch: int,
        theta: np.ndarray,
        moving: np.ndarray,
        apply: bool = True,
    ) -> None:
        """Prepare a training of ``len(learning_rate)`` epochs; the rates of epochs to come may still be changed.

        As in the CPU's session; with ``apply`` False gradients are left in ``Memory.grad``, and nothing is updated.
        """
        stream, dtype, topology = self._stream, self._dtype, self.topology
        self._n_samples, self._update, self._learning_rate = len(data.X), update, learning_rate
        self._targets = theta, moving, slots
        self._first_epoch, self._apply = first_epoch, apply
        self._epoch = self._position = 0
        self._step = self.published_step = step
        self._is_collected, self._drawn_epoch = True, -1
        self.losses = np.zeros(len(learning_rate))
        self._sums = np.zeros(2)
        self._code, self._prepare_of, self._update_of = rule_of(update.rule)
        chunks = self._parameter_chunks(update.groups)
        self._n_chunks, self._n_penalties = len(chunks), len(chunks) if topology.l1 > 0 or topology.l2 > 0 else 0
        n_parts = sum(n_blocks(rows, THREADS // LANES) for _, rows in self._chunks(self.update_rows))
        if self._plan.fused_tile is not None:
            n_parts = self._plan.n_slices
        self._n_parts = n_parts
        with compat.device_errors():
            self._training = self._feed(data, shuffle)
            before, kept = self._state, self._sizes.theta + self._sizes.moving
            self._allocate(len(slots), update.average_decay is not None)
            self._state[:kept].copy_to_device(before[:kept], stream=stream)
            for k, slot in enumerate(slots):
                part = self._memory.slots[k * self._sizes.theta : (k + 1) * self._sizes.theta]
                part.copy_to_device(self._pack(slot), stream=stream)
            self._published = compat.zeros(self._state.size, dtype, stream)
            self._chunk_table = compat.to_device(chunks, stream)
            self._reports = Reports(compat.zeros(TURN, dtype, stream), compat.zeros((TURN, n_parts), dtype, stream))
            size = (TURN, self._n_penalties) if self._n_penalties else (1, 1)
            self._penalty = Penalty(
                dtype.type(topology.l1),
                dtype.type(topology.l2),
                int(topology.penalty_by_batch),
                compat.zeros(size, dtype, stream),
            )
            self._rule = Rule(
                self._code,
                compat.zeros((TURN, len(update.hyper), N_SCALARS), dtype, stream),
                compat.to_device(np.ones(1, dtype), stream),
                dtype.type(update.clip_value),
            )
            self._squares = compat.zeros(len(chunks), dtype, stream)
            self._loss_of_update = compat.zeros(TURN, dtype, stream)
            self._shares = compat.zeros(TURN, dtype, stream)
            self._graphs = {}
            self._launched: set[int] = set()

    def _parameter_chunks(self, groups: np.ndarray) -> np.ndarray:
        """What each block of the update has, as `gradient` reads it."""
        chunks = []
        for layer, row, (of_W, of_b) in zip(self._layers, self._table, groups, strict=True):
            stride, W = row[layout.STRIDE_OUT], row[layout.W]
            n = layer.n_in * stride
            runs = [(W, n, of_W, layer.kind == DENSE), (W + n, stride * layer.bias, of_b, False)]
            for first, count, group, penalised in runs:
                for start in range(0, count, gradient.CHUNK):
                    chunks.append((first + start, min(gradient.CHUNK, count - start), group, penalised))
        return np.array(chunks, np.int64)

    def train(self, max_updates: int, max_epochs: int) -> Progress:
        """Go on with the training for at most ``max_updates`` updates, until ``max_epochs`` epochs are done in all."""
        with compat.device_errors(), _uninterrupted():
            return self._train(min(max_updates, TURN), max_epochs)

    def _train(self, max_updates: int, max_epochs: int) -> Progress:
        runs = []  # (epoch, position, updates)
        count, now, position = 0, self._epoch, self._position
        while count < max_updates and now < max_epochs:
            n = min(-(-(self._n_samples - position) // self.update_rows), max_updates - count)
            runs.append((now, position, n))
            count, position = count + n, position + n * self.update_rows
            if position >= self._n_samples:
                now, position = now + 1, 0
        self._upload_settings(runs, count)
        done = 0
        for now, position, n in runs:
            self._run_epoch(now, position, n, done)
            done += n
        report, loss, weights = self._fetch(self._report, self._loss_of_update, self._reports.weights)
        return self._take_report(runs, report, loss.astype(np.float64), weights.astype(np.float64))

    def _fetch(self, *arrays: Any) -> Any:
        """Copies of arrays, once all that was launched is done."""
        copies = [array.copy_to_host(stream=self._stream) for array in arrays]
        self._stream.synchronize()
        return copies if len(copies) > 1 else copies[0]

    def _upload_settings(self, runs: list[tuple[int, int, int]], count: int) -> None:
        """Bring what may have been changed between turns, and prepare the optimizer for all updates of this one."""
        stream, update = self._stream, self._update
        self._upload_numbers()
        rates = []
        for now, position, n in runs:
            of_epoch = self._learning_rate[now]
            first = position // self.update_rows
            rates.append(np.repeat(of_epoch, n) if of_epoch.size == 1 else of_epoch[first : first + n])
        self._report = compat.to_device(np.array([epoch.NEVER, epoch.NEVER, self._epoch, self._step]), stream)
        self._launch(
            epoch.make_prepare,
            (self._prepare_of,),
            n_blocks(count * len(update.hyper), THREADS),
            self._code,
            compat.to_device(update.hyper, stream),
            compat.to_device(update.rates, stream),
            compat.to_device(np.concatenate(rates), stream),
            self._step,
            count,
            self._rule.scalars,
        )
        if update.average_decay is not None:
            since = self._step + 1 + np.arange(TURN) - update.average_from
            shares = 1 / np.maximum(since, 1)
            if update.average_decay < 1:
                shares = np.where(shares < 1, 1 - update.average_decay, shares)
            self._shares.copy_to_device((shares * (since > 0)).astype(self._dtype), stream=stream)

    def _upload_numbers(self) -> None:
        numbers = np.zeros((len(self._layers), 4), self._dtype)
        for row, layer, dropout in zip(numbers, self._layers, self.dropout, strict=True):
            setting = layer.activation.setting if isinstance(layer.activation, Choice) else 0.0
            row[[layout.SETTING, layout.DROPOUT, layout.KEPT_SCALE, layout.EPSILON]] = (
                setting,
                dropout,
                1 / (1 - dropout),
                layer.epsilon,
            )
        self._network.numbers.copy_to_device(numbers, stream=self._stream)

    def _launch(self, make: Any, settings: tuple, grid: int | tuple[int, int], *args: Any, threads: int = THREADS):
        compat.launch((make, self._dtype, *settings), grid, threads, self._stream, *args)

    def _run_epoch(self, number: int, position: int, n: int, done: int) -> None:
        """Launch ``n`` updates from a position of an epoch on, ``done`` of this turn being launched."""
        feed, n_samples = self._training, self._n_samples
        if feed.shuffle and position == 0:
            if self._drawn_epoch != number:
                self._draw(number)
            self._drawn.result()
            feed.shuffled()
            self._draw(number + 1)
        key = int(self._key(number).astype(np.int64))
        first, end = done, min(position + n * self.update_rows, n_samples)
        for piece in feed.pieces(position, n):
            self._launch(epoch.make_begin, (), 1, self._cursor, piece.position, piece.base, key, done, threads=1)
            weights = self._reports.weights
            args: tuple = piece.samples, self._cursor, self.update_rows, n_samples, weights
            self._launch(epoch.make_weigh, (), piece.n_updates, *args)
            whole = min(piece.n_updates, (n_samples - piece.position) // self.update_rows)
            self._run_updates(piece.samples, piece.buffer, whole, self.update_rows)
            if whole < piece.n_updates:
                self._run_updates(piece.samples, piece.buffer, 1, n_samples % self.update_rows)
            done += piece.n_updates
        args = self._reports.losses, self._penalty.parts, self._n_penalties, first, self._loss_of_update, self._report
        self._launch(epoch.make_sum_losses, (), n, *args)
        if end == n_samples:
            theta, state = self._memory.theta, self._state
            self._launch(epoch.make_check, (), self._grid(theta.size), theta, number, self._report)
            args = state, self._published, number + 1, self._step + done, self._report
            self._launch(epoch.make_publish, (), self._grid(state.size), *args)

    def _key(self, number: int) -> np.uint64:
        return np.uint64(_epoch_key(np.uint64(self.topology.seed), self._first_epoch + number))

    def _draw(self, number: int) -> None:
        """Have the permutation of an epoch drawn."""
        self._drawn.result()
        self._drawn = _drawer.submit(_permute, self._training.next_order(), self._key(number))
        self._drawn_epoch = number

    def _grid(self, size: int) -> int:
        return min(n_blocks(size, THREADS), MOST_BLOCKS)

    def _chunks(self, n_rows: int) -> list[tuple[int, int]]:
        """First row and number of rows of each chunk of an update."""
        return [(first, min(self._rows, n_rows - first)) for first in range(0, n_rows, self._rows)]

    def _run_updates(self, samples: Samples, buffer: int, n: int, n_rows: int) -> None:
        """Launch ``n`` updates of so many rows each, from the cursor on, and move it."""

        def launch(count: int) -> None:
            for step in range(count):
                self._run_update(samples, step, n_rows)
            self._launch(epoch.make_advance, (), 1, self._cursor, count, self.update_rows, threads=1)

        while n > 0:
            if n_rows not in self._launched or not self._graph_steps:
                self._launched.add(n_rows)
                launch(1)
                n -= 1
                continue
            # Powers of two, so that few graphs make up any number.
            count = min(1 << (n.bit_length() - 1), self._graph_steps)
            key = count, n_rows, buffer
            if key not in self._graphs:
                self._graphs[key] = compat.Graph(self._stream, partial(launch, count))
            self._graphs[key].replay()
            n -= count

    def _run_update(self, samples: Samples, step: int, n_rows: int) -> None:
        if self._plan.fused_tile is not None:
            self._run_fused(samples, step, n_rows)
        else:
            self._run_layers(samples, step, n_rows)
        self._update_parameters(step)

    def _run_fused(self, samples: Samples, step: int, n_rows: int) -> None:
        tile: Any = self._plan.fused_tile
        chunk = Chunk(self._cursor, step, self.update_rows, 0, n_rows)
        settings = tile, self._finish, self._loss_of
        args = self._network, self._memory, samples, chunk, self._tiles, self._loss, self._reports
        self._launch(fused.make_fused_step, settings, self._plan.n_slices, *args, threads=tile.threads)

    def _run_layers(self, samples: Samples, step: int, n_rows: int) -> None:
        """Forward, loss, delta and gradient, chunk by chunk and layer by layer."""
        part, tile = 0, self._plan.gradient_tile
        for first, rows in self._chunks(n_rows):
            chunk = Chunk(self._cursor, step, self.update_rows, first, rows)
            self._forward(samples, chunk, 1)
            # The last chunk of a short update writes all parts that are left, so that none is an old one.
            blocks = n_blocks(rows, THREADS // LANES) if first + rows < n_rows else self._n_parts - part
            self._output_delta(samples, chunk, self._reports, part, blocks)
            part += blocks
            self._backward(samples, chunk)
            args = self._network, self._memory, samples, chunk, self._tiles, int(self._reads_samples(training=True))
            grid = len(self._plan.tiles), self._plan.n_slices
            self._launch(gradient.make_gradient, (tile,), grid, *args, threads=tile.threads)

    def _update_parameters(self, step: int) -> None:
        memory, topology, number = self._memory, self.topology, self._dtype.type
        n_slices, penalty, weights = self._plan.n_slices, self._penalty, self._reports.weights
        where, clips = (memory, self._chunk_table, (self._cursor, step)), self._update.clip_norm < np.inf
        if clips or not self._apply:
            self._launch(gradient.make_reduce, (), self._n_chunks, *where, n_slices, penalty, weights, self._squares)
            n_slices, penalty = 1, penalty._replace(l1=number(0), l2=number(0))
        if not self._apply:
            return
        if clips:
            self._launch(gradient.make_clip, (), 1, self._squares, number(self._update.clip_norm), self._rule.clip)
        args: tuple = *where, n_slices, penalty, weights, self._rule
        self._launch(gradient.make_update, (self._update_of,), self._n_chunks, *args)
        if topology.max_norm < np.inf:
            grid = n_blocks(max(layer.n_out for layer in self._layers), THREADS), len(self._layers)
            self._launch(epoch.make_limit_norms, (), grid, self._network, memory.theta, number(topology.max_norm))
        if self._update.average_decay is not None:
            args = memory, self._cursor, step, self._shares
            self._launch(epoch.make_average, (), self._grid(memory.theta.size), *args)

    def _reads_samples(self, training: bool) -> bool:
        """Whether the first product reads samples where they lie; otherwise a chunk's are gathered first."""
        return not (self._wants_samples_gathered or (training and self._noise > 0))

    def _forward(self, samples: Samples, chunk: Chunk, training: int) -> None:
        """Take a chunk through all layers."""
        network, memory, rows = self._network, self._memory, chunk.n_rows
        reads_samples = self._reads_samples(bool(training))
        grid: int | tuple[int, int]
        if not reads_samples:
            noise = self._dtype.type(self._noise if training else 0)
            grid = self._grid(rows * int(self._table[0, layout.STRIDE_IN]))
            n_in = self.topology.layer_sizes[0]
            self._launch(forward.make_gather, (), grid, network, memory, samples, chunk, n_in, noise)
        for depth, layer in enumerate(self._layers):
            stride = int(self._table[depth, layout.STRIDE_OUT])
            if layer.kind == DENSE:
                tile = self._plan.forward_tiles[depth]
                grid = n_blocks(rows, tile.rows), n_blocks(stride, tile.columns)
                args: tuple = network, memory, samples, chunk, depth, int(reads_samples), training
                self._launch(forward.make_forward, (tile, self._finish), grid, *args, threads=tile.threads)
            elif layer.kind == SUM:
                self._launch(layers.make_add, (), self._grid(rows * stride), network, memory, rows, depth, training)
            elif layer.kind in (SCALE, BATCH_NORM):
                if layer.kind == BATCH_NORM:
                    grid = n_blocks(layer.n_out, LANES)
                    self._launch(layers.make_batch_moments, (), grid, network, memory, rows, depth, training)
                args = network, memory, chunk, depth, training
                self._launch(layers.make_normalize_columns, (self._finish,), self._grid(rows * stride), *args)
            else:
                grid = n_blocks(rows, THREADS // LANES)
                args = network, memory, chunk, depth, training
                self._launch(layers.make_normalize_rows, (self._finish,), grid, *args)

    def _output_delta(self, samples: Samples, chunk: Chunk, reports: Reports, part: int, blocks: int) -> None:
        args = self._network, self._memory, samples, chunk, self._loss, reports, part
        self._launch(delta.make_output_delta, (self._loss_of,), blocks, *args)

    def _backward(self, samples: Samples, chunk: Chunk) -> None:
        """Take a chunk's delta back to the first layer, and the gradients of gains along."""
        network, memory, rows = self._network, self._memory, chunk.n_rows
        grid: int | tuple[int, int]
        for depth in range(len(self._layers) - 1, -1, -1):
            layer, stride = self._layers[depth], int(self._table[depth, layout.STRIDE_OUT])
            args = network, memory, rows, depth
            if layer.kind == DENSE:
                if depth > 0:
                    tile = self._plan.delta_tiles[depth]
                    grid = n_blocks(rows, tile.rows), n_blocks(layer.n_in, tile.columns)
                    of_tile = network, memory, samples.order, rows, depth
                    self._launch(delta.make_delta, (tile,), grid, *of_tile, threads=tile.threads)
                continue
            if layer.kind == SUM:
                self._launch(layers.make_split, (), self._grid(rows * stride), *args)
                continue
            grid = n_blocks(layer.n_out, LANES)
            self._launch(layers.make_gains_gradient, (), grid, network, memory, chunk, depth)
            if layer.kind == BATCH_NORM:
                self._launch(layers.make_columns_back, (), self._grid(rows * stride), *args)
            elif layer.kind != SCALE:
                self._launch(layers.make_rows_back, (), n_blocks(rows, THREADS // LANES), *args)

    def _take_report(self, runs, report, loss, weights) -> Progress:
        """Write down what a turn has done."""
        n_samples, done, diverged = self._n_samples, 0, False
        for now, position, n in runs:
            last = min(n, int(report[epoch.BAD_UPDATE]) - done + 1)
            diverged = last < n or report[epoch.BAD_UPDATE] == done + n - 1 or report[epoch.BAD_EPOCH] == now
            if position == 0:
                self._sums[:] = 0
            part = slice(done, done + last)
            self._sums += (loss[part] * weights[part]).sum(), weights[part].sum()
            self._epoch, self._position = now, min(position + last * self.update_rows, n_samples)
            self._step, done = self._step + last, done + last
            if diverged:
                break
            if self._position == n_samples:
                self.losses[now] = self.running_loss
                self._epoch, self._position = now + 1, 0
        if report[epoch.EPOCHS] > runs[0][0]:
            self.published_step, self._is_collected = int(report[epoch.UPDATES]), False
        return Progress(self._epoch, self._position, bool(diverged))

    def _download(self, state: Any) -> bool:
        """Write the state to where `start` was told to, unless a parameter is not finite."""
        theta, moving, slots = self._targets
        flat = self._fetch(state)
        size, n_moving = self._sizes.theta, self._sizes.moving
        if not np.isfinite(flat[:size]).all():
            return False
        layout.unpack(self._layers, flat, theta)
        layout.unpack_moving(self._layers, flat[size : size + n_moving], moving)
        for k, slot in enumerate(slots):
            layout.unpack(self._layers, flat[n_moving + (k + 1) * size :], slot)
        return True

    @property
    def running_loss(self) -> float:
        """Mean training loss of the running epoch so far, or of the one that has just ended; NaN without weight."""
        loss, weight = self._sums.tolist()
        return loss / weight if weight else np.nan

    def publish(self) -> bool:
        """Write everything as it stands to where `start` was told to, unless a parameter is not finite."""
        with compat.device_errors():
            written = self._download(self._state)
        if written:
            self.published_step, self._is_collected = self._step, True
        return written

    def collect(self) -> None:
        """Bring the state of the last finite epoch to where `start` was told to, unless it is there."""
        if not self._is_collected:
            with compat.device_errors():
                self._download(self._published)
            self._is_collected = True

    def average(self) -> np.ndarray:
        """The average of the parameters over updates, flat."""
        flat = np.empty(self.topology.n_parameters, self._dtype)
        with compat.device_errors():
            layout.unpack(self._layers, self._fetch(self._memory.average), flat)
        return flat

    def gradients(self, data: Data) -> tuple[float, np.ndarray]:
        """Mean loss and flat gradient over all samples, without dropout and noise."""
        self.dropout[:] = 0
        self._noise = 0.0
        flat = np.empty(self.topology.n_parameters, self._dtype)
        self.start(
            data,
            Update("sgd", np.zeros((1, 1)), np.ones(1), np.zeros((len(self._layers), 2), np.int64)),
            np.empty((0, flat.size), self._dtype),
            0,
            learning_rate=np.zeros((1, 1)),
            shuffle=False,
            first_epoch=0,
            theta=flat,
            moving=np.empty((2, self._sizes.moving // 2)),
            apply=False,
        )
        self.train(1, 1)
        with compat.device_errors():
            layout.unpack(self._layers, self._fetch(self._memory.grad[: self._sizes.theta]), flat)
        return self.running_loss, flat

    def forward(self, X: np.ndarray) -> np.ndarray:
        """Outputs before the link, (n_samples, n_out)."""
        z = self._outputs(len(X))
        with compat.device_errors():
            for first, chunk, _ in self._evaluate(samples_alone(X)):
                self._fetch_outputs(chunk, z[first:])
        return z

    def evaluate(self, data: Data, wants_outputs: bool) -> tuple[float, np.ndarray]:
        """Weighted mean loss, and outputs before the link, (n_samples, n_out), or no rows of them."""
        blocks, total = n_blocks(self._rows, THREADS // LANES), 0.0
        z = self._outputs(len(data.X) if wants_outputs else 0)
        with compat.device_errors():
            reports = Reports(self._one, compat.zeros((1, blocks), self._dtype, self._stream))
            for first, chunk, samples in self._evaluate(data):
                if wants_outputs:
                    self._fetch_outputs(chunk, z[first:])
                self._output_delta(samples, chunk, reports, 0, blocks)
                total += float(self._fetch(reports.losses).sum(dtype=np.float64))
        return total / data.total_weight, z

    def _outputs(self, n_rows: int) -> np.ndarray:
        return np.empty((n_rows, self.topology.layer_sizes[-1]), self._dtype)

    def _fetch_outputs(self, chunk: Chunk, z: np.ndarray) -> None:
        """Copy what a chunk's samples have come to into the first rows of z."""
        begin, stride = int(self._table[-1][layout.NODE_OUT]), int(self._table[-1][layout.STRIDE_OUT])
        rows = self._fetch(self._memory.a[begin : begin + chunk.n_rows * stride])
        z[: chunk.n_rows] = rows.reshape(chunk.n_rows, stride)[:, : z.shape[1]]

    def _evaluate(self, data: Data) -> Iterator[tuple[int, Chunk, Samples]]:
        """Take chunk after chunk of the samples forward, as in inference; gives its first row among them."""
        self._upload_numbers()
        n_samples = len(data.X)
        feed = self._feed(data, shuffle=False)
        for piece in feed.pieces(0, -(-n_samples // self.update_rows)):
            self._launch(epoch.make_begin, (), 1, self._cursor, piece.position, piece.base, 0, 0, threads=1)
            end = min(piece.position + piece.n_updates * self.update_rows, n_samples)
            for first in range(piece.position, end, self._rows):
                rows = min(self._rows, end - first)
                chunk = Chunk(self._cursor, 0, self.update_rows, first - piece.position, rows)
                self._forward(piece.samples, chunk, 0)
                yield first, chunk, piece.samples
