"""Activations and losses of the user's own."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from numba import njit

import fastbp


def bent(z):
    return (math.sqrt(z * z + 1) - 1) / 2 + z


def bent_slope(z):
    return z / (2 * math.sqrt(z * z + 1)) + 1


def quartic(z, t):
    return 0.25 * (z - t) ** 4


def quartic_slope(z, t):
    return (z - t) ** 3


def loss_at(net, theta, X, y):
    net.theta = theta
    return net.loss_and_gradients(X, y)[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_custom_functions_have_the_right_gradient(rng, compiled):
    make = njit if compiled else lambda function: function
    net = fastbp.MLP(
        (5, 17, 7, 3),
        activation=[fastbp.Activation(make(bent), make(bent_slope)), "tanh"],
        loss=fastbp.Loss(make(quartic), make(quartic_slope)),
        dtype="float64",
        random_state=0,
    )
    X, y = rng.normal(size=(31, 5)), rng.normal(size=(31, 3))
    start, (_, grad) = net.theta.copy(), net.loss_and_gradients(X, y)
    for direction in rng.normal(size=(5, len(start))):
        h = 1e-5
        slope = (loss_at(net, start + h * direction, X, y) - loss_at(net, start - h * direction, X, y)) / (2 * h)
        assert direction @ grad == pytest.approx(slope, rel=1e-6)


def test_a_custom_function_may_count_from_the_end_of_an_array(rng):
    slopes = np.array([7.0, 0.2, 1.0])
    of_tables = fastbp.Activation(
        lambda z: z * (slopes[-1] if z > 0 else slopes[-2]), lambda z: slopes[-1] if z > 0 else slopes[-2]
    )
    nets = [
        fastbp.MLP((3, 5, 2), activation=activation, initializer="lecun_normal", random_state=0)
        for activation in (of_tables, "leaky_relu(negative_slope=0.2)")
    ]
    X, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    for net in nets:
        net.fit(X, y, epochs=2)
    np.testing.assert_allclose(nets[0].theta, nets[1].theta, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_custom_copy_of_a_built_in_trains_like_it(rng, dtype):
    X, y = rng.normal(size=(200, 6)), rng.normal(size=(200, 2))
    thetas = []
    for activation, loss in (
        ("leaky_relu(negative_slope=0.25)", "squared_error"),
        (
            fastbp.Activation(lambda z: z if z > 0 else 0.25 * z, lambda z: 1.0 if z > 0 else 0.25),
            fastbp.Loss(lambda z, t: 0.5 * (z - t) ** 2, lambda z, t: z - t),
        ),
    ):
        net = fastbp.MLP(
            (6, 33, 2), activation=activation, loss=loss, dtype=dtype, initializer="he_uniform", random_state=0
        )
        history = net.fit(X, y, epochs=5)
        thetas.append(net.theta)
    assert history.loss[-1] < history.loss[0]
    np.testing.assert_allclose(*thetas, rtol=1e-4 if dtype == "float32" else 1e-10, atol=1e-6)


def test_custom_functions_give_the_same_bits_on_any_number_of_threads(rng):
    X, y = rng.normal(size=(300, 40)), rng.normal(size=(300, 2))
    activation = fastbp.Activation(bent, bent_slope)
    thetas = set()
    for threads in (1, 2, 3):
        net = fastbp.MLP((40, 50, 2), activation=activation, random_state=0)
        net.fit(X, y, epochs=2, threads=threads)
        thetas.add(net.theta.tobytes())
    assert len(thetas) == 1


def test_the_link_of_a_custom_loss(rng):
    loss = fastbp.Loss(lambda z, t: math.exp(z) - t * z, lambda z, t: math.exp(z) - t, link=np.exp)
    net = fastbp.MLP((3, 4, 1), loss=loss, random_state=0)
    X = rng.normal(size=(5, 3))
    np.testing.assert_array_equal(net.predict(X), np.exp(net.forward(X)))


def adam(theta, grad, slots, h):
    rate, step, beta1, beta2, epsilon, _ = h
    m = beta1 * slots[0] + (1 - beta1) * grad
    v = beta2 * slots[1] + (1 - beta2) * grad * grad
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return theta - rate * m_hat / (math.sqrt(v_hat) + epsilon), (m, v)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_custom_rule_trains_like_the_built_in_one(rng, dtype):
    X, y = rng.normal(size=(200, 6)), rng.normal(size=(200, 2))
    thetas = []
    for optimizer in (
        fastbp.Adam(0.01, 0.8, 0.99, 1e-6),
        fastbp.CustomOptimizer(0.01, njit(error_model="numpy")(adam), 2, (0.8, 0.99, 1e-6)),
    ):
        net = fastbp.MLP((6, 33, 2), dtype=dtype, random_state=0)
        for _ in range(2):  # the state carries on
            net.fit(X, y, optimizer=optimizer, epochs=3, threads=2)
        thetas.append(net.theta)
    np.testing.assert_allclose(*thetas, rtol=1e-3 if dtype == "float32" else 1e-9, atol=1e-6)


def test_a_custom_rule_without_state(rng):
    X, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 1))
    thetas = []
    for optimizer in (
        fastbp.SGD(0.05),
        fastbp.CustomOptimizer(0.05, lambda theta, grad, slots, h: (theta - h[0] * grad, slots)),
    ):
        net = fastbp.MLP((3, 5, 1), dtype="float64", random_state=0)
        net.fit(X, y, optimizer=optimizer, epochs=3)
        thetas.append(net.theta)
    np.testing.assert_allclose(*thetas, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"update": 3}, "update .*3"),
        ({"update": np.add}, "update .*ufunc"),
        ({"update": lambda theta, grad: theta}, "update .*theta, grad, slots, h.*2 slots: .*arguments"),
        ({"update": lambda theta, grad, slots, h: theta}, "update .*gives theta and 2 slots"),
        ({"update": lambda theta, grad, slots, h: (theta, (slots[2], slots[2]))}, "update .*2 slots: .*out of range"),
        ({"update": lambda theta, grad, slots, h: (theta, slots[:1])}, "update .*2 slots, it gives 1"),
        ({"update": lambda theta, grad, slots, h: (theta, missing)}, "update .*missing"),  # noqa: F821
        ({"n_slots": -1}, "n_slots"),
        ({"settings": (1.0,) * 5}, "settings"),
        ({"settings": 3}, "settings .*3"),
        ({"settings": ["a"]}, "settings .*'a'"),
    ],
)
def test_bad_settings_of_a_custom_rule_are_refused(settings, word):
    with pytest.raises((TypeError, ValueError), match=word) as error:
        fastbp.CustomOptimizer(**{"learning_rate": 0.1, "update": adam, "n_slots": 2, **settings})
    assert "\n" not in str(error.value)


def test_a_wrong_derivative_is_refused_with_its_error():
    with pytest.raises(fastbp.DerivativeError, match=r"activation.*differs.*0\.\d+ at z = "):
        fastbp.Activation(bent, lambda z: z / (2 * math.sqrt(z * z + 1)) + 1.1)
    with pytest.raises(fastbp.DerivativeError, match=r"loss.*z = .*t = "):
        fastbp.Loss(quartic, lambda z, t: 2 * (z - t) ** 3)
    with pytest.raises(fastbp.DerivativeError, match="nan"):
        fastbp.Activation(bent, lambda z: math.nan)


def test_what_does_not_compile_is_refused():
    with pytest.raises(TypeError, match="value"):
        fastbp.Activation("bent", bent_slope)
    with pytest.raises(TypeError, match=r"value must be a Python function.*tanh"):
        fastbp.Activation(np.tanh, bent_slope)
    with pytest.raises(TypeError, match=r"compile.*missing[^\n]*$"):
        fastbp.Activation(lambda z: missing, bent_slope)  # noqa: F821
    with pytest.raises(TypeError, match="compile"):
        fastbp.Activation(lambda z: str(z), bent_slope)
    with pytest.raises(TypeError, match=r"link .*5"):
        fastbp.Loss(quartic, quartic_slope, link=5)


def test_a_network_with_custom_functions_is_pickled_and_not_saved(tmp_path):
    net = fastbp.MLP((2, 3, 1), activation=fastbp.Activation(njit(bent), njit(bent_slope)), random_state=0)
    assert net.activations == ("custom",)
    with pytest.raises(ValueError, match="cannot be saved"):
        net.save(tmp_path / "net.safetensors")
    again = pickle.loads(pickle.dumps(net))
    assert np.array_equal(again.forward(np.ones((1, 2))), net.forward(np.ones((1, 2))))
