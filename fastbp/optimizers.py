"""Optimizers as users see them: settings, and a state that carries over from call to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .kernels.optimizers import OPTIMIZERS
from .validation import choice, number_in


@dataclass(eq=False)
class Optimizer:
    """Settings and state of an update rule; use one of the subclasses.

    The state belongs to one network: moments in the layout of ``net.theta`` and the number of updates made.
    Passing the same instance to another call continues where it stopped.
    """

    learning_rate: float

    def __post_init__(self) -> None:
        self.check()
        self.reset()

    def check(self) -> None:
        """Raise ValueError or TypeError if a setting is out of its range."""
        number_in("learning_rate", self.learning_rate, above=0)

    @property
    def rule(self) -> str:
        """Name of the row in the kernels' table."""
        raise NotImplementedError

    @property
    def hyper(self) -> np.ndarray:
        """Settings besides the learning rate, in the order that the rule reads them."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the state."""
        self._slots: np.ndarray | None = None
        self._step = 0

    def state(self, n_parameters: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
        """A copy of the state, fresh where there is none yet: slots (n_slots, n_parameters), updates made.

        Raises
        ------
        ValueError
            If the state belongs to a network of another size or dtype, or to another rule.
        """
        shape = (OPTIMIZERS[self.rule].n_slots, n_parameters)
        if self._slots is None:
            return np.zeros(shape, dtype), 0
        if self._slots.shape != shape or self._slots.dtype != dtype:
            raise ValueError(
                f"optimizer carries the state of a training with {self._slots.shape[1]} parameters of type "
                f"{self._slots.dtype} and {self._slots.shape[0]} slots, this one has {n_parameters} of type {dtype} "
                f"and {shape[0]}: give a new instance, or call reset() first"
            )
        return self._slots.copy(), self._step

    def keep(self, slots: np.ndarray, step: int) -> None:
        """Take over the state of a training."""
        self._slots, self._step = slots, step


@dataclass(eq=False)
class SGD(Optimizer):
    """Stochastic gradient descent, with classical or Nesterov momentum.

    v <- momentum v + grad; theta <- theta - learning_rate (grad + momentum v if nesterov else v), the form of
    PyTorch. scikit-learn and Keras keep the learning rate inside v, which is the same while it does not change.

    Parameters
    ----------
    learning_rate : float
    momentum : float
        In [0, 1).
    nesterov : bool
        Needs a momentum above 0.
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def check(self) -> None:
        super().check()
        number_in("momentum", self.momentum, at_least=0, below=1)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, momentum is 0")

    @property
    def rule(self) -> str:
        if not self.momentum:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def hyper(self) -> np.ndarray:
        return np.array([self.momentum], np.float64)


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
    """

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def check(self) -> None:
        super().check()
        number_in("beta1", self.beta1, at_least=0, below=1)
        number_in("beta2", self.beta2, at_least=0, below=1)
        number_in("epsilon", self.epsilon, above=0)

    @property
    def rule(self) -> str:
        return "adam"

    @property
    def hyper(self) -> np.ndarray:
        return np.array([self.beta1, self.beta2, self.epsilon, 0.0], np.float64)


@dataclass(eq=False)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, algorithm 2).

    theta <- (1 - learning_rate weight_decay) theta before Adam's step, on all parameters, biases too, as in PyTorch.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float
        As for `Adam`.
    weight_decay : float
        At least 0.
    """

    weight_decay: float = 0.01

    def check(self) -> None:
        super().check()
        number_in("weight_decay", self.weight_decay, at_least=0)

    @property
    def rule(self) -> str:
        return "adamw"

    @property
    def hyper(self) -> np.ndarray:
        return np.array([self.beta1, self.beta2, self.epsilon, self.weight_decay], np.float64)


BY_NAME: dict[str, Callable[[], Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def as_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """The instance itself, or a new one with default settings for a name; settings are checked.

    Raises
    ------
    ValueError, TypeError
    """
    if isinstance(optimizer, str):
        return BY_NAME[choice("optimizer", optimizer, BY_NAME)]()
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a name ({', '.join(BY_NAME)}) or an Optimizer, not {type(optimizer).__name__}"
        )
    optimizer.check()
    return optimizer
