"""Both engines on the same case, from the same tables: the CUDA engine runs in numba-cuda's simulator.

In float64 it does so where FASTBP_EXHAUSTIVE is set.
"""

from __future__ import annotations

import importlib.util
import json

import pytest
from background import EXHAUSTIVE, Program
from twins import CASES, TOLERANCE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")


DTYPES = ["float32", *(["float64"] if EXHAUSTIVE else [])]
OF_DTYPE = {dtype: Program("twins.py", dtype, NUMBA_ENABLE_CUDASIM="1") for dtype in DTYPES}
PROGRAMS = OF_DTYPE.values()


@pytest.fixture(scope="module")
def differences():
    """By name and dtype: how far apart the engines ended, or what went wrong."""
    lines = {dtype: program.output().splitlines() for dtype, program in OF_DTYPE.items()}
    return {(name, dtype): result for dtype, of_dtype in lines.items() for name, result in map(json.loads, of_dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_both_engines_train_alike(differences, name, dtype):
    result = differences[name, dtype]
    assert not isinstance(result, str), result
    assert result <= TOLERANCE[dtype]
