"""A network at work on the CPU: memory, threads, and the calls of the entry points."""

import math
import os
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
from numba import config, typeof

from ..activations import ACTIVATIONS
from ..losses import LOSSES, SMOOTHING
from ..optimizers import N_SCALARS, OPTIMIZERS
from ..problem import BATCH_NORM, DENSE, Choice, Custom, CustomRule, Data, Progress, Topology, Update, samples_alone
from . import ahead, epoch, layout, narrow
from .delta import COLUMNS_LOSS, LOG_SOFTMAX, OUTPUT_DELTA, custom_loss
from .epoch import Optimizer, Run
from .forward import ACTIVATE, DROP, custom_activation
from .gemm import BLOCK_BYTES, PRODUCT, UNIT_PRODUCT, terms_at_once
from .gradient import (
    APPLY,
    GRADIENT,
    NORMS,
    PENALIZE,
    PREPARE,
    REDUCE,
    SETTLE,
    SUM_STRIP,
    UPDATE_RULE,
    custom_rule,
)
from .jit import Hook, quick_compilation
from .layers import DELTA_APART, FORWARD_APART, LOOK_AT_BATCH, PERTURB, SUM_GAINS
from .layout import Addresses, Network, Parameters, Workspace, panel_width, round_up
from .rows import TAKE_ROWS
from .simd import VECTORS, Held
from .team import Team

#: A block has as many rows as keep so many of its widest layer's units in L2 beside the weights that come by: the more
#: rows, the less often these are read.
BLOCK_UNITS = 512
#: Gradients that are kept apart at most; more threads than these cannot share a large batch.
MAX_SLICES = 16
#: A large batch goes through both phases in chunks whose activations and deltas stay in L2 ...
CACHE_BYTES = 1 << 20
#: ... unless the gradient, which is then added up in memory, would weigh more than a quarter of them.
GRADIENT_SHARE = 4
#: A thread is worth its barriers from this many floating-point operations per update on ...
FLOPS_PER_THREAD = 700_000
#: ... where updating a parameter takes as long as this many of them, ...
UPDATE_FLOPS = 50
#: ... and if there are as many in all, of which a team takes about half the time to be got hold of, ...
TEAM_FLOPS = 100_000_000
#: ... and for each call as many more: so much for waking it, and being woken by it.
CALL_FLOPS = 50_000_000
#: So many bytes of parameters are copied by one thread sooner than by those that have to be woken for it.
TEAM_BYTES = 2 << 20
#: A session with less memory for parameters, activations and deltas may outlast the call that it was opened for.
LIGHT_BYTES = 2 << 20
#: Samples are not the lanes of wider networks than this, whose weights leave L1; ...
NARROW_UNITS = 256
#: ... to sum a vector's lanes takes as long as so many multiply-adds of lines, ...
LANES_SUM = 5
#: ... to transpose lines into panels as many as so many for each of them, ...
TRANSPOSITION = 8
#: ... smaller tiles make each take longer by this factor, ...
NARROW_COST = 1.03
#: ... and a step in panels has more to set up, as much as so many.
PANELS_START = 3000

#: Those that this process may use, or as many as NUMBA_NUM_THREADS says.
N_CORES = config.NUMBA_NUM_THREADS
#: For the types of its fields.
NO_OPTIMIZER = Optimizer(0, 0, 0, np.zeros((1, 1)), np.zeros(1), 0.0, 0.0, 0)
#: Where the hooks lie, by whether samples are the lanes.
_addresses: dict[np.dtype, tuple[Addresses, Addresses]] = {}
_compiled: set[tuple[Any, np.dtype]] = set()
_idle_teams: dict[int, list[Team]] = defaultdict(list)
# Threads do not survive a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle_teams.clear)


def is_narrow(topology: Topology, n_rows: int) -> bool:
    """Whether samples should be the lanes for updates over so many rows.

    They should if that takes less time in multiply-adds of lines, counting those that units past a layer's width take.
    """
    sizes, width = topology.layer_sizes, panel_width(topology.dtype)
    rare = topology.input_noise > 0.0 or any(topology.dropout) or topology.max_norm < np.inf
    if rare or any(layer.kind != DENSE for layer in topology.layers) or max(sizes) > NARROW_UNITS:
        return False
    lines = -(-n_rows // width)
    in_panels, narrow = PANELS_START, float(lines * width * sizes[0])
    for depth, (n_in, n_out) in enumerate(pairwise(sizes)):
        in_panels += n_rows * (2 * n_in * -(-n_out // width) + (depth > 0) * n_out * -(-n_in // width))
        narrow += n_in * n_out * (1 + (depth > 0)) * lines + narrow_gradient(n_in, n_out, lines, width)[0]
    return NARROW_COST * narrow < in_panels


def narrow_gradient(n_in: int, n_out: int, lines: int, width: int) -> tuple[float, int]:
    """How best to sum a layer's gradient: the multiply-adds of lines that it takes, and how many units have delta in
    panels, where the others are summed over the lanes.
    """

    def cost(units: int) -> float:
        panels, others = -(-units // width), n_out - units
        in_panels = (n_in + TRANSPOSITION) * panels * lines * width if panels else 0.0
        return in_panels + (n_in * others * (lines + LANES_SUM) if others else 0.0)

    return min((cost(units), units) for units in (0, n_out // width * width, n_out))


def choose_threads(topology: Topology, update_rows: int, n_updates: int, n_calls: int = 1) -> int:
    """How many threads so many updates are worth, which are spread over so many calls."""
    flops = topology.flops(update_rows) + UPDATE_FLOPS * topology.n_parameters
    if n_updates * flops < TEAM_FLOPS + n_calls * CALL_FLOPS:
        return 1
    return max(1, min(N_CORES, flops // FLOPS_PER_THREAD))


class Session:
    """One network's parameters in panels, with workspace and threads for batches of one size.

    Use as a context manager: leaving it gives threads and memory back, unless it is light. A light one may be used
    again, after `renew`.

    Parameters
    ----------
    topology : Topology
    theta : (n_parameters,) array
        Copied.
    moving : (2, n_units) array
        Moving averages of mean and variance of the units of batch normalizations; copied.
    batch_rows : int
        Samples that are in work at once, at most.
    update_rows : int or None
        Samples of one update; None for ``batch_rows``.
    threads : int

    Attributes
    ----------
    is_light : bool
        Whether it has little memory, and no threads but the caller's.
    """

    def __init__(
        self,
        topology: Topology,
        theta: np.ndarray,
        moving: np.ndarray,
        batch_rows: int,
        update_rows: int | None = None,
        threads: int = 1,
    ):
        self.topology = topology
        self.update_rows = update_rows = update_rows or batch_rows
        self._data: Any = None  # what `start` was given, as is what `_run` refers to
        self._run: Any = None
        dtype = topology.dtype
        width = panel_width(dtype)
        layers = topology.layers
        activations = [_activation(layer.activation, dtype) for layer in layers]
        by_samples = is_narrow(topology, update_rows)
        n_lines = -(-update_rows // width)
        in_panels = [narrow_gradient(layer.n_in, layer.n_out, n_lines, width)[1] for layer in layers]
        table, sizes = layout.layer_table(layers, [row[:2] for row in activations], dtype, by_samples, in_panels)
        batch_norms = np.array([k for k, layer in enumerate(layers) if layer.kind == BATCH_NORM], np.int64)
        loss, loss_at, loss_setting, softmax, smoothing = _loss(topology.loss, dtype)
        self.network = Network(
            narrow=int(by_samples),
            layers=table,
            setting=np.array([setting for *_, setting in activations]),
            epsilon=np.array([layer.epsilon for layer in layers]),
            batch_norms=batch_norms,
            loss=loss,
            loss_at=loss_at,
            loss_setting=loss_setting,
            softmax=softmax,
            smoothing=smoothing,
            dropout=np.array([layer.dropout for layer in layers]),
            noise=topology.input_noise,
            max_norm=topology.max_norm,
            l1=topology.l1,
            l2=topology.l2,
            penalty_by_batch=int(topology.penalty_by_batch),
            seed=np.uint64(topology.seed),
            at=Addresses(),
        )
        row_bytes = 2 * sizes.lanes * dtype.itemsize
        limit = min(batch_rows, max(CACHE_BYTES // row_bytes, GRADIENT_SHARE * topology.n_parameters // sizes.lanes))
        if batch_norms.size:  # which sees the whole batch at once
            limit = update_rows
        # As many chunks as a power of two: they share out evenly.
        n_chunks = 1 << (-(-update_rows // limit) - 1).bit_length()
        chunk_rows = -(-update_rows // n_chunks)
        self._n_slices = min(n_chunks, MAX_SLICES)
        self.n_threads = threads
        share = -(-chunk_rows // (1 if n_chunks > 1 else self.n_threads))
        if by_samples:
            block_rows = min(VECTORS.lines * width, round_up(share, width))
        else:
            in_cache = max(1, BLOCK_BYTES // (min(BLOCK_UNITS, max(topology.layer_sizes)) * dtype.itemsize))
            # As many blocks for each thread, with as many rows.
            block_rows = round_up(-(-share // -(-share // in_cache)), layout.ROW_STEP)
        n_blocks = -(-chunk_rows // block_rows) * (self.n_threads if n_chunks > 1 else 1)
        n_blocks = max(n_blocks, self.n_threads)
        rows, columns_size = n_blocks * block_rows, round_up(max(layers[0].n_in, layers[-1].n_out), width) * width
        n_bytes = (2 * rows * sizes.lanes + sizes.W + sizes.WT) * dtype.itemsize
        long = [k for k in layers[1:] if k.kind == DENSE and terms_at_once(k.n_out, block_rows, width) < k.n_out]
        sums_units = round_up(max([VECTORS.panels * width, *(layer.n_in for layer in long)]), width)
        self.is_light = threads == 1 and n_bytes <= LIGHT_BYTES
        self._team = Team(1) if self.is_light else _idle_team(threads)
        shapes = [
            (rows * sizes.lanes,),
            (rows * sizes.lanes,),
            (self.n_threads, sizes.strip),
            (self.n_threads, 3, block_rows * width),
            (self.n_threads, block_rows * sums_units),
            (self.n_threads, 3, columns_size),
            (self.n_threads, width**2),
            (4, sizes.units),
            (width,),
        ]
        a, delta, strip, lines, sums, columns, square, moments, zeros, W, WT = self._team.workspace.arrays(
            dtype, shapes, [(sizes.W,), (sizes.WT,)]
        )
        self.work = Workspace(
            a=a,
            delta=delta,
            loss=np.zeros(rows),
            slice_loss=np.zeros(max(self._n_slices, self.n_threads)),
            strip=strip,
            penalty=np.zeros(max(sizes.strips, sizes.panels)),
            lines=lines,
            sums=sums,
            columns=columns,
            square=square,
            scalars=np.zeros((self.n_threads, 0, 0)),
            deviation=np.zeros((sizes.norms, rows), dtype),
            moments=moments,
            totals=np.zeros((self.n_threads, 2, width)),
            wrong=np.zeros(self.n_threads, np.int64),
            zeros=zeros,
            sync=self._team.sync,
            block_rows=block_rows,
            chunk_rows=chunk_rows,
            block_size=block_rows * sizes.lanes,
        )
        self.parameters = Parameters(
            W=W,
            WT=WT,
            slots=np.zeros((0, sizes.W), dtype),
            grad=np.zeros((0, sizes.W), dtype),
            norms=np.zeros(sizes.panels),
            average=np.zeros(0, dtype),
            moving=np.zeros((2, sizes.units)),
        )
        if dtype not in _addresses:
            _addresses[dtype] = self._find_hooks()
        self.network = self.network._replace(at=_addresses[dtype][self.network.narrow])
        starts = [(table[k, layout.STATISTICS], layers[k].n_out) for k in batch_norms]
        self._units = np.array([unit for start, n in starts for unit in range(start, start + n)], np.int64)
        self.renew(theta, moving)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, exception: type | None, *_) -> None:
        self._data = self._run = None
        if exception is not None:
            self._team.settle()
        if not self.is_light:
            _idle_teams[self.n_threads].append(self._team)

    def renew(self, theta: np.ndarray, moving: np.ndarray) -> None:
        """Be as if opened with these."""
        self.network.dropout[:] = [layer.dropout for layer in self.topology.layers]
        self.parameters.moving[:, self._units] = moving
        self.load(theta)

    def _run_on_team(self, entry: Any, *args: Any) -> None:
        """Run an entry point on all threads; it is compiled here at first, since a thread that fails to would leave the
        others waiting.
        """
        self._make_ready(entry, *args)
        self._team.run(entry, *args)

    def _move(self, entry: Any, *args: Any) -> None:
        """Run an entry point that moves parameters: there must be many of them to be worth waking the team."""
        if self.parameters.W.nbytes > TEAM_BYTES:
            self._run_on_team(entry, *args)
        else:
            self._make_ready(entry, *args)
            entry(*args, 0, 1)

    def _make_ready(self, entry: Any, *args: Any) -> None:
        if (entry, self.topology.dtype) not in _compiled:
            _compile_for(entry, *args)
            _compiled.add((entry, self.topology.dtype))

    def _find_hooks(self) -> tuple[Addresses, Addresses]:
        """Compile all hooks, whatever this network wants: the next one will want another; at the first use everything
        else as well. Returns those of networks whose lanes are units, and of those whose are samples.
        """
        dtype = self.topology.dtype
        held, rule = self._held(), Held(typeof(NO_OPTIMIZER))
        key, number = self.network.seed, dtype.type(0)
        with quick_compilation():
            for hook in (ACTIVATE, PREPARE):
                hook.address(dtype)
            addresses = Addresses(
                output_delta=OUTPUT_DELTA.address_for(held, 0, 0, 0, 0, 0.0, 0),
                forward_apart=FORWARD_APART.address_for(held, 0, 0, 0, 0),
                delta_apart=DELTA_APART.address_for(held, 0, 0, 0, 0),
                perturb=PERTURB.address_for(held, 0, key, 0, 0),
                reduce=REDUCE.address_for(held, number, number, 0, 0, 0),
                norms=NORMS.address_for(held, 0, 0),
                apply=APPLY.address_for(held, rule, number, number, 0, 0),
                settle=SETTLE.address_for(held, 0.0, 0, 0),
                gains=SUM_GAINS.address_for(held, 0, 0, 0, 0, 0, 0),
                penalize=PENALIZE.address(dtype),
                log_softmax=LOG_SOFTMAX.address(dtype),
                drop=DROP.address_for(held, 0, 0, key, 0, 0),
            )
            of_narrow = self._find_phases(narrow.TAKE_ROWS, UNIT_PRODUCT, narrow.SUM_STRIP)
            if ahead.is_first_use(dtype):
                ahead.wait(dtype)
                self.compile_half()
            addresses = addresses._replace(**self._find_shared())
            return addresses, addresses._replace(**of_narrow)

    def _find_shared(self) -> dict[str, int]:
        """Those where units are the lanes, and what is the same where they are not: a helper's share."""
        phases = self._find_phases(TAKE_ROWS, PRODUCT, SUM_STRIP)
        held, rule, number = self._held(), Held(typeof(NO_OPTIMIZER)), self.topology.dtype.type(0)
        return {
            **phases,
            "gradient": GRADIENT.address_for(held, rule, number, number, 0, 0, 0, 0, 0, 0),
            "batch": LOOK_AT_BATCH.address_for(held, 0, 0, 0, 0, 0),
        }

    def _find_phases(self, take_rows: Hook, product: Hook, sum_strip: Hook) -> dict[str, int]:
        held, key, span = self._held(), self.network.seed, (0, 0)
        return {
            "product": product.address(self.topology.dtype),
            "take_rows": take_rows.address_for(held, 0, 0, 0, 0, key, 0.0, 0, span, False, span, 0),
            "sum_strip": sum_strip.address_for(held, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        }

    def _held(self) -> Held:
        return Held(typeof(self._things()))

    def _things(self) -> tuple[Network, Parameters, Data, Workspace]:
        """What is held for the phases, with samples like all."""
        flat = np.zeros((1, 1), self.topology.dtype)
        return self.network, self.parameters, samples_alone(np.broadcast_to(flat, flat.shape)), self.work

    def compile_half(self) -> None:
        """Compile what a helper does at the first use, and run nothing; see `ahead`."""
        UPDATE_RULE.address(self.topology.dtype)
        self._find_shared()
        network, parameters, data, work = self._things()
        flat, epochs = np.zeros((1, 1), self.topology.dtype), np.zeros((1, 1))
        run = Run(0, 0, 0, epochs, 0, 0.0, epochs[0], epochs[0], data.order, flat[0], flat, epochs)
        _compile_for(epoch.train, network, parameters, data, work, NO_OPTIMIZER, run, 0, 0)
        _compile_for(epoch.evaluate, network, parameters, data, work, flat, epochs[0])
        _compile_for(epoch.publish, network, parameters, work, run)

    def load(self, theta: np.ndarray) -> None:
        """Take over other parameters."""
        self._pack(theta, self.parameters.W)
        self._move(layout.transpose, self.network.layers, self.parameters)

    def _pack(self, flat: np.ndarray, panels: np.ndarray) -> None:
        self._move(layout.convert, self.network.layers, flat, panels, 1)

    def _unpack(self, panels: np.ndarray, flat: np.ndarray) -> None:
        self._move(layout.convert, self.network.layers, flat, panels, 0)

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
        mode: int | None = None,
    ) -> None:
        """Prepare a training of ``len(learning_rate)`` epochs; the rates of epochs to come may still be changed.

        ``theta``, ``moving`` and ``slots`` receive parameters, moving averages and optimizer state after each epoch;
        ``step`` counts the updates that the optimizer has made. The other arguments are those of `Run`; ``mode`` None
        follows from whether there is clipping.
        """
        dtype = self.topology.dtype
        code, prepare, rule = 0, PREPARE, UPDATE_RULE
        if isinstance(update.rule, CustomRule):
            prepare, rule = custom_rule(update.rule)
        else:
            code = OPTIMIZERS[update.rule].code
        n_slots, size, n_groups = len(slots), self.parameters.W.size, len(update.hyper)
        if mode is None:
            mode = epoch.FUSED if self._n_slices == 1 else epoch.IN_MEMORY
            if min(update.clip_norm, update.clip_value) < np.inf:
                mode = epoch.CLIPPED
        grad_rows = 0 if mode == epoch.FUSED else self._n_slices
        average_size = 0 if update.average_decay is None else size
        grad, average, panels = self._team.state.arrays(dtype, [(grad_rows, size), (average_size,)], [(n_slots, size)])
        for flat, packed in zip(slots, panels, strict=True):
            self._pack(flat, packed)
        self.parameters = self.parameters._replace(slots=panels, grad=grad, average=average)
        self.work.penalty[:] = 0  # another mode may have left more parts of it
        n_scalars = round_up(N_SCALARS, panel_width(np.float64))
        self.work = self.work._replace(scalars=np.zeros((self.n_threads, n_groups, n_scalars)))
        self.network.layers[:, [layout.GROUP, layout.BIAS_GROUP]] = update.groups
        self._moving = moving
        self._data = data._replace(order=np.arange(len(data.X) if shuffle else 0))
        self._optimizer = Optimizer(
            code,
            prepare.address(dtype),
            rule.address(dtype),
            update.hyper,
            update.rates,
            update.clip_norm,
            update.clip_value,
            mode,
        )
        self._run = Run(
            update_rows=self.update_rows,
            shuffle=int(shuffle),
            first_epoch=first_epoch,
            learning_rate=learning_rate,
            average_from=update.average_from,
            average_decay=np.inf if update.average_decay is None else update.average_decay,
            loss=np.zeros(len(learning_rate)),
            sums=np.zeros(2),
            cursor=np.array([0, 0, step, 0, step]),
            theta=theta,
            slots=slots,
            moving=self.parameters.moving.copy(),
        )

    def train(self, max_updates: int, max_epochs: int) -> Progress:
        """Go on with the training for at most ``max_updates`` updates, until ``max_epochs`` epochs are done in all."""
        self._run_on_team(
            epoch.train,
            self.network,
            self.parameters,
            self._data,
            self.work,
            self._optimizer,
            self._run,
            max_updates,
            max_epochs,
        )
        self._moving[:] = self._run.moving[:, self._units]
        epochs, position, _, diverged, _ = (int(word) for word in self._run.cursor)
        return Progress(epochs, position, bool(diverged))

    @property
    def published_step(self) -> int:
        """Updates that the optimizer had made when ``theta`` and ``slots`` were written."""
        return int(self._run.cursor[epoch.PUBLISHED])

    @property
    def dropout(self) -> np.ndarray:
        """Probability of dropping each layer's outputs; may be changed in the middle of a training."""
        return self.network.dropout

    @property
    def running_loss(self) -> float:
        """Mean training loss of the running epoch so far, or of the one that has just ended; NaN without weight."""
        loss, weight = self._run.sums.tolist()
        return loss / weight if weight else math.nan

    @property
    def losses(self) -> np.ndarray:
        """Mean training loss of each epoch."""
        return self._run.loss

    def publish(self) -> bool:
        """Write everything as it stands to where `start` was told to, unless a parameter is not finite."""
        self._run_on_team(epoch.publish, self.network, self.parameters, self.work, self._run)
        self._moving[:] = self._run.moving[:, self._units]
        return not self._run.cursor[epoch.DIVERGED]

    def collect(self) -> None:
        """Bring what was published to where `start` was told to: it has been written there at once."""

    def average(self) -> np.ndarray:
        """The average of the parameters over updates, flat."""
        flat = np.empty(self.topology.n_parameters, self.topology.dtype)
        self._unpack(self.parameters.average, flat)
        return flat

    def gradients(self, data: Data) -> tuple[float, np.ndarray]:
        """Mean loss and flat gradient over all samples, without dropout and noise."""
        network = self.network
        self.network = network._replace(dropout=np.zeros_like(network.dropout), noise=0.0)
        flat = np.empty(self.topology.n_parameters, self.topology.dtype)
        self.start(
            data,
            Update("sgd", np.zeros((1, 1)), np.ones(1), np.zeros((len(self.network.layers), 2), np.int64)),
            np.empty((0, flat.size), flat.dtype),
            0,
            learning_rate=np.zeros((1, 1)),
            shuffle=False,
            first_epoch=0,
            theta=flat,
            moving=np.empty((2, self._units.size)),
            mode=epoch.NONE,
        )
        self.train(1, 1)
        self.network = network
        self._unpack(self.parameters.grad[0], flat)
        loss, weight = self._run.sums
        return float(loss / weight), flat

    def forward(self, X: np.ndarray) -> np.ndarray:
        """Outputs before the link, (n_samples, n_out)."""
        z = self._outputs(len(X))
        self._evaluate(samples_alone(X), z, np.empty(0))
        return z

    def evaluate(self, data: Data, wants_outputs: bool) -> tuple[float, np.ndarray]:
        """Weighted mean loss, and outputs before the link, (n_samples, n_out), or no rows of them."""
        losses, z = np.empty(len(data.X)), self._outputs(len(data.X) if wants_outputs else 0)
        self._evaluate(data, z, losses)
        return float(losses.sum()) / data.total_weight, z

    def _outputs(self, n_rows: int) -> np.ndarray:
        return np.empty((n_rows, self.topology.layer_sizes[-1]), self.topology.dtype)

    def _evaluate(self, data: Data, z: np.ndarray, losses: np.ndarray) -> None:
        self._run_on_team(epoch.evaluate, self.network, self.parameters, data, self.work, z, losses)


def _idle_team(size: int) -> Team:
    try:
        return _idle_teams[size].pop()
    except IndexError:
        return Team(size)


def _activation(activation: Choice | Custom | None, dtype: np.dtype) -> tuple[int, int, float]:
    """Code, address and setting, zeros for none."""
    if activation is None:
        return 0, 0, 0.0
    if isinstance(activation, Custom):
        return 0, custom_activation(activation).address(dtype), 0.0
    return ACTIVATIONS[activation.name].code, ACTIVATE.address(dtype), activation.setting


def _loss(loss: Choice | Custom, dtype: np.dtype) -> tuple[int, int, float, int, float]:
    """Code, address, setting, whether there is a softmax, and label smoothing."""
    if isinstance(loss, Custom):
        return 0, custom_loss(loss).address(dtype), 0.0, 0, 0.0
    row = LOSSES[loss.name]
    smoothing = loss.setting if row.setting is SMOOTHING else 0.0
    return row.code, COLUMNS_LOSS.address(dtype), loss.setting, int(row.softmax), smoothing


def _compile_for(entry: Any, *args: Any) -> None:
    with quick_compilation():
        entry.compile(tuple(typeof(arg) for arg in (*args, 0, 1)))


def compile_half(dtype: str) -> None:
    """Compile what `Session` waits for at the first use, and keep it on disk; nothing is run."""
    ahead.refuse()
    number = np.dtype(dtype)
    _addresses[number] = Addresses(), Addresses()
    topology = Topology(
        layer_sizes=(1, 1),
        activations=(),
        loss=Choice("squared_error", 0.0),
        normalizations=(),
        residual=(),
        scale_inputs=False,
        bias=True,
        dropout=(),
        input_noise=0.0,
        max_norm=np.inf,
        l1=0.0,
        l2=0.0,
        penalty_by_batch=False,
        dtype=number,
        seed=0,
    )
    COLUMNS_LOSS.found[number] = 0
    theta, moving = np.zeros(topology.n_parameters, number), np.zeros((2, 0))
    with quick_compilation(), Session(topology, theta, moving, 1) as session:
        session.compile_half()
