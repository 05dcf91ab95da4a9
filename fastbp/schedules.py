"""Learning-rate schedules: factors of the optimizer's learning rate over the time of a training.

Time is counted in epochs of the call. A schedule is evaluated at the start of every epoch or, with ``by="step"``, of
every update, at a fraction of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from .validation import choice, number_in, settings_in

#: What settings may be, by their names.
BOUNDS: dict[str, dict[str, float]] = {
    "every": {"above": 0},
    "gamma": {"above": 0},
    "power": {"above": 0},
    "end": {"at_least": 0},
    "flat": {"at_least": 0, "below": 1},
    "cycles": {"at_least": 1},
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


def share(time: float, total: float) -> float:
    """How much of ``total`` is over: nothing of what has no length, such as what follows too long a warm-up."""
    return min(1.0, time / total) if total > 0 else 0.0


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

    def rate_at(self, time: float, total: float, steps: int, rate: float) -> float:
        """The learning rate at that time, ``rate`` being the optimizer's, where an epoch has so many updates.

        Raises
        ------
        ValueError, TypeError
            If it is not a finite number of at least 0.
        """
        try:
            factor = self.factor(time, total)
        except OverflowError:
            factor = math.inf
        return number_in("schedule's learning rate", rate * factor, at_least=0)

    @property
    def last(self) -> Schedule:
        """What is left when any warm-up is over."""
        return self


@dataclass(frozen=True)
class Step(Schedule):
    """gamma**floor(time / every), PyTorch's StepLR.

    Parameters
    ----------
    every : float
        Epochs, above 0.
    gamma : float
        Above 0.
    by : {"epoch", "step"}
        When the rate changes.
    """

    every: float
    gamma: float = 0.1

    def factor(self, time: float, total: float) -> float:
        return self.gamma ** math.floor(time / self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """gamma**time, PyTorch's ExponentialLR.

    Parameters
    ----------
    gamma : float
        Above 0.
    by : {"epoch", "step"}
        When the rate changes.
    """

    gamma: float

    def factor(self, time: float, total: float) -> float:
        return self.gamma**time


@dataclass(frozen=True)
class Polynomial(Schedule):
    """From 1 to ``end`` as (1 - time / total)**power.

    Parameters
    ----------
    power : float
        Above 0.
    end : float
        At least 0.
    by : {"epoch", "step"}
        When the rate changes.
    """

    power: float = 1.0
    end: float = 0.0

    def factor(self, time: float, total: float) -> float:
        return self.end + (1 - self.end) * (1 - share(time, total)) ** self.power


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 to ``end`` along half a cosine (Loshchilov & Hutter, 2017), PyTorch's CosineAnnealingLR.

    Parameters
    ----------
    end : float
        At least 0.
    by : {"epoch", "step"}
        When the rate changes.
    """

    end: float = 0.0

    def factor(self, time: float, total: float) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * share(time, total))) / 2


@dataclass(frozen=True)
class FlatCosine(Schedule):
    """1 for a share ``flat`` of the training, then down to 0 along half a cosine.

    Parameters
    ----------
    flat : float
        In [0, 1).
    by : {"epoch", "step"}
        When the rate changes.
    """

    flat: float = 0.5

    def factor(self, time: float, total: float) -> float:
        start = self.flat * total
        return Cosine().factor(max(0.0, time - start), total - start)


@dataclass(frozen=True)
class LogCosine(Schedule):
    """Whole cosines from 0 to 1 and back, each twice as long as the one before: Holzmüller et al. (2024), section 3.

    Parameters
    ----------
    cycles : int
        At least 1.
    by : {"epoch", "step"}
        When the rate changes.
    """

    cycles: int = 4
    _: KW_ONLY
    by: str = "step"

    def factor(self, time: float, total: float) -> float:
        return (1 - math.cos(2 * math.pi * math.log2(1 + (2**self.cycles - 1) * share(time, total)))) / 2

    def ends(self, total: float) -> list[float]:
        """When each cosine is back at 0."""
        return [total * (2**k - 1) / (2**self.cycles - 1) for k in range(1, self.cycles + 1)]


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """The same again and again (Loshchilov & Hutter, 2017), PyTorch's CosineAnnealingWarmRestarts.

    Parameters
    ----------
    first : float
        Epochs of the first cycle, above 0.
    stretch : float
        How many times longer each cycle is than the one before, at least 1.
    end : float
        What each cycle ends with, at least 0.
    by : {"epoch", "step"}
        When the rate changes.
    """

    first: float
    stretch: float = 1.0
    end: float = 0.0

    def factor(self, time: float, total: float) -> float:
        cycle = self.first
        if self.stretch == 1:
            time = math.fmod(time, cycle)
        while time >= cycle:
            time -= cycle
            cycle *= self.stretch
        return Cosine(self.end).factor(time, cycle)


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """1 / (time + 1)**power; scikit-learn's "invscaling" counts samples in place of epochs.

    Parameters
    ----------
    power : float
        Above 0.
    by : {"epoch", "step"}
        When the rate changes.
    """

    power: float = 0.5

    def factor(self, time: float, total: float) -> float:
        return 1 / (time + 1) ** self.power


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to 1 along a cosine for a share ``rise`` of the training, then down (Smith & Topin, 2019).

    It begins with 1 / start_divisor and ends with 1 / (start_divisor end_divisor). Like all schedules it is a function
    of time, however many updates that has: the peak is at the first update after ``rise``, and the end at the end of
    the last one. PyTorch's OneCycleLR counts updates, and has both an update earlier.

    Parameters
    ----------
    rise : float
        In (0, 1).
    start_divisor, end_divisor : float
        At least 1.
    by : {"epoch", "step"}
        When the rate changes.
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
    """A linear rise over the first ``epochs`` to where another schedule begins, then that one for the rest.

    Parameters
    ----------
    epochs : float
        Above 0.
    then : str, Schedule or callable, optional
        As `fit`'s ``schedule``; its time begins after the warm-up, and ``by`` is that of the warm-up. A
        ReduceOnPlateau looks at the losses of the warm-up, too.
    by : {"epoch", "step"}
        When the rate changes.
    """

    epochs: float
    then: Any = None
    _: KW_ONLY
    by: str = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "then", as_schedule(self.then, "then"))

    def factor(self, time: float, total: float) -> float:
        return self.rate_at(time, total, 1, 1.0)

    def rate_at(self, time: float, total: float, steps: int, rate: float) -> float:
        since = max(0.0, time - self.epochs)
        return min(1.0, time / self.epochs) * self.then.rate_at(since, total - self.epochs, steps, rate)

    @property
    def last(self) -> Schedule:
        return self.then.last


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Multiply by ``reduction`` when the loss has not fallen for more than ``patience`` epochs, as PyTorch's.

    The validation loss counts where there is one. A loss has fallen when it is below (1 - threshold) times the best.

    Parameters
    ----------
    reduction : float
        In (0, 1).
    patience : int
        Epochs, at least 0.
    threshold : float
        At least 0.
    """

    reduction: float = 0.1
    patience: int = 10
    threshold: float = 1e-4


@dataclass(frozen=True)
class ByEpoch(Schedule):
    """Any callable from the epoch, counted from 0, to the learning rate itself: what `fit` makes of a callable.

    Parameters
    ----------
    rate : callable
        Gives a finite number of at least 0.
    by : {"epoch", "step"}
        What is counted.
    """

    rate: Callable[[int], float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.rate):
            raise TypeError(f"rate must be a callable that gives a learning rate, it is {self.rate!r}")

    def rate_at(self, time: float, total: float, steps: int, rate: float) -> float:
        count = time * steps if self.by == "step" else time
        # A whole number may have been rounded down.
        return number_in("schedule's learning rate", self.rate(math.floor(count + 1e-6)), at_least=0)


@dataclass(frozen=True)
class ByStep(ByEpoch):
    """Any callable from the update, counted from 0, to the learning rate itself.

    Parameters
    ----------
    rate : callable
        Gives a finite number of at least 0.
    """

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


def as_schedule(schedule: str | Schedule | Callable[[int], float] | None, name: str = "schedule") -> Schedule:
    """A schedule with default settings for a name, the constant one for None, a ByEpoch for a callable.

    Raises
    ------
    ValueError, TypeError
    """
    if isinstance(schedule, str):
        return BY_NAME[choice(name, schedule, BY_NAME)]()
    if schedule is None:
        return Schedule()
    if not isinstance(schedule, Schedule) and not callable(schedule):
        raise TypeError(
            f"{name} must be a name ({', '.join(BY_NAME)}), a Schedule or a callable of the epoch, it is {schedule!r}"
        )
    return schedule if isinstance(schedule, Schedule) else ByEpoch(schedule)


def learning_rates(schedule: Schedule, rate: float, updates: int, steps: int) -> np.ndarray:
    """Learning rates of so many updates, ``steps`` of them in an epoch, ``rate`` being the optimizer's.

    Returns
    -------
    (epochs, 1) or (epochs, steps) float64 array
        Of whole epochs; zeros follow the last update.

    Raises
    ------
    ValueError, TypeError
        As `Schedule.rate_at`.
    """
    epochs = -(-updates // steps)
    if type(schedule) is Schedule:
        return np.full((epochs, 1), rate)
    each = steps if schedule.by == "step" else 1
    rates = np.zeros((epochs, each))
    values = [schedule.rate_at(k / each, updates / steps, steps, rate) for k in range(min(updates, rates.size))]
    rates.flat[: len(values)] = values
    return rates
