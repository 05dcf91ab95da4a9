"""A team of threads that meet at a barrier inside kernels."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from .jit import routine
from .layout import Arena
from .simd import atomic_add, atomic_load, relax, sleep_thread

# Words of the barrier, each on a cache line of its own.
ARRIVED, GENERATION, SYNC_SIZE = 0, 8, 16
#: Turns of the spinning loop, some 60 microseconds, before a thread that waits goes to sleep: a nap takes twice as
#: long, makes the others wait in their turn, and so is for a team that has lost a core. It does not yield first: on a
#: busy machine that hands the core to a stranger for a whole time slice of milliseconds.
SPINS = 2000
NAP_MICROSECONDS = 50


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
        Number of threads, the caller's included.

    Attributes
    ----------
    workspace, state : Arena
        What lasts as long as a session, and as a training.
    """

    def __init__(self, size: int):
        self.size = size
        self.sync = np.zeros(SYNC_SIZE, np.int64)
        self.workspace, self.state = Arena(), Arena()
        self._calls: list[SimpleQueue] = [SimpleQueue() for _ in range(size - 1)]
        self._done: SimpleQueue = SimpleQueue()
        for thread, calls in enumerate(self._calls, start=1):
            threading.Thread(target=self._work, args=(thread, calls), daemon=True).start()

    def _work(self, thread: int, calls: SimpleQueue) -> None:
        while True:
            function, args = calls.get()
            error = None
            try:
                function(*args, thread, self.size)
            except BaseException as caught:  # handed to the caller, who would wait forever
                error = caught
            self._done.put(error)
            del function, args

    def run(self, function: Callable, *args) -> None:
        """Call ``function(*args, thread, size)`` on every thread, and return when all are done."""
        for calls in self._calls:
            calls.put((function, args))
        errors = []
        try:
            function(*args, 0, self.size)
        finally:
            errors = [self._done.get() for _ in self._calls]
        for error in errors:
            if error is not None:
                raise error
