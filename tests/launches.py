"""Trainings by the CUDA engine through numba-cuda down to a driver, and the same on the CPU.

``python tests/ptx.py tests/launches.py``, with a driver that runs kernels on the host, prints how many launches each
has made, and how far apart the engines end; what the driver reports is on stderr.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from functools import partial
from unittest.mock import patch

import numpy as np
from cases import make_case, relative_error
from numba import cuda
from twins import difference

import fastbp
from fastbp.kernels.cuda import feed

DRIVER = ctypes.CDLL("libcuda.so.1")
rng = np.random.default_rng(0)
X, y = rng.normal(size=(590, 20)).astype(np.float32), rng.integers(0, 4, 590)


def fit(device, X=X, y=y, sizes=(20, 60, 40, 4), **settings):
    net = fastbp.MLP(sizes, loss="cross_entropy", dropout=0.1, random_state=0)
    history = net.fit(X, y, device=device, batch_size=60, epochs=3, progress=False, **settings)
    return np.concatenate([net.theta, history.loss, net.predict(X).ravel(), [net.evaluate(X, y)["loss"]]])


def by_layers(device):
    return fit(device, sizes=(20, 200, 4), clip_norm=1.0, validation_data=(X, y))


def streamed(device):
    with patch.object(feed, "SHARE", 0.0), patch.object(feed, "PIECE_BYTES", X.nbytes // 5):
        return fit(device)


def resident(device):
    return fit(device, cuda.to_device(X), cuda.to_device(y)) if device == "cuda" else fit(device)


def first_step(device, precision):
    case = make_case(np.random.default_rng(0), (5, 10, 9, 3), n_samples=13, dtype="float32")
    before = case.net.theta.copy()
    settings = {"batch_size": 13, "epochs": 1, "optimizer": fastbp.SGD(1.0), "progress": False}
    case.net.fit(case.X, case.y, device=device, precision=precision if device == "cuda" else None, **settings)
    return case.net.theta - before


def too_large():
    net = fastbp.MLP((20, 1 << 12, 4), loss="cross_entropy", random_state=0)
    before = net.theta.copy()
    many = np.zeros((1 << 15, 20), np.float32)
    try:
        net.fit(many, np.zeros(len(many), np.int64), device="cuda", batch_size=len(many), epochs=1, progress=False)
    except fastbp.DeviceError as error:
        assert "out of memory" in str(error)
    assert np.array_equal(net.theta, before)


# With what they compute in.
TRAININGS = {
    "fused": (fit, "float32"),
    "by layers": (by_layers, "float32"),
    "streamed": (streamed, "float32"),
    "resident": (resident, "float32"),
    "tf32": (partial(first_step, precision="tf32"), "tf32"),
    "bf16": (partial(first_step, precision="bf16"), "bf16"),
}
TWINS = {
    "float32": ("all at once", "accumulate", "residual over the samples", "layer_norm", "batch_norm"),
    "float64": ("clip_norm", "residual over the samples", "layer_norm", "batch_norm"),
}


def count(train, *args):
    """What a training returns, and its launches."""
    before = DRIVER.driver_launches()
    return train(*args), DRIVER.driver_launches() - before


def main():
    warnings.simplefilter("ignore")
    ours = {name: count(train, "cuda") for name, (train, _) in TRAININGS.items()}
    launches = {name: n for name, (_, n) in ours.items()} | {"too large": count(too_large)[1]}
    differences = [
        (name, precision, relative_error(ours[name][0], train("cpu"))) for name, (train, precision) in TRAININGS.items()
    ]
    differences += [(name, dtype, difference(name, dtype)) for dtype, names in TWINS.items() for name in names]
    print(json.dumps({"launches": launches, "differences": differences}))


if __name__ == "__main__":
    main()
