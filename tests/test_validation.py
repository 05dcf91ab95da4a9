"""Bad input is refused in one clear sentence and changes nothing; good input of any form gives equal bits."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy

import fastbp
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.problem import NORMALIZATIONS
from fastbp.optimizers import BOUNDS, BY_NAME

N_SAMPLES, N_IN = 12, 3
N_OUT = {"squared_error": 2, "cross_entropy": 3, "binary_cross_entropy": 2}


def make_data(loss="squared_error"):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_SAMPLES, N_IN))
    y = rng.normal(size=(N_SAMPLES, N_OUT[loss]))
    if loss == "cross_entropy":
        y = y.argmax(axis=1)
    elif loss == "binary_cross_entropy":
        y = 1.0 * (y > 0)
    return X, y


class Training:
    """A network in the middle of its training, with an optimizer of its own and one that the caller keeps."""

    def __init__(self, loss="squared_error"):
        self.X, self.y = make_data(loss)
        self.net = fastbp.MLP((N_IN, 4, N_OUT[loss]), activation="tanh", loss=loss, random_state=1)
        self.optimizer = fastbp.Adam()
        self.advance()

    def advance(self):
        self.net.fit(self.X, self.y, optimizer=self.optimizer, batch_size=5, epochs=2)
        self.net.partial_fit(self.X, self.y, batch_size=5)
        self.net.train_on_batch(self.X, self.y)


def assert_clear(error, words):
    """One sentence that holds every word; words are regular expressions."""
    message = str(error.value)
    assert type(error.value) in (ValueError, TypeError)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), f"{word!r} is not in: {message}"


def assert_refused(call, words, loss="squared_error"):
    """The call fails clearly, and training goes on as if it had never been made, to the bit."""
    training, twin = Training(loss), Training(loss)
    with pytest.raises((ValueError, TypeError)) as error:
        call(training)
    assert_clear(error, words)
    assert training.net.theta.tobytes() == twin.net.theta.tobytes(), "the failed call changed theta"
    training.advance()
    twin.advance()
    assert training.net.theta.tobytes() == twin.net.theta.tobytes(), "the failed call changed later training"


# ---- data --------------------------------------------------------------------------------------


def put(array, value):
    """The array with one bad element."""
    changed = np.array(array, dtype=np.result_type(array, type(value)))
    changed[(5, 1)[: changed.ndim]] = value
    return changed


class Bad(NamedTuple):
    words: list[str]
    X: object = None  # None: good
    y: object = None
    sample_weight: object = None
    loss: str = "squared_error"


X, Y = make_data()
LABELS = make_data("cross_entropy")[1]
BITS = make_data("binary_cross_entropy")[1]
WEIGHT = np.ones(N_SAMPLES)

BAD_X = {
    "rank 1": Bad([r"\bX\b", r"\(12,\)", r"n_samples, 3"], X=X[:, 0]),
    "rank 3": Bad([r"\bX\b", r"\(12, 3, 1\)", r"n_samples, 3"], X=X[:, :, None]),
    "scalar": Bad([r"\bX\b", r"\(\)", r"n_samples, 3"], X=1.0),
    "too wide": Bad([r"\bX\b", r"\(12, 4\)", r"n_samples, 3"], X=np.ones((12, 4))),
    "too narrow": Bad([r"\bX\b", r"\(12, 2\)", r"n_samples, 3"], X=X[:, :2]),
    "empty": Bad([r"\bX\b", r"\(0, 3\)|empty|no samples"], X=X[:0]),
    "NaN": Bad([r"\bX\b", "(?i)nan", "5", "1"], X=put(X, np.nan)),
    "infinity": Bad([r"\bX\b", "(?i)inf", "5", "1"], X=put(X, -np.inf)),
    "too large": Bad([r"\bX\b", "float32"], X=put(X, 1e300)),
    "objects": Bad([r"\bX\b", "object"], X=X.astype(object)),
    "strings": Bad([r"\bX\b", "str|<U"], X=X.astype(str)),
    "complex": Bad([r"\bX\b", "complex"], X=X + 0j),
    "dates": Bad([r"\bX\b", "datetime"], X=np.zeros((12, 3), dtype="datetime64[s]")),
    "ragged": Bad([r"\bX\b"], X=[[1.0, 2.0, 3.0], [1.0]]),
    "masked": Bad([r"\bX\b", "12 of its 36", "masked"], X=np.ma.MaskedArray(X, [[True, False, False]] * 12)),
    "nothing": Bad([r"\bX\b", "None|object"], X=np.array(None)),
}
BAD_Y = {
    "too short": Bad([r"\by\b", "11", "12"], y=Y[:11]),
    "too wide": Bad([r"\by\b", r"\(12, 3\)", "2"], y=np.ones((12, 3))),
    "one column for two": Bad([r"\by\b", r"\(12,\)", "2"], y=Y[:, 0]),
    "rank 3": Bad([r"\by\b", r"\(12, 2, 1\)", "2"], y=Y[:, :, None]),
    "NaN": Bad([r"\by\b", "(?i)nan", "5", "1"], y=put(Y, np.nan)),
    "infinity": Bad([r"\by\b", "(?i)inf", "5", "1"], y=put(Y, np.inf)),
    "too large": Bad([r"\by\b", "float32"], y=put(Y, 1e300)),
    "objects": Bad([r"\by\b", "object"], y=Y.astype(object)),
    "strings": Bad([r"\by\b", "str|<U"], y=Y.astype(str)),
    "labels too short": Bad([r"\by\b", "11", "12"], y=LABELS[:11], loss="cross_entropy"),
    "label too high": Bad([r"\by\b", "3", "2"], y=put(LABELS, 3), loss="cross_entropy"),
    "label too low": Bad([r"\by\b", "-1", "0"], y=put(LABELS, -1), loss="cross_entropy"),
    "label too high for int64": Bad(
        [r"\by\b", "2"], y=put(LABELS.astype(np.uint64), np.uint64(2**64 - 1)), loss="cross_entropy"
    ),
    "label between": Bad([r"\by\b", "float64", "integer"], y=put(LABELS, 0.5), loss="cross_entropy"),
    "label NaN": Bad([r"\by\b", "(?i)nan|integer"], y=put(LABELS, np.nan), loss="cross_entropy"),
    "label text": Bad([r"\by\b", "str|<U"], y=LABELS.astype(str), loss="cross_entropy"),
    "negative probability": Bad([r"\by\b", "-0.5"], y=put(np.eye(3)[LABELS], -0.5), loss="cross_entropy"),
    "probabilities above one": Bad([r"\by\b", "sum"], y=np.ones((12, 3)), loss="cross_entropy"),
    "bit out of range": Bad([r"\by\b", "2", "0", "1"], y=put(BITS, 2.0), loss="binary_cross_entropy"),
    "negative bit": Bad([r"\by\b", "-1", "0", "1"], y=put(BITS, -1.0), loss="binary_cross_entropy"),
}
BAD_WEIGHT = {
    "negative": Bad(["sample_weight", "-0.5"], sample_weight=put(WEIGHT, -0.5)),
    "all zero": Bad(["sample_weight", "zero|0|positive"], sample_weight=0 * WEIGHT),
    "NaN": Bad(["sample_weight", "(?i)nan", "5"], sample_weight=put(WEIGHT, np.nan)),
    "infinity": Bad(["sample_weight", "(?i)inf", "5"], sample_weight=put(WEIGHT, np.inf)),
    "too short": Bad(["sample_weight", "11", "12"], sample_weight=WEIGHT[:11]),
    "rank 2": Bad(["sample_weight", r"\(12, 1\)", "12|n_samples"], sample_weight=WEIGHT[:, None]),
    "strings": Bad(["sample_weight", "str|<U"], sample_weight=WEIGHT.astype(str)),
}
BAD_DATA = {
    f"{name}: {kind}": bad
    for name, table in {"X": BAD_X, "y": BAD_Y, "sample_weight": BAD_WEIGHT}.items()
    for kind, bad in table.items()
}

# entry point -> its call with data, of which anything may be bad
CALLS = {
    "fit": lambda t, X, y, w: t.net.fit(X, y, sample_weight=w, optimizer=t.optimizer),
    "validation_data": lambda t, X, y, w: t.net.fit(t.X, t.y, optimizer=t.optimizer, validation_data=(X, y, w)),
    "partial_fit": lambda t, X, y, w: t.net.partial_fit(X, y, sample_weight=w),
    "train_on_batch": lambda t, X, y, w: t.net.train_on_batch(X, y, sample_weight=w),
    "loss_and_gradients": lambda t, X, y, w: t.net.loss_and_gradients(X, y, w),
    "evaluate": lambda t, X, y, w: t.net.evaluate(X, y, w),
}


@pytest.mark.parametrize("kind", BAD_DATA)
@pytest.mark.parametrize("entry", CALLS)
def test_bad_data_are_refused(entry, kind):
    bad = BAD_DATA[kind]

    def call(training):
        X = training.X if bad.X is None else bad.X
        y = training.y if bad.y is None else bad.y
        CALLS[entry](training, X, y, bad.sample_weight)

    words = [*bad.words, "validation"] if entry == "validation_data" else bad.words
    assert_refused(call, words, bad.loss)


@pytest.mark.parametrize("kind", BAD_X)
@pytest.mark.parametrize("entry", ["forward", "predict"])
def test_bad_inputs_are_refused(entry, kind):
    assert_refused(lambda training: getattr(training.net, entry)(BAD_X[kind].X), BAD_X[kind].words)


@pytest.mark.parametrize("kind", BAD_X)
def test_bad_inputs_of_standardize_are_refused(kind):
    words = [r"\bX\b"] if kind == "too large" else BAD_X[kind].words  # too large to be squared in float64
    assert_refused(lambda training: training.net.standardize(BAD_X[kind].X), words)


@pytest.mark.parametrize(
    ("class_weight", "words"),
    [
        ({3: 1.0}, ["class_weight", "3"]),
        ([1.0, 0.0, 1.0], ["class_weight", "1", "0.0"]),
        ("even", ["class_weight", "even"]),
        (5, ["class_weight", "5"]),
        (np.array(5.0), ["class_weight", "5"]),
        ([1.0, 2.0], ["class_weight", "3", "2"]),
        ({0: 1e300}, ["class_weight", "float32"]),
        ([1e-300] * 3, ["class_weight", "0"]),
        ({0: 10**400}, ["class_weight", "1000"]),
    ],
)
def test_bad_class_weights_are_refused(class_weight, words):
    def call(training):
        training.net.fit(training.X, training.y, class_weight=class_weight)

    assert_refused(call, words, "cross_entropy")


# ---- settings ----------------------------------------------------------------------------------

NOT_COUNTS = [0, -1, 2.5, "32", None, True]
# argument, value, what of it must be in the message
BAD_FIT = [
    *[("batch_size", value, str(value)) for value in NOT_COUNTS],
    *[("epochs", value, str(value)) for value in NOT_COUNTS],
    *[("accumulate", value, str(value)) for value in NOT_COUNTS],
    *[("threads", value, str(value)) for value in (0, -1, 2.5, "2")],
    *[(name, value, str(value)) for name in ("clip_norm", "clip_value") for value in (0.0, -1.0, np.nan, "1")],
    *[("steps", value, str(value)) for value in (0, -1, 2.5, "32", True)],
    ("class_weight", [1.0, 2.0], "labels"),
    ("schedule", 0.1, "0.1"),
    ("callbacks", 3, "3|int"),
    ("callbacks", [3], "3"),
    ("callbacks", [fastbp.EarlyStopping], "EarlyStopping"),
    ("sample_weight", np.full(N_SAMPLES, 1e37), "e.37"),
    ("sample_weight", np.full(N_SAMPLES, 1e-37), "e-37|e-38"),
    ("validation_data", X, "array"),
    ("validation_data", (X,), "1"),
    ("validation_data", (X, Y, None, None), "4"),
    ("validation_data", 3, "3|int"),
    ("optimizer", 3, "3|int"),
    ("optimizer", fastbp.Adam, "Adam|type"),
]


@pytest.mark.parametrize(("argument", "value", "given"), BAD_FIT, ids=[f"{row[0]} {row[2]}" for row in BAD_FIT])
def test_bad_settings_of_fit_are_refused(argument, value, given):
    def call(training):
        training.net.fit(training.X, training.y, **{"optimizer": training.optimizer, argument: value})

    assert_refused(call, [argument, given])


@pytest.mark.parametrize("value", NOT_COUNTS)
def test_a_bad_batch_size_of_partial_fit_is_refused(value):
    def call(training):
        training.net.partial_fit(training.X, training.y, batch_size=value)

    assert_refused(call, ["batch_size", re.escape(str(value))])


@pytest.mark.parametrize("entry", ["fit", "partial_fit", "train_on_batch"])
def test_an_unknown_optimizer_is_refused_with_the_known_ones(entry):
    def call(training):
        getattr(training.net, entry)(training.X, training.y, optimizer="adma")

    assert_refused(call, ["optimizer", "adma", "sgd", "adam", "adamw", "lbfgs"])


def test_an_unknown_device_is_refused_with_the_known_ones():
    assert_refused(lambda t: t.net.fit(t.X, t.y, device="tpu"), ["device", "tpu", "cpu"])


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "fast"])
def test_a_bad_learning_rate_from_a_schedule_is_refused(value):
    def call(training):
        training.net.fit(training.X, training.y, optimizer=training.optimizer, schedule=lambda epoch: value)

    assert_refused(call, ["schedule", "learning.rate", str(value)])


def names(table):
    return [rf"\b{name}\b" for name in table]


BAD_NETWORKS = [
    ({"layer_sizes": (3,)}, ["layer_sizes", r"\(3,\)|\[3\]"]),
    ({"layer_sizes": ()}, ["layer_sizes"]),
    ({"layer_sizes": 3}, ["layer_sizes", "3"]),
    ({"layer_sizes": "32"}, ["layer_sizes", "3"]),
    ({"layer_sizes": (3, 0, 2)}, ["layer_sizes", "0"]),
    ({"layer_sizes": (3, -4, 2)}, ["layer_sizes", "-4"]),
    ({"layer_sizes": (3, 4.5, 2)}, ["layer_sizes", "4.5"]),
    ({"layer_sizes": (3, "4", 2)}, ["layer_sizes", "4"]),
    ({"activation": "swosh"}, ["activation", "swosh", *names(ACTIVATIONS)]),
    ({"activation": ["tanh", "swosh"]}, ["activation", "swosh", *names(ACTIVATIONS)]),
    ({"activation": ["tanh"]}, ["activation", "1", "2"]),
    ({"activation": None}, ["activation", "None"]),
    ({"loss": "hinge?"}, ["loss", r"hinge\?", *names(LOSSES)]),
    ({"loss": 3}, ["loss", "3", *names(LOSSES)]),
    ({"loss": "huber(delta=0)"}, ["loss", "delta", "0"]),
    ({"loss": "quantile(q=1)"}, ["loss", "q", "1"]),
    ({"loss": "huber(gamma=1)"}, ["loss", "huber", "delta", "gamma"]),
    ({"loss": "huber(delta=wide)"}, ["loss", "delta", "wide"]),
    ({"loss": "huber(delta=1"}, ["loss", *names(LOSSES)]),
    ({"loss": "squared_error(delta=1)"}, ["loss", "squared_error", "setting"]),
    ({"activation": "leaky_relu(negative_slope=-1)"}, ["activation", "negative_slope", "-1"]),
    ({"initializer": np.ones(3)}, ["initializer", r"\(3,\)"]),
    ({"initializer": np.nan}, ["initializer", "nan"]),
    ({"initializer": 1e300}, ["initializer", r"1e\+300", r"e\+38"]),
    ({"initializer": np.full(53, 1e300)}, ["initializer", "float32"]),
    ({"dtype": "float16"}, ["dtype", "float16", "float32", "float64"]),
    ({"dtype": "int32"}, ["dtype", "int32", "float32", "float64"]),
    ({"dtype": "nonsense"}, ["dtype", "nonsense", "float32", "float64"]),
    ({"dtype": None}, ["dtype", "None", "float32", "float64"]),
    ({"dtype": np.dtype("f4").newbyteorder()}, ["dtype", "f4", "float32", "float64"]),
    ({"random_state": -1}, ["random_state", "-1"]),
    ({"random_state": 1.5}, ["random_state", "1.5"]),
    ({"random_state": "seed"}, ["random_state", "seed"]),
    ({"dropout": -0.1}, ["dropout", "-0.1"]),
    ({"dropout": 1.0}, ["dropout", "1.0"]),
    ({"dropout": "0.5"}, ["dropout", "number", "0.5"]),
    ({"dropout": np.array(1.5)}, ["dropout", "1.5"]),
    ({"l1": 10**400}, ["l1", "1000"]),
    ({"dropout": [0.5]}, ["dropout", "1", "2"]),
    ({"dropout": [0.5, 1.5]}, ["dropout", "1.5"]),
    ({"normalization": "nonsense"}, ["normalization", "nonsense", *names(NORMALIZATIONS)]),
    ({"normalization": ["layer_norm"]}, ["normalization", "1", "2"]),
    ({"normalization": 3}, ["normalization", "3"]),
    ({"normalization": "layer_norm(epsilon=0)"}, ["normalization", "epsilon", "0"]),
    ({"residual": True}, ["residual", r"3, 4, 5"]),
    ({"residual": [True, False]}, ["residual", "0", "3", "4"]),
    ({"residual": [True]}, ["residual", "1", "2"]),
    ({"residual": 1}, ["residual", "1"]),
    ({"scale_inputs": 1}, ["scale_inputs", "1"]),
    ({"input_noise": -0.1}, ["input_noise", "-0.1"]),
    ({"max_norm": 0.0}, ["max_norm", "0"]),
    ({"loss": "gaussian_nll", "layer_sizes": (3, 4, 5, 3)}, ["loss", "gaussian_nll", "3"]),
    ({"initializer": "nonsense"}, ["initializer", "nonsense"]),
]


@pytest.mark.parametrize(("settings", "words"), BAD_NETWORKS, ids=[str(settings) for settings, _ in BAD_NETWORKS])
def test_bad_settings_of_a_network_are_refused(settings, words):
    with pytest.raises((ValueError, TypeError)) as error:
        fastbp.MLP(**{"layer_sizes": (3, 4, 5, 2), **settings})
    assert_clear(error, words)


BAD_OPTIMIZERS = [
    (kind, setting.name, value)
    for kind in BY_NAME.values()
    for setting in dataclasses.fields(kind)
    if (limits := BOUNDS.get(setting.name))
    for value in (-0.1, np.nan, np.inf, "fast", None, *([1.0] if "below" in limits else []))
]


@pytest.mark.parametrize(("optimizer", "argument", "value"), BAD_OPTIMIZERS)
def test_bad_settings_of_an_optimizer_are_refused(optimizer, argument, value):
    with pytest.raises((ValueError, TypeError)) as error:
        optimizer(**{argument: value})
    assert_clear(error, [argument, re.escape(str(value))])


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError) as error:
        fastbp.SGD(nesterov=True)
    assert_clear(error, ["nesterov", "momentum"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(3), [r"\(3,\)", r"\(26,\)"]),
        (np.full(26, np.nan), ["(?i)nan"]),
        (np.full(26, 1e300), ["float32"]),
        (["a"] * 26, ["str|<U"]),
    ],
    ids=["shape", "NaN", "too large", "strings"],
)
def test_bad_parameters_are_refused(values, words):
    assert_refused(lambda training: setattr(training.net, "theta", values), ["theta", *words])


def test_an_optimizer_refuses_a_network_of_another_size():
    training, other = Training(), fastbp.MLP((N_IN, 5, 2), random_state=0)
    before = other.theta.tobytes()
    with pytest.raises(ValueError) as error:
        other.fit(*make_data(), optimizer=training.optimizer)
    assert_clear(error, ["optimizer", str(training.net.n_parameters), str(other.n_parameters), "reset"])
    assert other.theta.tobytes() == before


# ---- good data of every form -------------------------------------------------------------------


def as_memory_map(array, path):
    memory = np.memmap(path, dtype=array.dtype, shape=array.shape, mode="w+")
    memory[:] = array
    memory.flush()
    return np.memmap(path, dtype=array.dtype, shape=array.shape, mode="r")


def as_read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


FORMS = {
    "float64": lambda array, path: array.astype(np.float64),
    "float32": lambda array, path: array.astype(np.float32),
    "float16": lambda array, path: array.astype(np.float16),
    "int64": lambda array, path: array.astype(np.int64),
    "uint8": lambda array, path: array.astype(np.uint8),
    "big-endian": lambda array, path: array.astype(">f8"),
    "Fortran-ordered": lambda array, path: np.asfortranarray(array),
    "every second row": lambda array, path: np.repeat(array, 2, axis=0)[::2],
    "every second column": lambda array, path: np.repeat(array, 2, axis=-1)[..., ::2],
    "reversed": lambda array, path: np.flip(np.flip(array).copy()),
    "unaligned": lambda array, path: np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
    "read-only": lambda array, path: as_read_only(array),
    "memory-mapped": as_memory_map,
    "nested lists": lambda array, path: array.tolist(),
    "pandas": lambda array, path: pd.DataFrame(array) if array.ndim == 2 else pd.Series(array),
}


def make_whole_numbers(loss):
    """Data that every numeric type holds exactly."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 9, size=(N_SAMPLES, N_IN)).astype(np.float64)
    y = rng.integers(0, 2, size=(N_SAMPLES, N_OUT[loss])).astype(np.float64)
    return X, (y[:, 0].astype(np.int64) if loss == "cross_entropy" else y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", N_OUT)
@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_data_changes_no_bit(form, loss, dtype, tmp_path):
    X, y = make_whole_numbers(loss)
    weight = 1.0 + np.arange(N_SAMPLES) % 3
    arrays = X, y, weight
    formed = [FORMS[form](array, tmp_path / str(i)) for i, array in enumerate(arrays)]
    if loss == "cross_entropy" and np.asarray(formed[1]).dtype.kind == "f":
        formed[1] = y  # labels are integers
    results = []
    for X, y, weight in (arrays, formed):
        net = fastbp.MLP((N_IN, 4, N_OUT[loss]), loss=loss, dtype=dtype, random_state=0)
        net.standardize(X)
        net.fit(X, y, sample_weight=weight, batch_size=5, epochs=2, validation_data=(X, y, weight))
        net.partial_fit(X, y, sample_weight=weight, batch_size=5)
        net.train_on_batch(X, y, sample_weight=weight)
        loss_value, grad = net.loss_and_gradients(X, y, weight)
        evaluation = net.evaluate(X, y, weight)
        results.append((net.theta.tobytes(), net.predict(X).tobytes(), grad.tobytes(), loss_value, evaluation))
    assert results[0] == results[1]


def make_table():
    """Columns of three types, of which NumPy would make objects."""
    whole = make_whole_numbers("squared_error")[0]
    return pd.DataFrame({"a": whole[:, 0], "b": whole[:, 1] > 4, "c": pd.array(whole[:, 2].astype(int), dtype="Int64")})


def test_a_table_of_several_numeric_types_is_numbers():
    table, net = make_table(), fastbp.MLP((N_IN, 2), random_state=0)
    assert np.array_equal(net.predict(table), net.predict(table.astype(np.float64).to_numpy()))


@pytest.mark.parametrize(
    ("column", "words"), [(["x"] * N_SAMPLES, ["object"]), (pd.array([None, *[1] * 11], dtype="Int64"), ["NaN.*0, 2"])]
)
def test_a_table_of_other_things_is_refused(column, words):
    assert_refused(lambda training: training.net.predict(make_table().assign(c=column)), [r"\bX\b", *words])


def test_training_leaves_the_callers_arrays_alone():
    X, y = make_data()
    net = fastbp.MLP((N_IN, 4, 2), dtype="float64", random_state=0)
    net.standardize(X)
    net.fit(X, y, epochs=2)
    assert np.array_equal(X, make_data()[0])
    assert np.array_equal(y, make_data()[1])


# ---- divergence --------------------------------------------------------------------------------


def fit_until_it_diverges(dtype, epochs):
    """A linear unit whose error grows by a constant factor with every step, until it overflows."""
    X, y = make_data()
    net = fastbp.MLP((N_IN, 2), dtype=dtype, random_state=0)
    optimizer = fastbp.SGD(learning_rate=40.0, momentum=0.5)
    error = None
    try:
        net.fit(X, y, optimizer=optimizer, batch_size=5, epochs=epochs)
    except fastbp.DivergedError as diverged:
        error = diverged
    return net, optimizer, error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divergence_names_the_step_and_keeps_the_last_finite_epoch(dtype):
    net, _, error = fit_until_it_diverges(dtype, epochs=1000)
    assert isinstance(error, ArithmeticError), "training did not diverge"
    assert error.epoch > 1, "the case should diverge late"
    assert 0 <= error.step < 3, "three updates an epoch"
    assert re.search(rf"epoch {error.epoch}\b.*step {error.step}\b", str(error)), str(error)

    twin, _, no_error = fit_until_it_diverges(dtype, epochs=error.epoch)
    assert no_error is None
    assert net.theta.tobytes() == twin.theta.tobytes(), "not the weights of the last finite epoch"
    assert np.isfinite(net.theta).all()


def test_training_goes_on_after_divergence_as_from_the_last_finite_epoch():
    net, optimizer, error = fit_until_it_diverges("float64", epochs=1000)
    twin, twin_optimizer, _ = fit_until_it_diverges("float64", epochs=error.epoch)
    assert net.epochs == twin.epochs == error.epoch
    for trained, its_optimizer in ((net, optimizer), (twin, twin_optimizer)):
        its_optimizer.learning_rate = 0.01
        trained.fit(*make_data(), optimizer=its_optimizer, batch_size=5, epochs=3)
    assert np.isfinite(net.theta).all()
    assert net.theta.tobytes() == twin.theta.tobytes()


def test_divergence_is_seen_in_the_parameters_of_the_last_update():
    """The loss is taken before an update, so that of the last one says nothing of what it made."""
    X, y = make_data()
    net = fastbp.MLP((N_IN, 2), random_state=0)
    before = net.theta.tobytes()
    with pytest.raises(fastbp.DivergedError):
        net.fit(X, y, optimizer=fastbp.SGD(learning_rate=1e300), batch_size=N_SAMPLES, epochs=1)
    assert net.theta.tobytes() == before


@pytest.mark.parametrize("epochs", [0, 2])
def test_divergence_keeps_the_last_finite_epoch_beside_a_callback_between_updates(epochs):
    """Which has the parameters published in the middle of an epoch."""

    class Watching(fastbp.Callback):
        every = 1

    X, y = make_data()
    fits = []
    for callbacks, n in (([Watching()], epochs + 1), ([], epochs)):
        net, optimizer = fastbp.MLP((N_IN, 4, 2), random_state=0), fastbp.SGD(0.01, momentum=0.9)
        rates = lambda step: 0.01 if step < 4 * epochs + 2 else 1e30  # noqa: E731
        settings = {"optimizer": optimizer, "batch_size": 3, "shuffle": False, "callbacks": callbacks}
        error = None
        if n:
            try:
                net.fit(X, y, epochs=n, schedule=fastbp.schedules.ByStep(rates), **settings)
            except fastbp.DivergedError as diverged:
                error = diverged
        fits.append(
            (
                net.theta.tobytes(),
                net.epochs,
                optimizer._step,
                optimizer.state(net.n_parameters, net.dtype)[0].tobytes(),
            )
        )
        assert (error is None) == (not callbacks)
    assert fits[0] == fits[1]


@pytest.mark.parametrize("entry", ["fit", "partial_fit", "train_on_batch"])
def test_divergence_in_the_first_epoch_keeps_the_weights(entry):
    X, y = make_data()
    net = fastbp.MLP((N_IN, 2), random_state=0)
    net.theta[:] = 1e30  # the squared error overflows
    before = net.theta.tobytes()
    with pytest.raises(fastbp.DivergedError, match=r"epoch 0\b.*step 0\b"):
        getattr(net, entry)(X, y)
    assert net.theta.tobytes() == before


# ---- model files -------------------------------------------------------------------------------


def make_trained(dtype="float32", **settings):
    X, y = make_data()
    net = fastbp.MLP((N_IN, 5, 4, 2), activation=["tanh", "relu"], dtype=dtype, random_state=3, **settings)
    net.standardize(X)
    net.metadata["feature_names"] = json.dumps(["λ", "b", "c"])
    net.fit(X, y, epochs=2)
    return net


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_network_comes_back_to_the_bit(dtype, bias, tmp_path):
    X, y = make_data()
    net = make_trained(dtype, bias=bias)
    net.save(tmp_path / "net.safetensors")
    again = fastbp.load(str(tmp_path / "net.safetensors"))
    for name in ("layer_sizes", "activations", "loss", "bias", "dtype", "random_state", "metadata"):
        assert getattr(again, name) == getattr(net, name), name
    for name in ("theta", "feature_mean", "feature_scale"):
        assert getattr(again, name).tobytes() == getattr(net, name).tobytes(), name
        assert getattr(again, name).dtype == getattr(net, name).dtype, name
    assert again.predict(X).tobytes() == net.predict(X).tobytes()
    assert again.fit(X, y, epochs=2).loss == net.fit(X, y, epochs=2).loss
    assert again.theta.tobytes() == net.theta.tobytes()


@pytest.mark.parametrize("loss", N_OUT)
def test_a_network_that_was_never_standardized_comes_back_so(loss, tmp_path):
    net = fastbp.MLP((N_IN, N_OUT[loss]), loss=loss, random_state=0)
    net.save(tmp_path / "net.safetensors")
    again = fastbp.load(tmp_path / "net.safetensors")
    assert again.loss == loss and again.feature_mean is None and again.feature_scale is None
    assert again.metadata == {}
    X, _ = make_data()
    assert again.predict(X).tobytes() == net.predict(X).tobytes()


def test_the_file_is_safetensors_with_one_tensor_per_array(tmp_path):
    net = make_trained()
    net.save(tmp_path / "net.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "net.safetensors")
    names = {f"layers.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")}
    assert set(tensors) == names | {"feature_mean", "feature_scale"}
    for layer in range(3):
        assert np.array_equal(tensors[f"layers.{layer}.weight"], net.weights[layer])
        assert np.array_equal(tensors[f"layers.{layer}.bias"], net.biases[layer])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    make_trained().save(path)
    return path


def assert_load_refuses(path):
    with pytest.raises(ValueError) as error:
        fastbp.load(path)
    assert_clear(error, [re.escape(str(path))])


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -500, -8, -1])
def test_a_truncated_file_is_refused(kept, model_file, tmp_path):
    path = tmp_path / "truncated.safetensors"
    path.write_bytes(model_file.read_bytes()[:kept])
    assert_load_refuses(path)


@pytest.mark.parametrize(
    "content",
    [b"layer_sizes = 3\n", b"\x80\x04}q\x00.", b"\x00" * 64, b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"{}"],
    ids=["text", "pickle", "zeros", "ones", "no tensors"],
)
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert_load_refuses(path)


def test_any_flipped_bit_in_the_header_is_refused_or_harmless(model_file, tmp_path):
    """Some bits are the user's own metadata, and some the values of settings; nothing may crash."""
    content = model_file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "flipped.safetensors"
    n_refused = 0
    for i, bit in itertools.product(range(header), (0, 5)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
        try:
            fastbp.load(path)
        except ValueError as error:
            n_refused += 1
            assert str(path) in str(error) and "\n" not in str(error), f"byte {i}, bit {bit}: {error}"
    assert n_refused > header, "most of the header matters"


def rewrite(source, path, change):
    """Save a model file again with its tensors and its metadata changed."""
    with safetensors.safe_open(source, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = safetensors.numpy.load_file(source)
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata)


def drop_row(tensors, metadata):
    tensors["layers.0.weight"] = tensors["layers.0.weight"][1:].copy()


def transpose(tensors, metadata):
    tensors["layers.0.weight"] = tensors["layers.0.weight"].T.copy()


def flatten(tensors, metadata):
    tensors["layers.1.weight"] = tensors["layers.1.weight"].ravel()


def widen(tensors, metadata):
    tensors["layers.1.weight"] = tensors["layers.1.weight"].astype(np.float64)


def make_integer(tensors, metadata):
    tensors["layers.1.bias"] = tensors["layers.1.bias"].astype(np.int32)


def shorten_mean(tensors, metadata):
    tensors["feature_mean"] = tensors["feature_mean"][1:].copy()


def zero_scale(tensors, metadata):
    tensors["feature_scale"][0] = 0.0


def negative_variance(tensors, metadata):
    describe(normalization=["batch_norm", None])(tensors, metadata)
    tensors["normalizations.0.gain"] = tensors["normalizations.0.shift"] = np.ones(5, np.float32)
    tensors["normalizations.0.running_mean"] = np.ones(5, np.float32)
    tensors["normalizations.0.running_variance"] = np.full(5, -1, np.float32)


def describe(**entries):
    """A change of the network's description."""

    def change(tensors, metadata):
        (key,) = metadata
        metadata[key] = json.dumps(json.loads(metadata[key]) | entries)

    return change


CHANGES = {
    "a row less": drop_row,
    "transposed": transpose,
    "flattened": flatten,
    "another dtype": widen,
    "integers": make_integer,
    "a mean less": shorten_mean,
    "a scale of zero": zero_scale,
    "a scale that is infinite": lambda tensors, metadata: tensors["feature_scale"].fill(np.inf),
    "a variance below zero": negative_variance,
    "no weight": lambda tensors, metadata: tensors.pop("layers.1.weight"),
    "no bias": lambda tensors, metadata: tensors.pop("layers.2.bias"),
    "no scale": lambda tensors, metadata: tensors.pop("feature_scale"),
    "one tensor more": lambda tensors, metadata: tensors.update(stray=np.zeros(3, dtype=np.float32)),
    "no tensors": lambda tensors, metadata: tensors.clear(),
    "no metadata": lambda tensors, metadata: metadata.clear(),
    "a list for a description": lambda tensors, metadata: metadata.update({key: "[]" for key in metadata}),
    "a list for the user's metadata": describe(metadata=[]),
    "numbers in the user's metadata": describe(metadata={"n": 1}),
    "other sizes": describe(layer_sizes=[3, 5, 4, 3]),
    "sizes beyond memory": describe(layer_sizes=[3, 10**9, 10**9, 2]),
    "an unknown activation": describe(activation=["swosh", "relu"]),
    "an unknown setting": describe(stray=1),
    "no description": lambda tensors, metadata: metadata.update({key: "nonsense" for key in metadata}),
    "a weight that is NaN": lambda tensors, metadata: tensors["layers.0.bias"].fill(np.nan),
    "epochs in words": describe(epochs="two"),
    "epochs below zero": describe(epochs=-1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_no_network_is_refused(change, model_file, tmp_path):
    path = tmp_path / "changed.safetensors"
    rewrite(model_file, path, CHANGES[change])
    assert_load_refuses(path)


def test_every_entry_of_the_description_is_needed(model_file, tmp_path):
    path = tmp_path / "changed.safetensors"
    rewrite(model_file, path, lambda tensors, metadata: None)
    assert fastbp.load(path).theta.tobytes() == fastbp.load(model_file).theta.tobytes()
    with safetensors.safe_open(model_file, framework="numpy") as file:
        (key, description) = file.metadata().popitem()
    for entry in ("layer_sizes", "epochs", "metadata"):
        rest = {name: value for name, value in json.loads(description).items() if name != entry}
        rewrite(model_file, path, lambda tensors, metadata, rest=rest: metadata.update({key: json.dumps(rest)}))
        assert_load_refuses(path)


def test_a_missing_file_and_a_folder_are_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.safetensors"))):
        fastbp.load(tmp_path / "none.safetensors")
    with pytest.raises(OSError):
        fastbp.load(tmp_path)


def test_a_file_of_types_that_numpy_lacks_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "half.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    assert_load_refuses(tmp_path / "half.safetensors")


def test_a_network_that_is_not_finite_is_not_saved(tmp_path):
    net = fastbp.MLP((3, 4, 2))
    net.biases[1][0] = np.nan
    with pytest.raises(ValueError, match=r"layers\.1\.bias must hold finite numbers"):
        net.save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_settings_of_lbfgs_are_checked_again():
    X, y = make_data()
    optimizer = fastbp.LBFGS()
    optimizer.memory = 0
    with pytest.raises(ValueError, match="memory must be at least 1, it is 0"):
        fastbp.MLP((N_IN, 2)).fit(X, y, optimizer=optimizer)


def test_a_failed_save_keeps_the_old_file(model_file, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(model_file.read_bytes())
    net = make_trained()
    net.metadata["n"] = object()
    with pytest.raises((ValueError, TypeError)) as error:
        net.save(path)
    assert_clear(error, ["metadata", "object"])
    assert path.read_bytes() == model_file.read_bytes()
