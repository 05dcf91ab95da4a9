"""What an engine is given: a network in the words of the tables, and samples."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Setting(NamedTuple):
    """The one number that a row of a table leaves to the user, with its default and its bounds."""

    name: str
    default: float
    above: float | None = None
    at_least: float | None = None
    below: float | None = None


class Choice(NamedTuple):
    """A row of a table by its name, with its setting: 0 where it has none."""

    name: str
    setting: float


class Custom(NamedTuple):
    """A function of the user's in place of a table's row: compiled functions of one number, z for an activation, z and
    t for a loss."""

    value: Callable
    derivative: Callable


class CustomRule(NamedTuple):
    """An update rule of the user's: a compiled function like those of the table of optimizers, and its slots.

    Its ``h`` holds the learning rate, the number of the update from 1, and four settings.
    """

    update: Callable
    n_slots: int


class Topology(NamedTuple):
    """A network's description.

    Attributes
    ----------
    layer_sizes : tuple of int
    activations : tuple of Choice or Custom
        One per hidden layer.
    loss : Choice or Custom
    bias : bool
    dropout : tuple of float
        Probability of dropping a unit, one per hidden layer.
    l1, l2 : float
        Penalties on the weights.
    penalty_by_batch : bool
        Whether they are divided by the number of samples, or their weight, of each batch.
    dtype : numpy.dtype
    seed : int
        Below 2**64.
    """

    layer_sizes: tuple[int, ...]
    activations: tuple[Choice | Custom, ...]
    loss: Choice | Custom
    bias: bool
    dropout: tuple[float, ...]
    l1: float
    l2: float
    penalty_by_batch: bool
    dtype: np.dtype
    seed: int

    @property
    def n_parameters(self) -> int:
        return sum((n_in + self.bias) * n_out for n_in, n_out in self.layers())

    def layers(self) -> list[tuple[int, int]]:
        """(n_in, n_out) of every layer."""
        return list(pairwise(self.layer_sizes))

    def flops(self, n_rows: int) -> int:
        """Floating-point operations of one update over ``n_rows`` samples: three products a layer, two in the first."""
        first = self.layer_sizes[0] * self.layer_sizes[1]
        return n_rows * (6 * sum(n_in * n_out for n_in, n_out in self.layers()) - 2 * first)


class Data(NamedTuple):
    """The samples, all read-only but the order.

    Attributes
    ----------
    X : (n_samples, n_in)
    targets : (n_samples, n_out), or (0, 0)
    labels : int64 (n_samples,) classes, or empty
    weight : (n_samples,) sample weights, or empty
    order : int64 (n_samples,) the epoch's permutation, or empty for the order of the rows
    """

    X: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    order: np.ndarray


def samples_alone(X: np.ndarray) -> Data:
    """Samples without targets; ``X`` is read-only."""
    data = Data(X, np.zeros((0, 0), X.dtype), np.zeros(0, np.int64), np.zeros(0, X.dtype), np.zeros(0, np.int64))
    for empty in (data.targets, data.labels, data.weight):
        empty.flags.writeable = False
    return data
