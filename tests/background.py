"""Programs that work while other tests run: what a test wants of the CUDA engine without a GPU takes its time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


class Program:
    """A Python program of this folder, with arguments and environment variables of its own.

    A test module that names its programs in ``PROGRAMS`` runs last, and they are started first (see conftest.py).
    """

    def __init__(self, name: str, *arguments: str, **environment: str):
        self._command = [sys.executable, *name.split(), *arguments]
        self._environment = os.environ | environment
        self._running: Any = None

    def start(self) -> None:
        self._output, self._errors = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._running = subprocess.Popen(
            self._command,
            cwd=FOLDER,
            env=self._environment,
            stdout=self._output,
            stderr=self._errors,
            preexec_fn=lambda: os.nice(10),
        )

    def output(self) -> str:
        """What it has printed, once it is done, with ``errors`` beside it; fails where it has."""
        code = self._running.wait()
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read())
        assert code == 0, "\n".join(texts)
        self.errors = texts[1]
        return texts[0]

    def stop(self) -> None:
        if self._running is not None and self._running.poll() is None:
            self._running.kill()
