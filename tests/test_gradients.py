from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import BATCHES, WIDTHS, distance_to_kink, make_case, relative_error, slopes, specs

from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.cpu import session
from fastbp.kernels.losses import LOSSES

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
ACTIVATION_SPECS, LOSS_SPECS = specs(ACTIVATIONS), specs(LOSSES)
EXPONENTIAL = ("poisson", "gamma", "gaussian_nll")
CLASSIFICATION = ("cross_entropy", "binary_cross_entropy", "hinge")


def assert_matches_oracle(case):
    tolerance = TOLERANCE[case.net.dtype.name]
    z, _ = reference.forward(*case.exact)
    loss, grad = reference.loss_and_gradients(*case.exact, case.y, case.exact_weight)
    actual_loss, actual_grad = case.net.loss_and_gradients(case.X, case.y, case.weight)
    assert actual_grad.dtype == case.net.dtype
    assert relative_error(case.net.forward(case.X), z[-1]) < tolerance
    assert relative_error(actual_loss, loss) < tolerance
    assert relative_error(actual_grad, grad) < tolerance


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("draw", range(90))
def test_random_network(rng, draw, dtype):
    """Every depth with every batch size, ragged widths, an activation of its own for every layer."""
    depth = 1 + draw % 9
    loss = LOSS_SPECS[(draw // 9 + draw) % len(LOSS_SPECS)]
    sizes = [int(n) for n in rng.choice(WIDTHS, depth + 1)]
    if loss.startswith("cross_entropy"):
        sizes[-1] = max(sizes[-1], 2)
    sizes[-1] += loss.startswith("gaussian_nll") and sizes[-1] % 2
    case = make_case(
        rng,
        sizes,
        loss,
        activation=[str(name) for name in rng.choice(ACTIVATION_SPECS, depth - 1)],
        n_samples=BATCHES[draw % len(BATCHES)],
        dtype=dtype,
        bias=bool(rng.integers(2)),
        soft=bool(rng.integers(2)),
        weighted=bool(rng.integers(2)),
    )
    assert_matches_oracle(case)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_samples", BATCHES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_with_every_batch(rng, width, n_samples, dtype):
    case = make_case(
        rng, (width, width, width), "binary_cross_entropy", n_samples=n_samples, dtype=dtype, weighted=True
    )
    assert_matches_oracle(case)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_samples", [129, 300])
@pytest.mark.parametrize("block_bytes", [1 << 13, 1 << 17, 1 << 20])
def test_sums_are_interrupted_and_go_on(rng, monkeypatch, block_bytes, n_samples, dtype):
    """Those of more terms than L1 keeps; samples come in many blocks, or in a large one."""
    monkeypatch.setattr(session, "BLOCK_BYTES", block_bytes)
    case = make_case(
        rng, (150, 300, 270, 131), "squared_error", activation=["tanh"] * 2, n_samples=n_samples, dtype=dtype
    )
    assert_matches_oracle(case)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_blocks_that_l2_does_not_keep(rng, monkeypatch, activation, dtype):
    """All panels go by some of the terms, then the next, and in gradients all groups by some of the strips."""
    if (activation, dtype) == ("relu", "float32"):
        pytest.skip("rounding decides on which side of its corner a relu is")
    monkeypatch.setattr(session, "BLOCK_BYTES", 1 << 22)
    case = make_case(
        rng, (450, 700, 610, 20), "squared_error", activation=[activation] * 2, n_samples=400, dtype=dtype, l1=0.01
    )
    assert_matches_oracle(case)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_penalties(rng, penalty, by_batch, dtype):
    settings = {penalty: 0.1, "penalty_by_batch": by_batch}
    assert_matches_oracle(make_case(rng, (7, 65, 17, 3), dtype=dtype, weighted=True, **settings))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("loss", LOSS_SPECS)
@pytest.mark.parametrize("activation", ACTIVATION_SPECS)
def test_every_activation_with_every_loss(rng, activation, loss, soft, dtype):
    assert_matches_oracle(make_case(rng, (7, 17, 5, 4), loss, activation=activation, dtype=dtype, soft=soft))


@pytest.mark.parametrize("loss", [loss for loss in LOSS_SPECS if not loss.startswith(EXPONENTIAL)])
def test_large_logits_do_not_overflow(rng, loss):
    case = make_case(rng, (5, 7, 4), loss)
    case.net.weights[-1][...] *= 1000
    assert_matches_oracle(case)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("loss", LOSS_SPECS)
@pytest.mark.parametrize("activation", ACTIVATION_SPECS)
def test_finite_differences(rng, activation, loss, soft):
    """Along random directions."""
    case = make_case(rng, (5, 4, 6, 4), loss, activation=activation, n_samples=7, soft=soft, weighted=True)
    z, _ = reference.forward(*case.exact)
    case.weight[distance_to_kink(loss, z[-1], reference.targets(case.network, case.y)) < 0.03] = 0
    n = case.net.n_parameters
    directions = rng.normal(size=(8, n)) / np.sqrt(n)
    _, grad = case.net.loss_and_gradients(case.X, case.y, case.weight)
    assert relative_error(directions @ grad, slopes(case, directions)) < 1e-7


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
@pytest.mark.parametrize("loss", LOSS_SPECS)
def test_gradient_of_a_batch_is_the_mean_over_its_samples(rng, loss, weighted):
    case = make_case(rng, (5, 17, 7, 4), loss, activation="relu", weighted=weighted)
    if weighted:
        case.weight[::3] = 0
    samples = [case.net.loss_and_gradients(case.X[[i]], case.y[[i]]) for i in range(len(case.X))]
    batch = case.net.loss_and_gradients(case.X, case.y, case.weight)
    for of_batch, of_samples in zip(batch, zip(*samples, strict=True), strict=True):
        assert relative_error(of_batch, np.average(of_samples, axis=0, weights=case.weight)) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("loss", LOSS_SPECS)
def test_predict_applies_the_link(rng, loss, dtype):
    case = make_case(rng, (5, 17, 4), loss, dtype=dtype)
    assert relative_error(case.net.predict(case.X), reference.predict(*case.exact)) < TOLERANCE[dtype]


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
@pytest.mark.parametrize(
    ("loss", "n_out"),
    [
        ("squared_error", 3),
        ("cross_entropy", 4),
        ("binary_cross_entropy", 1),
        ("binary_cross_entropy", 3),
        ("hinge", 2),
    ],
)
def test_evaluate(rng, loss, n_out, weighted):
    case = make_case(rng, (5, 17, n_out), loss, n_samples=64, weighted=weighted)
    scores = case.net.evaluate(case.X, case.y, case.weight)
    expected_loss, _ = reference.loss_and_gradients(*case.exact, case.y, case.weight)
    assert relative_error(scores["loss"], expected_loss) < 1e-12
    if loss not in CLASSIFICATION:
        assert "accuracy" not in scores
        return
    right = reference.correct(*case.exact, case.y)
    assert scores["accuracy"] == pytest.approx(np.average(right, weights=case.weight), rel=1e-12)
