from __future__ import annotations

import zlib

import numpy as np
import pytest

import fastbp.backend


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="draw other random cases (default 0)")


@pytest.fixture
def rng(request):
    """A random generator of the test's own, from its name and --seed."""
    return np.random.default_rng([request.config.getoption("--seed"), zlib.crc32(request.node.name.encode())])


@pytest.fixture(autouse=True, scope="session")
def quiet_compilation():
    """Which test compiles first is chance; the notice is tested in processes of its own."""
    fastbp.backend._Notice.said = True


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: hasattr(item.module, "PROGRAMS"))


def programs_of(session):
    return {program for item in session.items for program in getattr(item.module, "PROGRAMS", ())}


def pytest_collection_finish(session):
    if not session.config.option.collectonly:
        for program in programs_of(session):
            program.start()


def pytest_sessionfinish(session):
    for program in programs_of(session) if hasattr(session, "items") else ():
        program.stop()
