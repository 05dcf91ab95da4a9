"""Programs that work while other tests run: what a test wants of the CUDA engine without a GPU takes its time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
#: Whether to look at what takes minutes more, too, as ``.ci/run`` does.
EXHAUSTIVE = "FASTBP_EXHAUSTIVE" in os.environ
#: More at a time would only get in each other's way.
QUEUE = ThreadPoolExecutor(os.cpu_count())


class Program:
    """A Python program of this folder, with arguments and environment variables of its own.

    A test module that names its programs in ``PROGRAMS`` runs last, and they are started first (see conftest.py).
    """

    def __init__(self, name: str, *arguments: str, **environment: str):
        self._command = ["nice", sys.executable, *name.split(), *arguments]
        self._environment = os.environ | environment
        self._running: subprocess.Popen | None = None
        self._done: Future | None = None

    def start(self) -> None:
        """Run it when its turn comes."""
        self._done = QUEUE.submit(self._run)

    def _run(self) -> tuple[str, str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._running = subprocess.Popen(self._command, cwd=FOLDER, env=self._environment, text=True, **pipes)
        return self._running.communicate()

    def output(self) -> str:
        """What it has printed, once it is done, with ``errors`` beside it; fails where it has."""
        printed, self.errors = self._done.result()
        assert self._running.returncode == 0, f"{printed}\n{self.errors}"
        return printed

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()


def stop(programs: Iterable[Program]) -> None:
    """End those that run, and start no more."""
    QUEUE.shutdown(wait=False, cancel_futures=True)
    for program in programs:
        program.kill()
