"""Optimizers as users see them: settings, and a state that carries over from call to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from .custom import compiled, reason
from .kernels.optimizers import OPTIMIZERS
from .kernels.problem import DENSE, CustomRule, Topology
from .lbfgs import LBFGS
from .validation import choice, count, number_in, settings_in

#: What settings may be, by their names.
BOUNDS: dict[str, dict[str, float]] = {
    "learning_rate": {"above": 0},
    "momentum": {"at_least": 0, "below": 1},
    "beta1": {"at_least": 0, "below": 1},
    "beta2": {"at_least": 0, "below": 1},
    "rho": {"at_least": 0, "below": 1},
    "alpha": {"at_least": 0, "below": 1},
    "epsilon": {"above": 0},
    "weight_decay": {"at_least": 0},
    "momentum_decay": {"at_least": 0},
}
#: Numbers that a rule can read besides the learning rate.
N_HYPER = 4


def _numbers(name: str, values: Any, **bounds: float) -> None:
    """Raise TypeError or ValueError unless ``values`` is a sequence of numbers in the range."""
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"{name} must be a sequence of numbers, it is {values!r}")
    for value in values:
        number_in(name, value, **bounds)


@dataclass(eq=False)
class Optimizer:
    """Settings and state of an update rule; use one of the subclasses.

    The state belongs to one network: moments in the layout of ``net.theta`` and the number of updates made.
    Passing the same instance to another call continues where it stopped.

    Parameters
    ----------
    learning_rate : float
    layer_rates : sequence of float, optional
        What multiplies the learning rate of each dense layer, with its bias and its normalization, at least 0; the
        gains of inputs belong to the first. A layer of rate 0 stays as it is, but for ``max_norm``.
    """

    learning_rate: float
    layer_rates: Sequence[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.check()
        self.reset()

    def check(self) -> None:
        """Raise ValueError or TypeError if a setting is out of its range."""
        settings_in(self, BOUNDS)
        if self.layer_rates is not None:
            _numbers("layer_rates", self.layer_rates, at_least=0)

    @property
    def rule(self) -> str | CustomRule:
        """Name of the row in the kernels' table, or a rule of the user's."""
        return type(self).__name__.lower()

    @property
    def n_slots(self) -> int:
        """Numbers of state that belong to each parameter."""
        return OPTIMIZERS[self.rule].n_slots if isinstance(self.rule, str) else self.rule.n_slots

    @property
    def hyper_names(self) -> list[str]:
        """Names of the settings that are numbers, besides the learning rate, as they are declared."""
        return [name for name in self.__dataclass_fields__ if name in BOUNDS and name != "learning_rate"]

    @property
    def hyper(self) -> np.ndarray:
        """Their values; zeros follow."""
        hyper = np.zeros(N_HYPER)
        hyper[: len(self.hyper_names)] = [getattr(self, name) for name in self.hyper_names]
        return hyper

    def groups(self, topology: Topology) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The groups of parameters: settings (n_groups, n) and rates (n_groups,) of each, and which of them W and b of
        each of the topology's layers belong to (n_layers, 2).

        Raises
        ------
        ValueError
            If ``layer_rates`` are not those of the network.
        """
        layers = topology.layers
        if self.layer_rates is None:
            return self.hyper[None], np.ones(1), np.zeros((len(layers), 2), np.int64)
        n_dense = len(topology.layer_sizes) - 1
        if len(self.layer_rates) != n_dense:
            raise ValueError(
                f"layer_rates must be one number per layer ({n_dense}), it has {len(self.layer_rates)} numbers"
            )
        dense = np.maximum(np.cumsum([layer.kind == DENSE for layer in layers]) - 1, 0)
        rates = np.array(self.layer_rates, np.float64)
        return np.tile(self.hyper, (n_dense, 1)), rates, np.stack([dense, dense], axis=1)

    def reset(self) -> None:
        """Forget the state."""
        self._slots: np.ndarray | None = None
        self._step = 0

    def state(self, n_parameters: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
        """The state, fresh where there is none yet: slots (n_slots, n_parameters), and updates made.

        A training writes into the slots.

        Raises
        ------
        ValueError
            If the state belongs to a network of another size or dtype, or to another rule.
        """
        shape = (self.n_slots, n_parameters)
        if self._slots is None:
            return np.zeros(shape, dtype), 0
        if self._slots.shape != shape or self._slots.dtype != dtype:
            raise ValueError(
                f"optimizer carries the state of a training with {self._slots.shape[1]} parameters of type "
                f"{self._slots.dtype} and {self._slots.shape[0]} slots, this one has {n_parameters} of type {dtype} "
                f"and {shape[0]}: give a new instance, or call reset() first"
            )
        # read-only if it was unpickled into a mapped file
        return np.require(self._slots, requirements="W"), self._step

    def keep(self, slots: np.ndarray, step: int) -> None:
        """Take over the state of a training."""
        self._slots, self._step = slots, step


@dataclass(eq=False)
class SGD(Optimizer):
    """Stochastic gradient descent, with classical or Nesterov momentum.

    v <- momentum v + grad; theta <- theta - learning_rate (grad + momentum v if nesterov else v), the form of
    PyTorch.

    Parameters
    ----------
    learning_rate : float
    momentum : float
        In [0, 1).
    nesterov : bool
        Needs a momentum above 0.
    rate_in_velocity : bool
        Keep the learning rate inside v, as scikit-learn and Keras do: v <- momentum v - learning_rate grad. It is the
        same while the learning rate does not change.
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    rate_in_velocity: bool = False

    def check(self) -> None:
        super().check()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, momentum is 0")

    @property
    def rule(self) -> str:
        if not self.momentum:
            return "sgd"
        return ("nesterov" if self.nesterov else "momentum") + "_of_steps" * self.rate_in_velocity


@dataclass(eq=False)
class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1).

    theta <- theta - learning_rate m_hat / (sqrt(v_hat) + epsilon), as in PyTorch; scikit-learn adds epsilon to the
    uncorrected sqrt(v) instead.

    Parameters
    ----------
    learning_rate : float
    beta1, beta2 : float
        Decay rates of the moments, in [0, 1).
    epsilon : float
    amsgrad : bool
        Divide by the root of the largest v so far (Reddi et al., 2018), as in PyTorch.
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    amsgrad: bool = False

    @property
    def rule(self) -> str | CustomRule:
        return "amsgrad" if self.amsgrad else super().rule


@dataclass(eq=False)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, algorithm 2).

    theta <- (1 - learning_rate weight_decay) theta before Adam's step, on all parameters, biases too, as in PyTorch.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, amsgrad
        As for `Adam`.
    weight_decay : float
        At least 0.
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    weight_decay: float = 0.01


@dataclass(eq=False)
class NAdam(Optimizer):
    """Adam with Nesterov momentum (Dozat, 2016), as in PyTorch.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float
        As for `Adam`.
    momentum_decay : float
        At least 0: mu_t = beta1 (1 - 0.96**(momentum_decay t) / 2).
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.002
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum_decay: float = 0.004


@dataclass(eq=False)
class RAdam(Optimizer):
    """Rectified Adam (Liu et al., 2020), as in PyTorch.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float
        As for `Adam`.
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(eq=False)
class Lion(Optimizer):
    """Signs of a momentum (Chen et al., 2023, algorithm 2).

    theta <- theta - learning_rate (sign(beta1 m + (1 - beta1) grad) + weight_decay theta), then
    m <- beta2 m + (1 - beta2) grad.

    Parameters
    ----------
    learning_rate : float
    beta1, beta2 : float
        In [0, 1).
    weight_decay : float
        At least 0.
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.0001
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0


@dataclass(eq=False)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011): theta <- theta - learning_rate grad / (sqrt(sum grad^2) + epsilon), as in PyTorch.

    Parameters
    ----------
    learning_rate, epsilon : float
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.01
    epsilon: float = 1e-10


@dataclass(eq=False)
class Adadelta(Optimizer):
    """Adadelta (Zeiler, 2012), as in PyTorch.

    Parameters
    ----------
    learning_rate : float
    rho : float
        Decay rate of both mean squares, in [0, 1).
    epsilon : float
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 1.0
    rho: float = 0.9
    epsilon: float = 1e-6


@dataclass(eq=False)
class RMSprop(Optimizer):
    """RMSprop (Hinton, 2012), as in PyTorch: epsilon is added to the root.

    Parameters
    ----------
    learning_rate : float
    alpha : float
        Decay rate of the mean square, in [0, 1).
    epsilon : float
    momentum : float
        In [0, 1).
    centered : bool
        Divide by the standard deviation of the gradient in place of its root mean square (Graves, 2013).
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.
    """

    learning_rate: float = 0.01
    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    @property
    def rule(self) -> str:
        if self.centered:
            return "rmsprop_centered"
        return "rmsprop_momentum" if self.momentum else "rmsprop"


@dataclass(eq=False)
class CustomOptimizer(Optimizer):
    """An update rule of one's own, fused into the gradient like built-in ones; it is compiled once in every process.

    Parameters
    ----------
    learning_rate : float
    update : callable
        From a parameter, its gradient, its state as a tuple of ``n_slots`` numbers, which begin as 0, and ``h``, the
        tuple (learning rate, number of the update from 1, settings...), to the new parameter and the new state: plain
        Python or compiled by ``numba.njit``. The numbers are of the network's dtype.
    n_slots : int
    settings : sequence of float
        Up to four; zeros follow.
    layer_rates : sequence of float, optional
        A factor of the learning rate for each dense layer; see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Also if ``update`` does not compile, or gives anything else.
    """

    update: Callable
    n_slots: int = 0  # type: ignore[assignment]
    settings: Sequence[float] = ()

    def __post_init__(self) -> None:
        self._rule = CustomRule(compiled("update", self.update), self.n_slots)
        super().__post_init__()
        wanted = f"update must be a function (theta, grad, slots, h) that gives theta and {self.n_slots} slots"
        h = float(self.learning_rate), 1.0, *self.hyper
        try:
            theta, slots = self._rule.update(0.5, 0.25, (0.0,) * self.n_slots, h)
            n_numbers = np.array([theta, *slots], np.float64).size
        except (NumbaError, TypeError, ValueError) as problem:
            raise TypeError(f"{wanted}: {reason(problem)}") from problem
        if n_numbers != 1 + self.n_slots:
            raise ValueError(f"{wanted}, it gives {n_numbers - 1}")

    def check(self) -> None:
        super().check()
        if self.n_slots != 0:
            count("n_slots", self.n_slots)
        _numbers("settings", self.settings)
        if len(self.settings) > N_HYPER:
            raise ValueError(f"settings must be at most {N_HYPER} numbers, it has {len(self.settings)}")

    @property
    def rule(self) -> CustomRule:
        return self._rule

    @property
    def hyper(self) -> np.ndarray:
        return np.array([*self.settings, *[0.0] * (N_HYPER - len(self.settings))], np.float64)


BY_NAME: dict[str, Callable[[], Optimizer | LBFGS]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "lion": Lion,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "rmsprop": RMSprop,
    "lbfgs": LBFGS,
}


def as_optimizer(optimizer: str | Optimizer | LBFGS) -> Optimizer | LBFGS:
    """The instance itself, or a new one with default settings for a name; settings are checked.

    Raises
    ------
    ValueError, TypeError
    """
    if isinstance(optimizer, str):
        return BY_NAME[choice("optimizer", optimizer, BY_NAME)]()
    if isinstance(optimizer, Optimizer):
        optimizer.check()
    elif isinstance(optimizer, LBFGS):
        optimizer.__post_init__()  # settings may have changed since
    else:
        raise TypeError(
            f"optimizer must be a name ({', '.join(BY_NAME)}) or an Optimizer, not {type(optimizer).__name__}"
        )
    return optimizer
