"""The estimators: scikit-learn's own checks, its numbers, and its tools around them."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

import fastbp

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")

import joblib  # noqa: E402
import pandas as pd  # noqa: E402
from scipy import sparse  # noqa: E402
from sklearn import datasets, neural_network  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.ensemble import BaggingClassifier  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import fastbp.sklearn as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("kind", [ours.MLPClassifier, ours.MLPRegressor])
def test_scikit_learns_own_checks(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind(), on_skip=None)
    assert len(results) > 50
    assert {result["status"] for result in results} <= {"passed", "skipped"}


def make_data(task, dtype="float64"):
    """Features and targets: classes, two classes, several labels at once, one real target or two."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(230, 6)).astype(dtype)
    z = np.tanh(X @ rng.normal(size=(6, 3)))
    y = {
        "classes": z.argmax(axis=1),
        "two classes": np.where(z[:, 0] > 0, "yes", "no"),
        "labels": (z > 0).astype(int),
        "real": z[:, 0],
        "two real": z[:, :2],
        "counts": rng.poisson(np.exp(z[:, 0])),
    }
    return X, y[task]


def both(task, **settings):
    """scikit-learn's estimator and ours, fitted alike."""
    X, y = make_data(task)
    name = "MLPRegressor" if task in ("real", "two real", "counts") else "MLPClassifier"
    if task == "counts":
        settings["loss"] = "poisson"
    settings = {"hidden_layer_sizes": (13, 5), "shuffle": False, "random_state": 3, "max_iter": 30} | settings
    return [getattr(module, name)(**settings).fit(X, y) for module in (neural_network, ours)]


SETTINGS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05, "nesterovs_momentum": False},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.05},
    "plain sgd": {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0.0},
    "invscaling": {"solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "invscaling", "power_t": 0.2},
    "adaptive": {
        "solver": "sgd",
        "learning_rate_init": 0.03,
        "learning_rate": "adaptive",
        "tol": 0.01,
        "n_iter_no_change": 2,
        "max_iter": 100,
    },
    "alpha": {"alpha": 0.3},
    "batch size": {"batch_size": 50},
    "tol": {"tol": 0.05, "n_iter_no_change": 2, "max_iter": 300},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "max_iter": 100},
    "tanh": {"activation": "tanh"},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("task", ["classes", "two classes", "labels", "real", "counts"])
def test_the_same_training_as_scikit_learn(task, settings):
    theirs, own = both(task, **SETTINGS[settings])
    assert own.n_iter_ == theirs.n_iter_
    assert own.t_ == theirs.t_
    assert own.out_activation_ == theirs.out_activation_
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    for name in ("best_loss_", "best_validation_score_", "validation_scores_"):
        mine, expected = getattr(own, name), getattr(theirs, name)
        if expected is None:
            assert mine is None
        else:
            np.testing.assert_allclose(mine, expected, rtol=1e-6, err_msg=name)
    for W, expected in zip(own.coefs_ + own.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(W, expected, rtol=1e-4, atol=1e-6)
    X, _ = make_data(task)
    if hasattr(theirs, "predict_proba"):
        np.testing.assert_allclose(own.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
        np.testing.assert_allclose(own.predict_log_proba(X), theirs.predict_log_proba(X), atol=1e-3)
    else:
        np.testing.assert_allclose(own.predict(X), theirs.predict(X), atol=1e-5)


@pytest.mark.parametrize("task", ["classes", "two classes", "real"])
def test_lbfgs(task):
    theirs, own = both(task, solver="lbfgs", max_iter=15)
    assert own.n_iter_ == theirs.n_iter_
    assert own.loss_ == pytest.approx(theirs.loss_, rel=1e-6)


def test_lbfgs_takes_threads_and_a_device(monkeypatch):
    opened, open_session = [], fastbp.MLP._session
    monkeypatch.setattr(
        fastbp.MLP, "_session", lambda *args, **settings: opened.append(args[4:]) or open_session(*args[:4], 2)
    )
    X, y = make_data("classes")
    ours.MLPClassifier(solver="lbfgs", threads=2, device="cuda", max_iter=5).fit(X, y)
    assert opened == [(2, "cuda")]


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"optimizer": fastbp.Adam()}])
def test_what_lbfgs_cannot_do_is_refused(setting):
    X, y = make_data("classes")
    estimator = ours.MLPClassifier(solver="lbfgs", **setting)
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is not for solver='lbfgs'"):
        estimator.fit(X, y)
    assert not hasattr(estimator, "coefs_")


def test_two_real_targets_have_the_same_weights():
    theirs, own = both("two real", tol=0)
    for W, expected in zip(own.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(W, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_is_scikit_learns(solver):
    X, y = make_data("classes")
    settings = {"solver": solver, "shuffle": False, "random_state": 0, "learning_rate_init": 0.01}
    estimators = neural_network.MLPClassifier(**settings), ours.MLPClassifier(**settings)
    for _ in range(5):
        for estimator in estimators:
            estimator.partial_fit(X, y, classes=[0, 1, 2])
    theirs, own = estimators
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    assert own.t_ == theirs.t_


SGD = {"solver": "sgd", "learning_rate_init": 0.1, "momentum": 0.5, "shuffle": False, "random_state": 0}


def test_dead_units_are_scikit_learns():
    """Where gradients vanish, it matters which root epsilon is added to."""
    X, y = make_data("classes")
    settings = {"hidden_layer_sizes": (13, 5), "shuffle": False, "random_state": 3, "max_iter": 100, "tol": 0}
    curves = [module.MLPClassifier(**settings, epsilon=0.01).fit(X, y).loss_curve_ for module in (neural_network, ours)]
    np.testing.assert_allclose(*curves, rtol=1e-6)


def test_partial_fit_keeps_a_lowered_learning_rate():
    X, y = make_data("classes")
    settings = SGD | {"learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 2}
    theirs, own = (module.MLPClassifier(**settings) for module in (neural_network, ours))
    for _ in range(40):
        for estimator in (theirs, own):
            estimator.partial_fit(X, y, classes=[0, 1, 2])
    assert own._optimizer.learning_rate == theirs._optimizer.learning_rate < 0.1 / 5
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-6)


def test_rates_of_inverse_scaling_are_scikit_learns_from_call_to_call():
    X, y = make_data("classes")
    settings = SGD | {"learning_rate": "invscaling", "power_t": 0.2, "max_iter": 3, "warm_start": True}
    theirs, own = (module.MLPClassifier(**settings) for module in (neural_network, ours))
    for name in ("fit", "fit", "partial_fit", "fit"):
        for estimator in (theirs, own):
            getattr(estimator, name)(X, y)
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=1e-6)


def test_warm_start_goes_on():
    X, y = make_data("classes")
    estimator = ours.MLPClassifier(warm_start=True, max_iter=5, random_state=0)
    losses = [estimator.fit(X, y).loss_ for _ in range(4)]
    assert len(estimator.loss_curve_) == 20 and estimator.n_iter_ == 5
    assert losses == sorted(losses, reverse=True)


def test_a_training_that_does_not_converge_says_so():
    X, y = make_data("classes")
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\)"):
        ours.MLPClassifier(max_iter=2).fit(X, y)


def test_a_training_that_diverges_says_so():
    X, y = make_data("real")
    with pytest.raises(ValueError, match="non-finite"):
        ours.MLPRegressor(solver="sgd", learning_rate_init=1e9).fit(X, y)


def test_what_fastbp_adds():
    X, y = make_data("classes")
    estimator = ours.MLPClassifier(
        (16, 8),
        activation=["gelu", "leaky_relu(negative_slope=0.2)"],
        dropout=0.1,
        optimizer=fastbp.AdamW(0.01),
        class_weight="balanced",
        threads=2,
        early_stopping=True,
        max_iter=30,
        random_state=0,
    )
    estimator.fit(X[:200], y[:200], validation_data=(X[200:], y[200:]))
    assert estimator.score(X[200:], y[200:]) == estimator.best_validation_score_ > 0.7


def test_class_weight_is_a_sample_weight():
    X, y = make_data("classes")
    weighted = ours.MLPClassifier(class_weight={0: 3.0, 1: 1.0, 2: 0.5}, random_state=0, max_iter=5).fit(X, y)
    weight = np.choose(y, [3.0, 1.0, 0.5])
    plain = ours.MLPClassifier(random_state=0, max_iter=5).fit(X, y, sample_weight=weight)
    assert weighted.loss_curve_ == plain.loss_curve_


def test_class_weight_of_partial_fit_is_a_sample_weight():
    X, y = make_data("two classes")
    settings = {"random_state": 0, "shuffle": False}
    weighted = ours.MLPClassifier(class_weight={"no": 3.0}, **settings)
    plain = ours.MLPClassifier(**settings)
    given = np.linspace(1, 2, len(y))
    for rows in (slice(None), y == "yes"):  # not all classes in each call
        weighted.partial_fit(X[rows], y[rows], given[rows], classes=["no", "yes"])
        plain.partial_fit(X[rows], y[rows], (given * np.where(y == "no", 3, 1))[rows], classes=["no", "yes"])
    assert weighted.loss_curve_ == plain.loss_curve_
    for junk in ("balanced", "junk"):
        estimator = ours.MLPClassifier(class_weight=junk)
        with pytest.raises(ValueError, match=f"class_weight must be a dict or None for partial_fit, it is '{junk}'"):
            estimator.partial_fit(X, y, classes=["no", "yes"])
        assert not hasattr(estimator, "classes_")


def test_an_optimizer_given_stays_as_it_is():
    X, y = make_data("classes")
    optimizer = fastbp.AdamW(0.01)
    estimator = ours.MLPClassifier((8,), optimizer=optimizer, max_iter=3, random_state=0)
    first = estimator.fit(X, y).loss_curve_
    assert estimator.fit(X, y).loss_curve_ == first
    assert (optimizer._slots, optimizer._step) == (None, 0)
    step = estimator._optimizer._step
    assert estimator.partial_fit(X, y)._optimizer._step > step
    GridSearchCV(estimator, {"hidden_layer_sizes": [(4,), (5, 3)]}, cv=2, error_score="raise").fit(X, y)


def test_names_of_activations_may_be_an_array():
    X, y = make_data("classes")
    settings = {"hidden_layer_sizes": (8, 4), "max_iter": 3, "random_state": 0}
    names = ["tanh", "logistic"]
    of_list, of_array = (ours.MLPClassifier(activation=given, **settings) for given in (names, np.array(names)))
    assert of_list.fit(X, y).loss_curve_ == of_array.fit(X, y).loss_curve_


def test_validation_data_is_checked_like_x():
    X, y = make_data("classes")
    frame = pd.DataFrame(X, columns=list("abcdef"))
    estimator = ours.MLPClassifier(early_stopping=True, max_iter=3)
    weight = np.ones(len(y))
    for held_out, message in [
        ((frame[list("bacdef")], y), "validation_data: .*feature names"),
        ((frame[list("abc")], y), "validation_data: .*feature names"),
        ((X[:, :3], y), "validation_data: .*3 features"),
        ((X, y[1:]), r"inconsistent numbers of samples: \[230, 229\]"),
        (frame, r"validation_data must be a tuple \(X, y\) or .*, it is a DataFrame"),
        ((X, y, weight, weight), "it is a tuple of 4"),
    ]:
        with warnings.catch_warnings(), pytest.raises(ValueError, match=f"(?s){message}"):
            warnings.simplefilter("ignore")  # an array has no names, as at predict
            estimator.fit(frame, y, validation_data=held_out)
        assert not hasattr(estimator, "coefs_")
    estimator.fit(frame, y, validation_data=(frame, y, weight))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: make_pipeline(StandardScaler(), e),
        lambda e: GridSearchCV(e, {"alpha": [1e-4, 1e-2]}, cv=2, n_jobs=2),
        lambda e: CalibratedClassifierCV(e, cv=2),
        lambda e: BaggingClassifier(e, n_estimators=3),
        clone,
        lambda e: pickle.loads(pickle.dumps(e)),
    ],
    ids=["pipeline", "grid search", "calibration", "bagging", "clone", "pickle"],
)
def test_inside_scikit_learns_tools(wrap):
    X, y = make_data("classes")
    estimator = wrap(ours.MLPClassifier((16,), max_iter=60, learning_rate_init=0.01, random_state=0)).fit(X, y)
    assert estimator.score(X, y) > 0.8
    again = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(again.predict(X), estimator.predict(X))


def test_frames_and_sparse_input():
    X, y = make_data("two classes")
    settings = {"max_iter": 5, "random_state": 0}
    frame = pd.DataFrame(X, columns=list("abcdef"))
    of_array = ours.MLPClassifier(**settings).fit(X, y)
    of_frame = ours.MLPClassifier(**settings).fit(frame, y)
    of_sparse = ours.MLPClassifier(**settings).fit(sparse.csr_matrix(X), y)
    assert list(of_frame.feature_names_in_) == list("abcdef")
    assert of_array.loss_curve_ == of_frame.loss_curve_ == of_sparse.loss_curve_
    assert np.array_equal(of_sparse.predict(sparse.csc_matrix(X)), of_array.predict(X))


def test_float32_stays_float32():
    X, y = make_data("classes", "float32")
    estimator = ours.MLPClassifier(max_iter=3).fit(X, y)
    assert {W.dtype.name for W in estimator.coefs_} == {"float32"}
    assert estimator.predict_proba(X).dtype == np.float32


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_cross_validated_like_scikit_learn(name):
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    scores = [
        cross_val_score(make_pipeline(StandardScaler(), module.MLPClassifier(random_state=0)), X, y, cv=5).mean()
        for module in (neural_network, ours)
    ]
    assert scores[1] > scores[0] - 0.03


class Configured(ours.MLPClassifier):
    """A subclass with parameters of its own choice."""

    def __init__(self, alpha=1e-4):
        super().__init__((5,), alpha=alpha, solver="lbfgs", max_iter=3)


def test_a_subclass_may_have_fewer_parameters():
    X, y = make_data("classes")
    twin = ours.MLPClassifier((5,), alpha=0.1, solver="lbfgs", max_iter=3, random_state=0).fit(X, y)
    configured = Configured(0.1)
    configured.random_state = 0
    assert np.array_equal(configured.fit(X, y).predict_proba(X), twin.predict_proba(X))


def test_an_estimator_in_a_mapped_file_is_copied_before_it_trains(tmp_path):
    """joblib maps what it hands to another process."""
    X, y = make_data("classes")
    net = fastbp.MLP((6, 3), loss="cross_entropy", random_state=0)
    net.partial_fit(X, y)
    trained = {"estimator": ours.MLPClassifier((5,), max_iter=2, random_state=0).fit(X, y), "net": net}
    for name, original in trained.items():
        joblib.dump(original, tmp_path / name)
        mapped = joblib.load(tmp_path / name, mmap_mode="r")
        predict = "predict_proba" if name == "estimator" else "predict"
        before = getattr(original, predict)(X)
        for one in (mapped, original):
            one.partial_fit(X, y)
        assert np.array_equal(getattr(mapped, predict)(X), getattr(original, predict)(X))
        assert np.array_equal(getattr(joblib.load(tmp_path / name), predict)(X), before)


def test_training_that_converges_in_its_last_epoch_does_not_warn():
    X, y = make_data("classes")
    for kind in (neural_network.MLPClassifier, ours.MLPClassifier):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model = kind(max_iter=15, n_iter_no_change=13, tol=10, random_state=0).fit(X, y)
        assert model.n_iter_ == 15


def test_validation_data_is_not_kept():
    X, y = make_data("classes")
    for settings in ({"early_stopping": True}, {"preset": "tabular"}):
        model = ours.MLPClassifier((5,), max_iter=3, **settings).fit(X, y, validation_data=(X, y))
        assert not hasattr(model, "_validation_data")


def test_lbfgs_leaves_what_is_not_finite_to_the_line_search():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(500, 5)) * [1, 10, 100, 1000, 1.0]
    y = rng.poisson(np.exp(1 + X[:, 0] * 0.5))
    losses = [
        kind(loss="poisson", solver="lbfgs", random_state=2, max_iter=60).fit(X / 2, y).loss_
        for kind in (neural_network.MLPRegressor, ours.MLPRegressor)
    ]
    assert np.isfinite(losses[1])
