"""The oracle: backpropagation in plain NumPy float64, written from the equations.

    forward:  z[l] = a[l-1] @ W[l] + b[l];   a[l] = f(z[l]), or f(gain x(z[l]) + shift), and a[l-1] on top
    loss:     delta[L] = dLoss/dz[L]
    backward: grad_W[l] = a[l-1].T @ delta[l];   grad_b[l] = sum over the batch of delta[l]
              delta[l-1] = (delta[l] @ W[l].T) * f'(z[l-1])
    update:   theta <- optimizer(theta, grad, state)

A new activation, loss or optimizer is one entry in a table below.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np


class Network(NamedTuple):
    """What stays fixed in training; the parameters are the flat vector theta."""

    sizes: tuple[int, ...]  # (n_features, n_hidden, ..., n_out)
    activations: tuple[str, ...]  # one name per hidden layer
    loss: str
    bias: bool = True
    l1: float = 0.0
    l2: float = 0.0
    penalty_by_batch: bool = False
    normalizations: tuple[str | None, ...] = ()  # one per hidden layer, none where it is empty
    residual: tuple[bool, ...] = ()
    scale_inputs: bool = False


# ---- activations: f(z) and f'(z, a), elementwise -----------------------------------------------


def logistic(z):
    return np.exp(-np.logaddexp(0, -z))  # 1 / (1 + exp(-z)), which would overflow


erf = np.vectorize(math.erf, otypes=[np.float64])


def softplus(z):
    return np.logaddexp(0, z)


def gelu_tanh(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def slope_of(f):
    """f' by a complex step, which loses no digits."""
    return lambda z, a, p: f(z + 1e-100j).imag / 1e-100


SELU = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

# name: (f(z, p), f'(z, a, p), default p)
ACTIVATIONS = {
    "identity": (lambda z, p: z, lambda z, a, p: np.ones_like(z), 0),
    "logistic": (lambda z, p: logistic(z), lambda z, a, p: a * (1 - a), 0),
    "tanh": (lambda z, p: np.tanh(z), lambda z, a, p: 1 - a**2, 0),
    "relu": (lambda z, p: np.maximum(z, 0), lambda z, a, p: (z > 0) * 1.0, 0),
    "leaky_relu": (lambda z, p: np.where(z > 0, z, p * z), lambda z, a, p: np.where(z > 0, 1.0, p), 0.01),
    "elu": (
        lambda z, p: np.where(z > 0, z, p * np.expm1(np.minimum(z, 0))),
        lambda z, a, p: np.where(z > 0, 1.0, p * np.exp(np.minimum(z, 0))),
        1.0,
    ),
    "selu": (
        lambda z, p: SELU[0] * np.where(z > 0, z, SELU[1] * np.expm1(np.minimum(z, 0))),
        lambda z, a, p: SELU[0] * np.where(z > 0, 1.0, SELU[1] * np.exp(np.minimum(z, 0))),
        0,
    ),
    "celu": (
        lambda z, p: np.where(z > 0, z, p * np.expm1(np.minimum(z, 0) / p)),
        lambda z, a, p: np.where(z > 0, 1.0, np.exp(np.minimum(z, 0) / p)),
        1.0,
    ),
    "gelu": (
        lambda z, p: z * (1 + erf(z / np.sqrt(2))) / 2,
        lambda z, a, p: (1 + erf(z / np.sqrt(2))) / 2 + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi),
        0,
    ),
    "gelu_tanh": (lambda z, p: gelu_tanh(z), slope_of(gelu_tanh), 0),
    "silu": (
        lambda z, p: z * logistic(z),
        lambda z, a, p: logistic(z) + z * logistic(z) * logistic(-z),
        0,
    ),
    "mish": (
        lambda z, p: z * np.tanh(softplus(z)),
        lambda z, a, p: np.tanh(softplus(z)) + z * logistic(z) / np.cosh(np.minimum(softplus(z), 300)) ** 2,
        0,
    ),
    "softplus": (lambda z, p: softplus(z), lambda z, a, p: logistic(z), 0),
    "softsign": (lambda z, p: z / (1 + np.abs(z)), lambda z, a, p: 1 / (1 + np.abs(z)) ** 2, 0),
    "hard_sigmoid": (lambda z, p: np.clip(z / 6 + 0.5, 0, 1), lambda z, a, p: (np.abs(z) < 3) / 6, 0),
    "hard_swish": (
        lambda z, p: z * np.clip(z / 6 + 0.5, 0, 1),
        lambda z, a, p: np.where(z > 3, 1.0, np.where(z < -3, 0.0, z / 3 + 0.5)),
        0,
    ),
    "relu6": (lambda z, p: np.clip(z, 0, 6), lambda z, a, p: ((z > 0) & (z < 6)) * 1.0, 0),
    "sine": (lambda z, p: np.sin(p * z), lambda z, a, p: p * np.cos(p * z), 30.0),
}


def read(spec, table):
    """The row of "name" or "name(setting=number)", and the number, by default the row's last entry."""
    name, _, setting = spec.rstrip(")").partition("(")
    return table[name], float(setting.partition("=")[2]) if setting else table[name][-1]


# ---- losses: of logits z and targets t, both (n_samples, n_out) --------------------------------


def log_softmax(z):
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def softmax(z):
    return np.exp(log_softmax(z))


class Loss(NamedTuple):
    link: object  # z -> y, what predict returns
    value: object  # (z, t, p) -> per output, (n_samples, n_out)
    delta: object  # (z, t, p) -> d value / dz, (n_samples, n_out)
    default: float = 0  # p


def identity(z):
    return z


def focal(z, t, p):
    return -t * logistic(-z) ** p * -softplus(-z) - (1 - t) * logistic(z) ** p * -softplus(z)


def focal_delta(z, t, p):
    s, rest = logistic(z), logistic(-z)
    hit = rest**p * (p * s * -softplus(-z) - rest)
    return t * hit + (1 - t) * s**p * (s - p * rest * -softplus(z))


def margin(z, t):
    return np.maximum(0, 1 - (2 * t - 1) * z)


def smooth(t, p, n_classes):
    return (1 - p) * t + p / n_classes


# Means and log variances stand side by side, and so does each target with itself; the loss counts at the mean.


def means_and_variances(z):
    return np.where(np.arange(z.shape[1]) % 2, np.exp(z), z)


def gaussian_nll(z, t, p):
    mean, v = z[:, ::2], np.exp(z[:, 1::2]) + p
    value = np.zeros_like(z)
    value[:, ::2] = 0.5 * np.log(v) + (mean - t[:, ::2]) ** 2 / (2 * v)
    return value


def gaussian_nll_delta(z, t, p):
    error, v = z[:, ::2] - t[:, ::2], np.exp(z[:, 1::2]) + p
    delta = np.empty_like(z)
    delta[:, ::2] = error / v
    delta[:, 1::2] = (0.5 / v - error**2 / (2 * v**2)) * np.exp(z[:, 1::2])
    return delta


LOSSES = {
    "squared_error": Loss(identity, lambda z, t, p: 0.5 * (z - t) ** 2, lambda z, t, p: z - t),
    "absolute_error": Loss(identity, lambda z, t, p: np.abs(z - t), lambda z, t, p: np.sign(z - t)),
    "huber": Loss(
        identity,
        lambda z, t, p: np.where(np.abs(z - t) <= p, 0.5 * (z - t) ** 2, p * (np.abs(z - t) - p / 2)),
        lambda z, t, p: np.clip(z - t, -p, p),
        1.0,
    ),
    "log_cosh": Loss(
        identity,
        lambda z, t, p: np.logaddexp(z - t, t - z) - np.log(2),
        lambda z, t, p: np.tanh(z - t),
    ),
    "quantile": Loss(
        identity,
        lambda z, t, p: np.maximum(p * (t - z), (p - 1) * (t - z)),
        lambda z, t, p: np.where(z > t, 1 - p, -p),
        0.5,
    ),
    "poisson": Loss(np.exp, lambda z, t, p: np.exp(z) - t * z, lambda z, t, p: np.exp(z) - t),
    "gamma": Loss(np.exp, lambda z, t, p: z + t * np.exp(-z), lambda z, t, p: 1 - t * np.exp(-z)),
    "cross_entropy": Loss(
        softmax,
        lambda z, t, p: -(smooth(t, p, z.shape[1]) * log_softmax(z)),
        lambda z, t, p: softmax(z) * t.sum(axis=1, keepdims=True) - smooth(t, p, z.shape[1]),
    ),
    "binary_cross_entropy": Loss(
        logistic,
        lambda z, t, p: np.logaddexp(0, z) - smooth(t, p, 2) * z,
        lambda z, t, p: logistic(z) - smooth(t, p, 2),
    ),
    "hinge": Loss(
        identity,
        lambda z, t, p: margin(z, t),
        lambda z, t, p: np.where(margin(z, t) > 0, 1 - 2 * t, 0.0),
    ),
    "squared_hinge": Loss(
        identity,
        lambda z, t, p: margin(z, t) ** 2,
        lambda z, t, p: 2 * (1 - 2 * t) * margin(z, t),
    ),
    "focal": Loss(logistic, focal, focal_delta, 2.0),
    "gaussian_nll": Loss(means_and_variances, gaussian_nll, gaussian_nll_delta, 1e-6),
}


def targets(network, y):
    """Targets as (n_samples, n_out): labels become one-hot rows, a vector becomes one column, and pairs of outputs have
    the same target.
    """
    if network.loss.startswith("gaussian_nll"):
        y = np.repeat(y if y.ndim == 2 else y[:, None], 2, axis=1)
    if y.ndim == 2:
        return y
    return np.eye(network.sizes[-1])[y] if y.dtype.kind == "i" else y[:, None]


# ---- normalizations: x(z) and what delta[x] becomes at z, both (n_samples, n_out) ---------------

# name: (axis of the statistics, whether the mean goes, whether there are shifts, default epsilon)
NORMALIZATIONS = {
    "layer_norm": (1, True, True, 1e-5),
    "rms_norm": (1, False, False, 1e-6),
    "batch_norm": (0, True, True, 1e-5),
}


def standardize(z, axis, centered, epsilon):
    """x, and by what it was divided."""
    centre = z - centered * z.mean(axis=axis, keepdims=True)
    deviation = np.sqrt((centre**2).mean(axis=axis, keepdims=True) + epsilon)
    return centre / deviation, deviation


def standardize_back(delta, x, deviation, axis, centered):
    mean = centered * delta.mean(axis=axis, keepdims=True)
    return (delta - mean - x * (delta * x).mean(axis=axis, keepdims=True)) / deviation


# ---- forward and backward ----------------------------------------------------------------------


class Parts(NamedTuple):
    """Views on theta: gains of the inputs, then for each layer W row by row, b, and gain and shift of its norm."""

    input_scale: np.ndarray  # (n_features,)
    W: list[np.ndarray]  # (n_in, n_out)
    b: list[np.ndarray]  # (n_out,)
    gain: list[np.ndarray]  # (n_out,) of hidden layers; ones and zeros where there is none
    shift: list[np.ndarray]


def layers(network, theta):
    start = 0

    def take(n, default):
        nonlocal start
        if default is not None:
            return np.full(n, default)
        start += n
        return theta[start - n : start]

    parts = Parts(take(network.sizes[0], None if network.scale_inputs else 1.0), [], [], [], [])
    n_layers = len(network.sizes) - 1
    norms = (network.normalizations or (None,) * (n_layers - 1)) + (None,)
    for n_in, n_out, norm in zip(network.sizes[:-1], network.sizes[1:], norms, strict=True):
        parts.W.append(take(n_in * n_out, None).reshape(n_in, n_out))
        parts.b.append(take(n_out, None if network.bias else 0.0))
        shifts = norm is not None and read(norm, NORMALIZATIONS)[0][2] and network.bias
        parts.gain.append(take(n_out, None if norm else 1.0))
        parts.shift.append(take(n_out, None if shifts else 0.0))
    return parts


class Trace(NamedTuple):
    """What each layer made of a batch, (n_samples, n_in) and (n_samples, n_out)."""

    a: list[np.ndarray]  # its inputs
    x: list[np.ndarray]  # z, standardised where there is a normalization
    deviation: list
    y: list[np.ndarray]  # what its activation saw; y[-1] are the logits
    f: list[np.ndarray]  # its activations, before a residual connection


def trace(network, theta, X):
    parts = layers(network, theta)
    result = Trace([X * parts.input_scale], [], [], [], [])
    for layer, (W, b, gain, shift) in enumerate(zip(*parts[1:], strict=True)):
        x, deviation = result.a[layer] @ W + b, None
        if network.normalizations and layer < len(network.normalizations) and network.normalizations[layer]:
            (axis, centered, *_), epsilon = read(network.normalizations[layer], NORMALIZATIONS)
            x, deviation = standardize(x, axis, centered, epsilon)
        result.x.append(x)
        result.deviation.append(deviation)
        result.y.append(x * gain + shift)
        if layer < len(network.activations):
            (f, *_), p = read(network.activations[layer], ACTIVATIONS)
            result.f.append(f(result.y[layer], p))
            skip = result.a[layer] if network.residual and network.residual[layer] else 0
            result.a.append(result.f[layer] + skip)
    return result


def forward(network, theta, X):
    """The lists of every layer's y (n_samples, n_out) and input a (n_samples, n_in); y[-1] are the logits."""
    result = trace(network, theta, X)
    return result.y, result.a


def predict(network, theta, X):
    """The outputs after the link, (n_samples, n_out)."""
    z, _ = forward(network, theta, X)
    return read(network.loss, LOSSES)[0].link(z[-1])


def correct(network, theta, X, y):
    """The share of each sample, (n_samples,), predicted right: its top class, or outputs by side of 1/2."""
    t = targets(network, y)
    z, _ = forward(network, theta, X)
    if network.loss.startswith("cross_entropy"):
        return 1.0 * (z[-1].argmax(axis=1) == t.argmax(axis=1))
    return ((z[-1] > 0) == (t > 0.5)).mean(axis=1)


def loss_and_gradients(network, theta, X, y, weight=None):
    """The (weighted) mean loss over the samples and its gradient, laid out like theta."""
    w = np.ones(len(X)) if weight is None else weight  # (n_samples,)
    share = 1 / w.sum() if network.penalty_by_batch else 1.0
    w = w / w.sum()
    t = targets(network, y)  # (n_samples, n_out)
    W, gain = layers(network, theta).W, layers(network, theta).gain
    a, x, deviation, z, f = trace(network, theta, X)
    loss, p = read(network.loss, LOSSES)

    value = w @ loss.value(z[-1], t, p).sum(axis=1)
    grad = np.empty_like(theta)
    of = layers(network, grad)
    delta = w[:, None] * loss.delta(z[-1], t, p)  # (n_samples, n_out)
    of_output = np.zeros(0)  # dLoss/da of what a layer gives
    for layer in reversed(range(len(W))):
        of.gain[layer][:] = (delta * x[layer]).sum(axis=0)  # (n_out,)
        of.shift[layer][:] = delta.sum(axis=0)
        if deviation[layer] is not None:
            (axis, centered, *_), _ = read(network.normalizations[layer], NORMALIZATIONS)
            delta = standardize_back(delta * gain[layer], x[layer], deviation[layer], axis, centered)
        of.W[layer][:] = a[layer].T @ delta  # (n_in, n_out)
        of.W[layer][:] += share * (network.l1 * np.sign(W[layer]) + network.l2 * W[layer])
        value += share * (network.l1 * np.abs(W[layer]).sum() + network.l2 / 2 * (W[layer] ** 2).sum())
        of.b[layer][:] = delta.sum(axis=0)  # (n_out,)
        back = delta @ W[layer].T  # (n_samples, n_in): dLoss/da[layer]
        if layer < len(network.activations) and network.residual and network.residual[layer]:
            back += of_output
        of_output = back
        if layer > 0:
            (_, df, _), p = read(network.activations[layer - 1], ACTIVATIONS)
            delta = back * df(z[layer - 1], f[layer - 1], p)
    of.input_scale[:] = (back * X).sum(axis=0)
    return value, grad


# ---- optimizers: theta after step number `step` (from 1); state[...] starts as 0 ---------------


def sgd(theta, grad, state, step, learning_rate, momentum=0.0, nesterov=False, rate_in_velocity=False):
    if rate_in_velocity:
        v = state["v"] = momentum * state["v"] - learning_rate * grad
        return theta + (momentum * v - learning_rate * grad if nesterov else v)
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


def moments(grad, state, beta1, beta2):
    state["m"] = beta1 * state["m"] + (1 - beta1) * grad
    state["v"] = beta2 * state["v"] + (1 - beta2) * grad**2
    return state["m"], state["v"]


def amsgrad(theta, grad, state, step, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m, v = moments(grad, state, beta1, beta2)
    state["highest"] = np.maximum(state["highest"], v)
    v_hat = state["highest"] / (1 - beta2**step)
    return theta - learning_rate * m / (1 - beta1**step) / (np.sqrt(v_hat) + epsilon)


def nadam(theta, grad, state, step, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8, momentum_decay=0.004):
    m, v = moments(grad, state, beta1, beta2)
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    state["product"] = mu * (state["product"] if step > 1 else 1)
    product = state["product"]
    m_hat = following * m / (1 - product * following) + (1 - mu) * grad / (1 - product)
    return theta - learning_rate * m_hat / (np.sqrt(v / (1 - beta2**step)) + epsilon)


def radam(theta, grad, state, step, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m, v = moments(grad, state, beta1, beta2)
    m_hat = m / (1 - beta1**step)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return theta - learning_rate * m_hat
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return theta - learning_rate * m_hat * r * np.sqrt(1 - beta2**step) / (np.sqrt(v) + epsilon)


def lion(theta, grad, state, step, learning_rate, beta1=0.9, beta2=0.99, weight_decay=0.0):
    direction = np.sign(beta1 * state["m"] + (1 - beta1) * grad)
    state["m"] = beta2 * state["m"] + (1 - beta2) * grad
    return theta - learning_rate * (direction + weight_decay * theta)


def adagrad(theta, grad, state, step, learning_rate, epsilon=1e-10):
    state["sum"] = state["sum"] + grad**2
    return theta - learning_rate * grad / (np.sqrt(state["sum"]) + epsilon)


def adadelta(theta, grad, state, step, learning_rate, rho=0.9, epsilon=1e-6):
    state["v"] = rho * state["v"] + (1 - rho) * grad**2
    change = np.sqrt(state["u"] + epsilon) / np.sqrt(state["v"] + epsilon) * grad
    state["u"] = rho * state["u"] + (1 - rho) * change**2
    return theta - learning_rate * change


def rmsprop(theta, grad, state, step, learning_rate, alpha=0.99, epsilon=1e-8, momentum=0.0, centered=False):
    state["v"] = alpha * state["v"] + (1 - alpha) * grad**2
    state["mean"] = alpha * state["mean"] + (1 - alpha) * grad
    variance = state["v"] - state["mean"] ** 2 if centered else state["v"]
    state["b"] = momentum * state["b"] + grad / (np.sqrt(variance) + epsilon)
    return theta - learning_rate * state["b"]


OPTIMIZERS = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "amsgrad": amsgrad,
    "nadam": nadam,
    "radam": radam,
    "lion": lion,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "rmsprop": rmsprop,
}


def train(
    network,
    theta,
    X,
    y,
    batches,
    optimizer,
    *,
    weight=None,
    clip_norm=None,
    clip_value=None,
    learning_rates=None,
    max_norm=None,
    **settings,
):
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
        if clip_value is not None:
            grad = np.clip(grad, -clip_value, clip_value)
        if learning_rates is not None:
            settings["learning_rate"] = learning_rates[step - 1]
        theta = OPTIMIZERS[optimizer](theta, grad, state, step, **settings)
        for W in layers(network, theta).W if max_norm else ():
            W *= np.minimum(1, max_norm / np.linalg.norm(W, axis=0))
        losses.append(loss)
    return np.array(losses), theta
