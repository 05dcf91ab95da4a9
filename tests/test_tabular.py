"""The preset for tables: its encoder, its optimizer, and what comes out of it."""

from __future__ import annotations

import pickle
import re
from math import cos, log2, pi

import numpy as np
import pytest
import reference
from cases import make_case, relative_error

import fastbp
from fastbp import schedules

sklearn = pytest.importorskip("sklearn")
pandas = pytest.importorskip("pandas")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_diabetes, load_wine  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402

from fastbp.sklearn import MLPClassifier, MLPRegressor  # noqa: E402
from fastbp.tabular import NeuralTangentAdam, SmoothRobustScaler, table_encoder  # noqa: E402


def make_table(rng, n=400):
    """Mixed columns with gaps, and a target that follows from them."""
    colour = rng.choice(["red", "green", "blue"], n).astype(object)
    size = rng.normal(size=n) * 100 + 3
    flag = rng.choice([True, False], n)
    y = 2.0 * (colour == "red") - (colour == "blue") + size / 50 + flag
    colour[rng.random(n) < 0.05] = None
    size[rng.random(n) < 0.1] = np.nan
    frame = pandas.DataFrame({"colour": colour, "size": size, "flag": flag, "noise": rng.standard_cauchy(n)})
    return frame.astype({"flag": "category"}), y


def test_scaler(rng):
    X = np.column_stack([rng.standard_cauchy(100), np.full(100, 5.0), np.r_[np.zeros(80), np.full(20, 7.0)]])
    actual = SmoothRobustScaler().fit_transform(X)
    low, middle, high = np.quantile(X[:, 0], (0.25, 0.5, 0.75))
    first = (X[:, 0] - middle) / (high - low)
    np.testing.assert_allclose(actual[:, 0], first / np.sqrt(1 + (first / 3) ** 2), rtol=1e-12)
    assert np.abs(actual).max() < 3
    assert not actual[:, 1].any()
    assert SmoothRobustScaler().fit(X).transform([[1e300, 0, 0]])[0, 0] == 3
    np.testing.assert_allclose(np.unique(actual[:, 2]), [0, 2 / np.sqrt(1 + 4 / 9)], rtol=1e-12)


def test_encoder_on_a_mixed_table(rng):
    X, _ = make_table(rng)
    encoder = table_encoder(X).fit(X)
    encoded = encoder.transform(X)
    # size, noise and where size is missing; three colours and a missing one; one of two flags
    assert encoded.shape == (len(X), 3 + 4 + 1)
    assert np.isfinite(encoded).all()
    new = X.iloc[:2].assign(colour=["violet", "red"])
    assert not (encoder.transform(new)[0] == encoder.transform(new)[1]).all()
    as_objects = X.to_numpy(dtype=object)
    assert table_encoder(as_objects).fit_transform(as_objects).shape == encoded.shape


@pytest.mark.parametrize(
    "column",
    [
        pandas.Series(["a", "1", None, "a"], dtype="string"),
        pandas.Series(["a", 1, pandas.NA, "a"], dtype=object),
        pandas.Series(["a", 1, None, "a"], dtype=object),
        pandas.Series(["a", 1.0, np.nan, "a"], dtype=object),
        np.array(["a", 1, pandas.NA, "a"], dtype=object),
    ],
    ids=["string", "NA", "None", "nan", "array"],
)
def test_a_category_is_its_name_and_what_is_missing_is_one_more(column):
    X = column.to_frame() if isinstance(column, pandas.Series) else column[:, None]
    encoder = table_encoder(X).fit(X)
    encoded = encoder.transform(X)
    assert encoded.shape == (4, 3)
    assert (encoded[0] == encoded[3]).all()
    if isinstance(column, pandas.Series):
        assert (encoder.transform(pandas.DataFrame({0: [1]})) == encoded[1]).all()


def test_integers_with_gaps_keep_their_names():
    X = pandas.DataFrame({"k": pandas.Categorical([1, 2, None, 3])})
    encoder = table_encoder(X).fit(X)
    whole = X.dropna()
    assert (encoder.transform(whole) == encoder.transform(X)[[0, 1, 3]]).all()


def test_times_are_numbers():
    times = pandas.to_datetime(["1970-01-01", "1970-01-02", None, "1970-01-05", "2020-01-01"])
    X = pandas.DataFrame(
        {
            "naive": times,
            "aware": times.tz_localize("Europe/Berlin"),
            "span": pandas.to_timedelta([0, 1, None, 4, 9], unit="D"),
            "period": times.to_period("M"),
        }
    )
    seconds = np.array([0.0, 86400.0, np.nan, 4 * 86400.0, 9 * 86400.0])
    expected = table_encoder(seconds[:, None]).fit_transform(seconds[:, None])
    np.testing.assert_allclose(table_encoder(X[["span"]]).fit_transform(X[["span"]]), expected, rtol=1e-12)
    for name in ("naive", "aware"):
        encoded = table_encoder(X[[name]]).fit_transform(X[[name]])
        np.testing.assert_allclose(encoded[:4], expected[:4], rtol=1e-12)
        assert encoded.shape == expected.shape
    assert table_encoder(X[["period"]]).fit_transform(X[["period"]]).shape == (5, 3)
    assert table_encoder(X).fit_transform(X).shape == (5, 3 * 2 + 3)


def test_schedules_of_the_recipe():
    for time in (0.0, 0.3, 0.5, 0.7, 0.99):
        flat = 1.0 if time < 0.5 else (1 + cos(pi * (2 * time - 1))) / 2
        assert schedules.FlatCosine().factor(10 * time, 10) == pytest.approx(flat, abs=1e-12)
        wave = (1 - cos(2 * pi * log2(1 + 15 * time))) / 2
        assert schedules.LogCosine().factor(10 * time, 10) == pytest.approx(wave, abs=1e-12)


def test_optimizer_is_adam_in_the_neural_tangent_parametrization(rng):
    """Adam on V = W sqrt(n_in), with a tenth of the rate and no decay for biases, six times the rate for gains."""
    case = make_case(rng, (9, 16, 3), scale_inputs=True)
    network, theta, X = case.exact
    parts = reference.layers(network, theta)
    scales = [np.sqrt(len(W)) for W in parts.W]
    groups = [(6.0, 1.0, parts.input_scale.copy(), lambda grad: grad.input_scale)]
    for k, scale in enumerate(scales):
        groups.append((1.0, 1.0, parts.W[k] * scale, lambda grad, k=k, scale=scale: grad.W[k] / scale))
        groups.append((0.1, 0.0, parts.b[k].copy(), lambda grad, k=k: grad.b[k]))
    states = [dict.fromkeys("mv", 0.0) for _ in groups]
    optimizer = NeuralTangentAdam(0.01, beta2=0.95, weight_decay=0.5, epsilon=1e-20)
    for step in range(1, 6):
        _, grad = reference.loss_and_gradients(network, theta, X, case.y)
        grad = reference.layers(network, grad)
        for k, (rate, decay, values, of) in enumerate(groups):
            new = values * (1 - 0.01 * rate * decay * 0.5)
            groups[k] = (
                rate,
                decay,
                reference.adam(new, of(grad), states[k], step, 0.01 * rate, beta2=0.95, epsilon=1e-20),
                of,
            )
        values = [group[2] for group in groups]
        theta = np.concatenate(
            [values[0], (values[1] / scales[0]).ravel(), values[2], (values[3] / scales[1]).ravel(), values[4]]
        )
        case.net.train_on_batch(case.X, case.y, optimizer=optimizer)
        assert relative_error(case.net.theta, theta) < 1e-10


def test_annealing_multiplies_dropout_and_decay_epoch_by_epoch(rng):
    """With a rate of 0 in effect, theta shrinks by the decay of each epoch alone."""
    case = make_case(rng, (5, 7, 3), dropout=0.5)
    theta, seen = case.net.theta.copy(), []

    class Watch(fastbp.Callback):
        def begin(self, net, controls):
            self.controls = controls

        def after_epoch(self, net, history):
            seen.append((net.theta.copy(), self.controls.dropout.max()))

    linear = schedules.Polynomial()
    case.net.fit(
        case.X,
        np.zeros_like(case.y),
        sample_weight=np.zeros(len(case.X)) + 1e-200,
        optimizer=fastbp.AdamW(1.0, weight_decay=0.1, epsilon=1e300),
        batch_size=100,
        epochs=4,
        callbacks=[fastbp.Annealing(linear, linear), Watch()],
    )
    for k, (actual, dropout) in enumerate(seen):
        theta = theta * (1 - 0.1 * (1 - k / 4))
        np.testing.assert_allclose(actual, theta, rtol=1e-9)
        assert dropout == pytest.approx(0.5 * (1 - (k + 1) / 4))


def test_classifier_on_a_mixed_table(rng):
    X, y = make_table(rng)
    labels = np.where(y > 2, "high", np.where(y < 0, "low", "middle"))
    model = MLPClassifier(preset="tabular", max_iter=60, random_state=0).fit(X, labels)
    assert model.score(X, labels) > 0.9
    assert model.predict_proba(X).shape == (len(X), 3)
    assert list(model.feature_names_in_) == list(X.columns)
    assert model.n_features_in_ == 4
    assert model.n_iter_ == len(model.loss_curve_)
    assert len(model.validation_scores_) == 60
    assert model.n_iter_ == min((4, 12, 28, 60), key=lambda end: model.validation_scores_[end - 1])
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    same = clone(model).fit(X, labels)
    assert np.array_equal(same.predict_proba(X), model.predict_proba(X))
    with pytest.raises(ValueError, match="columns"):
        model.predict(X[["size", "colour"]])


def test_regressor_on_a_mixed_table(rng):
    X, y = make_table(rng)
    model = MLPRegressor(preset="tabular", max_iter=60, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.8
    assert y.min() <= model.predict(X).min()
    two = MLPRegressor(preset="tabular", max_iter=5, random_state=0).fit(X, np.column_stack([y, -y]))
    assert two.predict(X).shape == (len(X), 2)


def test_keeps_the_epoch_that_was_best_on_the_validation_data(rng):
    X, y = load_diabetes(return_X_y=True)
    train, rest = slice(0, 300), slice(300, None)
    model = MLPRegressor(preset="tabular", max_iter=40, random_state=0)
    model.fit(X[train], y[train], validation_data=(X[rest], y[rest]))
    scale = y[train].std()
    error = np.sqrt(np.mean((model.predict(X[rest]) - y[rest]) ** 2)) / scale
    assert error <= min(model.validation_scores_) * (1 + 1e-6)
    assert min(model.validation_scores_) < model.validation_scores_[-1] or len(model.validation_scores_) == 40


def test_works_in_searches():
    X, y = load_wine(return_X_y=True)
    search = GridSearchCV(
        MLPClassifier(preset="tabular", max_iter=20, random_state=0), {"hidden_layer_sizes": [(8,), (64, 64)]}, cv=2
    )
    assert search.fit(X, y).best_score_ > 0.9
    assert cross_val_score(MLPClassifier(preset="tabular", max_iter=20, random_state=0), X, y, cv=2).mean() > 0.9


def test_what_the_recipe_decides_is_refused():
    X, y = load_wine(return_X_y=True)
    with pytest.raises(ValueError, match=r"alpha is 0\.1, but with preset='tabular' the recipe decides it"):
        MLPClassifier(preset="tabular", alpha=0.1).fit(X, y)
    with pytest.raises(ValueError, match="preset must be 'tabular' or None, it is 'other'"):
        MLPClassifier(preset="other").fit(X, y)


@pytest.mark.parametrize("metric", ["accuracy", "rmse"])
def test_early_stopping_on_a_metric(rng, metric):
    """More is better for one, less for the other."""
    loss = {"accuracy": "cross_entropy", "rmse": "squared_error"}[metric]
    case = make_case(rng, (5, 17, 3), loss, n_samples=64)
    stop = fastbp.EarlyStopping(patience=100, monitor=f"val_{metric}")
    history = case.net.fit(
        case.X[:40],
        case.y[:40],
        epochs=30,
        validation_data=(case.X[40:], case.y[40:]),
        metrics=[metric],
        callbacks=[stop],
        optimizer=fastbp.Adam(0.05),
    )
    curve = np.array(history.val_metrics[metric])
    assert stop.best_epoch == (curve.argmax() if metric == "accuracy" else curve.argmin())
    score = case.net.evaluate(case.X[40:], case.y[40:], metrics=[metric])[metric]
    assert score == curve[stop.best_epoch]
    with pytest.raises(ValueError, match=f"monitor is 'val_{metric}', but this training has loss alone"):
        case.net.fit(case.X, case.y, callbacks=[stop])


QUICK = {"preset": "tabular", "hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0}


def test_partial_fit_is_refused(rng):
    X, y = make_table(rng, 60)
    model = MLPRegressor(**QUICK)
    with pytest.raises(ValueError, match="preset must be None for partial_fit, it is 'tabular'"):
        model.partial_fit(X, y)
    before = model.fit(X, y).predict(X)
    with pytest.raises(ValueError, match="preset must be None for partial_fit"):
        model.partial_fit(X, y)
    assert np.array_equal(model.predict(X), before)
    with pytest.raises(ValueError, match="preset must be None for partial_fit"):
        MLPClassifier(**QUICK).partial_fit(X, y > 0, classes=[False, True])


def test_weights_of_the_validation_data_count(rng):
    X, y = make_table(rng, 90)
    weight = np.r_[np.ones(20), np.zeros(10)]
    scores = [
        MLPRegressor(**QUICK).fit(X[:60], y[:60], validation_data=held_out).validation_scores_
        for held_out in [(X[60:], y[60:], weight), (X[60:80], y[60:80]), (X[60:], y[60:])]
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    assert scores[0] != scores[2]


def test_samples_of_weight_0_are_left_out(rng):
    X, y = make_table(rng, 60)
    weight = np.r_[np.ones(5), np.zeros(55)]
    model = MLPRegressor(**QUICK).fit(X, y, sample_weight=weight)
    assert np.isfinite(model.predict(X)).all()
    assert model.predict(X).max() <= y[:5].max()


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (lambda X, y: X, "validation_data must be a tuple (X, y) or (X, y, sample_weight), it is a DataFrame"),
        (
            lambda X, y: (X, y, y, y),
            "validation_data must be a tuple (X, y) or (X, y, sample_weight), it is a tuple of 4",
        ),
        (lambda X, y: (X, ["new", *y[1:]]), "validation_data's y must hold classes of y, it holds 'new'"),
        (lambda X, y: (X.to_numpy(), y), "validation_data: X must be a DataFrame, as it was in fit"),
        (lambda X, y: (X, y[1:]), "inconsistent numbers of samples: [60, 59]"),
    ],
    ids=["no tuple", "four", "a new label", "an array", "lengths"],
)
def test_bad_validation_data_is_refused(rng, held_out, message):
    X, y = make_table(rng, 60)
    labels = np.where(y > 0, "high", "low").tolist()
    model = MLPClassifier(**QUICK)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(X, labels, validation_data=held_out(X, labels))
    assert not hasattr(model, "coefs_")


def test_too_few_samples_and_arrays_for_frames_are_refused(rng):
    X, y = make_table(rng, 60)
    with pytest.raises(ValueError, match=r"X must hold at least 2 samples .*, it holds 1"):
        MLPRegressor(**QUICK).fit(X[:1], y[:1])
    with pytest.raises(ValueError, match="it holds 1"):
        MLPRegressor(**QUICK).fit(X, y, sample_weight=np.arange(60) == 7)
    model = MLPRegressor(**QUICK).fit(X, y)
    with pytest.raises(TypeError, match="X must be a DataFrame, as it was in fit, it is of type ndarray"):
        model.predict(X.to_numpy())


def test_labels_of_columns_may_be_numbers(rng):
    X, _ = make_table(rng)
    numbered = X[["size", "colour", "noise", "flag"]]
    expected = table_encoder(numbered).fit_transform(numbered)
    numbered = numbered.set_axis([3, 1, 0, 2], axis=1)
    assert np.array_equal(table_encoder(numbered).fit_transform(numbered), expected)


def test_objects_that_are_numbers_are_numbers(rng):
    X, _ = make_table(rng)
    objects = X.astype({"size": object, "noise": object})
    encoder = table_encoder(objects)
    assert np.array_equal(encoder.fit_transform(objects), table_encoder(X).fit_transform(X))


@pytest.mark.parametrize(("n_samples", "n_classes", "fraction"), [(1000, 250, None), (120, 60, 0.2)])
def test_classes_may_be_more_than_are_held_out(rng, n_samples, n_classes, fraction):
    settings = {} if fraction is None else {"validation_fraction": fraction}
    model = MLPClassifier((8,), preset="tabular", max_iter=1, **settings)
    model.fit(rng.normal(size=(n_samples, 3)), np.arange(n_samples) % n_classes)
    assert len(model.classes_) == n_classes


def test_a_table_of_one_dimension_is_refused(rng):
    with pytest.raises(ValueError, match=r"X must be a table of two dimensions .*, it has 1"):
        MLPClassifier(preset="tabular").fit(np.arange(10.0), np.arange(10) % 2)


def test_verbose_shows_a_bar(rng, capfd):
    X, y = make_table(rng, 60)
    for verbose in (False, True):
        MLPRegressor(hidden_layer_sizes=(4,), preset="tabular", max_iter=2, verbose=verbose).fit(X, y)
        assert ("samples" in capfd.readouterr().err) == verbose
