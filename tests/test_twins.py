"""Both engines on the same case, from the same tables: the CUDA engine runs in numba-cuda's simulator."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from twins import CASES, TOLERANCE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")


@pytest.fixture(scope="module")
def differences():
    """By name and dtype: how far apart the engines ended, or what went wrong. Both dtypes are computed at once."""
    program = Path(__file__).with_name("twins.py")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    runs = {
        dtype: subprocess.Popen([sys.executable, program, dtype], env=environment, stdout=subprocess.PIPE, text=True)
        for dtype in TOLERANCE
    }
    lines = {dtype: run.communicate()[0].splitlines() for dtype, run in runs.items()}
    return {(name, dtype): result for dtype, of_dtype in lines.items() for name, result in map(json.loads, of_dtype)}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_both_engines_train_alike(differences, name, dtype):
    result = differences[name, dtype]
    assert not isinstance(result, str), result
    assert result <= TOLERANCE[dtype]
