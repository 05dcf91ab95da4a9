"""The same weights as PyTorch after 50 steps in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cases import OPTIMIZERS, batches, make_case, optimizer, relative_error

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: peers)")

nn, F = torch.nn, torch.nn.functional
ACTIVATIONS = {
    "identity": nn.Identity(),
    "logistic": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "leaky_relu(negative_slope=0.2)": nn.LeakyReLU(0.2),
    "elu(alpha=0.7)": nn.ELU(0.7),
    "selu": nn.SELU(),
    "celu(alpha=0.5)": nn.CELU(0.5),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
    "softsign": nn.Softsign(),
    "hard_sigmoid": nn.Hardsigmoid(),
    "hard_swish": nn.Hardswish(),
    "relu6": nn.ReLU6(),
}


NORMALIZATIONS = {
    "layer_norm": lambda n: nn.LayerNorm(n, dtype=torch.float64),
    "rms_norm(epsilon=1e-05)": lambda n: nn.RMSNorm(n, eps=1e-5, dtype=torch.float64),
    "batch_norm": lambda n: nn.BatchNorm1d(n, dtype=torch.float64),
}


def summed(loss, **settings):
    """The sum over outputs, the mean over samples."""
    return lambda z, t: loss(z, t, reduction="sum", **settings) / len(z)


def sigmoid_cross_entropy(z, t):
    return F.binary_cross_entropy_with_logits(z, t, reduction="none")


LOSSES = {
    "squared_error": lambda z, t: 0.5 * ((z - t) ** 2).sum() / len(z),
    "absolute_error": summed(F.l1_loss),
    "huber(delta=0.8)": summed(F.huber_loss, delta=0.8),
    "poisson": summed(F.poisson_nll_loss),
    "cross_entropy": F.cross_entropy,
    "cross_entropy(label_smoothing=0.1)": lambda z, t: F.cross_entropy(z, t, label_smoothing=0.1),
    "binary_cross_entropy": summed(F.binary_cross_entropy_with_logits),
    "gaussian_nll(epsilon=0)": lambda z, t: (
        F.gaussian_nll_loss(z[:, ::2], t, z[:, 1::2].exp(), reduction="sum", eps=0) / len(z)
    ),
    "focal(gamma=1.5)": lambda z, t: (
        (sigmoid_cross_entropy(z, t) * (t * (1 - z.sigmoid()) + (1 - t) * z.sigmoid()) ** 1.5).sum() / len(z)
    ),
}

RULES = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "amsgrad": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
}


def torch_optimizer(name, parameters):
    _, rule, settings, extra = OPTIMIZERS[name]
    settings = settings | extra
    names = {"learning_rate": "lr", "epsilon": "eps"}
    if "beta1" in settings or "beta2" in settings:
        settings["betas"] = settings.pop("beta1", 0.9), settings.pop("beta2", 0.999)
    return RULES[rule](parameters, **{names.get(key, key): value for key, value in settings.items()})


def torch_network(net):
    """A copy of net; a Linear keeps the transpose of W."""
    modules, gains, shifts = [], iter(net.gains), iter(net.shifts)
    stages = zip(net.weights, net.biases, (*net.normalization, None), (*net.activations, "identity"), strict=True)
    with torch.no_grad():
        for W, b, normalization, activation in stages:
            linear = torch.nn.Linear(*W.shape, dtype=torch.float64)
            linear.weight.copy_(torch.tensor(W.T))
            linear.bias.copy_(torch.tensor(b))
            modules.append(linear)
            if normalization is not None:
                norm = NORMALIZATIONS[normalization](W.shape[1])
                norm.weight.copy_(torch.tensor(next(gains)))
                if getattr(norm, "bias", None) is not None:
                    norm.bias.copy_(torch.tensor(next(shifts)))
                modules.append(norm)
            modules.append(ACTIVATIONS[activation])
    return torch.nn.Sequential(*modules)


def flat_parameters(model):
    return np.concatenate([parameter.detach().numpy().T.ravel() for parameter in model.parameters()])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalizations(rng, normalization):
    """And the moving averages, seen through the predictions."""
    case = make_case(rng, (7, 33, 17, 3), normalization=normalization, n_samples=71)
    model = assert_same_after_fifty_steps(case, "adam", "squared_error")
    with torch.no_grad():
        predictions = model.eval()(torch.tensor(case.X)).numpy()
    assert relative_error(case.net.forward(case.X), predictions) < 1e-9


def assert_same_after_fifty_steps(case, name, loss):
    model = torch_network(case.net)
    torch_rule = torch_optimizer(name, model.parameters())
    X, y = torch.tensor(case.X), torch.tensor(case.y)
    for rows in batches(71, 15, epochs=10):
        torch_rule.zero_grad()
        LOSSES[loss](model(X[rows]), y[rows]).backward()
        torch_rule.step()
    case.net.fit(case.X, case.y, optimizer=optimizer(name), batch_size=15, epochs=10, shuffle=False)
    assert relative_error(case.net.theta, flat_parameters(model)) < 1e-9
    return model


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "lion" and "steps" not in n])  # PyTorch has none
def test_optimizers(rng, name):
    case = make_case(rng, (7, 33, 17, 5, 3), activation=["relu", "tanh", "logistic"], n_samples=71)
    assert_same_after_fifty_steps(case, name, "squared_error")


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(rng, loss):
    sizes = (7, 33, 17, 5, 4 if loss.startswith("gaussian_nll") else 3)
    case = make_case(rng, sizes, loss, activation=["relu", "tanh", "logistic"], n_samples=71)
    assert_same_after_fifty_steps(case, "adam", loss)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(rng, activation):
    case = make_case(rng, (7, 33, 17, 3), activation=activation, n_samples=71)
    assert_same_after_fifty_steps(case, "adam", "squared_error")
