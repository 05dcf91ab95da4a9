"""The same training on both engines: how far apart they end.

``NUMBA_ENABLE_CUDASIM=1 python tests/twins.py float32 [case ...]`` prints it, a line for each case; test_twins.py runs
this, and imports the names of the cases.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from copy import deepcopy

import numpy as np
from cases import OPTIMIZERS, make_case, optimizer, relative_error, specs
from numba import cuda

import fastbp
from fastbp import training
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES

# Of the network, then of `fit`; both may name what `make_case` takes.
PLAIN = {"sizes": (5, 9, 3), "n_samples": 13}
# A bias before batch normalization has a gradient of rounding errors alone, which Adam would blow up.
STEADY = {"optimizer": "momentum"}
CASES: dict[str, tuple[dict, dict]] = {
    "one layer": ({"sizes": (3, 2)}, {}),
    "deep": ({"sizes": (4, 9, 8, 1, 5, 2), "n_samples": 19}, {}),
    "wide": ({"sizes": (33, 20, 12), "n_samples": 39}, {}),
    "a single sample": ({"n_samples": 1}, {}),
    "no bias": ({"bias": False}, {}),
    "full batch": ({"n_samples": 37}, {"batch_size": 100}),
    "online": ({"n_samples": 5}, {"batch_size": 1}),
    "in order": ({}, {"shuffle": False}),
    "weights": ({"weighted": True}, {}),
    "accumulate": ({"weighted": True}, {"batch_size": 3, "accumulate": 3}),
    "l1 and l2": ({"l1": 0.01, "l2": 0.1}, {}),
    "penalty by batch": ({"l2": 0.1, "penalty_by_batch": True, "weighted": True}, {}),
    "clip_norm": ({"l2": 0.1}, {"clip_norm": 0.1}),
    "clip_value": ({}, {"clip_value": 0.01}),
    "dropout": ({"sizes": (5, 17, 9, 3), "dropout": (0.3, 0.5)}, {}),
    "dropout in chunks": ({"dropout": 0.4}, {"batch_size": 3, "accumulate": 3}),
    "input_noise": ({"input_noise": 0.3}, {}),
    "max_norm": ({"max_norm": 0.7}, {}),
    "scale_inputs": ({"scale_inputs": True}, {}),
    "residual over the samples": ({"sizes": (6, 6, 6, 2), "residual": True}, {}),
    "residual": ({"sizes": (5, 9, 9, 9, 2), "residual": True}, {}),
    "layer_norm": ({"sizes": (5, 9, 9, 2), "normalization": "layer_norm(epsilon=0.1)"}, {}),
    "rms_norm": ({"sizes": (5, 9, 9, 2), "normalization": "rms_norm(epsilon=0.2)", "residual": True}, {}),
    "batch_norm": ({"sizes": (5, 9, 9, 2), "normalization": "batch_norm(epsilon=0.3)"}, STEADY),
    "batch_norm, chunks and dropout": (
        {"normalization": "batch_norm", "dropout": 0.2, "weighted": True},
        {"batch_size": 4, "accumulate": 2} | STEADY,
    ),
    "all at once": (
        {
            "sizes": (5, 9, 9, 3),
            "loss": "cross_entropy(label_smoothing=0.1)",
            "normalization": ("rms_norm", "batch_norm"),
            "residual": True,
            "scale_inputs": True,
            "input_noise": 0.1,
            "dropout": 0.1,
            "l1": 0.001,
            "max_norm": 2.0,
            "weighted": True,
        },
        {"clip_norm": 1.0, "schedule": "cosine"} | STEADY,
    ),
    "average of some updates": ({}, {"callbacks": [fastbp.WeightAveraging(1, 0.9, by="step")]}),
    "average of all updates": ({}, {"callbacks": [fastbp.WeightAveraging(0, by="step")]}),
    "soft targets": ({"loss": "cross_entropy(label_smoothing=0.2)", "soft": True}, {}),
    "steps": ({}, {"steps": 5}),
    "rates by layer": ({}, {"optimizer": fastbp.AdamW(layer_rates=(0.5, 2.0), weight_decay=0.1)}),
    "a rate for each update": ({}, {"schedule": fastbp.schedules.OneCycle()}),
    "custom activation": (
        {"custom": {"activation": ("tanh", fastbp.Activation(lambda z: z * z, lambda z: 2 * z))}},
        {},
    ),
    "custom loss": (
        {"custom": {"loss": fastbp.Loss(lambda z, t: (z - t) ** 2, lambda z, t: 2 * (z - t))}},
        {"optimizer": "sgd"},
    ),
    "custom optimizer": (
        {},
        {
            "optimizer": fastbp.CustomOptimizer(
                0.01,
                lambda theta, grad, slots, h: (theta - h[0] * (grad + slots[0]), (h[2] * (grad + slots[0]),)),
                n_slots=1,
                settings=(0.5,),
            )
        },
    ),
}
SHORT = {"n_samples": 9}, {"epochs": 1}
CASES |= {f"activation {name}": (SHORT[0] | {"activation": name}, SHORT[1]) for name in specs(ACTIVATIONS)}
CASES |= {f"loss {name}": (SHORT[0] | {"loss": name, "sizes": (5, 9, 4)}, SHORT[1]) for name in specs(LOSSES)}
CASES |= {f"optimizer {name}": ({}, {"optimizer": name}) for name in OPTIMIZERS}
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}


def train(case, device, settings):
    """All that a training leaves behind."""
    settings = {"batch_size": 8, "epochs": 2} | deepcopy(settings)
    if isinstance(settings.get("optimizer", "adam"), str):
        settings["optimizer"] = optimizer(settings.get("optimizer", "adam"))
    net = case.net
    history = net.fit(case.X, case.y, sample_weight=case.weight, device=device, progress=False, **settings)
    state, step = settings["optimizer"].state(net.n_parameters, net.dtype)
    return {
        "theta": net.theta,
        "outputs": net.forward(case.X if device == "cpu" else cuda.to_device(case.X)),
        "loss": np.array(history.loss),
        "state": state.ravel(),
        "moving": net._moving.ravel(),
    }, step


def difference(name, dtype):
    """The largest relative difference of what the engines leave behind."""
    of_network, of_fit = deepcopy(CASES[name])
    of_network = PLAIN | of_network
    custom = of_network.pop("custom", None)  # which the oracle behind `make_case` does not know
    seed = int.from_bytes(name.encode()[-6:], "big")
    results = []
    for device in ("cpu", "cuda"):
        case = make_case(np.random.default_rng(seed), dtype=dtype, **of_network)
        if custom is not None:
            sizes = (5, 9, 9, 3) if "activation" in custom else (5, 9, 3)
            case = case._replace(net=fastbp.MLP(sizes, dtype=dtype, random_state=1, **custom))
        results.append(train(case, device, of_fit))
    (ours, step), (theirs, same_step) = results
    assert step == same_step
    return max(relative_error(theirs[key], ours[key]) if ours[key].size else 0.0 for key in ours)


def main():
    warnings.simplefilter("ignore")  # unsigned arithmetic that wraps around, as it should
    sys.setswitchinterval(1e-6)  # the simulator waits for its threads by asking them
    training.TURN_SECONDS = 1e6  # it is slow, and turns would be of one update each
    dtype, *names = sys.argv[1:]
    for name in names or CASES:
        try:
            result = difference(name, dtype)
        except Exception:
            result = traceback.format_exc()
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    main()
