"""From ``python`` to the end of the first step, in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from .timing import timed

FIRST_STEP = """
import numpy, fastbp
X, y = numpy.zeros((32, 64), "float32"), numpy.arange(32) % 10
fastbp.MLP((64, 64, 10), loss="cross_entropy").train_on_batch(X, y)
"""


class FirstStep:
    unit = "seconds"

    def setup(self):
        self.cache = tempfile.TemporaryDirectory()

    def teardown(self):
        self.cache.cleanup()

    def start(self):
        environment = os.environ | {"NUMBA_CACHE_DIR": self.cache.name}
        subprocess.run([sys.executable, "-c", FIRST_STEP], env=environment, check=True)

    def track_cold(self):
        return timed(self.start)

    def track_warm(self):
        self.start()
        return statistics.median(timed(self.start) for _ in range(3))
