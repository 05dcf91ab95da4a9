"""Normalizations, residual connections and gains of the inputs, against the oracle and finite differences."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import reference
from cases import BATCHES, batches, make_case, relative_error, slopes, specs

import fastbp
from fastbp.kernels.problem import NORMALIZATIONS

TOLERANCE = {"float64": 1e-11, "float32": 1e-4}
SPECS = specs(NORMALIZATIONS)
STRUCTURES = [
    *({"normalization": name} for name in SPECS),
    {"residual": True},
    {"scale_inputs": True},
    {"normalization": "layer_norm", "residual": True, "scale_inputs": True},
    {"normalization": ["batch_norm", "rms_norm", "batch_norm", None], "residual": [False, True, True, False]},
]


def identify(structure):
    return ", ".join(f"{name}={value}" for name, value in structure.items())


def assert_matches_oracle(case):
    loss, grad = reference.loss_and_gradients(*case.exact, case.y, case.exact_weight)
    actual_loss, actual_grad = case.net.loss_and_gradients(case.X, case.y, case.weight)
    tolerance = TOLERANCE[case.net.dtype.name]
    assert relative_error(actual_loss, loss) < tolerance
    assert relative_error(actual_grad, grad) < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("draw", range(40))
def test_random_structure(rng, draw, dtype):
    depth = 1 + draw % 6
    sizes = [int(n) for n in rng.choice((1, 3, 17, 33, 64), depth + 1)]
    for k in range(depth - 1):  # make residual connections likely
        if rng.integers(2):
            sizes[k + 1] = sizes[k]
    sizes = [*sizes, 5]
    case = make_case(
        rng,
        sizes,
        activation=[str(name) for name in rng.choice(("tanh", "gelu", "identity"), depth)],
        n_samples=max(BATCHES[draw % len(BATCHES)], 2),
        dtype=dtype,
        bias=bool(rng.integers(2)),
        weighted=bool(rng.integers(2)),
        normalization=[[None, *SPECS][k] for k in rng.integers(len(SPECS) + 1, size=depth)],
        residual=[bool(rng.integers(2)) and a == b for a, b in pairwise(sizes[:-1])],
        scale_inputs=bool(rng.integers(2)),
    )
    assert_matches_oracle(case)


@pytest.mark.parametrize("structure", STRUCTURES, ids=identify)
def test_beside_relu(rng, structure):
    """Which tiles take care of where dense layers alone are around it."""
    assert_matches_oracle(make_case(rng, (5, 6, 6, 6, 4, 2), activation="relu", dtype="float64", **structure))


@pytest.mark.parametrize("structure", STRUCTURES, ids=identify)
def test_finite_differences(rng, structure):
    case = make_case(rng, (5, 6, 6, 6, 4, 2), n_samples=9, weighted=True, **structure)
    n = case.net.n_parameters
    directions = rng.normal(size=(8, n)) / np.sqrt(n)
    _, grad = case.net.loss_and_gradients(case.X, case.y, case.weight)
    assert relative_error(directions @ grad, slopes(case, directions)) < 1e-7


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.3}, {"batch_size": 500}], ids=["fused", "clipped", "sliced"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=identify)
def test_trains_like_the_oracle(rng, structure, settings):
    """Penalties are for dense layers' weights alone."""
    case = make_case(rng, (5, 33, 33, 33, 7, 3), n_samples=600, weighted=True, l1=0.001, l2=0.01, **structure)
    settings = {"batch_size": 64} | settings
    rows = batches(len(case.X), settings["batch_size"], epochs=3)
    clip = settings.get("clip_norm")
    _, theta = reference.train(
        *case.exact, case.y, rows, "adam", weight=case.weight, clip_norm=clip, learning_rate=0.001
    )
    case.net.fit(case.X, case.y, sample_weight=case.weight, epochs=3, shuffle=False, **settings)
    assert relative_error(case.net.theta, theta) < 1e-9


@pytest.mark.parametrize("structure", STRUCTURES, ids=identify)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_same_bits_for_any_number_of_threads(rng, structure, dtype):
    results = set()
    for threads in (1, 2, 3, 4):
        case = make_case(deepcopy(rng), (17, 65, 65, 65, 33, 4), n_samples=333, dtype=dtype, dropout=0.1, **structure)
        case.net.fit(case.X, case.y, batch_size=100, epochs=2, threads=threads)
        results.add((case.net.theta.tobytes(), case.net.predict(case.X).tobytes()))
    assert len(results) == 1


def test_batch_norm_predicts_with_moving_averages(rng):
    """PyTorch's: a tenth of each batch's mean and unbiased variance."""
    case = make_case(rng, (5, 7, 3), normalization="batch_norm(epsilon=0.1)", n_samples=40)
    net = case.net
    mean, variance = np.zeros(7), np.ones(7)
    for rows in batches(40, 16, epochs=2):
        z = case.X[rows] @ net.weights[0] + net.biases[0]
        mean, variance = 0.9 * mean + 0.1 * z.mean(axis=0), 0.9 * variance + 0.1 * z.var(axis=0, ddof=1)
        net.train_on_batch(case.X[rows], case.y[rows])
    assert relative_error(net.running_means[0], mean) < 1e-12
    assert relative_error(net.running_variances[0], variance) < 1e-12
    x = (case.X @ net.weights[0] + net.biases[0] - mean) / np.sqrt(variance + 0.1)
    z = np.tanh(x * net.gains[0] + net.shifts[0]) @ net.weights[1] + net.biases[1]
    assert relative_error(net.forward(case.X), z) < 1e-12
    assert relative_error(net.forward(case.X[:1]), z[:1]) < 1e-12
    before = net.running_means[0].copy()
    net.loss_and_gradients(case.X, case.y)
    assert np.array_equal(net.running_means[0], before)


@pytest.mark.parametrize("structure", STRUCTURES, ids=identify)
def test_saved_and_copied(rng, structure, tmp_path):
    case = make_case(rng, (5, 6, 6, 6, 4, 2), **structure)
    case.net.fit(case.X, case.y, epochs=2)
    case.net.save(tmp_path / "net")
    for net in (fastbp.load(tmp_path / "net"), deepcopy(case.net)):
        assert np.array_equal(net.predict(case.X), case.net.predict(case.X))
        for mine, its in zip(net.running_means, case.net.running_means, strict=True):
            assert np.array_equal(mine, its)


def test_input_noise_changes_training_alone(rng):
    """Its mean and deviation show in the gradient of a linear unit: with targets 0 and weight 1, z is X + noise."""
    n = 20000
    net = fastbp.MLP((3, 3), input_noise=0.5, initializer=np.concatenate([np.eye(3).ravel(), np.zeros(3)]))
    zeros = np.zeros((n, 3))
    assert net.loss_and_gradients(zeros, zeros)[0] == 0
    assert np.array_equal(net.forward(zeros), zeros)
    loss = net.train_on_batch(zeros, zeros, optimizer=fastbp.SGD(1.0))
    assert loss == pytest.approx(3 * 0.25 / 2, rel=0.03)
    noise_squared = np.eye(3) - net.weights[0]
    assert np.abs(noise_squared - 0.25 * np.eye(3)).max() < 0.01
    assert np.abs(net.biases[0]).max() < 0.02


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.3}, {"batch_size": 500}], ids=["fused", "clipped", "sliced"])
def test_max_norm(rng, settings):
    case = make_case(rng, (5, 33, 33, 3), n_samples=600, max_norm=0.8)
    settings = {"batch_size": 64} | settings
    rows = batches(len(case.X), settings["batch_size"], epochs=3)
    _, theta = reference.train(
        *case.exact, case.y, rows, "adam", clip_norm=settings.get("clip_norm"), learning_rate=0.001, max_norm=0.8
    )
    case.net.fit(case.X, case.y, epochs=3, shuffle=False, **settings)
    assert relative_error(case.net.theta, theta) < 1e-9
    norms = np.concatenate([np.linalg.norm(W, axis=0) for W in case.net.weights])
    assert norms.max() < 0.8 + 1e-12
    assert (norms > 0.8 - 1e-12).any()
