"""No allocation in the steady state: what a fit needs, it takes before the first minibatch."""

from __future__ import annotations

import tracemalloc

import pytest
from cases import make_case
from numba.core.runtime import _nrt_python, rtsys

import fastbp.mlp

N_SAMPLES = 3200
#: Bytes: the history's numbers and what the garbage collector has yet to free; under 500 an epoch or minibatch.
SLACK = 200_000


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def fit(request, rng, monkeypatch):
    """A fit, warmed up so that everything is compiled, and the sessions that are kept from call to call are open.

    Every return to Python in mid-training allocates a little for a while. It comes by the clock, which is
    taken away here, so that all fits return equally often.
    """
    monkeypatch.setattr(fastbp.training, "TURN_SECONDS", 1e9)
    case = make_case(rng, (64, 128, 10), "cross_entropy", n_samples=N_SAMPLES, dtype="float32")

    def fit(**settings):
        case.net.fit(case.X, case.y, threads=request.param, progress=False, **settings)

    for batch_size in (32, 320):
        fit(epochs=2, batch_size=batch_size)
    return fit


def peak_memory(fit, **settings):
    """Bytes that Python and NumPy hold at the worst moment of a fit."""
    tracemalloc.start()
    fit(**settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def compiled_allocations(fit, **settings):
    """How many times compiled code asks for memory in a fit."""
    _nrt_python.memsys_enable_stats()
    before = rtsys.get_allocation_stats().alloc
    fit(**settings)
    count = rtsys.get_allocation_stats().alloc - before
    _nrt_python.memsys_disable_stats()
    return count


def test_memory_does_not_grow_with_epochs(fit):
    settings = {"batch_size": 320, "callbacks": [lambda history: False]}  # a return to Python in every epoch
    assert peak_memory(fit, epochs=402, **settings) < peak_memory(fit, epochs=2, **settings) + SLACK


def test_memory_does_not_grow_with_minibatches(fit):
    assert peak_memory(fit, epochs=5, batch_size=32) < peak_memory(fit, epochs=5, batch_size=320) + SLACK


def test_minibatches_allocate_nothing(fit):
    counts = {compiled_allocations(fit, epochs=2, batch_size=batch_size) for batch_size in (32, 64, 320)}
    assert len(counts) == 1


def test_a_fit_works_in_the_memory_of_the_last(rng):
    case = make_case(rng, (16, 1024, 1024, 4), "cross_entropy", n_samples=32, dtype="float32")

    def fit(**settings):
        case.net.fit(case.X, case.y, optimizer="sgd", epochs=2, progress=False, **settings)

    fit()
    assert peak_memory(fit) < case.net.theta.nbytes  # of which a session holds two
