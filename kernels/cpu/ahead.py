"""First use on a machine: a second process compiles some hooks and the entry points while this one compiles the others.

Each is about half of the work, and the disk cache brings them together. Where there is no second process, or it fails,
this one compiles everything.
"""

import os
import subprocess
import sys
from typing import Any

import numpy as np
from numba.core import event

from .forward import ACTIVATE

#: Longer than a compilation takes anywhere: the process that waits can do it as well.
PATIENCE_SECONDS = 120
_helpers: dict[str, subprocess.Popen | None] = {}


class _Starter(event.Listener):
    """Starts the helper for a number type when the first hook is compiled for it."""

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] is ACTIVATE.dispatcher:
            dtype = str(event.data["args"][-2])
            _helpers[dtype] = _start(dtype)

    def on_end(self, event: event.Event) -> None:
        pass


_starter = _Starter()
event.register("numba:compile", _starter)


def _start(dtype: str) -> subprocess.Popen | None:
    if not sys.executable or getattr(sys, "frozen", False) or (os.cpu_count() or 1) < 2:
        return None
    quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    # It ends at once: to collect garbage, and to take down what a compiler has built, would take another second.
    script = (
        f"import gc, os, sys; gc.disable(); sys.path[:] = {sys.path!r}; "
        f"from {__package__}.session import compile_half; compile_half({dtype!r}); os._exit(0)"
    )
    try:
        return subprocess.Popen([sys.executable, "-c", script], **quiet)
    except OSError:
        return None


def is_first_use(dtype: np.dtype) -> bool:
    """Whether this process has compiled hooks for a number type: others find them, and the loops, on disk."""
    return dtype.name in _helpers


def wait(dtype: np.dtype) -> None:
    """Wait for the helper, if there is one."""
    helper = _helpers.get(dtype.name)
    if helper is not None:
        _helpers[dtype.name] = None
        try:
            helper.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            helper.kill()


def refuse() -> None:
    """Start no helper: this is one."""
    event.unregister("numba:compile", _starter)
