"""The network as an object: its views, its copies, and its use from several threads."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference

import fastbp
from fastbp.kernels.activations import ACTIVATIONS

SCRIPT = """
import sys, numpy as np, fastbp
X = np.random.default_rng(0).normal(size=(70, 9))
net = fastbp.MLP((9, 21, 5), activation="tanh", loss="cross_entropy", random_state=3)
if "predict first" in sys.argv:
    net.predict(X)
net.fit(X, np.arange(70) % 5, epochs=2, batch_size=16, threads=2)
print(net.theta.tobytes().hex(), net.evaluate(X, np.arange(70) % 5)["loss"])
"""


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_equal_separate_and_tied_to_its_own_views(copier, rng):
    X, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    net = fastbp.MLP((3, 4, 2), random_state=0)
    net.train_on_batch(X, y)
    twin = copier(net)
    for each in (net, twin):
        each.train_on_batch(X, y)
    assert np.array_equal(net.theta, twin.theta)
    twin.weights[0][:] = 7
    assert np.count_nonzero(twin.theta == 7) == 12
    assert not np.any(net.theta == 7)


def test_views_write_through(rng):
    X = rng.normal(size=(5, 3))
    net = fastbp.MLP((3, 2), random_state=0, dtype="float64")
    net.weights[0][:], net.biases[0][:] = [[1, 0], [0, 1], [0, 0]], [3, 4]
    np.testing.assert_array_equal(net.theta, [1, 0, 0, 1, 0, 0, 3, 4])
    np.testing.assert_allclose(net.predict(X), X[:, :2] + [3, 4], rtol=1e-15)
    net.theta = np.zeros(8)
    assert not net.weights[0].any()
    with pytest.raises(ValueError, match=r"theta must have shape \(8,\)"):
        net.theta = np.zeros(7)


def test_the_order_of_first_use_and_the_cache_do_not_change_the_bits(tmp_path):
    """Entry points share compiled functions: which was compiled first, by which process, or came from disk, must not
    show.
    """
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    alone = f"import sys; sys.executable = None\n{SCRIPT}"
    cold, warm = (subprocess.check_output([sys.executable, "-c", alone], env=environment) for _ in range(2))
    other = subprocess.check_output([sys.executable, "-c", SCRIPT, "predict first"])
    assert cold == warm == other


def test_networks_train_side_by_side_in_python_threads(rng):
    X, y = rng.normal(size=(300, 40)), rng.normal(size=(300, 4))

    def train(_):
        net = fastbp.MLP((40, 50, 4), random_state=1)
        net.fit(X, y, epochs=5, threads=2)
        return net.theta

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(train, range(8)))
    assert all(np.array_equal(theta, results[0]) for theta in results)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", ["poisson", "gaussian_nll"])
def test_predictions_saturate_quietly(loss):
    net = fastbp.MLP((1, 2), loss=loss, initializer=1e4)
    assert np.isinf(net.predict([[1.0]])[0, 1])


def test_predictions_do_not_depend_on_the_batch(rng):
    X = rng.normal(size=(2500, 7))
    net = fastbp.MLP((7, 33, 3), activation="logistic", random_state=1)
    whole = net.predict(X)
    assert np.array_equal(whole, np.concatenate([net.predict(X[i : i + 77]) for i in range(0, 2500, 77)]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_stay_finite_and_right_far_out(activation):
    net = fastbp.MLP((1, 1, 1), activation=activation, bias=False, random_state=0, dtype="float64")
    net.theta = [1, 1]
    z = np.array([-1e6, -800.0, -40.0, 0.0, 40.0, 800.0, 1e6])
    if activation == "sine":
        z /= 100
    (f, *_), p = reference.read(activation, reference.ACTIVATIONS)
    np.testing.assert_allclose(net.forward(z[:, None])[:, 0], f(z, p), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 123.456, 1e6 + 0.1])
def test_a_feature_that_does_not_vary_keeps_its_scale(rng, constant):
    X = rng.normal(size=(64, 3))
    X[:, 1] = constant
    net = fastbp.MLP((3, 1)).standardize(X)
    assert net.feature_scale[1] == 1
    np.testing.assert_allclose(net.feature_scale[[0, 2]], X[:, [0, 2]].std(axis=0))
