"""First use on a machine: a second process compiles the loop while this one compiles the hooks.

Each is about half of the work, and the disk cache brings them together. Where there is no second process, or it fails,
this one compiles everything.
"""

import os
import subprocess
import sys
from typing import Any

import numpy as np
from numba import typeof, types
from numba.core import event

from .jit import ENTRIES, Hook
from .team import Team

#: Longer than a compilation takes anywhere: the process that waits can do it as well.
PATIENCE_SECONDS = 120
_helpers: dict[str, subprocess.Popen | None] = {}


class _Starter(event.Listener):
    """Starts the helper for a number type at the first compilation for it."""

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] not in ENTRIES:
            return
        for kind in event.data["args"]:
            if isinstance(kind, types.Float) and str(kind) not in _helpers:
                _helpers[str(kind)] = _start(str(kind))

    def on_end(self, event: event.Event) -> None:
        pass


_starter = _Starter()
event.register("numba:compile", _starter)


def _start(dtype: str) -> subprocess.Popen | None:
    if not sys.executable or getattr(sys, "frozen", False) or (os.cpu_count() or 1) < 2:
        return None
    quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    script = f"from {__name__} import compile_loop; compile_loop({dtype!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        return subprocess.Popen([sys.executable, "-c", script], env=environment, **quiet)
    except OSError:
        return None


def wait(dtype: np.dtype) -> None:
    """Wait for the helper, if there is one."""
    helper = _helpers.get(dtype.name)
    if helper is not None:
        _helpers[dtype.name] = None
        try:
            helper.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            helper.kill()


def compile_loop(dtype: str) -> None:
    """Compile what `Session` runs on a team, and keep it on disk; nothing is run, and no hook compiled."""
    from ..problem import Choice, Topology, samples_alone
    from .session import Session

    event.unregister("numba:compile", _starter)
    hook: Any = Hook
    team: Any = Team
    hook._address = lambda self, kinds: 0
    team.run = lambda self, function, *args: function.compile(tuple(typeof(arg) for arg in (*args, 0, 1)))
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
        dtype=np.dtype(dtype),
        seed=0,
    )
    theta, X = np.zeros((2, topology.n_parameters), dtype), np.zeros((1, 1), dtype)
    X.flags.writeable = False
    with Session(topology, theta[0], np.zeros((2, 0)), 1, threads=1) as session:
        session.gradients(samples_alone(X))
        session.forward(X)
