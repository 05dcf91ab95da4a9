"""Full-batch training through SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import make_case, relative_error

import fastbp

optimize = pytest.importorskip("scipy.optimize")


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_same_iterates_as_scipy_on_the_oracle(rng, loss):
    case = make_case(rng, (5, 9, 3), loss, weighted=True, l2=0.01)
    network, theta, X = case.exact
    expected = []
    optimize.minimize(
        lambda theta: reference.loss_and_gradients(network, theta, X, case.y, case.exact_weight),
        theta,
        method="L-BFGS-B",
        jac=True,
        callback=lambda intermediate_result: expected.append(intermediate_result.fun),
        options={"maxiter": 20, "gtol": 1e-5, "maxcor": 10, "ftol": 0},
    )
    validation = (case.X[:7], case.y[:7])
    history = case.net.fit(
        case.X, case.y, sample_weight=case.weight, optimizer="lbfgs", epochs=20, validation_data=validation
    )
    assert relative_error(history.loss, expected) < 1e-6
    assert case.net.epochs == history.epochs == 20
    assert history.val_loss[-1] == pytest.approx(case.net.evaluate(*validation)["loss"], rel=1e-12)
    assert history.loss[-1] == pytest.approx(case.net.loss_and_gradients(case.X, case.y, case.weight)[0], rel=1e-12)


def test_float32_reaches_a_stationary_point(rng):
    case = make_case(rng, (3, 8, 1), dtype="float32", l2=0.1)
    history = case.net.fit(case.X, case.y, optimizer=fastbp.LBFGS(tol=1e-3), epochs=500)
    assert history.epochs < 500
    assert np.abs(case.net.loss_and_gradients(case.X, case.y)[1]).max() < 2e-3


def test_callbacks_stop(rng):
    case = make_case(rng, (5, 9, 3))
    stopping = fastbp.EarlyStopping(monitor="loss", patience=1, min_delta=1e9)
    assert case.net.fit(case.X, case.y, optimizer="lbfgs", epochs=50, callbacks=[stopping]).epochs == 2
    numpys = [lambda history: np.True_]
    assert case.net.fit(case.X, case.y, optimizer="lbfgs", epochs=50, callbacks=numpys).epochs == 1


def test_at_the_optimum_there_is_one_iteration(rng):
    case = make_case(rng, (5, 3), l2=0.1)
    case.net.fit(case.X, case.y, optimizer="lbfgs", epochs=500)
    theta, loss = case.net.theta.copy(), case.net.loss_and_gradients(case.X, case.y)[0]
    assert case.net.partial_fit(case.X, case.y, optimizer=fastbp.LBFGS(tol=1e-3)) == pytest.approx(loss, rel=1e-12)
    assert np.array_equal(case.net.theta, theta)
    history = case.net.fit(case.X, case.y, optimizer=fastbp.LBFGS(tol=1e-3), epochs=9, callbacks=[lambda history: True])
    assert history.epochs == 1


def test_a_loss_that_is_not_finite_is_divergence(rng):
    case = make_case(rng, (5, 9, 3), dtype="float32")
    theta = case.net.theta.copy()
    with pytest.raises(fastbp.DivergedError):
        case.net.fit(1e30 * case.X, 1e30 * case.y, optimizer="lbfgs")
    assert np.array_equal(case.net.theta, theta) and case.net.epochs == 0


@pytest.mark.parametrize(
    ("of_network", "of_fit", "name"),
    [
        ({"dropout": 0.1}, {}, "dropout"),
        ({"input_noise": 0.1}, {}, "input_noise"),
        ({"max_norm": 1.0}, {}, "max_norm"),
        ({"normalization": "batch_norm"}, {}, "batch_norm"),
        ({}, {"schedule": "cosine"}, "schedule"),
        ({}, {"clip_norm": 1.0}, "clip_norm"),
        ({}, {"accumulate": 2}, "accumulate"),
        ({}, {"steps": 3}, "steps"),
        ({}, {"callbacks": [fastbp.WeightAveraging(by="step")]}, "a callback between updates"),
    ],
)
def test_what_is_not_for_it_is_refused(rng, of_network, of_fit, name):
    case = make_case(rng, (5, 9, 3), **of_network)
    theta = case.net.theta.copy()
    with pytest.raises(ValueError, match=f"^{name} is not for optimizer 'lbfgs'"):
        case.net.fit(case.X, case.y, optimizer="lbfgs", **of_fit)
    assert np.array_equal(case.net.theta, theta)
