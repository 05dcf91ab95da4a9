"""The GPU engine checked and timed, in one command: ``python benchmarks/gpu_check.py``.

First its results beside those of the CPU on fresh random data, then its time per step beside that of its peers and of
what the device can do at best. Each group of comparisons and each peer works in a process of its own, since a GPU that
has failed is lost to a process; peers have data, parameters and permutations on the device. The report is written
again whenever there is more to it. Exits with status 1 if a result is wrong or missing, and with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib.util
import json
import math
import multiprocessing
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from functools import cache, partial
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numba import config, cuda, float32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Python has put the folder of this file there

import fastbp
from benchmarks import peers
from benchmarks.benchmarks import machine
from benchmarks.benchmarks.timing import repetitions
from benchmarks.benchmarks.workloads import SEED, Workload
from benchmarks.compare import Spread, WorkerError, disagreements, say, table
from fastbp.backend import Update, describe_gpu

TESTS = Path(__file__).resolve().parent.parent / "tests"
#: Seconds for everything, in full and for ``--quick``, of which speed has so many at least, and those after which
#: something must hang.
BUDGET, QUICK_BUDGET, LEAST, END = 420.0, 60.0, 40.0, 580.0
#: Seconds for a comparison with all that it compiles, for loading a peer's libraries, and for a turn.
ROW_PATIENCE, LOAD_PATIENCE, PATIENCE = 120.0, 120.0, 30.0
#: Groups of comparisons at a time: most of their time goes by compiling, on one core.
GROUPS_AT_ONCE = 4
#: Turns of each peer.
ROUNDS = 3
#: Why a peer may be skipped without anything being wrong.
UP, NO_ROOM = "the time was up", "it needs more memory than the others leave"
#: The losses of all peers are compared after the first epochs that have so many steps, on so many samples.
LOSS_STEPS, LOSS_SAMPLES = 8, 4096
#: Numbers in the samples of an epoch, and its steps, at most; it has a step at least.
EPOCH_NUMBERS, EPOCH_STEPS = 1 << 23, 512
#: Epochs that a session is prepared for: more than anyone waits for.
MANY = 1 << 20
#: Numbers of float32 in each of two arrays that are copied, more than any cache, and how often.
COPY_SIZE, COPIES = 1 << 27, 10


class Row(NamedTuple):
    """How far apart two results are, None where there is none to compare, and how far they may be."""

    comparison: str
    error: float | None
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.limit


def compare(comparison: str, limit: float, difference: Callable[[], float]) -> Row:
    """Carry out a comparison, and say how it went."""
    try:
        error = difference()
        row = Row(comparison, error, limit) if math.isfinite(error) else Row(comparison, None, limit, f"it is {error}")
    except Exception as error:
        row = Row(comparison, None, limit, in_a_line(error))
    say(f"{'passed' if row.passed else 'FAILED'}: {comparison}: {row.note or row.error}")
    return row


def in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what is expected."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def different_bits(actual: np.ndarray, expected: np.ndarray) -> float:
    """How many of the float64 numbers are not the same to the bit."""
    return float(np.count_nonzero(actual.view(np.uint64) != expected.view(np.uint64)))


# ---- trainings -----------------------------------------------------------------------------------


class Training:
    """The GPU at work on a network by Adam, with ``settings`` of the CUDA engine's session; its data stay there."""

    def __init__(self, net: fastbp.MLP, X: np.ndarray, y: np.ndarray, batch: int, **settings: Any):
        from fastbp.kernels.cuda.session import Session

        self.net, self.epochs = net, 0
        optimizer = fastbp.Adam(peers.LEARNING_RATE)
        self.slots, step = optimizer.state(net.n_parameters, net.dtype)
        self.session = Session(net._topology, net.theta, net._moving, batch, **settings)
        self.session.start(
            net._data(X, y),
            Update(optimizer.rule, *optimizer.groups(net._topology)),
            self.slots,
            step,
            learning_rate=np.full((MANY, 1), optimizer.learning_rate),
            shuffle=True,
            first_epoch=0,
            theta=net.theta,
            moving=net._moving,
        )

    def run(self, epochs: int) -> None:
        """Go on for a number of epochs."""
        self.epochs += epochs
        progress = self.session.train(sys.maxsize, self.epochs)
        while progress.epochs < self.epochs and not progress.diverged:
            progress = self.session.train(sys.maxsize, self.epochs)
        if progress.diverged:
            raise ArithmeticError("the training diverged")

    def poison(self) -> None:
        """Leave NaN wherever a step should write before it reads."""
        memory = self.session._memory
        for array in (memory.a, memory.delta, memory.grad):
            array.copy_to_device(np.full(array.size, np.nan, array.dtype))

    def theta(self) -> np.ndarray:
        """The parameters that it has come to."""
        self.session.collect()
        return self.net.theta

    def state(self) -> np.ndarray:
        """All that it has come to, in float64."""
        return np.concatenate([self.theta(), self.slots.ravel(), self.session.losses[: self.epochs]], dtype=float)


def draw(rng: np.random.Generator, sizes: Sequence[int], n_samples: int, **settings: Any) -> tuple:
    """A network, X and y. Activations are smooth: where rounding takes a z to the other side of a kink, a gradient
    jumps.
    """
    loss = str(rng.choice(["squared_error", "cross_entropy"]))
    settings = {"activation": str(rng.choice(["tanh", "logistic", "softplus", "gelu", "silu"]))} | settings
    net = fastbp.MLP(sizes, loss=loss, random_state=int(rng.integers(2**31)), **settings)
    X = rng.standard_normal((n_samples, sizes[0]))
    y = rng.standard_normal((n_samples, sizes[-1]))
    return net, X, y.argmax(axis=1) if loss == "cross_entropy" else y


def fitted(net: fastbp.MLP, X: np.ndarray, y: np.ndarray, device: str, **settings: Any) -> np.ndarray:
    """Parameters and losses after a call of ``fit``, which leaves ``net`` alone."""
    net = deepcopy(net)
    history = net.fit(X, y, device=device, progress=False, **settings)
    return np.append(net.theta.astype(float), history.loss)


# ---- results -------------------------------------------------------------------------------------


def cases(rng: np.random.Generator, part: int, parts: int) -> Iterator[Row]:
    """One of so many parts of the tests' cases, which have every row of the tables and every option, on new data.

    In float32 one in some thousand goes past its limit by rounding alone, where that takes a z to the other side of a
    kink; it does not with other data.
    """
    sys.path.append(str(TESTS))
    from twins import CASES, TOLERANCE, difference

    for name in [*CASES][part::parts]:
        for dtype, limit in TOLERANCE.items():
            fresh = f"{name}, data {rng.integers(10**6):06d}"  # a case draws its data by the end of its name
            CASES[fresh] = CASES[name]
            yield compare(f"{dtype}: {fresh}", limit, partial(difference, fresh, dtype))
            del CASES[fresh]


def ragged(rng: np.random.Generator, count: int, largest: int) -> Iterator[Row]:
    """Trainings of networks of random widths on both devices."""
    for _ in range(count):
        sizes = tuple(map(int, rng.integers(2, largest, rng.integers(2, 6), endpoint=True)))
        n_samples, batch = (int(rng.integers(2, largest, endpoint=True)) for _ in range(2))
        seed = rng.integers(2**31)
        for dtype, limit in (("float32", 1e-5), ("float64", 1e-11)):
            case = draw(np.random.default_rng(seed), sizes, n_samples, dtype=dtype)
            words = f"{dtype}: {shape(sizes)}, {case[0].loss}, {n_samples} samples by {batch}"

            def difference(case=case, batch=batch):
                ours, theirs = (fitted(*case, device, batch_size=batch, epochs=2) for device in ("cuda", "cpu"))
                return distance(ours, theirs)

            yield compare(words, limit, difference)


def tensor_cores(rng: np.random.Generator, networks: Sequence[tuple[int, ...]], n_samples: int) -> Iterator[Row]:
    """Gradients by rounded products beside those of the CPU in float32."""
    for sizes in networks:
        net, X, y = case = draw(rng, sizes, n_samples, activation="tanh")
        for precision, limit in (("tf32", 1e-3), ("bf16", 1e-2)):

            def difference(net=net, X=X, y=y, case=case, precision=precision):
                expected = net.loss_and_gradients(X, y)[1]
                # a step of rate 1 over all samples is the gradient
                settings = {"optimizer": fastbp.SGD(1.0), "batch_size": n_samples, "steps": 1, "precision": precision}
                return distance(net.theta - fitted(*case, "cuda", **settings)[: net.n_parameters], expected)

            yield compare(f"{precision}: gradient of {shape(sizes)}, {n_samples} samples", limit, difference)


#: Ways to carry out the same steps: settings of the CUDA engine's session.
WAYS = {
    "plain launches": {"fused": False, "graph_steps": 0},
    "graphs": {"fused": False, "graph_steps": 4},
    "fused steps": {"fused": True, "graph_steps": 0},
    "graphs of fused steps": {"fused": True, "graph_steps": 4},
}


def ways(rng: np.random.Generator, networks: Sequence[tuple[tuple[int, ...], int, int]]) -> Iterator[Row]:
    """Every way to carry out a step beside itself, from buffers full of NaN too, and beside the others. Networks are
    given by sizes, samples and batch.
    """
    from fastbp.kernels.cuda.plan import FUSED_WIDTH

    for sizes, n_samples, batch in networks:
        case = draw(rng, sizes, n_samples, dropout=0.1)
        of = f"{shape(sizes)}, {n_samples} samples by {batch}"

        @cache
        def state(way, run=0, poisoned=False, case=case, batch=batch):
            training = Training(*deepcopy(case), batch, **WAYS[way])
            if poisoned:
                training.poison()
            training.run(2)
            state = training.state()
            if not np.isfinite(state).all() or np.array_equal(training.theta(), case[0].theta):
                raise ArithmeticError("it has not trained")
            return state

        def row(words, one, other, limit=0.0, measure=different_bits, state=state, of=of):
            return compare(f"{words}: {of}", limit, lambda: measure(state(*one), state(*other)))

        can_be_fused = max(sizes) <= FUSED_WIDTH
        for way, settings in WAYS.items():
            if can_be_fused or not settings["fused"]:
                yield row(f"bits of {way} once more", (way, 1), (way,))
                yield row(f"bits of {way} from NaN", (way, 0, True), (way,))
        yield row("bits of graphs beside plain launches", ("graphs",), ("plain launches",))
        if can_be_fused:
            yield row("bits of graphs of fused steps beside fused steps", ("graphs of fused steps",), ("fused steps",))
            yield row("fused steps beside plain launches", ("fused steps",), ("plain launches",), 1e-5, distance)


def torch_holder() -> Callable | None:
    import torch

    return partial(torch.as_tensor, device="cuda") if torch.cuda.is_available() else None


def jax_holder() -> Callable | None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    return None if jax.default_backend() == "cpu" else jax.device_put


#: Who may hold samples in the GPU's memory: what brings an array there, or None where it is built for CPUs alone.
HOLDERS = {"numba_cuda": lambda: cuda.to_device, "torch": torch_holder, "jax": jax_holder}


def places(rng: np.random.Generator, sizes: tuple[int, ...], n_samples: int, batch: int) -> Iterator[Row]:
    """Samples that stream, or that lie in the GPU's memory, beside the same ones brought as a whole; and what is not
    training.
    """
    from fastbp.kernels.cuda import compat, feed

    net, X, y = draw(rng, sizes, n_samples, activation="tanh", dtype="float32")
    X = X.astype(np.float32)
    fit = partial(fitted, batch_size=batch, epochs=2)
    whole = cache(lambda: fit(net, X, y, "cuda"))

    def streamed():
        with patch.object(feed, "SHARE", 0.0), patch.object(feed, "PIECE_BYTES", X.nbytes // 5):
            return fit(net, X, y, "cuda")

    yield compare("bits of samples that stream", 0.0, lambda: different_bits(streamed(), whole()))
    for holder, find in HOLDERS.items():
        if importlib.util.find_spec(holder) and (holder == "numba_cuda" or not compat.SIMULATED) and (bring := find()):
            words = f"bits of samples held by {holder}"
            yield compare(words, 0.0, lambda bring=bring: different_bits(fit(net, bring(X), bring(y), "cuda"), whole()))
    there = cuda.to_device(X)
    yield compare("predictions", 1e-5, lambda: distance(net.predict(there), net.predict(X)))
    yield compare("loss", 1e-5, lambda: abs(1 - net.evaluate(there, y)["loss"] / net.evaluate(X, y)["loss"]))
    precise, X, y = draw(rng, sizes, n_samples, activation="tanh", dtype="float64")
    fit = partial(fitted, precise, X, y, optimizer="lbfgs", epochs=4)
    yield compare("float64: L-BFGS", 1e-8, lambda: distance(fit("cuda"), fit("cpu")))


class Group(NamedTuple):
    """Comparisons that one process carries out: what gives them, from a generator and these arguments, and whether by
    large tiles, which small networks would not have.
    """

    give: Callable[..., Iterator[Row]]
    arguments: tuple
    large_tiles: bool = False

    @property
    def name(self) -> str:
        return f"{self.give.__name__}{self.arguments}{' by large tiles' if self.large_tiles else ''}"


def carry_out(connection: Any, group: Group, seed: Sequence[int]) -> None:
    """Send the rows of a group, one by one."""
    from fastbp.kernels.cuda import compat

    if compat.SIMULATED:
        warnings.simplefilter("ignore")  # unsigned arithmetic that wraps around, as it should
        sys.setswitchinterval(1e-6)  # the simulator waits for its threads by asking them
    n_multiprocessors = 1 if group.large_tiles else compat.n_multiprocessors()
    with patch.object(compat, "n_multiprocessors", lambda: n_multiprocessors):
        for row in group.give(np.random.default_rng(seed), *group.arguments):
            connection.send(row._replace(comparison=row.comparison + " (large tiles)" * group.large_tiles))


def rows_of(group: Group, seed: Sequence[int], patience: float | None) -> list[Row]:
    """The rows of a group, and one that fails if it does not come to its end, or if one is waited for too long."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe(duplex=False)
    process = context.Process(target=carry_out, args=(theirs, group, seed))
    process.start()
    theirs.close()
    rows: list[Row] = []
    try:
        while connection.poll(patience):
            rows.append(connection.recv())
        process.kill()
        rows.append(Row(f"the rest of {group.name}", None, 0.0, f"no answer for {patience} s"))
    except EOFError:
        process.join()
        if process.exitcode:
            rows.append(Row(f"the rest of {group.name}", None, 0.0, f"its process ended with code {process.exitcode}"))
    return rows


def correctness(options: argparse.Namespace, simulated: bool, skipped: dict[str, str]) -> Iterator[list[Row]]:
    """The rows of all groups; few, of small networks, where they are simulated."""
    wide, narrow = ((784, 512, 10), 300, 32), [((32, 64, 64, 64, 64, 4), 600, 64), ((17, 100, 33, 7), 333, 50)]
    rounded = [(33, 20, 12), (200, 300, 65, 10), (784, 512, 512, 10)], 300
    groups = [Group(ways, ([*narrow, wide],)), Group(ways, ([*narrow, wide],), True)]
    groups += [Group(ragged, (2 if options.quick else 8, 300), large) for large in (False, True)]
    groups.append(Group(places, ((37, 64, 20, 5), 1000, 64)))
    if simulated:
        groups = [Group(ragged, (1, 9)), Group(tensor_cores, ([(9, 17, 3)], 30)), Group(ways, ([((3, 5, 2), 7, 4)],))]
        groups.append(Group(places, ((3, 5, 2), 19, 4)))
    elif cuda.get_current_device().compute_capability >= (8, 0):
        groups += [Group(tensor_cores, rounded, large) for large in (False, True)]
    else:
        skipped["precisions"] = "they take a GPU of compute capability 8.0"
    if (TESTS / "twins.py").exists():
        few = options.quick or simulated
        groups += [Group(cases, (options.seed % 30, 30))] if few else [Group(cases, (part, 4)) for part in range(4)]
    else:
        skipped["every row and option"] = "tests/twins.py, which has the cases, is not here"
    with ThreadPoolExecutor(1 if simulated else GROUPS_AT_ONCE) as pool:
        seeds, patience = [(options.seed, k) for k in range(len(groups))], None if simulated else ROW_PATIENCE
        yield from pool.map(partial(rows_of, patience=patience), groups, seeds)


# ---- fastbp and its peers on the GPU ------------------------------------------------------------


class Fastbp(peers.Peer):
    """fastbp; it draws the permutations that `peers.permutations` gives, by itself."""

    needs = ("numba_cuda",)
    precision: str | None = None

    @classmethod
    def load(cls) -> None:
        """Nothing has to be set before the first use."""

    def prepare(self, weights, biases):
        net = self.workload.network()
        self.training = Training(net, self.X, self.y, self.workload.batch, precision=self.precision)
        self.run = self.training.run

    def train(self, orders):
        self.run(len(orders))

    def theta(self):
        return self.training.theta()

    @classmethod
    def empty(cls) -> None:
        """Give back the memory of what is no longer there."""
        cuda.current_context().memory_manager.deallocations.clear()


class FastbpTF32(Fastbp):
    precision = "tf32"


class FastbpBF16(Fastbp):
    precision = "bf16"


class Torch(peers.Torch):
    """PyTorch, eager, with a fused Adam."""

    device = "cuda"
    matmul = "highest"

    @classmethod
    def load(cls):
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        torch.set_float32_matmul_precision(cls.matmul)

    def prepare(self, weights, biases):
        import torch

        with torch.device(self.device):
            super().prepare(weights, biases)
        self.tensors = tuple(tensor.to(self.device) for tensor in self.tensors)
        self.from_numpy = partial(torch.as_tensor, device=self.device)
        self.draw = partial(torch.randperm, self.workload.samples, device=self.device)

    def run(self, epochs):
        for _ in range(epochs):
            self.train(self.draw())
        self.parameters[-1][0].item()  # comes when all is done

    def theta(self):
        arrays = [parameter.detach().cpu().numpy().T for parameter in self.parameters]
        return peers.flatten(arrays[::2], arrays[1::2])

    @classmethod
    def empty(cls):
        import torch

        torch.cuda.empty_cache()


class TorchTF32(Torch):
    matmul = "high"


class CompiledTorch(Torch):
    def prepare(self, weights, biases):
        super().prepare(weights, biases)
        import torch

        torch.compiler.reset()  # or it would compile the next workload for batches of any size
        self.mean_loss = torch.compile(self.mean_loss, mode="max-autotune", dynamic=False)


class TorchGraph(Torch):
    """A CUDA graph of a whole step, which is replayed with other row numbers."""

    def prepare(self, weights, biases):
        super().prepare(weights, biases)
        import torch

        self.optimizer.param_groups[0]["capturable"] = True
        self.rows = self.draw()[: self.workload.batch]
        before = [parameter.detach().clone() for parameter in self.parameters]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make their workspace and Adam its state before a capture
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()
        with torch.no_grad():
            for parameter, start in zip(self.parameters, before, strict=True):
                parameter.copy_(start)
                for tensor in self.optimizer.state[parameter].values():
                    tensor.zero_()

    def step(self):
        X, y = self.tensors
        self.optimizer.zero_grad()
        self.mean_loss(X[self.rows], y[self.rows]).backward()
        self.optimizer.step()

    def train(self, orders):
        for rows in self.from_numpy(orders).view(-1, self.workload.batch):
            self.rows.copy_(rows)
            self.graph.replay()


class Jax(peers.Jax):
    @classmethod
    def load(cls):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax

        if jax.default_backend() == "cpu":
            raise RuntimeError("JAX finds no GPU")
        jax.config.update("jax_default_matmul_precision", "highest")  # by default it would be tf32

    def prepare(self, weights, biases):
        super().prepare(weights, biases)
        import jax

        key, samples = jax.random.key(SEED), self.workload.samples
        self.draw = jax.jit(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), samples))

    def run(self, epochs):
        for epoch in range(self.epochs, self.epochs + epochs):
            self.layers, self.state = self.epoch(self.layers, self.state, self.draw(epoch), *self.tensors)
        self.wait(self.layers)
        self.epochs += epochs

    @classmethod
    def empty(cls):
        import jax

        jax.clear_caches()


#: The one that takes longest to get ready comes last: others do not wait for it.
PEERS: dict[str, type[peers.Peer]] = {
    "fastbp": Fastbp,
    "fastbp tf32": FastbpTF32,
    "fastbp bf16": FastbpBF16,
    "PyTorch": Torch,
    "PyTorch tf32": TorchTF32,
    "PyTorch CUDA graph": TorchGraph,
    "JAX": Jax,
    "torch.compile": CompiledTorch,
}
PYTORCH = ("PyTorch", "PyTorch CUDA graph", "torch.compile")
#: Those that compute in float32 as fastbp does by default.
RIVALS = (*PYTORCH, "JAX")


class Runner(peers.Runner):
    """What a worker is asked to do."""

    def load(self) -> int:
        """Load libraries; returns the process's number."""
        self.peer.load()
        return os.getpid()

    def prepare(self, workload: Workload, seconds: float) -> dict[str, float]:
        """Make ready for turns of so many seconds; the loss after the first epochs, and the seconds up to there."""
        started = time.perf_counter()
        self.at_work = self.peer(workload, self.threads)
        self.at_work.train(peers.permutations(workload.samples, 0, math.ceil(LOSS_STEPS / workload.steps)))
        net = workload.network()
        net.theta = self.at_work.theta()
        ready = time.perf_counter() - started
        loss = net.evaluate(self.at_work.X[:LOSS_SAMPLES], self.at_work.y[:LOSS_SAMPLES])["loss"]
        self.at_work.run(1)  # draws its permutation otherwise, which may have to be compiled too
        self.epochs = repetitions(self.at_work.run, seconds)
        return {"loss": loss, "ready": ready}

    def release(self) -> None:
        """Give back the memory."""
        self.at_work = None
        gc.collect()
        self.peer.empty()


@cache
def _runner(name: str) -> Runner:
    """The only one of a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent that ends
    os.dup2(2, 1)  # what libraries print is no part of the report
    return Runner(PEERS[name], os.cpu_count() or 1)


def answer(name: str, method: str, *arguments: Any) -> tuple[bool, Any]:
    """Whether a method of the runner succeeded, with its result or the reason."""
    try:
        return True, getattr(_runner(name), method)(*arguments)
    except Exception as error:
        return False, in_a_line(error)


class Worker:
    """A peer's process, which loads its libraries at once; everything raises WorkerError."""

    def __init__(self, name: str):
        self.name, self.preparation = name, 0.0
        self._begin()

    def _begin(self) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.pool.submit(answer, self.name, "load")
        self.pid: int | None = None

    def ask(self, method: str, *arguments: Any, timeout: float = PATIENCE) -> Any:
        """Have a method of `Runner` called; a process that takes too long is ended, and another one begun."""
        try:
            succeeded, result = self.pool.submit(answer, self.name, method, *arguments).result(timeout)
        except (TimeoutError, BrokenProcessPool) as error:
            reason = "its process has ended"
            if isinstance(error, TimeoutError):
                reason = f"it took more than {timeout:.0f} s, and was ended"
                if self.pid is None:
                    raise WorkerError(f"it took more than {timeout:.0f} s to load") from None
                os.kill(self.pid, signal.SIGKILL)
            self._begin()
            raise WorkerError(reason) from None
        if not succeeded:
            raise WorkerError(result)
        return result

    def wait(self) -> None:
        """Wait for the libraries."""
        self.pid = self.ask("load", timeout=LOAD_PATIENCE)

    def prepare(self, workload: Workload, seconds: float, left: float, share: float) -> dict[str, float]:
        """`Runner.prepare`, if it should take a peer no more than the workload's share of the seconds that are left."""
        if self.preparation > share and not issubclass(PEERS[self.name], Fastbp):
            raise WorkerError(f"it takes {self.preparation:.0f} s to get ready, this workload's share is {share:.0f} s")
        if self.pid is None:
            self.wait()
        started = time.monotonic()
        prepared = self.ask("prepare", workload, seconds, timeout=max(left, PATIENCE))
        elapsed = time.monotonic() - started
        self.preparation = min(self.preparation or elapsed, elapsed)  # the first one has more to load
        return prepared


# ---- what the device can do ----------------------------------------------------------------------


def make_multiply_add() -> Any:
    """A kernel of 128 float32 multiply-adds a round, in 8 chains that do not wait for each other."""

    @cuda.jit
    def multiply_add(out, rounds, factor, term):
        a = float32(cuda.grid(1))
        b, c, d, e = a * factor, a + term, a - term, a + factor
        f, g, h = -b, -c, -d
        for _ in range(rounds):
            for _ in range(16):
                a, b = cuda.fma(a, factor, term), cuda.fma(b, factor, term)
                c, d = cuda.fma(c, factor, term), cuda.fma(d, factor, term)
                e, f = cuda.fma(e, factor, term), cuda.fma(f, factor, term)
                g, h = cuda.fma(g, factor, term), cuda.fma(h, factor, term)
        out[cuda.grid(1)] = a + b + c + d + e + f + g + h

    return multiply_add


class Ceilings:
    """The device's own limits, by its own clock."""

    ROUNDS, THREADS, BLOCKS = 4096, 256, 8  # blocks of each multiprocessor

    def __init__(self):
        self.source, self.target = (cuda.device_array(COPY_SIZE, np.float32) for _ in range(2))
        n_blocks = self.BLOCKS * cuda.get_current_device().MULTIPROCESSOR_COUNT
        self.out = cuda.device_array(n_blocks * self.THREADS, np.float32)
        self.launch = make_multiply_add()[n_blocks, self.THREADS]
        self.measure()  # compiles, and wakes the device

    def _seconds(self, work: Callable[[], Any]) -> float:
        begin, end = cuda.event(), cuda.event()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return 1e-3 * cuda.event_elapsed_time(begin, end)

    def measure(self) -> dict[str, float]:
        """FLOP/s of float32 multiply-adds, and bytes/s, read and written, of a copy."""
        of_adds = self._seconds(lambda: self.launch(self.out, self.ROUNDS, np.float32(0.5), np.float32(1)))
        of_copies = self._seconds(lambda: [self.target.copy_to_device(self.source) for _ in range(COPIES)])
        return {
            "flops": 2 * 128 * self.ROUNDS * self.out.size / of_adds,
            "bandwidth": 2 * COPIES * self.source.nbytes / of_copies,
        }

    def free(self) -> int:
        """Bytes of memory that nobody has."""
        return cuda.current_context().get_memory_info()[0]


# ---- speed ---------------------------------------------------------------------------------------


def shape(sizes: Sequence[int]) -> str:
    return "-".join(map(str, sizes))


NETWORKS = {
    "field": ((32, 64, 64, 64, 64, 4), "squared_error"),
    "small": ((784, 128, 10), "cross_entropy"),
    "middle": ((784, 512, 512, 10), "cross_entropy"),
    "large": ((1024, 4096, 4096, 1024), "squared_error"),
}
BATCHES = (32, 128, 1024, 65536)


def make_workload(network: str, batch: int) -> Workload:
    sizes, loss = NETWORKS[network]
    steps = EPOCH_NUMBERS // (batch * (sizes[0] + sizes[-1]))
    return Workload(f"{network}, {batch}", sizes, batch, loss, batch * max(1, min(EPOCH_STEPS, steps)))


QUICK = ("field, 65536", "large, 1024", "small, 128", "middle, 128")
WORKLOADS = {w.name: w for w in (make_workload(network, batch) for network in NETWORKS for batch in BATCHES)}
#: The most important first, should the time run out.
WORKLOADS = {name: WORKLOADS[name] for name in (*QUICK, *WORKLOADS)}


def floor(workload: Workload, flops: float, bandwidth: float) -> float:
    """Seconds of a step in which arithmetic and memory, at ``flops`` and ``bandwidth``, hide each other. What must be
    moved is what Adam reads and writes, and the batch.
    """
    batch_bytes = 4 * workload.batch * (workload.sizes[0] + workload.sizes[-1])
    return max(workload.flops_per_step / flops, (workload.bytes_per_step + batch_bytes) / bandwidth)


def memory(workload: Workload) -> int:
    """Bytes that a peer needs, roughly: samples; of a batch, activations before and after and what comes back to them;
    parameters, their moments and gradient, and a copy of these.
    """
    sizes = workload.sizes
    return 4 * (workload.samples * (sizes[0] + sizes[-1]) + 4 * workload.batch * sum(sizes) + 8 * workload.parameters)


def measure(
    workload: Workload, workers: Sequence[Worker], ceilings: Ceilings, options: argparse.Namespace, share: float
) -> dict:
    """All rounds of a workload, in plain numbers."""
    runs: dict[Worker, dict] = {}
    limits: list[dict] = []
    skipped: dict[str, str] = {}

    def attempt(worker: Worker, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What a worker answers; one that fails does not go on."""
        try:
            return ask(*arguments)
        except WorkerError as error:
            skipped.setdefault(worker.name, str(error))
            say(f"{workload.name}: skipping {worker.name}: {error}")
            runs.pop(worker, None)

    room = ceilings.free() // memory(workload)
    for k, worker in enumerate(workers):
        left = options.deadline - time.monotonic()
        if left <= 0 or k >= room:
            skipped[worker.name] = UP if left <= 0 else NO_ROOM
            continue
        say(f"{workload.name}: preparing {worker.name}")
        if prepared := attempt(worker, worker.prepare, workload, options.seconds, left, share):
            runs[worker] = {"peer": worker.name, **prepared, "microseconds": []}
    for k in range(ROUNDS if runs else 0):
        say(f"{workload.name}: round {k + 1} of {ROUNDS}")
        limits.append(ceilings.measure())
        for worker, run in [*runs.items()]:
            run["microseconds"].append(attempt(worker, worker.ask, "turn"))
    result = {"workload": workload.name, "limits": limits, "runs": [*runs.values()], "skipped": skipped}
    for worker in workers:
        attempt(worker, worker.ask, "release")
    return result


def speed(options: argparse.Namespace, skipped: dict[str, str]) -> Iterator[dict]:
    """Results of all workloads, and into ``skipped`` why somebody takes no part."""
    workers = []
    for name, peer in PEERS.items():
        missing = [module for module in peer.needs if importlib.util.find_spec(module) is None]
        if options.skip_peers and not issubclass(peer, Fastbp):
            skipped[name] = "as --skip-peers says"
        elif options.quick and peer is CompiledTorch:
            skipped[name] = "it takes long to get ready, and this is --quick"
        elif missing:
            skipped[name] = f"not installed: {', '.join(missing)}"
        else:
            workers.append(Worker(name))
    try:
        for worker in workers:
            try:
                worker.wait()
            except WorkerError as error:
                skipped[worker.name] = str(error)
        for name, reason in skipped.items():
            say(f"skipping {name}: {reason}")
        ready = [worker for worker in workers if worker.name not in skipped]
        ceilings = Ceilings()
        options.deadline = max(options.deadline, time.monotonic() + LEAST)
        chosen = QUICK if options.quick else [*WORKLOADS]
        for k, name in enumerate(chosen):
            share = (options.deadline - time.monotonic()) / (len(chosen) - k)
            yield measure(WORKLOADS[name], ready, ceilings, options, share)
    finally:
        for worker in workers:
            worker.pool.shutdown(wait=False, cancel_futures=True)


# ---- report --------------------------------------------------------------------------------------

TITLES = {
    "shape": "sizes",
    "batch": "batch",
    "peer": "who",
    "step": "µs per step (quartiles)",
    "over_floor": "time / floor",
    "over_ours": "time / fastbp's",
    "loss": "loss reached",
    "ready": "ready after, s",
}


def median(result: dict, limit: str) -> float:
    """A limit of the device, as it was in the rounds of a workload."""
    return statistics.median(limits[limit] for limits in result["limits"])


def summarize(result: dict) -> list[dict[str, Any]]:
    """A result of `measure` as one row for each peer; times are in microseconds."""
    workload, rows = WORKLOADS[result["workload"]], []
    steps = {run["peer"]: Spread.of(run["microseconds"]) for run in result["runs"]}
    for run in result["runs"]:
        step = steps[run["peer"]]
        least = 1e6 * floor(workload, median(result, "flops"), median(result, "bandwidth"))
        row = {"shape": workload.shape, "batch": workload.batch, "step": step, "over_floor": step.median / least}
        if "fastbp" in steps:
            row["over_ours"] = step.median / steps["fastbp"].median
        rows.append(row | {name: run[name] for name in ("peer", "loss", "ready")})
    return rows


class Target(NamedTuple):
    """What was to be reached on a workload, and what was measured, if anything."""

    target: str
    workload: str
    wanted: float
    measured: float | None
    verdict: str


def judge(results: Sequence[dict]) -> Iterator[Target]:
    """The targets: how many times as long as ours the fastest rival's step takes, and ours as long as the floor."""
    for result in results:
        rows = {row["peer"]: row for row in summarize(result)}
        network = result["workload"].partition(",")[0]
        if result["workload"] == "field, 65536":
            target, wanted, sign, names, key = "time / floor, at most", 2.0, -1, ("fastbp",), "over_floor"
        elif network == "field":
            continue
        elif network == "large":
            target, wanted, sign, names, key = "PyTorch's time / ours, at least", 0.9, 1, PYTORCH, "over_ours"
        else:
            target, wanted, sign, names, key = "best peer's time / ours, at least", 3.0, 1, RIVALS, "over_ours"
        values = {name: rows[name][key] for name in names if key in rows.get(name, ())}
        measured, verdict = min(values.values(), default=None), "not measured"
        if measured is not None:
            verdict = "reached" if sign * measured >= sign * wanted else "missed"
            if absent := [name for name in names if name not in values]:
                verdict += f", without {', '.join(absent)}"
        yield Target(target, result["workload"], wanted, measured, verdict)


def report(record: dict) -> str:
    """Everything in Markdown."""
    rows, results, settings = record["correctness"], record["results"], record["settings"]
    paragraphs = [
        headline(record),
        f"{sum(row.passed for row in rows)} of {len(rows)} comparisons passed. An error is the norm of the difference "
        "over the norm of what is expected, or how many numbers have other bits.",
        table(
            [*Row._fields, ""],
            [["-" if x is None else x for x in row] + ["passed" if row.passed else "FAILED"] for row in rows],
        ),
    ]
    measured = [result for result in results if result["runs"]]
    if measured:
        flops, bandwidth = (statistics.median(median(x, limit) for x in measured) for limit in ("flops", "bandwidth"))
        paragraphs += [
            f"At best the device made {flops / 1e12:.1f} TFLOP/s of float32 multiply-adds, and moved "
            f"{bandwidth / 1e9:.0f} GB/s in a copy. The floor of a step is its FLOPs by that rate or its bytes by that "
            f"bandwidth, whichever takes longer. Medians of {settings['rounds']} rounds of {settings['seconds']:g} s; "
            "Adam, relu, a fresh permutation each epoch. Losses are those after the first epochs, of at least "
            f"{LOSS_STEPS} steps, from the same parameters and in the same order. To get ready takes data, compilation "
            "and these epochs, and counts nowhere else.",
            table([*TITLES.values()], [[row.get(k, "-") for k in TITLES] for x in measured for row in summarize(x)]),
        ]
    paragraphs += [f"Skipped: {name}: {reason}" for name, reason in record["skipped"].items()]
    for result in results:
        for why, names in groupby(result["skipped"], result["skipped"].get):
            paragraphs.append(f"Skipped: {result['workload']}: {', '.join(names)}: {why}")
        paragraphs += [f"Losses differ: {line}" for line in disagreements(result)]
    if record["targets"]:
        targets = [["-" if x is None else x for x in target] for target in record["targets"]]
        paragraphs.append(table(Target._fields, targets))
    return "\n\n".join(paragraphs) + "\n"


def headline(record: dict) -> str:
    """The machine and the seed, in a line."""
    host = record["host"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    return (
        f"{host['device']}; driver {host['driver']}; {host['processor']}, {host['cores']} cores; {host['system']}; "
        f"Python {host['python']}, {versions}. Seed {record['seed']}."
    )


def driver() -> str:
    """The version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python benchmarks/gpu_check.py", description="Check and time the GPU engine.")
    add = parser.add_argument
    add("--quick", action="store_true", help="a minute of the most important, once the kernels are compiled")
    add("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER", help="(benchmarks/results)")
    add("--seed", type=int, default=secrets.randbelow(2**31), metavar="N", help="of the random data (a new one)")
    add("--seconds", type=float, default=0.2, metavar="S", help="length of a turn (0.2)")
    add("--skip-peers", action="store_true", help="time fastbp alone")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 10:
        parser.error(f"--seconds must be above 0 and at most 10, it is {options.seconds}")
    if options.seed < 0:
        parser.error(f"--seed must be at least 0, it is {options.seed}")
    options.deadline = time.monotonic() + (QUICK_BUDGET if options.quick else BUDGET)
    return options


def failures(record: dict) -> list[str]:
    """What should be otherwise: comparisons, and trainings that do not come to their loss, or to their end."""
    found = [f"{row.comparison}: {row.note or row.error}" for row in record["correctness"] if not row.passed]
    for result in record["results"]:
        found += disagreements(result)
        reason = result["skipped"].get("fastbp", UP)
        found += [f"{result['workload']}: fastbp: {reason}"] * (reason not in (UP, NO_ROOM))
    return found


def write(record: dict, folder: Path) -> str:
    """Write the report as it stands, in JSON and in Markdown, which is returned."""
    record["targets"] = [*judge(record["results"])]
    plain = record | {key: [row._asdict() for row in record[key]] for key in ("correctness", "targets")}
    folder.mkdir(parents=True, exist_ok=True)
    name = "gpu_" + re.sub(r"[^a-z0-9]+", "-", record["host"]["device"].partition(",")[0].lower()).strip("-")
    (folder / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    text = report(record)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    simulated = bool(config.ENABLE_CUDASIM)
    try:
        from fastbp.kernels.cuda import compat

        compat.require_gpu()
    except (ImportError, fastbp.DeviceError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    host = machine.describe() | {"device": describe_gpu(), "driver": driver()}
    if not simulated:
        faulthandler.dump_traceback_later(END, exit=True)
    host["versions"]["numba-cuda"] = metadata.version("numba-cuda")
    settings = {"rounds": ROUNDS, "seconds": options.seconds, "quick": options.quick}
    record = {"host": host, "seed": options.seed, "settings": settings, "skipped": {}, "correctness": [], "results": []}
    say(headline(record))
    for rows in correctness(options, simulated, record["skipped"]):
        record["correctness"] += rows
        write(record, options.output)
    if simulated:
        record["skipped"]["speed"] = "a simulated GPU has none"
    else:
        try:
            for result in speed(options, record["skipped"]):
                record["results"].append(result)
                write(record, options.output)
        except Exception as error:  # of the device's own limits: what has been found so far is worth a report
            record["skipped"]["speed"] = in_a_line(error)
    print(write(record, options.output))
    found = failures(record)
    for line in found:
        say(f"FAILED: {line}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
