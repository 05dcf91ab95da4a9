"""The same weights as PyTorch after 50 steps in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cases import OPTIMIZERS, batches, make_case, optimizer, relative_error

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: peers)")

ACTIVATIONS = {
    "identity": torch.nn.Identity,
    "logistic": torch.nn.Sigmoid,
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
}

LOSSES = {
    "squared_error": lambda z, t: 0.5 * ((z - t) ** 2).sum() / len(z),
    "cross_entropy": torch.nn.functional.cross_entropy,
    "binary_cross_entropy": lambda z, t: (
        torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="sum") / len(z)
    ),
}


def torch_optimizer(name, parameters):
    _, rule, settings, _ = OPTIMIZERS[name]
    settings = {"lr" if key == "learning_rate" else key: value for key, value in settings.items()}
    if rule == "sgd":
        return torch.optim.SGD(parameters, **settings)
    if "beta1" in settings:
        settings["betas"] = settings.pop("beta1"), settings.pop("beta2")
    if "epsilon" in settings:
        settings["eps"] = settings.pop("epsilon")
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule](parameters, **settings)


def torch_network(net):
    """A copy of net; a Linear keeps the transpose of W."""
    modules = []
    for W, b, activation in zip(net.weights, net.biases, (*net.activations, "identity"), strict=True):
        linear = torch.nn.Linear(*W.shape, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(W.T))
            linear.bias.copy_(torch.tensor(b))
        modules += [linear, ACTIVATIONS[activation]()]
    return torch.nn.Sequential(*modules)


def flat_parameters(model):
    return np.concatenate([parameter.detach().numpy().T.ravel() for parameter in model.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_fifty_steps(rng, loss, name):
    case = make_case(rng, (7, 33, 17, 5, 3), loss, activation=["relu", "tanh", "logistic"], n_samples=71)
    model = torch_network(case.net)
    torch_rule = torch_optimizer(name, model.parameters())
    X, y = torch.tensor(case.X), torch.tensor(case.y)
    for rows in batches(71, 15, epochs=10):
        torch_rule.zero_grad()
        LOSSES[loss](model(X[rows]), y[rows]).backward()
        torch_rule.step()
    case.net.fit(case.X, case.y, optimizer=optimizer(name), batch_size=15, epochs=10, shuffle=False)
    assert relative_error(case.net.theta, flat_parameters(model)) < 1e-9
