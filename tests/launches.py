"""The CUDA engine through numba-cuda down to a driver that runs its kernels on the host, and the same on the CPU.

Prints how many launches each training has made, and how far apart the engines end; what the driver reports is on stderr.
"""

from __future__ import annotations

import json
import warnings
from unittest.mock import patch

import numpy as np
import ptx
from cases import make_case, relative_error

DRIVER = ptx.load_driver()  # before numba-cuda looks for another

from numba import cuda  # noqa: E402
from twins import difference  # noqa: E402

import fastbp  # noqa: E402
from fastbp.kernels.cuda import feed  # noqa: E402

rng = np.random.default_rng(0)
X, y = rng.normal(size=(200, 20)).astype(np.float32), rng.integers(0, 4, 200)


def fit(device, X=X, y=y, sizes=(20, 30, 4), **settings):
    net = fastbp.MLP(sizes, loss="cross_entropy", dropout=0.1, random_state=0)
    net.fit(X, y, device=device, batch_size=16, epochs=3, progress=False, **settings)
    return net


def fused(device):
    return fit(device).theta


def by_layers(device):
    return fit(device, sizes=(20, 200, 4), clip_norm=1.0, validation_data=(X, y)).theta


def streamed(device):
    with patch.object(feed, "SHARE", 0.0), patch.object(feed, "PIECE_BYTES", X.nbytes // 5):
        return fit(device).theta


def resident(device):
    there = (cuda.to_device(X), cuda.to_device(y)) if device == "cuda" else (X, y)
    net = fit(device, *there)
    return np.concatenate([net.theta, net.predict(there[0]), [net.evaluate(*there)["loss"]]])


def first_step(device, precision):
    case = make_case(np.random.default_rng(0), (5, 10, 9, 3), n_samples=13, dtype="float32")
    before = case.net.theta.copy()
    settings = {"precision": precision} if device == "cuda" else {}
    case.net.fit(
        case.X, case.y, device=device, batch_size=13, epochs=1, optimizer=fastbp.SGD(1.0), progress=False, **settings
    )
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


TRAININGS = {"fused": fused, "by layers": by_layers, "streamed": streamed, "resident": resident}
TWINS = {
    "float32": ("all at once", "accumulate", "residual over the samples", "layer_norm", "batch_norm"),
    "float64": ("dropout", "weights", "optimizer adam"),
}


def main():
    warnings.simplefilter("ignore")
    launches, differences = {}, []

    def count(name, train, *args):
        before = DRIVER.driver_launches()
        result = train(*args)
        launches[name] = DRIVER.driver_launches() - before
        return result

    for name, train in TRAININGS.items():
        differences.append((name, "float32", relative_error(count(name, train, "cuda"), train("cpu"))))
    count("too large", too_large)
    for precision in ("tf32", "bf16"):
        steps = [first_step(device, precision) for device in ("cuda", "cpu")]
        differences.append(("first step", precision, relative_error(*steps)))
    differences += [(name, dtype, difference(name, dtype)) for dtype, names in TWINS.items() for name in names]
    print(json.dumps({"launches": launches, "differences": differences}))


if __name__ == "__main__":
    main()
