from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import reference
from cases import OPTIMIZERS, batches, make_case, optimizer, relative_error

import fastbp
from fastbp.kernels.cpu.session import Session
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.optimizers import OPTIMIZERS as TABLE

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}

NETS = {
    "delta rule": {"sizes": (7, 3), "n_samples": 31},
    "logistic unit": {"sizes": (5, 1), "loss": "binary_cross_entropy", "n_samples": 31},
    "one wide": {"sizes": (1, 1, 1), "n_samples": 9},
    "tanh": {"sizes": (3, 17, 2), "n_samples": 64, "weighted": True},
    "relu": {"sizes": (33, 65, 5), "loss": "cross_entropy", "activation": "relu", "n_samples": 99},
    "mixed": {
        "sizes": (5, 33, 7, 17, 4),
        "loss": "cross_entropy",
        "activation": ["relu", "identity", "logistic"],
        "n_samples": 71,
        "soft": True,
        "weighted": True,
    },
    "deep": {
        "sizes": (17, 5, 7, 5, 3, 7, 5, 17, 5, 2),
        "loss": "binary_cross_entropy",
        "n_samples": 64,
        "bias": False,
    },
}


def assert_trains_like_oracle(case, name, *, batch_size, epochs, accumulate=1, schedule=None, **clipping):
    tolerance = TOLERANCE[case.net.dtype.name]
    _, rule, settings, _ = OPTIMIZERS[name]
    rows = batches(len(case.X), batch_size * accumulate)
    losses, theta = reference.train(
        *case.exact,
        case.y,
        rows * epochs,
        rule,
        weight=case.exact_weight,
        **clipping,
        learning_rates=schedule and [schedule(epoch) for epoch in range(epochs) for _ in rows],
        **settings,
    )
    history = case.net.fit(
        case.X,
        case.y,
        sample_weight=case.weight,
        optimizer=optimizer(name),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        accumulate=accumulate,
        schedule=schedule,
        **clipping,
    )
    weight = np.ones(len(case.X)) if case.weight is None else case.exact_weight
    expected = np.average(losses.reshape(epochs, -1), axis=1, weights=[weight[r].sum() for r in rows])
    assert history.epochs == epochs
    assert relative_error(history.loss, expected) < tolerance
    assert relative_error(case.net.theta, theta) < tolerance


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("net", NETS)
def test_fifty_steps(rng, net, name, dtype):
    """Fifty updates in ten epochs, the last minibatch of an epoch being short."""
    case = make_case(rng, **NETS[net], dtype=dtype)
    assert_trains_like_oracle(case, name, batch_size=-(-len(case.X) // 5), epochs=10)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("name", ["momentum", "nesterov_of_steps", "adam"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"batch_size": 1, "epochs": 2}, id="online"),
        pytest.param({"batch_size": 31, "epochs": 20}, id="full batch"),
        pytest.param({"batch_size": 1000, "epochs": 20}, id="more than full batch"),
        pytest.param({"batch_size": 30, "epochs": 20}, id="one sample left over"),
        pytest.param({"batch_size": 4, "accumulate": 2, "epochs": 10}, id="accumulate"),
        pytest.param({"batch_size": 1, "accumulate": 7, "epochs": 10}, id="accumulate online"),
        pytest.param({"batch_size": 8, "accumulate": 100, "epochs": 10}, id="accumulate all"),
        pytest.param({"batch_size": 8, "clip_norm": 0.3, "epochs": 10}, id="clip"),
        pytest.param({"batch_size": 8, "clip_norm": 1e3, "epochs": 10}, id="nothing to clip"),
        pytest.param({"batch_size": 8, "clip_value": 0.02, "epochs": 10}, id="clip by value"),
        pytest.param({"batch_size": 8, "clip_value": 0.02, "clip_norm": 0.3, "epochs": 10}, id="clip both"),
        pytest.param({"batch_size": 4, "accumulate": 3, "clip_norm": 0.3, "epochs": 10}, id="accumulate and clip"),
        pytest.param({"batch_size": 8, "schedule": lambda epoch: 0.05 / (1 + epoch), "epochs": 10}, id="schedule"),
    ],
)
def test_minibatches(rng, settings, name):
    case = make_case(rng, (5, 17, 3), "cross_entropy", weighted=True)
    assert_trains_like_oracle(case, name, **settings)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize(
    "class_weight", [{0: 3.0, 2: 0.5}, [3.0, 1.0, 0.5], "balanced"], ids=["dict", "list", "balanced"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weight_multiplies_the_sample_weight(rng, class_weight, weighted):
    case = make_case(rng, (5, 17, 3), "cross_entropy", weighted=weighted)
    of_class = np.array([3.0, 1.0, 0.5])
    if class_weight == "balanced":
        counts = np.bincount(case.y, minlength=3)
        of_class = len(case.y) / ((counts > 0).sum() * np.maximum(counts, 1))
    weight = of_class[case.y] * (case.weight if weighted else 1.0)
    _, theta = reference.train(
        *case.exact, case.y, batches(31, 8, epochs=5), "adam", weight=weight, learning_rate=0.001
    )
    case.net.fit(
        case.X, case.y, sample_weight=case.weight, class_weight=class_weight, batch_size=8, epochs=5, shuffle=False
    )
    assert relative_error(case.net.theta, theta) < 1e-9


def test_dropout_of_one_layer_drops_in_no_other(rng):
    X, y = rng.normal(size=(200, 4)), rng.normal(size=(200, 1))
    thetas = []
    for dropout in ([0.0, 0.0], [0.5, 0.0], [0.0, 0.5], 0.5, [0.5, 0.5]):
        net = fastbp.MLP((4, 16, 16, 1), dropout=dropout, random_state=0)
        net.fit(X, y, epochs=2)
        thetas.append(net.theta)
    assert np.array_equal(thetas[3], thetas[4])
    assert len({theta.tobytes() for theta in thetas}) == 4


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.3}], ids=["fused", "clipped"])
def test_penalties(rng, settings, by_batch):
    case = make_case(rng, (5, 67, 35, 3), "cross_entropy", weighted=True, l1=0.003, l2=0.03, penalty_by_batch=by_batch)
    assert_trains_like_oracle(case, "adam", batch_size=8, epochs=10, **settings)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
def test_accumulated_batches_equal_one_large_batch(rng, weighted):
    case = make_case(rng, (7, 33, 17, 3), n_samples=50, weighted=weighted)
    start = case.net.theta.copy()
    thetas = []
    for batch_size, accumulate in [(24, 1), (8, 3)]:
        case.net.theta[:] = start
        case.net.fit(
            case.X,
            case.y,
            sample_weight=case.weight,
            optimizer=optimizer("adam"),
            batch_size=batch_size,
            accumulate=accumulate,
            epochs=10,
            shuffle=False,
        )
        thetas.append(case.net.theta.copy())
    assert relative_error(*thetas) < 1e-12


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("name", TABLE)
def test_optimizer_instance_continues(rng, name):
    """Five epochs and five more are ten epochs, to the last bit, shuffling included."""
    thetas, losses = [], []
    for parts in [(10,), (5, 5)]:
        case = make_case(deepcopy(rng), (5, 17, 3), "cross_entropy", activation="relu", dtype="float32")
        same = optimizer(name)
        fits = [case.net.fit(case.X, case.y, optimizer=same, batch_size=8, epochs=epochs) for epochs in parts]
        thetas.append(case.net.theta)
        losses.append([loss for history in fits for loss in history.loss])
    assert np.array_equal(*thetas)
    assert np.array_equal(*losses)


def test_reset_forgets_the_optimizer_state(rng):
    case = make_case(rng, (5, 7, 3))
    start, same, thetas = case.net.theta.copy(), optimizer("adam"), []
    for _ in range(2):
        case.net.theta[:] = start
        same.reset()
        case.net.fit(case.X, case.y, optimizer=same, shuffle=False)
        thetas.append(case.net.theta.copy())
    assert np.array_equal(*thetas)


@pytest.mark.parametrize(
    ("named", "instance"), [("sgd", fastbp.SGD()), ("adam", fastbp.Adam()), ("adamw", fastbp.AdamW())]
)
def test_named_optimizer_has_the_defaults(rng, named, instance):
    thetas = []
    for given in [named, instance]:
        case = make_case(deepcopy(rng), (5, 7, 3))
        case.net.fit(case.X, case.y, optimizer=given)
        thetas.append(case.net.theta)
    assert np.array_equal(*thetas)


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted mean"])
@pytest.mark.parametrize("name", TABLE)
def test_train_on_batch(rng, name, weighted):
    case = make_case(rng, (5, 17, 3), "binary_cross_entropy", weighted=weighted)
    _, rule, settings, _ = OPTIMIZERS[name]
    rows = batches(len(case.X), 7, epochs=4)
    expected, theta = reference.train(*case.exact, case.y, rows, rule, weight=case.weight, **settings)
    same = optimizer(name)
    losses = [
        case.net.train_on_batch(
            case.X[r], case.y[r], sample_weight=case.weight[r] if weighted else None, optimizer=same
        )
        for r in rows
    ]
    assert relative_error(losses, expected) < 1e-9
    assert relative_error(case.net.theta, theta) < 1e-9


def test_calls_without_optimizer_share_one_adam(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    rows = batches(len(case.X), 31, epochs=6)
    expected, theta = reference.train(*case.exact, case.y, rows, "adam", learning_rate=0.001)
    losses = []
    for _ in range(3):
        losses.append(case.net.train_on_batch(case.X, case.y))
        losses.append(case.net.partial_fit(case.X, case.y, batch_size=31))
    assert relative_error(losses, expected) < 1e-9
    assert relative_error(case.net.theta, theta) < 1e-9


def test_partial_fit_is_one_epoch_of_fit(rng):
    thetas, losses = [], []
    for method in ["fit", "partial_fit"]:
        case = make_case(deepcopy(rng), (5, 17, 3), weighted=True)
        same = optimizer("nesterov")
        for _ in range(3):
            settings = {"epochs": 1} if method == "fit" else {}
            result = getattr(case.net, method)(
                case.X, case.y, sample_weight=case.weight, optimizer=same, batch_size=8, **settings
            )
            losses.append(result.loss[0] if method == "fit" else result)
        thetas.append(case.net.theta)
    assert np.array_equal(*thetas)
    assert losses[:3] == losses[3:]


def test_validation_loss(rng):
    """Of the weights at the end of every epoch, by the weights of the validation samples."""
    case = make_case(rng, (5, 17, 4), "cross_entropy", n_samples=64, weighted=True)
    validation = case.X[40:], case.y[40:], case.weight[40:]
    expected = []

    def oracle(history):
        expected.append(reference.loss_and_gradients(case.network, case.net.theta, *validation)[0])

    history = case.net.fit(case.X[:40], case.y[:40], epochs=5, validation_data=validation, callbacks=[oracle])
    assert relative_error(history.val_loss, expected) < 1e-12


def test_callback_stops(rng):
    case = make_case(rng, (5, 7, 3))
    seen = []

    def stop_after_three(history):
        seen.append((history.epochs, len(history.loss)))
        return history.epochs == 3

    history = case.net.fit(case.X, case.y, epochs=10, callbacks=[stop_after_three])
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert history.epochs == len(history.loss) == len(history.seconds) == len(history.samples_per_second) == 3
    assert history.val_loss == []


@pytest.fixture
def sessions(monkeypatch):
    """Those that a test has left, in order."""
    left, leave = [], Session.__exit__
    monkeypatch.setattr(Session, "__exit__", lambda session, *error: left.append(session) or leave(session, *error))
    return left


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_lanes_past_a_layers_width_stay_zero(rng, sessions, loss, soft):
    """Norms, penalties and the next layer's delta sum over whole lines."""
    for sizes in ((5, 13, 4), (3, 18, 18, 2)):
        case = make_case(rng, sizes, loss, soft=soft, activation=["softplus", "relu"][: len(sizes) - 2], n_samples=37)
        case.net.fit(case.X, case.y, batch_size=16, epochs=3, optimizer="adam")
        panels = np.full_like(sessions[-1].parameters.W, np.nan)
        sessions[-1]._pack(case.net.theta, panels)
        np.testing.assert_array_equal(panels, sessions[-1].parameters.W)


@pytest.mark.parametrize("n", [300, 1700], ids=["in caches", "in memory"])
def test_the_transpose_of_weights_follows_every_update(rng, sessions, n):
    net = fastbp.MLP((5, n, n, 3), random_state=0)
    net.fit(rng.normal(size=(64, 5)), rng.normal(size=(64, 3)), epochs=1, batch_size=32, threads=2)
    followed = sessions[-1].parameters.WT.copy()
    sessions[-1].load(net.theta)
    assert followed.any()
    np.testing.assert_array_equal(followed, sessions[-1].parameters.WT)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("settings", [{"steps": 1}, {"steps": 3}, {"every": 2}], ids=str)
def test_divergence_within_an_epoch_keeps_finite_parameters(rng, settings):
    X, y = 1e10 * rng.normal(size=(130, 3)), 1e10 * rng.normal(size=(130, 2))
    net = fastbp.MLP((3, 9, 2), random_state=0)
    before, seen = net.theta.copy(), []

    class Watch(fastbp.Callback):
        every = settings.get("every")

        def after_updates(self, net, updates, loss):
            seen.append(net.theta.copy())

    with pytest.raises(fastbp.DivergedError):
        net.fit(
            X, y, batch_size=16, optimizer=fastbp.SGD(1e25), steps=settings.get("steps"), callbacks=[Watch()], epochs=3
        )
    assert np.array_equal(net.theta, before)
    assert not seen


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_penalties_count_once_in_updates_of_every_size(rng, penalty):
    """The last update, of 2 samples, goes another way through the kernels."""
    X, y = rng.normal(size=(130, 3)), rng.normal(size=(130, 2))
    curves = []
    for settings in ({"batch_size": 64, "accumulate": 2}, {"batch_size": 128}):
        net = fastbp.MLP((3, 33, 2), dtype="float64", random_state=0, **{penalty: 0.3})
        curves.append(net.fit(X, y, shuffle=False, epochs=3, **settings).loss)
    np.testing.assert_allclose(*curves, rtol=1e-12)
