"""What can be done between epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .history import History
from .schedules import ReduceOnPlateau
from .validation import choice, count, number_in

if TYPE_CHECKING:
    from .mlp import MLP


class Callback:
    """Base of callbacks that need the network; a plain callable of the History will do where they do not."""

    def check(self, has_validation_data: bool) -> None:
        """Raise ValueError if the training cannot be watched; called before anything changes."""

    def begin(self, net: MLP, rates: np.ndarray) -> None:
        """Called before the first epoch.

        ``rates`` (epochs, 1) or (epochs, updates) are the learning rates; those of epochs to come may be changed.
        """

    def after_epoch(self, net: MLP, history: History) -> bool | None:
        """Called after each epoch; True ends the training."""

    def end(self, net: MLP, history: History) -> None:
        """Called after the last epoch, however the training ended."""


@dataclass
class PlainCallback(Callback):
    """A callable of the History."""

    function: Callable[[History], Any]

    def after_epoch(self, net: MLP, history: History) -> bool:
        return self.function(history) is True


@dataclass
class Reduction(Callback):
    """Carries out a ReduceOnPlateau."""

    schedule: ReduceOnPlateau

    def begin(self, net: MLP, rates: np.ndarray) -> None:
        self._rates, self._best, self._waited, self._fallen = rates, math.inf, 0, 0

    def after_epoch(self, net: MLP, history: History) -> None:
        loss = (history.val_loss or history.loss)[-1]
        if loss < self._best * (1 - self.schedule.threshold):
            self._best, self._waited = loss, 0
        else:
            self._waited += 1
        if self._waited > self.schedule.patience:
            self._fallen, self._waited = self._fallen + 1, 0
        self._rates[history.epochs :] = self._rates[0, 0] * self.schedule.reduction**self._fallen


@dataclass
class EarlyStopping(Callback):
    """Stop when a loss has not fallen for ``patience`` epochs.

    Parameters
    ----------
    patience : int
    min_delta : float
        A loss that falls by no more than this has not fallen.
    monitor : {"val_loss", "loss"}
        Which curve of the History to watch.
    restore_best : bool
        In the end, give the network the parameters of its best epoch. Those of "loss" are the ones after the epoch
        whose mean loss was lowest.

    Attributes
    ----------
    best_epoch : int
        Counted from 0 in the call.
    """

    patience: int = 10
    min_delta: float = 0.0
    monitor: str = "val_loss"
    restore_best: bool = True

    def __post_init__(self) -> None:
        count("patience", self.patience)
        number_in("min_delta", self.min_delta, at_least=0)
        choice("monitor", self.monitor, ("val_loss", "loss"))

    def check(self, has_validation_data: bool) -> None:
        if self.monitor == "val_loss" and not has_validation_data:
            raise ValueError(
                "EarlyStopping's monitor is 'val_loss', which needs fit's validation_data: give it, or 'loss'"
            )

    def begin(self, net: MLP, rates: np.ndarray) -> None:
        self.best_epoch, self._best, self._theta = 0, math.inf, np.zeros(0)

    def after_epoch(self, net: MLP, history: History) -> bool:
        curve = getattr(history, self.monitor)
        if curve[-1] < self._best - self.min_delta:
            self.best_epoch, self._best = len(curve) - 1, curve[-1]
            if self.restore_best:
                self._theta = net.theta.copy()
        return len(curve) - 1 - self.best_epoch >= self.patience

    def end(self, net: MLP, history: History) -> None:
        if self._theta.size:
            net.theta = self._theta


@dataclass
class WeightAveraging(Callback):
    """In the end, give the network the average of its parameters after each epoch.

    Parameters
    ----------
    start : int
        Epochs before the first that counts.
    decay : float, optional
        None weighs all epochs alike: stochastic weight averaging (Izmailov et al., 2018). A number in [0, 1) makes it
        an exponential moving average, decay mean + (1 - decay) theta, that begins with the first.
    """

    start: int = 0
    decay: float | None = None

    def __post_init__(self) -> None:
        number_in("start", self.start, at_least=0)
        if self.decay is not None:
            number_in("decay", self.decay, at_least=0, below=1)

    def begin(self, net: MLP, rates: np.ndarray) -> None:
        self._mean, self._epochs = np.zeros(net.n_parameters), 0

    def after_epoch(self, net: MLP, history: History) -> None:
        if history.epochs <= self.start:
            return
        self._epochs += 1
        share = 1 / self._epochs if self.decay is None or self._epochs == 1 else 1 - self.decay
        self._mean += share * (net.theta - self._mean)

    def end(self, net: MLP, history: History) -> None:
        if self._epochs:
            net.theta = self._mean
