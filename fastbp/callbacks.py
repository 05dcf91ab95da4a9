"""What can be done between epochs, and between updates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .history import History
from .metrics import METRICS
from .schedules import ByEpoch, ReduceOnPlateau, as_schedule
from .validation import choice, count, number_in

if TYPE_CHECKING:
    from .mlp import MLP


class Controls(NamedTuple):
    """What may be changed in the middle of a training, by writing into it.

    Attributes
    ----------
    rates : (epochs, 1) or (epochs, updates) array
        Learning rates; every update has its own if the schedule is by step, or a callback has ``every``. Only those
        to come matter. What is written is not checked: it must be finite and at least 0.
    dropout : array
        Probabilities of dropping a unit, at least 0 and below 1, one for each layer inside: the inputs' gains where
        there are any; of each hidden layer the weights, and its normalization and its residual sum where it has them;
        the weights of the last. That of a hidden layer stands at its normalization, or at its weights if it has none;
        all others are 0, and must stay so.
    weight_decay : array
        The optimizer's, for each of its groups of parameters; empty if it has none.
    """

    rates: np.ndarray
    dropout: np.ndarray
    weight_decay: np.ndarray


class Callback:
    """Base of callbacks that need the network; a plain callable of the History will do where they do not.

    Until `end` the network holds copies, which the training writes over: what a callback writes into its parameters
    before does not reach the training, and may be lost. `Controls` are what may be changed.

    Attributes
    ----------
    every : int or None
        After how many updates `after_updates` is called; None or 0 for never.
    """

    every: int | None = None

    def check(self, net: MLP, curves: Collection[str]) -> None:
        """Raise ValueError if the network, or curves of these names, will not do; called before anything changes."""

    def begin(self, net: MLP, controls: Controls) -> None:
        """Called before the first epoch."""

    def after_updates(self, net: MLP, updates: int, loss: float) -> bool | None:
        """Called after every ``every`` updates, with their number in this call and the mean loss of the epoch so far;
        True ends the training. The network holds the parameters as they stand.
        """

    def after_epoch(self, net: MLP, history: History) -> bool | None:
        """Called after each epoch; True ends the training."""

    def end(self, net: MLP, history: History) -> None:
        """Called after the last epoch, however the training ended."""


def wants_to_stop(answer: Any) -> bool:
    """Whether what a callback returned is True, Python's or NumPy's."""
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def check_all(net: MLP, callbacks: Sequence[Callback], curves: Collection[str]) -> None:
    """Refuse callbacks that cannot work, or not together.

    Raises
    ------
    ValueError, TypeError
    """
    for callback in callbacks:
        if callback.every:
            count(f"{type(callback).__name__}'s every", callback.every)
        callback.check(net, curves)
    final = [
        type(callback).__name__
        for callback in callbacks
        if isinstance(callback, WeightAveraging) or (isinstance(callback, EarlyStopping) and callback.restore_best)
    ]
    if len(final) > 1:
        raise ValueError(
            f"callbacks must hold at most one that sets the parameters in the end, a WeightAveraging or an "
            f"EarlyStopping with restore_best, they hold {' and '.join(final)}"
        )


@contextmanager
def begun(net: MLP, callbacks: Sequence[Callback], controls: Controls, history: History) -> Iterator[None]:
    """Callbacks at work: in the end, `Callback.end` is called of all that have begun."""
    started: list[Callback] = []
    try:
        for callback in callbacks:
            callback.begin(net, controls)
            started.append(callback)
        yield
    finally:
        with ExitStack() as ends:  # where one fails, the others are called still
            for callback in reversed(started):
                ends.callback(callback.end, net, history)


@dataclass
class PlainCallback(Callback):
    """A callable of the History."""

    function: Callable[[History], Any]

    def after_epoch(self, net: MLP, history: History) -> bool:
        return wants_to_stop(self.function(history))


@dataclass
class Reduction(Callback):
    """Carries out a ReduceOnPlateau."""

    schedule: ReduceOnPlateau

    def begin(self, net: MLP, controls: Controls) -> None:
        self._rates, self._best, self._waited = controls.rates, math.inf, 0

    def after_epoch(self, net: MLP, history: History) -> None:
        loss = (history.val_loss or history.loss)[-1]
        if loss < self._best * (1 - self.schedule.threshold):
            self._best, self._waited = loss, 0
        else:
            self._waited += 1
        if self._waited > self.schedule.patience:
            self._rates[history.epochs :] *= self.schedule.reduction
            self._waited = 0


@dataclass
class Annealing(Callback):
    """Let dropout and decoupled weight decay follow schedules: each epoch has its factor of them.

    Parameters
    ----------
    dropout, weight_decay : str or Schedule, optional
        Of `fastbp.schedules`, but for those that give the learning rate itself or look at the loss; None keeps them as
        they are.
    """

    dropout: Any = None
    weight_decay: Any = None

    def __post_init__(self) -> None:
        for name, given in (("dropout", self.dropout), ("weight_decay", self.weight_decay)):
            schedule = as_schedule(given, name)
            if isinstance(schedule.last, (ByEpoch, ReduceOnPlateau)):
                raise TypeError(f"{name} must be a schedule that gives a factor of it, it is {given!r}")
            setattr(self, name, schedule)

    def begin(self, net: MLP, controls: Controls) -> None:
        epochs = len(controls.rates)
        self._followers = [
            (values, [schedule.rate_at(epoch, epochs, 1, 1.0) * values for epoch in range(epochs + 1)])
            for schedule, values in ((self.dropout, controls.dropout), (self.weight_decay, controls.weight_decay))
        ]
        highest = np.max(self._followers[0][1][:epochs], initial=0.0)
        if highest >= 1:
            raise ValueError(f"Annealing's dropout must be a schedule that keeps it below 1, not one up to {highest:g}")
        self._follow(0)

    def after_epoch(self, net: MLP, history: History) -> None:
        self._follow(history.epochs)

    def _follow(self, epoch: int) -> None:
        for values, by_epoch in self._followers:
            values[:] = by_epoch[epoch]


@dataclass
class EarlyStopping(Callback):
    """Stop when a curve has not become better for ``patience`` epochs.

    Parameters
    ----------
    patience : int
    min_delta : float
        What has changed by no more than this has not become better.
    monitor : str
        Which curve of the History to watch: val_loss, loss, or one of `fit`'s metrics, as "val_accuracy".
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
        curve = self.monitor.partition("(")[0] if isinstance(self.monitor, str) else self.monitor
        choice("monitor", curve, ("val_loss", "loss", *(f"val_{name}" for name in METRICS)))

    def check(self, net: MLP, curves: Collection[str]) -> None:
        if self.monitor not in curves:
            raise ValueError(
                f"EarlyStopping's monitor is {self.monitor!r}, but this training has {', '.join(curves)} alone: give "
                f"fit validation_data, and metrics"
            )

    def begin(self, net: MLP, controls: Controls) -> None:
        self.best_epoch, self._best = 0, math.inf
        self._snapshot: Any = None

    def after_epoch(self, net: MLP, history: History) -> bool:
        value = history.curves[self.monitor][-1]
        metric = METRICS.get(self.monitor.removeprefix("val_").partition("(")[0])
        if metric is not None and metric.rises:
            value = -value
        if self._is_better(value):
            self.best_epoch, self._best = history.epochs - 1, value
            if self.restore_best:
                self._snapshot = net.snapshot()
        return history.epochs - 1 - self.best_epoch >= self.patience

    def _is_better(self, value: float) -> bool:
        return value < self._best - self.min_delta

    def end(self, net: MLP, history: History) -> None:
        if self._snapshot is not None:
            net.restore(self._snapshot)


@dataclass
class WeightAveraging(Callback):
    """In the end, give the network the average of its parameters.

    Moving averages of batch normalizations stay those of the last parameters.

    Parameters
    ----------
    start : int
        Epochs before the first that counts.
    decay : float, optional
        None weighs all alike: stochastic weight averaging (Izmailov et al., 2018). A number in [0, 1) makes it an
        exponential moving average, decay mean + (1 - decay) theta, that begins with the first.
    by : {"epoch", "step"}
        Whether the parameters count after each epoch, or after each update: that runs in the kernels.
    """

    start: int = 0
    decay: float | None = None
    by: str = "epoch"

    def __post_init__(self) -> None:
        self.start = count("start", self.start, at_least=0)
        if self.decay is not None:
            number_in("decay", self.decay, at_least=0, below=1)
        choice("by", self.by, ("epoch", "step"))

    def begin(self, net: MLP, controls: Controls) -> None:
        self._mean, self._epochs = np.zeros(net.n_parameters), 0

    def after_epoch(self, net: MLP, history: History) -> None:
        if self.by == "step" or history.epochs <= self.start:
            return
        self._epochs += 1
        share = 1 / self._epochs if self.decay is None or self._epochs == 1 else 1 - self.decay
        self._mean += share * (net.theta - self._mean)

    def end(self, net: MLP, history: History) -> None:
        if self._epochs:
            net.theta = self._mean


@dataclass
class Checkpoint(Callback):
    """Save the network from time to time.

    Parameters
    ----------
    path : path-like
        May hold ``{epochs}``, the network's, and ``{updates}``, those in this call; a file that exists is replaced.
    every : int, optional
        After how many updates; None for after each epoch, where ``{updates}`` is not known.
    """

    path: str | os.PathLike
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            count("every", self.every)
        try:
            self._name(0, 0)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"path may hold {{epochs}} and, with every, {{updates}}, it is {self.path!r}") from None

    def _name(self, epochs: int, updates: int) -> str:
        numbers = {"epochs": epochs} if self.every is None else {"epochs": epochs, "updates": updates}
        return os.fspath(self.path).format(**numbers)

    def check(self, net: MLP, curves: Collection[str]) -> None:
        net._description()
        folder = Path(self._name(net.epochs + (self.every is None), self.every or 0)).parent
        if not folder.is_dir():
            raise ValueError(f"Checkpoint's path must lie in a folder that exists, {str(folder)!r} does not")

    def after_epoch(self, net: MLP, history: History) -> None:
        if self.every is None:
            net.save(self._name(net.epochs, 0))

    def after_updates(self, net: MLP, updates: int, loss: float) -> None:
        net.save(self._name(net.epochs, updates))
