"""The door to the engines: the only module that imports ``kernels.cpu`` and its kin."""

from __future__ import annotations

import sys

import numpy as np
from numba.core import event

from .kernels.cpu.jit import ENTRIES
from .kernels.cpu.session import Progress, Session
from .kernels.problem import Data, Topology, Update
from .validation import choice

__all__ = ["DEVICES", "Data", "Progress", "Session", "Topology", "Update", "open_session"]

DEVICES = {"cpu": Session}


class _Notice(event.Listener):
    """Says that the first use on a machine compiles, so that nobody thinks it hangs."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] in ENTRIES and not _Notice.said:
            _Notice.said = True
            print("fastbp: compiling for this processor, once; this takes up to half a minute", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _Notice())


def open_session(
    device: str,
    topology: Topology,
    theta: np.ndarray,
    moving: np.ndarray,
    batch_rows: int,
    update_rows: int | None = None,
    threads: int | None = None,
) -> Session:
    """A network at work on a device, as a context manager; ``theta`` and ``moving`` are copied.

    Parameters
    ----------
    device : str
        A name in ``DEVICES``.
    topology : Topology
    theta : (n_parameters,) array
    moving : (2, n_units) array
        Moving averages of mean and variance of the units of batch normalizations.
    batch_rows : int
        Samples that are in work at once, at most.
    update_rows : int or None
        Samples of one update; None for ``batch_rows``.
    threads : int or None
        None lets the engine choose.
    """
    return DEVICES[choice("device", device, DEVICES)](topology, theta, moving, batch_rows, update_rows, threads)
