"""The CUDA engine through numba-cuda down to a driver that computes nothing (driver.c), which test_driver.py builds.

Prints how many launches each training has made; what a driver would refuse is on stderr.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from unittest.mock import patch

import numpy as np
from numba import cuda

import fastbp
from fastbp.kernels.cuda import feed

DRIVER = ctypes.CDLL("libcuda.so.1")
rng = np.random.default_rng(0)
X, y = rng.normal(size=(200, 20)).astype(np.float32), rng.integers(0, 4, 200)


def fit(X=X, y=y, sizes=(20, 30, 4), **settings):
    net = fastbp.MLP(sizes, loss="cross_entropy", dropout=0.1, random_state=0)
    net.fit(X, y, device="cuda", batch_size=16, epochs=3, progress=False, **settings)
    return net


def streamed():
    with patch.object(feed, "SHARE", 0.0), patch.object(feed, "PIECE_BYTES", X.nbytes // 5):
        fit()


def resident():
    there = cuda.to_device(X), cuda.to_device(y)
    net = fit(*there)
    net.predict(there[0])
    net.evaluate(*there)


def too_large():
    net = fastbp.MLP((20, 1 << 16, 4), loss="cross_entropy", random_state=0)
    before = net.theta.copy()
    many = np.zeros((1 << 17, 20), np.float32)
    try:
        net.fit(many, np.zeros(len(many), np.int64), device="cuda", batch_size=len(many), epochs=1, progress=False)
    except fastbp.DeviceError as error:
        assert "out of memory" in str(error)
    assert np.array_equal(net.theta, before)


TRAININGS = {
    "fused": fit,
    "by layers": lambda: fit(sizes=(20, 200, 4), clip_norm=1.0, validation_data=(X, y)),
    "streamed": streamed,
    "resident": resident,
    "too large": too_large,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # losses that nobody has computed
    counts = {}
    for name, train in TRAININGS.items():
        before = DRIVER.driver_launches()
        train()
        counts[name] = DRIVER.driver_launches() - before
    print(json.dumps(counts))
