"""Metrics, beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from cases import make_case

import fastbp

peers = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra: sklearn)")


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
def test_metrics_of_classes(rng, weighted):
    case = make_case(rng, (5, 17, 4), "cross_entropy", n_samples=64, weighted=weighted)
    p, w = case.net.predict(case.X), case.weight
    scores = case.net.evaluate(case.X, case.y, w, metrics=["accuracy", "top_k(k=2)", "log_loss", "auc"])
    assert list(scores) == ["loss", "accuracy", "top_k(k=2)", "log_loss", "auc"]
    assert scores["accuracy"] == pytest.approx(peers.accuracy_score(case.y, p.argmax(axis=1), sample_weight=w))
    assert scores["top_k(k=2)"] == pytest.approx(peers.top_k_accuracy_score(case.y, p, k=2, sample_weight=w))
    assert scores["log_loss"] == pytest.approx(peers.log_loss(case.y, p, sample_weight=w))
    assert scores["auc"] == pytest.approx(peers.roc_auc_score(case.y, p, multi_class="ovr", sample_weight=w))


@pytest.mark.parametrize(("loss", "n_out"), [("cross_entropy", 2), ("binary_cross_entropy", 1)])
def test_auc_of_two_classes(rng, loss, n_out):
    case = make_case(rng, (5, 17, n_out), loss, n_samples=64)
    expected = peers.roc_auc_score(case.y.ravel(), case.net.predict(case.X)[:, -1])
    assert case.net.evaluate(case.X, case.y, metrics=["auc"])["auc"] == pytest.approx(expected)


def test_log_loss_of_outputs(rng):
    case = make_case(rng, (5, 17, 3), "binary_cross_entropy")
    case.net.biases[-1][:] = 60.0, 0.0, -60.0
    p = case.net.predict(case.X)
    expected = np.mean([peers.log_loss(t, q, labels=[0, 1]) for t, q in zip(case.y.T, p.T, strict=True)])
    assert case.net.evaluate(case.X, case.y, metrics=["log_loss"])["log_loss"] == pytest.approx(expected)


def test_log_loss_is_of_probabilities(rng):
    case = make_case(rng, (5, 17, 3), "hinge")
    with pytest.raises(ValueError, match="metrics 'log_loss' is not for this network's loss; accuracy, auc are"):
        case.net.evaluate(case.X, case.y, metrics=["log_loss"])


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
def test_metrics_of_numbers(rng, loss, weighted):
    case = make_case(rng, (5, 17, 3), loss, weighted=weighted)
    p, w = case.net.predict(case.X), case.weight
    scores = case.net.evaluate(case.X, case.y, w, metrics=["mae", "rmse", "r2"])
    assert scores["mae"] == pytest.approx(peers.mean_absolute_error(case.y, p, sample_weight=w))
    assert scores["rmse"] == pytest.approx(peers.mean_squared_error(case.y, p, sample_weight=w) ** 0.5)
    assert scores["r2"] == pytest.approx(peers.r2_score(case.y, p, sample_weight=w))


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_r2_of_targets_that_do_not_vary(rng, weighted, dtype):
    case = make_case(rng, (5, 17, 3), weighted=weighted, dtype=dtype)
    y = case.y.copy()
    y[:, 1] = 0.1
    assert np.isnan(case.net.evaluate(case.X, y, case.weight, metrics=["r2"])["r2"])


@pytest.mark.parametrize(
    ("loss", "n_out", "y"),
    [
        ("cross_entropy", 3, np.arange(31) % 2),
        ("cross_entropy", 2, np.zeros(31, int)),
        ("binary_cross_entropy", 1, np.ones(31)),
        ("binary_cross_entropy", 2, np.stack([np.arange(31) % 2, np.zeros(31)], axis=1)),
        ("binary_cross_entropy", 1, np.linspace(0, 1, 31)),
    ],
)
def test_auc_wants_every_class_before_training(rng, loss, n_out, y):
    case = make_case(rng, (5, 17, n_out), loss)
    before = case.net.theta.copy()
    with pytest.raises(ValueError, match="metrics 'auc' needs validation_data's y to hold"):
        case.net.fit(case.X, case.y, validation_data=(case.X, y), metrics=["auc"])
    assert np.array_equal(case.net.theta, before)
    with pytest.raises(ValueError, match="metrics 'auc' needs y to hold"):
        case.net.evaluate(case.X, y, metrics=["auc"])


def test_curves_on_validation_data(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy", n_samples=64)
    history = case.net.fit(
        case.X[:40],
        case.y[:40],
        epochs=3,
        validation_data=(case.X[40:], case.y[40:]),
        metrics=["accuracy", "top_k(k=2)"],
    )
    assert list(history.to_frame())[-2:] == ["val_accuracy", "val_top_k(k=2)"]
    last = case.net.evaluate(case.X[40:], case.y[40:])
    assert [len(curve) for curve in history.val_metrics.values()] == [3, 3]
    assert history.val_metrics["accuracy"][-1] == last["accuracy"]
    assert history.val_loss[-1] == last["loss"]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [("accuracy", ["metrics", "sequence"]), (["mae"], ["metrics", "mae", "accuracy"]), (["f1"], ["metrics", "f1"])],
)
def test_metrics_that_do_not_fit_are_refused(rng, metrics, words):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    with pytest.raises((TypeError, ValueError)) as error:
        case.net.evaluate(case.X, case.y, metrics=metrics)
    assert all(word in str(error.value) for word in words)


def test_metrics_without_validation_data_are_refused(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    before = case.net.theta.copy()
    with pytest.raises(ValueError, match=r"metrics.*validation_data"):
        case.net.fit(case.X, case.y, metrics=["accuracy"])
    assert np.array_equal(case.net.theta, before)


def test_a_metric_is_reported_as_one_writes_it(rng):
    case = make_case(rng, (5, 17, 4), "cross_entropy")
    metrics = ["top_k(k=2)", "accuracy"]
    assert set(case.net.evaluate(case.X, case.y, metrics=metrics)) == {"loss", *metrics}
    stopping = fastbp.EarlyStopping(monitor="val_top_k(k=2)", patience=1)
    held_out = case.X, case.y
    case.net.fit(case.X, case.y, epochs=2, validation_data=held_out, metrics=metrics, callbacks=[stopping])
