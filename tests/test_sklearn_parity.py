"""The same losses as scikit-learn's multilayer perceptron, started from the same weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from cases import make_case

import fastbp

neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")

EPOCHS = 20

# scikit-learn adds Adam's epsilon before the bias correction: it must not matter.
SOLVERS = {
    "sgd": (fastbp.SGD(0.05), {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0.0}),
    "momentum": (
        fastbp.SGD(0.02, momentum=0.9),
        {"solver": "sgd", "learning_rate_init": 0.02, "momentum": 0.9, "nesterovs_momentum": False},
    ),
    "nesterov": (
        fastbp.SGD(0.02, momentum=0.9, nesterov=True),
        {"solver": "sgd", "learning_rate_init": 0.02, "momentum": 0.9, "nesterovs_momentum": True},
    ),
    "adam": (
        fastbp.Adam(0.01, epsilon=1e-15),
        {"solver": "adam", "learning_rate_init": 0.01, "epsilon": 1e-15},
    ),
}

TASKS = {
    "softmax": ((7, 33, 17, 4), "cross_entropy", "relu"),
    "binary": ((5, 17, 1), "binary_cross_entropy", "tanh"),
    "regression": ((5, 17, 7, 1), "squared_error", "logistic"),
}


def loss_curve(net, X, y, **settings):
    """Of scikit-learn's estimator for the task, starting from the weights of net."""
    base = neural_network.MLPRegressor if net.loss == "squared_error" else neural_network.MLPClassifier

    class Estimator(base):
        def _init_coef(self, fan_in, fan_out, dtype):
            layer = len(self.coefs_)
            return net.weights[layer].copy(), net.biases[layer].copy()

    estimator = Estimator(
        hidden_layer_sizes=net.layer_sizes[1:-1],
        activation=net.activations[0],
        alpha=0.0,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        shuffle=False,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged after 20 epochs
        return estimator.fit(X, y).loss_curve_


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_loss_curve(rng, task, solver):
    sizes, loss, activation = TASKS[task]
    fastbp_optimizer, settings = SOLVERS[solver]
    case = make_case(rng, sizes, loss, activation=activation, n_samples=150)
    y = case.y.ravel()
    expected = loss_curve(case.net, case.X, y, batch_size=32, **settings)
    fastbp_optimizer.reset()
    history = case.net.fit(case.X, y, optimizer=fastbp_optimizer, batch_size=32, epochs=EPOCHS, shuffle=False)
    np.testing.assert_allclose(history.loss, expected, rtol=1e-6)
