"""Networks with samples in the lanes, against the same ones with units there."""

from __future__ import annotations

import numpy as np
import pytest
from cases import make_case, relative_error

import fastbp
from fastbp.kernels.cpu import layout, session
from fastbp.kernels.problem import Data

ALWAYS, NEVER = np.inf, -np.inf
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
#: What makes a way of summing gradients so dear that all layers take the other.
PRICES = {"panels": "LANES_SUM", "lanes": "TRANSPOSITION"}


def whole_panels(n_in, n_out, lines, width):
    """Those units in panels that fill them; see `session.narrow_gradient`."""
    return 0.0, n_out // width * width


def draw(rng, dtype):
    """A random network that both can train, and how."""
    sizes = [int(n) for n in rng.integers(1, 40, rng.integers(2, 6))]
    loss = str(rng.choice(["squared_error", "cross_entropy"]))
    sizes[-1] += loss == "cross_entropy"
    n_samples = int(rng.integers(1, 150))
    penalties = {"l1": 0.01, "l2": 0.02} if rng.random() < 0.3 else {}
    case = make_case(
        rng,
        sizes,
        loss,
        activation=["tanh"] * (len(sizes) - 2),
        n_samples=n_samples,
        weighted=rng.random() < 0.5,
        dtype=dtype,
        bias=bool(rng.random() < 0.7),
        **penalties,
    )
    settings = {
        "batch_size": int(rng.integers(1, 100)),
        "threads": int(rng.integers(1, 4)),
        "accumulate": int(rng.integers(1, 4)),
        "clip_norm": 1.0 if rng.random() < 0.3 else None,
    }
    return case, settings


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("number", range(20))
def test_lanes_make_no_difference(rng, monkeypatch, number, dtype):
    case, settings = draw(rng, dtype)
    if number % 3:
        monkeypatch.setattr(session, PRICES["panels" if number % 3 == 1 else "lanes"], np.inf)
    start, found = case.net.theta.copy(), []
    for panels_start in (ALWAYS, NEVER):
        monkeypatch.setattr(session, "PANELS_START", panels_start)
        case.net.theta, case.net.epochs = start, 0
        outputs = case.net.forward(case.X)
        loss, grad = case.net.loss_and_gradients(case.X, case.y, case.weight)
        optimizer = fastbp.SGD(0.002, 0.9)  # Adam divides by gradients, however small, and their rounding
        history = case.net.fit(case.X, case.y, sample_weight=case.weight, optimizer=optimizer, epochs=3, **settings)
        found.append((outputs, loss, grad, history.loss, case.net.theta.copy()))
    narrow, panels = found
    np.testing.assert_array_equal(narrow[0], panels[0])
    for value, expected, steps in zip(narrow[1:], panels[1:], (1, 1, 100, 100), strict=True):
        assert relative_error(value, expected) < steps * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", [*PRICES, "both"])
@pytest.mark.parametrize(
    ("sizes", "n_samples"), [((1, 1), 1), ((3, 5, 2), 17), ((7, 18, 3, 1), 50), ((16, 16), 16), ((5, 4, 33), 77)]
)
def test_what_lay_in_memory_does_not_matter(rng, monkeypatch, sizes, n_samples, way, dtype):
    """Tiles go over the ends of rows, of layers and of batches; what they find there must not come out of them."""
    monkeypatch.setattr(session, "PANELS_START", ALWAYS)
    if way == "both":
        monkeypatch.setattr(session, "narrow_gradient", whole_panels)
    else:
        monkeypatch.setattr(session, PRICES[way], np.inf)
    case = make_case(rng, sizes, "squared_error", n_samples=n_samples, dtype=dtype)
    expected = case.net.loss_and_gradients(case.X, case.y)
    X, y = (np.ascontiguousarray(array, dtype) for array in (case.X, case.y))
    data = Data(X, y, np.zeros(0, np.int64), np.zeros(0, dtype), np.zeros(0, np.int64))
    for array in data[:4]:
        array.flags.writeable = False
    with session.Session(case.net._topology, case.net.theta, np.zeros((2, 0)), n_samples) as at_work:
        assert at_work.network.narrow
        n_out, width = at_work.network.layers[:, layout.N_OUT], layout.panel_width(dtype)
        in_panels = {"panels": n_out, "lanes": 0 * n_out, "both": n_out // width * width}[way]
        np.testing.assert_array_equal(at_work.network.layers[:, layout.IN_PANELS], in_panels)
        for scratch in ("a", "delta", "strip", "columns", "square", "lines"):
            getattr(at_work.work, scratch)[:] = np.nan
        loss, grad = at_work.gradients(data)
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize(
    ("sizes", "n_rows", "settings", "narrow"),
    [
        ((4, 16, 3), 16, {}, True),
        ((17, 17, 17), 128, {}, True),
        ((33, 33, 33), 128, {}, True),
        ((65, 65, 65), 32, {}, True),
        ((32, 32, 32), 128, {}, False),
        ((64, 64, 10), 32, {}, False),
        ((300, 3), 128, {}, False),
        ((4, 16, 3), 16, {"dropout": 0.1}, False),
        ((4, 16, 3), 16, {"input_noise": 0.1}, False),
        ((4, 16, 3), 16, {"max_norm": 1.0}, False),
        ((4, 16, 3), 16, {"normalization": "layer_norm"}, False),
        ((4, 16, 16, 3), 16, {"residual": True}, False),
        ((4, 16, 3), 16, {"scale_inputs": True}, False),
    ],
)
def test_which_networks_are_narrow(sizes, n_rows, settings, narrow):
    assert session.is_narrow(fastbp.MLP(sizes, **settings)._topology, n_rows) == narrow
