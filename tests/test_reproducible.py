from __future__ import annotations

from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
from cases import make_case, optimizer

import fastbp
from fastbp.kernels.cpu import session
from fastbp.kernels.cpu.layout import Arena

OF_NETWORK = ("dropout", "l1", "l2", "input_noise", "max_norm")


def train(case, threads=1, **settings):
    """The bits of everything that a training returns or changes."""
    settings = {"optimizer": optimizer("adam"), "batch_size": 32, "epochs": 3} | settings
    history = case.net.fit(case.X, case.y, sample_weight=case.weight, threads=threads, **settings)
    return case.net.theta.tobytes(), tuple(history.loss)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"accumulate": 3}, id="accumulate"),
        pytest.param({"dropout": 0.2}, id="dropout"),
        pytest.param({"l1": 0.01, "l2": 0.1}, id="penalties"),
        pytest.param({"input_noise": 0.1, "max_norm": 1.0}, id="noise and max-norm"),
        pytest.param({"callbacks": [fastbp.WeightAveraging(1, 0.9, by="step")]}, id="average"),
        pytest.param({"batch_size": 1, "epochs": 1}, id="online"),
        pytest.param({"batch_size": 1000, "clip_norm": 0.1}, id="full batch and clip"),
    ],
)
@pytest.mark.parametrize("sizes", [(3, 5, 2), (600, 530, 10), (17, 33, 65, 33, 7, 4)], ids=["small", "wide", "deep"])
def test_same_bits_for_any_number_of_threads(rng, sizes, settings, dtype):
    of_network = {name: settings[name] for name in OF_NETWORK if name in settings}
    settings = {name: value for name, value in settings.items() if name not in of_network}
    results = set()
    for threads in (1, 2, 3, 4):
        case = make_case(
            deepcopy(rng),
            sizes,
            "cross_entropy",
            activation="relu",
            n_samples=333,
            dtype=dtype,
            weighted=True,
            **of_network,
        )
        results.add(train(case, threads, **settings))
    assert len(results) == 1


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 5, 2), (17, 33, 16, 65, 4)], ids=["small", "deep"])
def test_what_lies_in_memory_does_not_matter(rng, monkeypatch, sizes, bias, dtype):
    """Nor who brings parameters and state there: one thread, or all."""

    def result(threads=1):
        case = make_case(deepcopy(rng), sizes, "cross_entropy", n_samples=75, dtype=dtype, bias=bias)
        return train(case, threads), train(case, threads)

    def poisoned(arena, dtype, zeros, others, allocate=Arena.arrays):
        arrays = allocate(arena, dtype, zeros, others)
        for array in arrays[len(zeros) :]:
            array[:] = np.nan
        return arrays

    expected = result()
    monkeypatch.setattr(Arena, "arrays", poisoned)
    assert result() == expected
    monkeypatch.setattr(session, "TEAM_BYTES", 0)
    assert result(threads=3) == expected


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_random_state_decides(dropout):
    """Initialisation, shuffling and dropout follow the seed, and nothing but the seed."""
    X, y = np.random.default_rng(0).normal(size=(2, 100, 4))

    def run(seed, same_start=False):
        net = fastbp.MLP((4, 16, 4), dropout=dropout, random_state=seed)
        if same_start:
            net.theta[:] = np.linspace(-1, 1, net.n_parameters)
        net.fit(X, y, epochs=2)
        return net.theta.tobytes()

    assert run(1) == run(1) != run(2)
    assert run(1, same_start=True) != run(2, same_start=True)


def visits(n_samples, batch_size, shuffle=True, random_state=0, epochs=1):
    """At which step of an epoch each row was used, seen through the weights.

    With one-hot rows and momentum, row i alone gives weight i a gradient, and only when it is used; from then
    on the momentum carries the weight on, so its distance tells the step.
    """
    steps, momentum = -(-n_samples // batch_size), 0.5
    net = fastbp.MLP((n_samples, 1), bias=False, dtype="float64", random_state=random_state)
    orders = []
    for _ in range(epochs):
        net.theta[:] = 0
        sgd = fastbp.SGD(learning_rate=1e-6, momentum=momentum)
        net.fit(
            np.eye(n_samples),
            np.ones(n_samples),
            optimizer=sgd,
            batch_size=batch_size,
            epochs=1,
            shuffle=shuffle,
        )
        size = np.full(steps, batch_size)
        size[-1] = n_samples - batch_size * (steps - 1)
        distance = 1e-6 / size * (1 - momentum ** np.arange(steps, 0, -1)) / (1 - momentum)
        error = np.abs(net.theta[:, None] / distance - 1)  # (n_samples, steps)
        assert error.min(axis=1).max() < 1e-4
        orders.append(error.argmin(axis=1))
    return orders


@pytest.mark.parametrize(("n_samples", "batch_size"), [(50, 8), (48, 8), (50, 50), (7, 1), (20, 19)])
def test_shuffling_visits_each_row_once(n_samples, batch_size):
    step = np.arange(n_samples) // batch_size
    assert np.array_equal(visits(n_samples, batch_size, shuffle=False)[0], step)
    for order in visits(n_samples, batch_size, epochs=3):
        assert Counter(order) == Counter(step)


def test_every_epoch_and_seed_has_its_own_order():
    orders = [tuple(order) for seed in (0, 1) for order in visits(50, 8, random_state=seed, epochs=3)]
    assert len(set(orders)) == 6
    assert tuple(np.arange(50) // 8) not in orders
