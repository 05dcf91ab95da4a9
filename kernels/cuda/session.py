"""A network at work on a GPU: memory, and the launches of the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from numba import njit

from .. import random
from ..activations import ACTIVATIONS, Activation
from ..digest import DIGEST
from ..losses import LOSSES, SMOOTHING, Loss, identity_link
from ..optimizers import N_SCALARS, OPTIMIZERS, Optimizer
from ..problem import (
    BATCH_NORM,
    DENSE,
    SCALE,
    SUM,
    Choice,
    Custom,
    CustomRule,
    Data,
    Progress,
    Topology,
    Update,
    samples_alone,
)
from . import compat, delta, epoch, forward, fused, gradient, layers, layout
from .compat import mark, n_blocks, plain
from .forward import LANES, MOST_BLOCKS, THREADS
from .gemm import FUSED_TILES, TILES, Tile
from .layout import Memory, Network, Samples
from .resident import Resident, borrow
from .tensor import PRECISIONS, TENSOR_TILES, TensorTile

__all__ = ["PRECISIONS", "Session", "borrow", "compat"]

#: Updates of a turn, at most: so many losses and scalars are kept.
TURN = 1024
#: A slice of a batch has at least so many of a product's slices in depth.
SLICE_STEPS = 4
#: Numbers that gradients by slices may take.
GRADIENT_SIZE = 1 << 27
#: Blocks that keep a multiprocessor busy.
BLOCKS = 2
#: The widest layer of a step that is fused, and how many slices of a product a launch takes as long as.
FUSED_WIDTH, LAUNCH_STEPS = 128, 4
#: Updates in a CUDA graph, at most.
GRAPH_STEPS = 16
#: The compute capability that brought tf32 and bf16.
OLDEST_WITH_TENSOR_CORES = (8, 0)
#: Codes of the user's own functions, from here on.
CUSTOM = 1 << 10

_permute = njit(random.permute)


def _begin_epoch(order, seed, number):
    key = random.fold(random.mix(seed), number)
    if order.size:
        _permute(order, key)
    return key


_begin_epoch: Any = njit(cache=True)(_begin_epoch)
_begin_epoch._cache._cache_file._source_stamp = DIGEST


class Session:
    """One network's parameters in a GPU's memory, with workspace for batches of one size.

    Parameters
    ----------
    topology, theta, moving, batch_rows, update_rows
        As for the CPU's session.
    precision : str or None
        A key of PRECISIONS, for products by tensor cores; None for products in the network's own precision.
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
        self.topology = topology
        self.update_rows = update_rows or batch_rows
        self._graph_steps, self._precision = graph_steps, precision
        self._dtype = dtype = topology.dtype
        self._layers = network_layers = topology.layers
        self._stream = compat.new_stream()
        self.dropout = np.array([layer.dropout for layer in network_layers])
        has_batch_norm = any(layer.kind == BATCH_NORM for layer in network_layers)
        self._rows = self.update_rows if has_batch_norm else min(batch_rows, self.update_rows)
        codes, activate = _activations([layer.activation for layer in network_layers])
        self._table, self._sizes = layout.layer_table(network_layers, codes, self._rows)
        self._finish = _finish(dtype, activate)
        self._loss, self._loss_setting, self._options, self._loss_of = _loss(topology)
        self._noise = dtype.type(topology.input_noise)
        self._alone = samples_alone(np.zeros((0, 0), dtype))
        self._from_samples = int(network_layers[0].kind == DENSE and topology.input_noise == 0)
        with compat.device_errors():
            self._network = Network(
                compat.to_device(self._table, self._stream),
                compat.to_device(np.zeros((len(network_layers), 4), dtype), self._stream),
            )
            self._cursor = compat.zeros(3, np.int64, self._stream)
            self._ones = compat.to_device(np.ones(1, dtype), self._stream)
            self._clip = compat.to_device(np.ones(1, dtype), self._stream)
            self._uploaded: dict[int, tuple[np.ndarray, Any]] = {}
            self._plan_products()
            self._plan_fused(fused)
            self._tiles_there = compat.to_device(self._tiles, self._stream)
            self._allocate(0, False)
            self._upload_state(theta, moving, np.zeros((0, 0), dtype))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception) -> None:
        self._uploaded.clear()
        self._graphs = {}

    def _plan_products(self) -> None:
        """Which tile each product takes, and how a batch is cut into slices for the gradient."""
        n_multiprocessors = compat.n_multiprocessors()
        large, small = TENSOR_TILES[self._precision] if self._precision else TILES[self._dtype.itemsize]

        def tile(n_rows: int, n_columns: int, repeated: int = 1) -> Tile | TensorTile:
            blocks = n_blocks(n_rows, large.rows) * n_blocks(n_columns, large.columns)
            return large if blocks * repeated >= n_multiprocessors else small

        rows = self._rows
        self._forward_tiles = [tile(rows, layer.n_out) for layer in self._layers]
        self._delta_tiles = [tile(rows, layer.n_in) for layer in self._layers]
        dense = [(depth, layer) for depth, layer in enumerate(self._layers) if layer.kind == DENSE]
        biggest = max((layer for _, layer in dense), key=lambda layer: layer.n_in * layer.n_out)
        most = n_blocks(rows, SLICE_STEPS * small.depth)
        self._gradient_tile = chosen = tile(biggest.n_in + 1, biggest.n_out, most)
        self._tiles = self._tile_table(chosen)
        most = min(n_blocks(rows, SLICE_STEPS * chosen.depth), self._most_slices())
        self._n_slices = min(most, n_blocks(BLOCKS * n_multiprocessors, len(self._tiles)))

    def _tile_table(self, tile: Tile | TensorTile) -> np.ndarray:
        """The tiles of all dense layers' gradients, as `gradient` reads them."""
        return np.array(
            [
                (depth, row, column)
                for depth, layer in enumerate(self._layers)
                if layer.kind == DENSE
                for row in range(0, layer.n_in + 1, tile.rows)
                for column in range(0, layer.n_out, tile.columns)
            ]
        )

    def _most_slices(self) -> int:
        return max(1, GRADIENT_SIZE // self._sizes.theta)

    def _plan_fused(self, wanted: bool | None) -> None:
        """Whether a step is fused, and in how many blocks."""
        self._fused_tile: Tile | TensorTile | None = None
        dense = all(layer.kind == DENSE for layer in self._layers)
        narrow = max(self.topology.layer_sizes) <= FUSED_WIDTH
        one_chunk = self._rows == self.update_rows
        if wanted is False or not (dense and narrow and one_chunk and self._from_samples):
            return
        n_multiprocessors, rows = compat.n_multiprocessors(), self._rows
        large, small = TENSOR_TILES[self._precision] if self._precision else FUSED_TILES[self._dtype.itemsize]
        tile = large if n_blocks(rows, large.rows) >= n_multiprocessors else small
        tiles = self._tile_table(tile)
        n_slices = min(n_blocks(rows, tile.rows), BLOCKS * n_multiprocessors, self._most_slices())
        if wanted or self._fused_wins(tile, tiles, n_slices):
            self._fused_tile, self._tiles, self._n_slices = tile, tiles, n_slices

    def _fused_wins(self, tile: Tile | TensorTile, tiles: np.ndarray, n_slices: int) -> bool:
        """Compare how many slices of products stand one after the other, and launches, which count as some."""

        def steps(depth: int) -> int:
            return n_blocks(depth, tile.depth)

        sizes = [(layer.n_in, layer.n_out) for layer in self._layers]
        products = [(n_out, n_in) for n_in, n_out in sizes] + sizes[1:]  # forward, and back but for the first
        one_by_one = sum(steps(depth) for _, depth in products)
        in_a_row = sum(n_blocks(width, tile.columns) * steps(depth) for width, depth in products)
        of_block = n_blocks(self._rows, n_slices)
        fused = n_blocks(of_block, tile.rows) * in_a_row + len(tiles) * steps(of_block)
        waves = n_blocks(self._rows, tile.rows * BLOCKS * compat.n_multiprocessors())
        launched = waves * one_by_one + steps(n_blocks(self._rows, self._n_slices)) + 2 * len(sizes) * LAUNCH_STEPS
        return fused < launched

    def _allocate(self, n_slots: int, has_average: bool) -> None:
        """Memory for a training with so many slots; what was in it is lost."""
        theta, row, units, norms = self._sizes
        dtype, stream = self._dtype, self._stream
        parts = np.cumsum([0, theta, 2 * units, n_slots * theta, has_average * theta])
        self._state = compat.zeros(parts[-1], dtype, stream)
        views = [self._state[a:b] if b > a else self._clip for a, b in zip(parts, parts[1:], strict=False)]
        self._memory = Memory(
            a=compat.zeros(row * self._rows, dtype, stream),
            delta=compat.zeros(row * self._rows, dtype, stream),
            theta=views[0],
            slots=views[2],
            grad=compat.zeros(self._n_slices * theta, dtype, stream),
            average=views[3],
            moving=views[1],
            statistics=compat.zeros(norms * self._rows + 4 * units, dtype, stream),
        )
        self._moments = norms * self._rows

    def _upload_state(self, theta: np.ndarray, moving: np.ndarray, slots: np.ndarray) -> None:
        parts = [layout.pack(self._layers, theta), moving.ravel().astype(self._dtype)]
        parts += [layout.pack(self._layers, slot) for slot in slots]
        state = np.zeros(self._state.size, self._dtype)
        flat = np.concatenate(parts)
        state[: flat.size] = flat
        self._state.copy_to_device(state, stream=self._stream)

    def load(self, theta: np.ndarray) -> None:
        """Take over other parameters."""
        self._memory.theta.copy_to_device(layout.pack(self._layers, theta), stream=self._stream)

    def _samples(self, data: Data) -> Samples:
        """The data in the GPU's memory, in the order of its rows."""
        return Samples(
            self._upload(data.X, layout.padded(data.X.shape[1])),
            self._upload(data.targets),
            self._upload(data.labels),
            self._upload(data.weight),
            self._upload(data.order),
            int(data.labels.size > 0),
            int(data.weight.size > 0),
            0,
        )

    def _upload(self, array: np.ndarray | Resident, stride: int = 0) -> Any:
        """Copy an array, its rows padded to ``stride``, once for as long as the session lasts; what is there is used."""
        if isinstance(array, Resident):
            return array.flat
        if id(array) not in self._uploaded:
            rows = array
            if stride > array.shape[-1]:
                rows = np.zeros((len(array), stride), array.dtype)
                rows[:, : array.shape[1]] = array
            kept = compat.to_device(rows.ravel() if rows.size else np.zeros(1, rows.dtype), self._stream)
            self._uploaded[id(array)] = array, kept
        return self._uploaded[id(array)][1]

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
        stream, dtype = self._stream, self._dtype
        self._data, self._update, self._learning_rate = data, update, learning_rate
        self._targets = theta, moving, slots
        self._shuffle, self._first_epoch, self._apply = shuffle, first_epoch, apply
        self._epoch = self._position = 0
        self._step = self.published_step = step
        self.losses = np.zeros(len(learning_rate))
        self._sums = np.zeros(2)
        self._rule, self._prepare_of, self._update_of = _rule(update.rule)
        n_groups = len(update.hyper)
        with compat.device_errors():
            samples = self._samples(data)
            before = self._state
            self._allocate(len(slots), update.average_decay is not None)
            kept = self._sizes.theta + 2 * self._sizes.units
            if kept:
                self._state[:kept].copy_to_device(before[:kept], stream=stream)
            for k, slot in enumerate(slots):
                place = k * self._sizes.theta
                part = self._memory.slots[place : place + self._sizes.theta]
                part.copy_to_device(layout.pack(self._layers, slot), stream=stream)
            self._published = compat.zeros(self._state.size, dtype, stream)
            if shuffle:
                self._order = np.arange(len(data.X))
                samples = samples._replace(order=compat.to_device(self._order, stream), ordered=1)
            self._training_samples = samples
            self._weights = compat.zeros(TURN, dtype, stream)
            self._loss_of_update = compat.zeros(TURN, dtype, stream)
            self._scalars = compat.to_device(np.zeros((TURN, n_groups, N_SCALARS), dtype), stream)
            n_parts = sum(n_blocks(rows, THREADS // LANES) for _, rows in self._chunks(self.update_rows))
            n_parts = n_parts if self._fused_tile is None else self._n_slices
            self._losses = compat.to_device(np.zeros((TURN, n_parts), dtype), stream)
            chunks = self._parameter_chunks(update.groups)
            self._chunk_table, self._n_chunks = compat.to_device(chunks, stream), len(chunks)
            self._penalised = self.topology.l1 > 0 or self.topology.l2 > 0
            size = (TURN, len(chunks)) if self._penalised else (1, 1)
            self._penalties = compat.to_device(np.zeros(size, dtype), stream)
            self._squares = compat.zeros(len(chunks), dtype, stream)
            self._shares = compat.zeros(TURN, dtype, stream)
            self._graphs: dict[tuple[int, int], compat.Graph] = {}
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
        with compat.device_errors():
            return self._train(min(max_updates, TURN), max_epochs)

    def _train(self, max_updates: int, max_epochs: int) -> Progress:
        stream, n_samples = self._stream, len(self._data.X)
        runs = []  # (epoch, position, updates)
        count, now, position = 0, self._epoch, self._position
        while count < max_updates and now < max_epochs:
            n = min(-(-(n_samples - position) // self.update_rows), max_updates - count)
            runs.append((now, position, n))
            count, position = count + n, position + n * self.update_rows
            if position >= n_samples:
                now, position = now + 1, 0
        self._upload_settings(runs, count)
        done = 0
        for now, position, n in runs:
            self._run_epoch(now, position, n, done)
            done += n
        report, loss, weights = (
            array.copy_to_host(stream=stream) for array in (self._report, self._loss_of_update, self._weights)
        )
        stream.synchronize()
        return self._take_report(runs, report, loss.astype(np.float64), weights.astype(np.float64))

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
            self._rule,
            compat.to_device(update.hyper, stream),
            compat.to_device(update.rates, stream),
            compat.to_device(np.concatenate(rates), stream),
            self._step,
            count,
            self._scalars,
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
        samples, n_samples = self._training_samples, len(self._data.X)
        order = self._order if self._shuffle and position == 0 else np.arange(0)
        key = _begin_epoch(order, np.uint64(self.topology.seed), self._first_epoch + number)
        if order.size:
            samples.order.copy_to_device(order, stream=self._stream)
        key = np.array(key).view(np.int64)[()]
        self._launch(epoch.make_begin, (), 1, self._cursor, position, key, done, threads=1)
        self._launch(epoch.make_weigh, (), n, samples, self._cursor, self.update_rows, n_samples, self._weights)
        whole = min(n, (n_samples - position) // self.update_rows)
        self._run_updates(whole, self.update_rows)
        if whole < n:
            self._run_updates(1, n_samples % self.update_rows)
        n_penalties = self._n_chunks if self._penalised else 0
        self._launch(
            epoch.make_sum_losses,
            (),
            n,
            self._losses,
            self._penalties,
            n_penalties,
            done,
            self._loss_of_update,
            self._report,
        )
        if position + n * self.update_rows >= n_samples:
            theta = self._memory.theta
            self._launch(epoch.make_check, (), self._grid(theta.size), theta, number, self._report)
            updates = self._step + done + n
            size = self._state.size
            self._launch(
                epoch.make_publish,
                (),
                self._grid(size),
                self._state,
                self._published,
                number + 1,
                updates,
                self._report,
            )

    def _grid(self, size: int) -> int:
        return min(n_blocks(size, THREADS), MOST_BLOCKS)

    def _chunks(self, n_rows: int) -> list[tuple[int, int]]:
        """First row and number of rows of each chunk of an update."""
        return [(first, min(self._rows, n_rows - first)) for first in range(0, n_rows, self._rows)]

    def _run_updates(self, n: int, n_rows: int) -> None:
        """Launch ``n`` updates of so many rows each, from the cursor on, and move it."""
        advance = epoch.make_advance, (), 1, self._cursor

        def launch(count: int) -> None:
            for step in range(count):
                self._run_update(step, n_rows)
            self._launch(*advance, count, self.update_rows, threads=1)

        while n > 0:
            if n_rows not in self._launched or not self._graph_steps:
                self._launched.add(n_rows)
                launch(1)
                n -= 1
                continue
            # Powers of two, so that few graphs make up any number.
            count = min(1 << (n.bit_length() - 1), self._graph_steps)
            if (count, n_rows) not in self._graphs:
                self._graphs[count, n_rows] = compat.Graph(self._stream, partial(launch, count))
            self._graphs[count, n_rows].replay()
            n -= count

    def _run_update(self, step: int, n_rows: int) -> None:
        if self._fused_tile is not None:
            self._run_fused(step, n_rows)
        else:
            self._run_layers(step, n_rows)
        self._update_parameters(step)

    def _run_fused(self, step: int, n_rows: int) -> None:
        tile = self._fused_tile
        self._launch(
            fused.make_fused_step,
            (tile, self._finish, self._loss_of),
            self._n_slices,
            self._network,
            self._memory,
            self._training_samples,
            self._cursor,
            step,
            self.update_rows,
            0,
            n_rows,
            self._tiles_there,
            self._loss,
            self._loss_setting,
            self._options,
            self._weights,
            self._losses,
            0,
            threads=tile.threads,
        )

    def _run_layers(self, step: int, n_rows: int) -> None:
        """Forward, loss, delta and gradient, chunk by chunk and layer by layer."""
        memory, samples = self._memory, self._training_samples
        part = 0
        chunks = self._chunks(n_rows)
        for first, rows in chunks:
            self._forward(samples, step, first, rows, 1)
            last = first == chunks[-1][0]
            blocks = self._losses.shape[1] - part if last else n_blocks(rows, THREADS // LANES)
            self._output_delta(samples, step, first, rows, self._weights, self._losses, part, blocks)
            part += blocks
            self._backward(first, rows)
            place = (samples, self._cursor, step, self.update_rows, first, rows)
            tile = self._gradient_tile
            self._launch(
                gradient.make_gradient,
                (tile,),
                (len(self._tiles), self._n_slices),
                self._network,
                memory,
                *place,
                self._tiles_there,
                self._from_samples,
                threads=tile.threads,
            )

    def _update_parameters(self, step: int) -> None:
        memory, topology, number = self._memory, self.topology, self._dtype.type
        l1, l2, by_batch = number(topology.l1), number(topology.l2), int(topology.penalty_by_batch)
        penalties = self._penalties, l1, l2, by_batch, self._weights
        n_slices = self._n_slices
        where = memory, self._chunk_table, self._cursor, step
        if not self._apply or np.isfinite(self._update.clip_norm):
            self._launch(gradient.make_reduce, (), self._n_chunks, *where, n_slices, *penalties, self._squares)
            n_slices, penalties = 1, (self._penalties, number(0), number(0), 0, self._weights)
        if not self._apply:
            return
        if np.isfinite(self._update.clip_norm):
            self._launch(gradient.make_clip, (), 1, self._squares, number(self._update.clip_norm), self._clip)
        self._launch(
            gradient.make_update,
            (self._update_of,),
            self._n_chunks,
            *where,
            self._rule,
            self._scalars,
            n_slices,
            *penalties,
            self._clip,
            number(self._update.clip_value),
        )
        if np.isfinite(topology.max_norm):
            grid = n_blocks(max(layer.n_out for layer in self._layers), THREADS), len(self._layers)
            self._launch(epoch.make_limit_norms, (), grid, self._network, memory.theta, number(topology.max_norm))
        if self._update.average_decay is not None:
            grid = self._grid(memory.theta.size)
            self._launch(epoch.make_average, (), grid, memory, self._cursor, step, self._shares)

    def _forward(self, samples: Samples, step: int, first: int, rows: int, training: int) -> None:
        """Take a chunk of an update through all layers."""
        network, memory = self._network, self._memory
        at = self._cursor, step, self.update_rows, first, rows
        from_samples = self._from_samples or (not training and self._layers[0].kind == DENSE)
        if not from_samples:
            stride, noise = int(self._table[0, layout.STRIDE_IN]), self._noise if training else self._dtype.type(0)
            n_in, n_layers = self.topology.layer_sizes[0], len(self._layers)
            grid = self._grid(rows * stride)
            self._launch(forward.make_gather, (), grid, network, memory, samples, *at, n_in, noise, n_layers)
        for depth, layer in enumerate(self._layers):
            stride = int(self._table[depth, layout.STRIDE_OUT])
            batch = self._moments, self._sizes.units, depth
            if layer.kind == DENSE:
                tile = self._forward_tiles[depth]
                self._launch(
                    forward.make_forward,
                    (tile, self._finish),
                    (n_blocks(stride, tile.columns), n_blocks(rows, tile.rows)),
                    network,
                    memory,
                    samples,
                    *at,
                    depth,
                    int(depth == 0 and from_samples),
                    training,
                    threads=tile.threads,
                )
            elif layer.kind == SUM:
                self._launch(layers.make_add, (), self._grid(rows * stride), network, memory, rows, depth, training)
            elif layer.kind in (SCALE, BATCH_NORM):
                if layer.kind == BATCH_NORM:
                    grid = n_blocks(layer.n_out, LANES)
                    self._launch(layers.make_batch_moments, (), grid, network, memory, rows, *batch, training)
                grid = self._grid(rows * stride)
                self._launch(
                    layers.make_normalize_columns, (self._finish,), grid, network, memory, *at, *batch, training
                )
            else:
                grid = n_blocks(rows, THREADS // LANES)
                place = *at, self._rows, depth, training
                self._launch(layers.make_normalize_rows, (self._finish,), grid, network, memory, *place)

    def _output_delta(self, samples, step, first, rows, weights, losses, part, blocks) -> None:
        self._launch(
            delta.make_output_delta,
            (self._loss_of,),
            blocks,
            self._network,
            self._memory,
            samples,
            self._cursor,
            step,
            self.update_rows,
            first,
            rows,
            len(self._layers) - 1,
            self._loss,
            self._loss_setting,
            self._options,
            weights,
            losses,
            part,
        )

    def _backward(self, first: int, rows: int) -> None:
        """Take a chunk's delta back to the first layer, and the gradients of gains along."""
        network, memory = self._network, self._memory
        for depth, layer in reversed(list(enumerate(self._layers))):
            stride = int(self._table[depth, layout.STRIDE_OUT])
            batch = self._moments, self._sizes.units, depth
            if layer.kind == DENSE:
                if depth > 0:
                    tile = self._delta_tiles[depth]
                    grid = n_blocks(layer.n_in, tile.columns), n_blocks(rows, tile.rows)
                    order = self._training_samples.order
                    self._launch(
                        delta.make_delta, (tile,), grid, network, memory, order, rows, depth, threads=tile.threads
                    )
                continue
            if layer.kind == SUM:
                self._launch(layers.make_split, (), self._grid(rows * stride), network, memory, rows, depth)
                continue
            grid = n_blocks(layer.n_out, LANES)
            self._launch(layers.make_gains_gradient, (), grid, network, memory, first, rows, *batch)
            if layer.kind == BATCH_NORM:
                self._launch(layers.make_columns_back, (), self._grid(rows * stride), network, memory, rows, *batch)
            elif layer.kind != SCALE:
                grid = n_blocks(rows, THREADS // LANES)
                self._launch(layers.make_rows_back, (), grid, network, memory, rows, self._rows, depth)

    def _take_report(self, runs, report, loss, weights) -> Progress:
        """Write down what a turn has done."""
        n_samples, done, diverged = len(self._data.X), 0, False
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
            self.published_step = int(report[epoch.UPDATES])
            self._download(self._published)
        return Progress(self._epoch, self._position, bool(diverged))

    def _download(self, state: Any) -> None:
        """Write the state to where `start` was told to."""
        theta, moving, slots = self._targets
        flat = state.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        size, units = self._sizes.theta, self._sizes.units
        layout.unpack(self._layers, flat, theta)
        if moving.size:
            moving[:] = flat[size : size + 2 * units].reshape(2, units)
        for k, slot in enumerate(slots):
            layout.unpack(self._layers, flat[(k + 1) * size + 2 * units :], slot)

    @property
    def running_loss(self) -> float:
        """Mean training loss of the running epoch so far, or of the one that has just ended."""
        return float(self._sums[0] / self._sums[1])

    def publish(self) -> None:
        """Write everything as it stands to where `start` was told to."""
        with compat.device_errors():
            self._download(self._state)
        self.published_step = self._step

    def average(self) -> np.ndarray:
        """The average of the parameters over updates, flat."""
        flat = np.empty(self.topology.n_parameters, self._dtype)
        with compat.device_errors():
            layout.unpack(self._layers, self._memory.average.copy_to_host(stream=self._stream), flat)
        return flat

    def gradients(self, data: Data) -> tuple[float, np.ndarray]:
        """Mean loss and flat gradient over all samples, without dropout and noise."""
        self.dropout[:] = 0
        self._noise = self._dtype.type(0)
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
            moving=np.empty((2, self._sizes.units)),
            apply=False,
        )
        self.train(1, 1)
        with compat.device_errors():
            layout.unpack(self._layers, self._memory.grad.copy_to_host(stream=self._stream), flat)
        return self.running_loss, flat

    def forward(self, X: np.ndarray) -> np.ndarray:
        """Outputs before the link, (n_samples, n_out)."""
        n_out, row = self.topology.layer_sizes[-1], self._table[-1]
        begin, stride = int(row[layout.NODE_OUT]), int(row[layout.STRIDE_OUT])
        z = np.empty((len(X), n_out), self._dtype)
        with compat.device_errors():
            for first, rows in self._evaluate(self._samples(self._alone._replace(X=X)), len(X)):
                part = self._memory.a[begin : begin + rows * stride].copy_to_host(stream=self._stream)
                self._stream.synchronize()
                z[first : first + rows] = part.reshape(rows, stride)[:, :n_out]
        return z

    def loss(self, data: Data) -> float:
        """Weighted mean loss."""
        blocks, total = n_blocks(self._rows, THREADS // LANES), 0.0
        with compat.device_errors():
            samples = self._samples(data)
            losses = compat.to_device(np.zeros((1, blocks), self._dtype), self._stream)
            for first, rows in self._evaluate(samples, len(data.X)):
                self._output_delta(samples, 0, first, rows, self._ones, losses, 0, blocks)
                part = losses.copy_to_host(stream=self._stream)
                self._stream.synchronize()
                total += part.sum(dtype=np.float64)
        return float(total) / data.total_weight

    def _evaluate(self, samples: Samples, n_samples: int) -> Iterator[tuple[int, int]]:
        """Take chunk after chunk of the samples forward, as in inference."""
        self._upload_numbers()
        self._launch(epoch.make_begin, (), 1, self._cursor, 0, np.int64(0), 0, threads=1)
        for first in range(0, n_samples, self._rows):
            rows = min(self._rows, n_samples - first)
            self._forward(samples, 0, first, rows, 0)
            yield first, rows


@cache
def _activate(customs: tuple[Custom, ...]) -> Any:
    """The device function that activates, with functions of the user's beside those of the table."""
    if not customs:
        return forward.activate_by_code

    def row(code: int, custom: Custom) -> Activation:
        of_user, slope_of_user = (plain(function) for function in custom)
        return Activation(code, lambda z, p: type(z)(of_user(z)), lambda z, a, p: type(z)(slope_of_user(z)))

    rows = [*ACTIVATIONS.values(), *(row(CUSTOM + k, custom) for k, custom in enumerate(customs))]
    return mark(compat.select(rows, lambda row: forward.with_derivative(row.value, row.derivative)))


def _activations(activations: list[Choice | Custom | None]) -> tuple[list[int], Any]:
    """Codes, -1 for none, and the device function."""
    customs = tuple(dict.fromkeys(a for a in activations if isinstance(a, Custom)))
    codes = []
    for activation in activations:
        if isinstance(activation, Custom):
            codes.append(CUSTOM + customs.index(activation))
        else:
            codes.append(-1 if activation is None else ACTIVATIONS[activation.name].code)
    return codes, _activate(customs)


@cache
def _finish(dtype: np.dtype, activate: Any) -> Any:
    made = forward.make_finish(dtype, activate)
    return made if activate is forward.activate_by_code else mark(made)


@cache
def _custom_loss(custom: Custom) -> Any:
    of_user, slope_of_user = (plain(function) for function in custom)

    def value(z, t, lse, p):
        return type(z)(of_user(z, t))

    def slope(z, t, lse, p):
        return type(z)(slope_of_user(z, t))

    return mark(compat.select([Loss(0, value, slope, identity_link)], delta.with_delta))


def _loss(topology: Topology) -> tuple[int, Any, tuple, Any]:
    """Code, setting, options as `output_delta` wants them, and the device function."""
    number, loss = topology.dtype.type, topology.loss
    if isinstance(loss, Custom):
        return 0, number(0), (number(0), number(1), 0, 0), _custom_loss(loss)
    row = LOSSES[loss.name]
    smoothing = loss.setting if row.setting is SMOOTHING else 0.0
    n_classes = topology.layer_sizes[-1] if row.softmax else 2
    options = number(smoothing / n_classes), number(1 - smoothing), int(row.softmax), int(row.pairs)
    return row.code, number(loss.setting), options, delta.loss_by_code


@cache
def _custom_rule(custom: CustomRule) -> tuple[Any, Any]:
    of_user = plain(custom.update)

    def prepare(h, hyper, learning_rate, step):
        h[0], h[1] = learning_rate, step
        for k in range(hyper.size):
            h[2 + k] = hyper[k]

    def rule(theta, grad, slots, h):
        return of_user(theta, grad, slots, h)

    rows = [Optimizer(0, custom.n_slots, prepare, rule)]
    return (
        mark(compat.select(rows, lambda row: compat.device_function(row.prepare))),
        mark(compat.select(rows, gradient.with_slots)),
    )


def _rule(rule: str | CustomRule) -> tuple[int, Any, Any]:
    """Code, and the device functions that prepare and carry out the rule."""
    if isinstance(rule, CustomRule):
        return 0, *_custom_rule(rule)
    return OPTIMIZERS[rule].code, epoch.prepare_by_code, gradient.update_by_code
