"""The CUDA engine's kernels as they are compiled, and what it asks of a driver: on the host, by driver.c and ptx.c."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import pytest
from background import Program

if importlib.util.find_spec("numba_cuda") is None or not shutil.which("cc") or not sys.platform.startswith("linux"):
    pytest.skip("this takes numba-cuda, a C compiler and Linux", allow_module_level=True)

PROGRAMS = [Program("ptx.py launches.py")]
TOLERANCE = {"float32": 1e-5, "float64": 1e-11, "tf32": 1e-3, "bf16": 1e-2}


@pytest.fixture(scope="module")
def report():
    return json.loads(PROGRAMS[0].output())


def test_a_driver_has_nothing_to_report(report):
    assert not [line for line in PROGRAMS[0].errors.splitlines() if line.startswith("driver:")]


def test_compiled_kernels_train_like_the_cpu(report):
    assert {precision for _, precision, _ in report["differences"]} == set(TOLERANCE)
    for name, precision, difference in report["differences"]:
        assert difference <= TOLERANCE[precision], name


def test_launches_stay_in_their_budget(report):
    counts = report["launches"]
    steps = 3 * 10
    # An epoch begins and ends with a few launches, and its steps are in graphs but for the first of each size.
    assert all(0 < counts[name] < steps * 10 for name in ("fused", "by layers", "streamed", "resident"))
    assert counts["fused"] < counts["by layers"]
    assert counts["too large"] == 0
