"""Threads that work together, and what an exception in the middle leaves of them."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from cases import make_case

from fastbp.kernels.cpu import team
from fastbp.kernels.cpu.team import Team


def test_a_call_has_all_threads(rng):
    seen = []
    Team(3).run(lambda *args: seen.append(args), "given")
    assert sorted(seen) == [("given", thread, 3) for thread in range(3)]


def test_what_a_thread_raises_is_raised():
    team = Team(2)

    def fail(thread, size):
        if thread == 1:
            raise OSError("no luck")

    with pytest.raises(OSError, match="no luck"):
        team.run(fail)
    team.run(lambda *args: None)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_call_comes_to_its_end(times):
    """One interruption waits for it; after a second one the next call does."""
    team, together, ended = Team(2), threading.Barrier(2), []

    def interrupt(thread, size):
        for _ in range(times if thread == 0 else 0):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)
        together.wait()
        ended.append(thread)

    with pytest.raises(KeyboardInterrupt):
        team.run(interrupt)
    if times == 1:
        assert sorted(ended) == [0, 1]
    team.settle()
    assert sorted(ended) == [0, 1]


def test_threads_end_with_their_team():
    before = set(threading.enumerate())
    team = Team(3)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    del team
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_interruptions_leave_no_trace(rng):
    """Wherever they come, the next training is that of a fresh process."""
    seed = int(rng.integers(1 << 31))

    def train(**settings):
        case = make_case(np.random.default_rng(seed), (20, 64, 64, 2), n_samples=256, dtype="float32")
        case.net.fit(case.X, case.y, threads=2, progress=False, **settings)
        return case.net.theta

    came = False

    def interrupt(*args):
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def look(history):
        if came:  # in a finalizer, out of which Python lets nothing be raised
            raise KeyboardInterrupt

    expected = train(epochs=3)
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(100):
            came = False
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-3, 5e-3))
                train(epochs=10**6, callbacks=[look])
            assert np.array_equal(train(epochs=3), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no choice of cores")
def test_threads_on_one_core_part(monkeypatch):
    """The second thread that finds itself on a core goes to another, and may go anywhere from then on."""
    allowed, asked = {0, 1, 2}, []
    monkeypatch.setattr(team, "_core_of_thread", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: allowed)
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: asked.append(cores))
    call = team._Call(lambda thread, size: None, ())
    call.share(0, 2)
    assert asked == []
    call.share(1, 2)
    assert asked == [{0, 2}, allowed]
    assert call.errors == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no choice of cores")
def test_threads_that_may_not_choose_their_core_work_on_it(monkeypatch):
    def refuse(thread, cores):
        raise PermissionError

    monkeypatch.setattr(team, "_core_of_thread", lambda: 1)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    seen: list[int] = []
    call = team._Call(lambda thread, size: seen.append(thread), ())
    call.share(0, 2)
    call.share(1, 2)
    assert seen == [0, 1]
    assert call.errors == []
