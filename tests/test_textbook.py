"""What every textbook on backpropagation shows its reader."""

from __future__ import annotations

import numpy as np
import pytest
from cases import relative_error

import fastbp

X_XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
Y_XOR = np.array([0, 1, 1, 0])


def learns_xor(n_hidden, random_state):
    net = fastbp.MLP((2, n_hidden, 1), activation="logistic", loss="binary_cross_entropy", random_state=random_state)
    net.fit(X_XOR, Y_XOR, optimizer=fastbp.Adam(learning_rate=0.05), batch_size=4, epochs=1000)
    return np.abs(net.predict(X_XOR)[:, 0] - Y_XOR).max() < 0.1


def test_xor_with_two_hidden_units_and_restarts():
    """The smallest network has local minima: some starts fail, and some start must not."""
    assert any(learns_xor(2, random_state) for random_state in range(10))


@pytest.mark.parametrize("random_state", range(3))
def test_xor_with_eight_hidden_units(random_state):
    assert learns_xor(8, random_state)


def test_linear_unit_reaches_least_squares(rng):
    X, y = rng.normal(size=(200, 5)), rng.normal(size=(200, 2))
    solution, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(200)]), y, rcond=None)
    net = fastbp.MLP((5, 2), dtype="float64")
    net.fit(X, y, optimizer=fastbp.SGD(learning_rate=0.5), batch_size=200, epochs=300)
    assert relative_error(np.vstack([net.weights[0], net.biases[0]]), solution) < 1e-10


def test_delta_rule(rng):
    """Widrow & Hoff: after each sample, W += learning_rate * x (t - y)."""
    X, t = rng.normal(size=(20, 3)), rng.normal(size=20)
    net = fastbp.MLP((3, 1), bias=False, dtype="float64")
    w = net.weights[0][:, 0].copy()
    for x_n, t_n in zip(X, t, strict=True):
        w += 0.1 * x_n * (t_n - x_n @ w)
    net.fit(X, t, optimizer=fastbp.SGD(learning_rate=0.1), batch_size=1, epochs=1, shuffle=False)
    assert relative_error(net.weights[0][:, 0], w) < 1e-12


def test_logistic_unit_separates_what_a_line_separates(rng):
    X = rng.uniform(-1, 1, size=(400, 2))
    side = X @ [2.0, -1.0] + 0.3
    X, y = X[np.abs(side) > 0.1], side[np.abs(side) > 0.1] > 0
    net = fastbp.MLP((2, 1), loss="binary_cross_entropy", random_state=0)
    net.fit(X, y, optimizer=fastbp.SGD(learning_rate=1.0), batch_size=1, epochs=50)
    assert net.evaluate(X, y)["accuracy"] == 1.0
