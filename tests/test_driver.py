"""What only a driver sees of the CUDA engine, neither the simulator nor the compiler: calls, memory and captures."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from background import FOLDER, Program

COMPILER = shutil.which("cc")
if importlib.util.find_spec("numba_cuda") is None or COMPILER is None or not sys.platform.startswith("linux"):
    pytest.skip("this takes numba-cuda, a C compiler and Linux", allow_module_level=True)

LIBRARY = tempfile.TemporaryDirectory()
subprocess.run(
    [COMPILER, "-shared", "-fPIC", "-o", str(Path(LIBRARY.name, "libcuda.so.1")), str(FOLDER / "driver.c")], check=True
)
PROGRAMS = [Program("launches.py", LD_LIBRARY_PATH=LIBRARY.name)]


def test_a_driver_has_nothing_to_refuse():
    counts = json.loads(PROGRAMS[0].output())
    assert "driver:" not in PROGRAMS[0].errors
    steps = 3 * 13
    # An epoch begins and ends with a few launches, and its steps are in graphs but for the first of each size.
    assert all(0 < counts[name] < steps * 10 for name in ("fused", "by layers", "streamed", "resident"))
    assert counts["fused"] < counts["by layers"]
    assert counts["too large"] == 0
