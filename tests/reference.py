"""The oracle: backpropagation in plain NumPy float64, written from the equations.

    forward:  z[l] = a[l-1] @ W[l] + b[l];   a[l] = f(z[l])
    loss:     delta[L] = dLoss/dz[L]
    backward: grad_W[l] = a[l-1].T @ delta[l];   grad_b[l] = sum over the batch of delta[l]
              delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])
    update:   theta <- optimizer(theta, grad, state)

A new activation, loss or optimizer is one entry in a table below.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np


class Network(NamedTuple):
    """What stays fixed in training; the parameters are the flat vector theta."""

    sizes: tuple[int, ...]  # (n_features, n_hidden, ..., n_out)
    activations: tuple[str, ...]  # one name per hidden layer
    loss: str
    bias: bool = True


# ---- activations: f(z) and f'(z, a), elementwise -----------------------------------------------


def logistic(z):
    return np.exp(-np.logaddexp(0, -z))  # 1 / (1 + exp(-z)), which would overflow


ACTIVATIONS = {
    "identity": (lambda z: z, lambda z, a: np.ones_like(z)),
    "logistic": (logistic, lambda z, a: a * (1 - a)),
    "tanh": (np.tanh, lambda z, a: 1 - a**2),
    "relu": (lambda z: np.maximum(z, 0), lambda z, a: (z > 0) * 1.0),
}


# ---- losses: of logits z and targets t, both (n_samples, n_out) --------------------------------


def log_softmax(z):
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def softmax(z):
    return np.exp(log_softmax(z))


class Loss(NamedTuple):
    link: object  # z -> y, what predict returns
    value: object  # (z, t) -> (n_samples,)
    delta: object  # (z, t) -> d value / dz, (n_samples, n_out)


LOSSES = {
    "squared_error": Loss(
        link=lambda z: z,
        value=lambda z, t: 0.5 * ((z - t) ** 2).sum(axis=1),
        delta=lambda z, t: z - t,
    ),
    "cross_entropy": Loss(
        link=softmax,
        value=lambda z, t: -(t * log_softmax(z)).sum(axis=1),
        delta=lambda z, t: softmax(z) * t.sum(axis=1, keepdims=True) - t,
    ),
    "binary_cross_entropy": Loss(
        link=logistic,
        value=lambda z, t: (np.logaddexp(0, z) - t * z).sum(axis=1),
        delta=lambda z, t: logistic(z) - t,
    ),
}


def targets(network, y):
    """Targets as (n_samples, n_out): labels become one-hot rows, a vector becomes one column."""
    if y.ndim == 2:
        return y
    return np.eye(network.sizes[-1])[y] if network.loss == "cross_entropy" else y[:, None]


# ---- forward and backward ----------------------------------------------------------------------


def layers(network, theta):
    """Views on theta, for each layer W (n_in, n_out) and b (n_out,): W[0] row-major, b[0], W[1], ..."""
    W, b, start = [], [], 0
    for n_in, n_out in zip(network.sizes[:-1], network.sizes[1:], strict=True):
        W.append(theta[start : start + n_in * n_out].reshape(n_in, n_out))
        start += n_in * n_out
        if network.bias:
            b.append(theta[start : start + n_out])
            start += n_out
        else:
            b.append(np.zeros(n_out))
    return W, b


def forward(network, theta, X):
    """The lists of every layer's z (n_samples, n_out) and input a (n_samples, n_in); z[-1] are the logits."""
    W, b = layers(network, theta)
    z, a = [], [X]
    for layer in range(len(W)):
        z.append(a[layer] @ W[layer] + b[layer])
        if layer < len(network.activations):
            f, _ = ACTIVATIONS[network.activations[layer]]
            a.append(f(z[layer]))
    return z, a


def predict(network, theta, X):
    """The outputs after the link, (n_samples, n_out)."""
    z, _ = forward(network, theta, X)
    return LOSSES[network.loss].link(z[-1])


def correct(network, theta, X, y):
    """The share of each sample, (n_samples,), predicted right: its top class, or outputs by side of 1/2."""
    p, t = predict(network, theta, X), targets(network, y)
    if network.loss == "cross_entropy":
        return 1.0 * (p.argmax(axis=1) == t.argmax(axis=1))
    return ((p > 0.5) == (t > 0.5)).mean(axis=1)


def loss_and_gradients(network, theta, X, y, weight=None):
    """The (weighted) mean loss over the samples and its gradient, laid out like theta."""
    w = np.ones(len(X)) if weight is None else weight  # (n_samples,)
    w = w / w.sum()
    t = targets(network, y)  # (n_samples, n_out)
    W, _ = layers(network, theta)
    z, a = forward(network, theta, X)
    loss = LOSSES[network.loss]

    grad = np.empty_like(theta)
    grad_W, grad_b = layers(network, grad)
    delta = w[:, None] * loss.delta(z[-1], t)  # (n_samples, n_out)
    for layer in reversed(range(len(W))):
        grad_W[layer][:] = a[layer].T @ delta  # (n_in, n_out)
        grad_b[layer][:] = delta.sum(axis=0)  # (n_out,)
        if layer > 0:
            _, df = ACTIVATIONS[network.activations[layer - 1]]
            delta = (delta @ W[layer].T) * df(z[layer - 1], a[layer])  # (n_samples, n_in)
    return w @ loss.value(z[-1], t), grad


# ---- optimizers: theta after step number `step` (from 1); state[...] starts as 0 ---------------


def sgd(theta, grad, state, step, learning_rate, momentum=0.0, nesterov=False):
    v = state["v"] = momentum * state["v"] + grad
    return theta - learning_rate * (grad + momentum * v if nesterov else v)


def adam(theta, grad, state, step, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = state["m"] = beta1 * state["m"] + (1 - beta1) * grad
    v = state["v"] = beta2 * state["v"] + (1 - beta2) * grad**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return theta - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)


def adamw(theta, grad, state, step, learning_rate, weight_decay=0.01, **settings):
    return adam((1 - learning_rate * weight_decay) * theta, grad, state, step, learning_rate, **settings)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw}


def train(network, theta, X, y, batches, optimizer, *, weight=None, clip_norm=None, learning_rates=None, **settings):
    """One update per list of row numbers in `batches`: the losses before each update, and the last theta.

    Gradient accumulation is a longer list; `learning_rates` gives every update its own.
    """
    state = defaultdict(float)
    losses = []
    for step, rows in enumerate(batches, start=1):
        w = None if weight is None else weight[rows]
        loss, grad = loss_and_gradients(network, theta, X[rows], y[rows], w)
        if clip_norm is not None:
            grad = grad * min(1.0, clip_norm / np.linalg.norm(grad))
        if learning_rates is not None:
            settings["learning_rate"] = learning_rates[step - 1]
        theta = OPTIMIZERS[optimizer](theta, grad, state, step, **settings)
        losses.append(loss)
    return np.array(losses), theta
