from __future__ import annotations

import signal
import zlib

import background
import numpy as np
import pytest

import fastbp
from fastbp.kernels.cpu import session


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="draw other random cases (default 0)")


@pytest.fixture
def rng(request):
    """A random generator of the test's own, from its name and --seed."""
    return np.random.default_rng([request.config.getoption("--seed"), zlib.crc32(request.node.name.encode())])


@pytest.fixture(params=[np.inf, -np.inf], ids=["samples", "units"])
def lanes(request, monkeypatch):
    """What lies in the lanes of a network that leaves the choice."""
    monkeypatch.setattr(session, "PANELS_START", request.param)


@pytest.fixture(autouse=True, scope="session")
def quiet_compilation():
    """Which test compiles first is chance; the notice is tested in processes of its own."""
    fastbp.backend._Notice.said = True


def pytest_configure():
    """What tests raise is heard even in a job that a shell has started in the background, where it ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: hasattr(item.module, "PROGRAMS"))


def programs_of(session):
    """Those that the tests to run want, in the order in which they want them."""
    return dict.fromkeys(program for item in session.items for program in getattr(item.module, "PROGRAMS", ()))


def pytest_collection_finish(session):
    programs = programs_of(session)
    if programs and not session.config.option.collectonly:
        for dtype in ("float32", "float64"):  # compiled once, instead of by every program at the same time
            fastbp.MLP((1, 1), dtype=dtype).fit([[0.0]], [0.0], epochs=1)
        for program in programs:
            program.start()


def pytest_sessionfinish(session):
    background.stop(programs_of(session) if hasattr(session, "items") else ())
