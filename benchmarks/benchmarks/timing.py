"""Clocks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable, *args: Any) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def repetitions(run: Callable[[int], Any], seconds: float) -> int:
    """The n for which ``run(n)`` takes about so many seconds. A short run tells little: it is mostly overhead."""
    n = 1
    while (elapsed := timed(run, n)) < seconds / 4:
        n *= 2
    return max(1, round(n * seconds / elapsed))


def seconds_each(run: Callable[[int], Any], seconds: float = 0.2, turns: int = 3) -> float:
    """Seconds of one of the n repetitions of ``run(n)``: the median of some turns, after a warm-up."""
    run(1)
    n = repetitions(run, seconds)
    return statistics.median(timed(run, n) / n for _ in range(turns))
