"""Learning-rate schedules: factors of the optimizer's learning rate over the time of a training.

Time is counted in epochs of the call. A schedule is evaluated at the start of every epoch or, with ``by="step"``, of
every update, at a fraction of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np

from .validation import choice, number_in, settings_in

#: What settings may be, by their names.
BOUNDS: dict[str, dict[str, float]] = {
    "every": {"above": 0},
    "gamma": {"above": 0},
    "power": {"above": 0},
    "end": {"at_least": 0},
    "first": {"above": 0},
    "stretch": {"at_least": 1},
    "epochs": {"above": 0},
    "rise": {"above": 0, "below": 1},
    "start_divisor": {"at_least": 1},
    "end_divisor": {"at_least": 1},
    "reduction": {"above": 0, "below": 1},
    "patience": {"at_least": 0},
    "threshold": {"at_least": 0},
}


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules, and the constant one.

    Parameters
    ----------
    by : {"epoch", "step"}
        When the rate changes.
    """

    _: KW_ONLY
    by: str = "epoch"

    def __post_init__(self) -> None:
        choice("by", self.by, ("epoch", "step"))
        settings_in(self, BOUNDS)

    def factor(self, time: float, total: float) -> float:
        """What the learning rate is multiplied by, ``time`` epochs into a training of ``total``."""
        return 1.0


@dataclass(frozen=True)
class Step(Schedule):
    """gamma**floor(time / every), PyTorch's StepLR."""

    every: float
    gamma: float = 0.1

    def factor(self, time: float, total: float) -> float:
        return self.gamma ** math.floor(time / self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """gamma**time, PyTorch's ExponentialLR."""

    gamma: float

    def factor(self, time: float, total: float) -> float:
        return self.gamma**time


@dataclass(frozen=True)
class Polynomial(Schedule):
    """From 1 to ``end`` as (1 - time / total)**power."""

    power: float = 1.0
    end: float = 0.0

    def factor(self, time: float, total: float) -> float:
        return self.end + (1 - self.end) * max(0.0, 1 - time / total) ** self.power


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 to ``end`` along half a cosine (Loshchilov & Hutter, 2017), PyTorch's CosineAnnealingLR."""

    end: float = 0.0

    def factor(self, time: float, total: float) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * min(1.0, time / total))) / 2


@dataclass(frozen=True)
class FlatCosine(Schedule):
    """1 for a share ``flat`` of the training, then down to 0 along half a cosine."""

    flat: float = 0.5

    def factor(self, time: float, total: float) -> float:
        start = self.flat * total
        return Cosine().factor(max(0.0, time - start), total - start)


@dataclass(frozen=True)
class LogCosine(Schedule):
    """Whole cosines from 0 to 1 and back, each twice as long as the one before: Holzmüller et al. (2024), section 3."""

    cycles: int = 4
    _: KW_ONLY
    by: str = "step"

    def factor(self, time: float, total: float) -> float:
        return (1 - math.cos(2 * math.pi * math.log2(1 + (2**self.cycles - 1) * time / total))) / 2


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """The same again and again (Loshchilov & Hutter, 2017), PyTorch's CosineAnnealingWarmRestarts.

    Parameters
    ----------
    first : float
        Epochs of the first cycle.
    stretch : float
        How many times longer each cycle is than the one before.
    end : float
    """

    first: float
    stretch: float = 1.0
    end: float = 0.0

    def factor(self, time: float, total: float) -> float:
        cycle = self.first
        while time >= cycle:
            time -= cycle
            cycle *= self.stretch
        return Cosine(self.end).factor(time, cycle)


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """1 / (time + 1)**power; scikit-learn's "invscaling" counts samples in place of epochs."""

    power: float = 0.5

    def factor(self, time: float, total: float) -> float:
        return 1 / (time + 1) ** self.power


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to 1 along a cosine for a share ``rise`` of the training, then down: PyTorch's OneCycleLR.

    Smith & Topin (2019). It begins with 1 / start_divisor and ends with 1 / (start_divisor end_divisor).
    """

    rise: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4
    _: KW_ONLY
    by: str = "step"

    def factor(self, time: float, total: float) -> float:
        start, top = 1 / self.start_divisor, self.rise * total
        if time < top:
            return Cosine(1 / start).factor(time, top) * start
        return Cosine(start / self.end_divisor).factor(time - top, total - top)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A linear rise to 1 over the first ``epochs``, then another schedule for the rest."""

    epochs: float
    then: Schedule = Schedule()
    _: KW_ONLY
    by: str = "step"

    def factor(self, time: float, total: float) -> float:
        if time < self.epochs:
            return time / self.epochs
        return self.then.factor(time - self.epochs, total - self.epochs)


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Multiply by ``reduction`` when the loss has not fallen for more than ``patience`` epochs, as PyTorch's.

    The validation loss counts where there is one. A loss has fallen when it is below (1 - threshold) times the best.
    """

    reduction: float = 0.1
    patience: int = 10
    threshold: float = 1e-4


@dataclass(frozen=True)
class ByStep(Schedule):
    """Any callable from the update, counted from 0 in the call, to the learning rate itself."""

    rate: Callable[[int], float]
    _: KW_ONLY
    by: str = "step"


#: Schedules by their names, with default settings.
BY_NAME: dict[str, Callable[[], Schedule]] = {
    "constant": Schedule,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "flat_cosine": FlatCosine,
    "log_cosine": LogCosine,
    "inverse_scaling": InverseScaling,
    "one_cycle": OneCycle,
    "reduce_on_plateau": ReduceOnPlateau,
}


def as_schedule(schedule: str | Schedule | Callable[[int], float] | None) -> Schedule | Callable[[int], float]:
    """A schedule with default settings for a name, the constant one for None; a callable as it is.

    Raises
    ------
    ValueError, TypeError
    """
    if isinstance(schedule, str):
        return BY_NAME[choice("schedule", schedule, BY_NAME)]()
    if schedule is None:
        return Schedule()
    if not isinstance(schedule, Schedule) and not callable(schedule):
        raise TypeError(
            f"schedule must be a name ({', '.join(BY_NAME)}), a Schedule or a callable of the epoch, it is {schedule!r}"
        )
    return schedule


def learning_rates(schedule: Schedule | Callable[[int], float], rate: float, epochs: int, steps: int) -> np.ndarray:
    """Learning rates of ``epochs`` epochs of ``steps`` updates each, ``rate`` being the optimizer's.

    Returns
    -------
    (epochs, 1) or (epochs, steps) float64 array

    Raises
    ------
    ValueError, TypeError
        If a callable gives anything but a finite number of at least 0.
    """
    if type(schedule) is Schedule:
        return np.full((epochs, 1), rate)
    if isinstance(schedule, ByStep):
        values = [schedule.rate(step) for step in range(epochs * steps)]
    elif isinstance(schedule, Schedule):
        each = steps if schedule.by == "step" else 1
        values = [rate * schedule.factor(k / each, epochs) for k in range(epochs * each)]
    else:
        values = [schedule(epoch) for epoch in range(epochs)]
    checked = [number_in("schedule's learning rate", value, at_least=0) for value in values]
    return np.array(checked).reshape(epochs, -1)
