"""The door to the engines: the only module that imports ``kernels.cpu`` and its kin."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
from numba.core import event

from .kernels.cpu.jit import ENTRIES
from .kernels.cpu.session import N_CORES, Session, choose_threads
from .kernels.problem import Data, DeviceError, Progress, Topology, Update
from .validation import choice

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "Data",
    "DeviceError",
    "Progress",
    "Session",
    "Sessions",
    "Topology",
    "Update",
    "borrow",
    "describe_gpu",
    "on_gpu",
]

DEVICES = ("cpu", "cuda", "auto")
PRECISIONS = ("tf32", "bf16")
#: DLPack's numbers of the GPU's memory, and of memory that it shares with the host.
DLPACK_CUDA = (2, 13)
#: What "auto" reckons with: operations a second of one core and of a GPU, and the seconds of a launch.
CPU_SPEED, GPU_SPEED, LAUNCH = 1e11, 1e13, 3e-6
#: Sessions that a network keeps at most: for a training, for its validation, for predictions, and one more.
KEPT_SESSIONS = 4
#: As many threads may be had on few cores as well; with hundreds, who waits would keep the others from coming.
FEW_THREADS = 16


class _Notice(event.Listener):
    """Says that the first use on a machine compiles, so that nobody thinks it hangs."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] in ENTRIES and not _Notice.said:
            _Notice.said = True
            print("fastbp: compiling for this processor, once; this takes 10 to 20 seconds", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _Notice())


def _gpu() -> Any:
    """The module of the CUDA engine, which is imported when it is first asked for.

    Raises
    ------
    DeviceError
        If numba-cuda is not installed.
    """
    if find_spec("numba_cuda") is None:
        raise DeviceError(
            'device \'cuda\' needs numba-cuda: pip install "fastbp[cuda12]" or "fastbp[cuda13]", by the CUDA that the '
            "driver is for"
        )
    from .kernels.cuda import session

    return session


def on_gpu(values: Any) -> bool:
    """Whether an array lies in a GPU's memory, by the CUDA array interface or by DLPack."""
    if isinstance(values, (np.ndarray, list, tuple)):
        return False
    if hasattr(values, "__cuda_ndarray__"):
        return True
    if hasattr(values, "__dlpack_device__"):  # which can be asked of a tensor that cannot be exported, too
        return values.__dlpack_device__()[0] in DLPACK_CUDA
    return hasattr(values, "__cuda_array_interface__")


def borrow(values: Any) -> Any:
    """What lies in a GPU's memory, as its engine has it; see `on_gpu`.

    Raises
    ------
    DeviceError
    """
    gpu = _gpu()
    gpu.compat.require_gpu()
    return gpu.borrow(values)


def describe_gpu() -> str:
    """The GPU that would be used, or why there is none."""
    try:
        return _gpu().compat.describe()
    except DeviceError as error:
        return str(error)


def _gpu_wins(topology: Topology, n_rows: int) -> bool:
    """Whether there is a GPU and it should be faster at updates over so many rows.

    A step on the GPU takes its launches, or its operations if that is longer.
    """
    launches = 2 * len(topology.layers) + 2
    flops = topology.flops(n_rows)
    on_cpu = flops / (CPU_SPEED * (os.cpu_count() or 1))
    if on_cpu < max(launches * LAUNCH, flops / GPU_SPEED):
        return False
    try:
        return _gpu().compat.is_there()
    except DeviceError:
        return False


class Sessions:
    """What opens a network's sessions, and keeps light ones from call to call: opening takes longer than an update of a
    small network.
    """

    def __init__(self) -> None:
        # All that is done with it is a single step of the interpreter: several threads may use the network.
        self._kept: OrderedDict[tuple, Session] = OrderedDict()

    @contextmanager
    def open(
        self,
        topology: Topology,
        theta: np.ndarray,
        moving: np.ndarray,
        batch_rows: int,
        update_rows: int | None = None,
        n_updates: int = 1,
        threads: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
        n_calls: int = 1,
    ) -> Iterator[Any]:
        """A network at work on a device.

        Parameters
        ----------
        topology : Topology
            The same in all calls.
        theta : (n_parameters,) array
            Copied, as is ``moving``.
        moving : (2, n_units) array
            Moving averages of mean and variance of the units of batch normalizations.
        batch_rows : int
            Samples that are in work at once, at most.
        update_rows : int or None
            Samples of one update; None for ``batch_rows``.
        n_updates : int
            How many there will be.
        threads : int or None
            None lets the engine choose; for the CPU.
        device : str
            One of ``DEVICES``; "auto" takes a GPU where there is one and it should be faster.
        precision : str or None
            One of ``PRECISIONS``, for the GPU; None for that of the network.
        n_calls : int
            How many calls the updates will be spread over.

        Raises
        ------
        DeviceError
            If the GPU that was asked for cannot be used.
        """
        network = topology, theta, moving
        rows = update_rows or batch_rows
        device = choice("device", device, DEVICES)
        if device == "cuda" or (device == "auto" and _gpu_wins(topology, rows)):
            with _gpu().Session(*network, batch_rows, update_rows, precision) as session:
                yield session
            return
        if threads is None:
            threads = choose_threads(topology, rows, n_updates, n_calls)
        threads = min(threads, max(N_CORES, FEW_THREADS))
        key = batch_rows, rows, threads
        session = self._kept.pop(key, None)
        if session is None:
            session = Session(*network, batch_rows, update_rows, threads)
        else:
            session.renew(theta, moving)
        with session:
            yield session
        if session.is_light:
            self._kept[key] = session
            if len(self._kept) > KEPT_SESSIONS:
                with suppress(KeyError):
                    self._kept.popitem(last=False)
