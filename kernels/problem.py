"""What an engine is given: a network in the words of the tables, and samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class DeviceError(RuntimeError):
    """A device that was asked for is missing, too small, or broken."""


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


#: What a layer computes: a @ W + b, the sum of two layers' outputs, or a gain for each unit of what is left as it is or
#: standardised over the units, or by its mean square, or over the batch.
DENSE, SUM, SCALE, LAYER_NORM, RMS_NORM, BATCH_NORM = range(6)


class Layer(NamedTuple):
    """What an engine walks through; a layer as users see it is one or more of these.

    Attributes
    ----------
    kind : int
    n_in, n_out : int
        Rows and columns of W; the gains of a layer are a single row, a sum has none.
    bias : bool
    activation : Choice, Custom or None
        What follows; None for nothing.
    dropout : float
        Probability of dropping a unit after that.
    epsilon : float
        What a normalization adds to the variance.
    """

    kind: int
    n_in: int
    n_out: int
    bias: bool = False
    activation: Choice | Custom | None = None
    dropout: float = 0.0
    epsilon: float = 0.0


class Normalization(NamedTuple):
    """A row of the table of normalizations: the layer that carries it out, and whether that has a shift."""

    kind: int
    shift: bool
    setting: Setting


NORMALIZATIONS = {
    "layer_norm": Normalization(LAYER_NORM, True, Setting("epsilon", 1e-5, above=0)),
    "rms_norm": Normalization(RMS_NORM, False, Setting("epsilon", 1e-6, above=0)),
    "batch_norm": Normalization(BATCH_NORM, True, Setting("epsilon", 1e-5, above=0)),
}


@dataclass(frozen=True)
class Topology:
    """A network's description.

    Attributes
    ----------
    layer_sizes : tuple of int
    activations : tuple of Choice or Custom
        One per hidden layer.
    loss : Choice or Custom
    normalizations : tuple of Choice or None
        One per hidden layer.
    residual : tuple of bool
        Whether the input of a hidden layer is added to its output.
    scale_inputs : bool
        Whether each input has a gain.
    bias : bool
    dropout : tuple of float
        Probability of dropping a unit, one per hidden layer.
    input_noise : float
        Standard deviation of what is added to the inputs in training.
    max_norm : float
        Largest Euclidean norm of the weights into a unit; infinite for none.
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
    normalizations: tuple[Choice | None, ...]
    residual: tuple[bool, ...]
    scale_inputs: bool
    bias: bool
    dropout: tuple[float, ...]
    input_noise: float
    max_norm: float
    l1: float
    l2: float
    penalty_by_batch: bool
    dtype: np.dtype
    seed: int

    @cached_property
    def layers(self) -> list[Layer]:
        """What is computed, from the inputs to the outputs; theta holds W and b of each in turn."""
        layers = [Layer(SCALE, 1, self.layer_sizes[0])] if self.scale_inputs else []
        *sizes, last = pairwise(self.layer_sizes)
        options = zip(sizes, self.activations, self.dropout, self.normalizations, self.residual, strict=True)
        for (n_in, n_out), activation, dropout, normalization, residual in options:
            dense = Layer(DENSE, n_in, n_out, self.bias, activation, dropout)
            if normalization is None:
                layers.append(dense)
            else:
                row = NORMALIZATIONS[normalization.name]
                layers += [
                    dense._replace(activation=None, dropout=0.0),
                    Layer(row.kind, 1, n_out, row.shift and self.bias, activation, dropout, normalization.setting),
                ]
            if residual:
                layers.append(Layer(SUM, 0, n_out))
        return [*layers, Layer(DENSE, *last, self.bias)]

    @cached_property
    def n_parameters(self) -> int:
        return sum((layer.n_in + layer.bias) * layer.n_out for layer in self.layers)

    def flops(self, n_rows: int) -> int:
        """Floating-point operations of one update over ``n_rows`` samples: three products a layer, two in the first."""
        sizes = list(pairwise(self.layer_sizes))
        return n_rows * (6 * sum(n_in * n_out for n_in, n_out in sizes) - 2 * sizes[0][0] * sizes[0][1])


class Update(NamedTuple):
    """How parameters are updated.

    Attributes
    ----------
    rule : str or CustomRule
    hyper : float64 (n_groups, n)
        The rule's settings for each group of parameters.
    rates : float64 (n_groups,)
        What multiplies the learning rate of each group.
    groups : int64 (n_layers, 2)
        Which groups W and b of each layer belong to.
    clip_norm, clip_value : float
        Largest global norm of a gradient, and largest size of a number in it; infinite for none.
    average_from : int
        Updates of the optimizer before the parameters are averaged.
    average_decay : float or None
        What the average keeps of itself at each update; infinite to weigh all updates alike. None for no average.
    """

    rule: str | CustomRule
    hyper: np.ndarray
    rates: np.ndarray
    groups: np.ndarray
    clip_norm: float = np.inf
    clip_value: float = np.inf
    average_from: int = 0
    average_decay: float | None = None


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

    @property
    def total_weight(self) -> float:
        return float(self.weight.sum(dtype=np.float64)) if self.weight.size else float(len(self.X))


class Progress(NamedTuple):
    """Where a training stands: epochs done, samples done in the running one, divergence."""

    epochs: int
    position: int
    diverged: bool


@cache
def nothing(dtype: np.dtype | type, *shape: int) -> np.ndarray:
    """The read-only array in place of what a batch does not have; ``shape`` has no numbers, None is (0,)."""
    empty = np.zeros(shape or 0, dtype)
    empty.flags.writeable = False
    return empty


def samples_alone(X: np.ndarray) -> Data:
    """Samples without targets; ``X`` is read-only."""
    return Data(X, nothing(X.dtype, 0, 0), nothing(np.int64), nothing(X.dtype), np.zeros(0, np.int64))
