"""Sessions that a network keeps between calls leave no trace in what it computes, nor of what they were given."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import make_case

import fastbp
from fastbp import backend
from fastbp.backend import KEPT_SESSIONS, Sessions
from fastbp.kernels.cpu import session as cpu_session
from fastbp.kernels.cpu.session import LIGHT_BYTES

#: Options whose state a session could carry from one call into the next.
OPTIONS = {
    "plain": {},
    "dropout and noise": {"dropout": 0.3, "input_noise": 0.1},
    "batch normalization": {"normalization": "batch_norm"},
    "layer normalization": {"normalization": "layer_norm", "residual": True, "scale_inputs": True},
    "penalties": {"l1": 1e-3, "l2": 1e-3, "max_norm": 1.0},
}


def perform(step, net, X, y):
    """One of the things that users do, and what they see of it."""
    rows = slice(0, 7 if step["few"] else None)
    X, y = X[rows], y[rows]
    match step["what"]:
        case "train_on_batch":
            return net.train_on_batch(X, y, optimizer=step["optimizer"])
        case "fit":
            fade = fastbp.callbacks.Callback()
            fade.begin = lambda net, controls: controls.dropout.fill(0.0)
            return net.fit(X, y, batch_size=8, epochs=2, progress=False, clip_norm=1.0, callbacks=[fade]).loss
        case "write":
            net.weights[0][...] *= 0.9
            for variances in net.running_variances:
                variances[...] += 0.1
        case "loss_and_gradients":
            return net.loss_and_gradients(X, y)[1]
        case "evaluate":
            return net.evaluate(X, y)["loss"]
    return net.predict(X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_network_computes_as_if_it_kept_none(rng, options, dtype):
    case = make_case(rng, (5, 12, 12, 3), "cross_entropy", activation="tanh", dtype=dtype, **options)
    kinds = ["train_on_batch", "fit", "write", "loss_and_gradients", "evaluate", "predict"]
    optimizers = {"adam": fastbp.Adam(), "rmsprop": fastbp.RMSprop()}
    forgetful, others = copy.deepcopy((case.net, optimizers))
    for what in rng.choice(kinds, 60):
        name, few = rng.choice(list(optimizers)), bool(rng.integers(2))
        forgetful._sessions = Sessions()
        seen = [
            perform({"what": what, "few": few, "optimizer": rules[name]}, net, case.X, case.y)
            for net, rules in ((case.net, optimizers), (forgetful, others))
        ]
        assert np.array_equal(*seen), what
        assert np.array_equal(case.net.theta, forgetful.theta), what


def test_one_update_is_that_of_fit(rng):
    case = make_case(rng, (5, 12, 3), "cross_entropy", weighted=True, dropout=0.2)
    other, rules = copy.deepcopy(case.net), (fastbp.Adam(0.01), fastbp.Adam(0.01))
    for _ in range(3):
        loss = case.net.train_on_batch(case.X, case.y, sample_weight=case.weight, optimizer=rules[0])
        history = other.fit(
            case.X, case.y, sample_weight=case.weight, optimizer=rules[1], batch_size=99, epochs=1, shuffle=False
        )
        assert [loss] == history.loss
        assert case.net.epochs == other.epochs
        assert np.array_equal(case.net.theta, other.theta)


def test_divergence_leaves_the_network_usable(rng):
    case = make_case(rng, (5, 12, 3))
    theta, rule = case.net.theta.copy(), fastbp.SGD(1e300)
    for _ in range(2):
        with pytest.raises(fastbp.DivergedError):
            case.net.train_on_batch(case.X, 1e200 * case.y, optimizer=rule)
        assert np.array_equal(case.net.theta, theta)
        assert case.net.epochs == 0
    assert np.isfinite(case.net.train_on_batch(case.X, case.y))


def test_threads_may_share_a_network(rng):
    case = make_case(rng, (20, 30, 3))
    expected = [case.net.predict(case.X[:n]) for n in range(1, 20)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda k: case.net.predict(case.X[: k % 19 + 1]), range(1900)))
    for k, result in enumerate(results):
        assert np.array_equal(result, expected[k % 19])


def test_few_sessions_are_kept_and_light_ones_alone(rng):
    net = make_case(rng, (5, 12, 3)).net
    for n in range(1, 3 * KEPT_SESSIONS):
        net.predict(np.zeros((n, 5)))
        assert len(net._sessions._kept) == min(n, KEPT_SESSIONS)
    width = int((LIGHT_BYTES / 4) ** 0.5)
    heavy = fastbp.MLP((width, width, 2), random_state=0)
    heavy.predict(np.zeros((1, width)))
    assert not heavy._sessions._kept


def test_data_is_let_go(rng):
    case = make_case(rng, (5, 12, 3), dtype="float32")
    X = case.X.copy()
    case.net.train_on_batch(X, case.y)
    alive = weakref.ref(X)
    del X
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_have_sessions_of_their_own(rng, again):
    case = make_case(rng, (5, 12, 3))
    expected = case.net.predict(case.X)
    other = again(case.net)
    other.theta[:] = 0
    other.predict(case.X)
    assert np.array_equal(case.net.predict(case.X), expected)


@pytest.mark.parametrize(
    ("sizes", "rows", "updates", "calls", "threads"),
    [
        ((4, 16, 3), 16, 10**6, 1, 1),
        ((30, 100, 1), 200, 600, 1, 2),
        ((30, 100, 1), 200, 600, 200, 1),
        ((64, 100, 10), 200, 1600, 200, 2),
        ((17, 256, 256, 6), 256, 1, 1, 1),
        ((784, 512, 512, 10), 128, 1, 1, 2),
    ],
)
def test_threads_are_for_calls_that_are_worth_waking_them(monkeypatch, sizes, rows, updates, calls, threads):
    monkeypatch.setattr(cpu_session, "N_CORES", 2)
    assert cpu_session.choose_threads(fastbp.MLP(sizes)._topology, rows, updates, calls) == threads


def test_hundreds_of_threads_are_not_taken(rng, monkeypatch):
    """They would keep each other from coming to the barriers."""
    opened = []

    class Spy(backend.Session):
        def __init__(self, *args):
            opened.append(args[-1])
            super().__init__(*args)

    monkeypatch.setattr(backend, "Session", Spy)
    case = make_case(rng, (5, 17, 3))
    for threads in (1, 5, 1000):
        case.net.fit(case.X, case.y, epochs=1, threads=threads, progress=False)
    assert opened == [1, 5, max(cpu_session.N_CORES, backend.FEW_THREADS)]
