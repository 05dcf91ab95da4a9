from __future__ import annotations

import zlib

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="draw other random cases (default 0)")


@pytest.fixture
def rng(request):
    """A random generator of the test's own, from its name and --seed."""
    return np.random.default_rng([request.config.getoption("--seed"), zlib.crc32(request.node.name.encode())])
