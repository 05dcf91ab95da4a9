"""A team of threads that meet at a barrier inside kernels."""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import numpy as np

from .jit import routine
from .layout import Arena
from .simd import atomic_add, atomic_load, relax, sleep_thread

# Words of the barrier, each on a cache line of its own.
ARRIVED, GENERATION, SYNC_SIZE = 0, 8, 16
#: Turns of the spinning loop, some 200 microseconds, before a thread that waits goes to sleep: longer than another's
#: nap, with what the system adds to it, and a small phase. Otherwise one nap sends the others to sleep in their turn,
#: and so on for many steps. It does not yield first: on a busy machine that hands the core to a stranger for a whole
#: time slice of milliseconds.
SPINS = 8000
NAP_MICROSECONDS = 50
#: Tells the core that a thread runs on.
_core_of_thread = getattr(ctypes.PyDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


@routine
def barrier(sync, n_threads):
    """Wait until all threads of the team are here; what they wrote before is then seen by all."""
    if n_threads == 1:
        return
    generation = atomic_load(sync, GENERATION)
    if atomic_add(sync, ARRIVED, 1) == n_threads - 1:
        atomic_add(sync, ARRIVED, -n_threads)
        atomic_add(sync, GENERATION, 1)
        return
    turns = 0
    while atomic_load(sync, GENERATION) == generation:
        turns += 1
        if turns < SPINS:
            relax()
        else:
            sleep_thread(NAP_MICROSECONDS)


class Team:
    """Persistent threads that run one compiled function together, and memory for what they work on.

    Parameters
    ----------
    size : int
        Number of threads; a single one is the caller's.

    Attributes
    ----------
    workspace, state : Arena
        What lasts as long as a session, and as a training.
    """

    def __init__(self, size: int):
        self.size = size
        self.sync = np.zeros(SYNC_SIZE, np.int64)
        self.workspace, self.state = Arena(), Arena()
        if size == 1:
            return
        calls: list[SimpleQueue] = [SimpleQueue() for _ in range(size)]
        done: SimpleQueue = SimpleQueue()
        self._calls = calls[0]
        # The threads know nothing of their team, and end with it.
        weakref.finalize(self, self._calls.put, None).atexit = False
        threading.Thread(target=_lead, args=(calls, done), daemon=True).start()
        for thread in range(1, size):
            threading.Thread(target=_follow, args=(thread, size, calls[thread], done), daemon=True).start()

    def run(self, function: Callable, *args) -> None:
        """Call ``function(*args, thread, size)`` on every thread, and return when all are done.

        An exception may reach the caller at any moment, Ctrl-C above all. It takes no part in the work, therefore, and
        hands it over in one step; a call that it has left alone goes on, and the next one comes after it.
        """
        if self.size == 1:
            function(*args, 0, 1)
            return
        call = _Call(function, args)
        self._calls.put(call)
        try:
            call.done.get()
        except BaseException:
            if not call.is_done:  # otherwise it came after the answer had been taken
                call.done.get()
            raise
        if call.errors:
            raise call.errors[0]

    def settle(self) -> None:
        """Wait until what an exception has left alone is done."""
        self.run(_nothing)


def _nothing(thread: int, size: int) -> None:
    pass


class _Call:
    """What a team has been asked for, and what came of it."""

    def __init__(self, function: Callable, args: tuple):
        self.function, self.args = function, args
        self.errors: list[BaseException] = []
        self.is_done = False
        self.done: SimpleQueue = SimpleQueue()
        self._cores: set[int] = set()

    def share(self, thread: int, size: int) -> None:
        """One thread's part; what it raises is kept for the caller, who would wait forever."""
        try:
            self._part()
            self.function(*self.args, thread, size)
        except BaseException as error:
            self.errors.append(error)

    def _part(self) -> None:
        """Go to another core if one of the team is on this one, and be free again.

        Threads that are woken together may be put on the core of the one that woke them. They would take turns on it,
        a step of the team lasting as long as a nap, until the system spreads them: some 100 ms on Linux.
        """
        if _core_of_thread is None:
            return
        core = _core_of_thread()
        if core in self._cores:
            with suppress(OSError):  # not everybody may choose
                allowed = os.sched_getaffinity(0)
                os.sched_setaffinity(0, allowed - self._cores or allowed)
                os.sched_setaffinity(0, allowed)
                core = _core_of_thread()
        self._cores.add(core)


def _lead(calls: list[SimpleQueue], done: SimpleQueue) -> None:
    """Be thread 0 of a team: pass on what comes in, and answer when all are done."""
    while True:
        call = calls[0].get()
        for others in calls[1:]:
            others.put(call)
        if call is None:
            return
        call.share(0, len(calls))
        for _ in calls[1:]:
            done.get()
        call.is_done = True
        call.done.put(None)
        del call


def _follow(thread: int, size: int, calls: SimpleQueue, done: SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        call.share(thread, size)
        done.put(None)
        del call
