"""Everything that users can get wrong, said in one sentence before anything changes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from .kernels.problem import Choice, nothing


class DivergedError(ArithmeticError):
    """Training stopped because a loss or a parameter became NaN or infinite.

    Attributes
    ----------
    epoch : int
        Epoch of the call, counted from 0.
    step : int
        Update within the epoch, counted from 0.
    """

    def __init__(self, epoch: int, step: int):
        super().__init__(
            f"training diverged: not finite in epoch {epoch}, step {step} (both from 0); the network keeps the "
            f"weights of the last finite epoch; try a smaller learning rate"
        )
        self.epoch, self.step = epoch, step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epoch, self.step)


class MissingExtraError(ImportError):
    """An optional package is needed and not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or name the extra that brings it.

    Raises
    ------
    MissingExtraError
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f'{module} is needed here and cannot be imported: pip install "fastbp[{extra}]"'
        ) from error


def choice(name: str, value: Any, known: Collection[str]) -> str:
    """``value`` if it is one of the known names.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name, one of {', '.join(known)}; it is {value!r}")
    if value not in known:
        raise ValueError(f"{name} {value!r} is not known: it must be one of {', '.join(known)}")
    return value


def number_in(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
) -> float:
    """``value`` as a float if it is a finite number in the range.

    Raises
    ------
    TypeError, ValueError
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if (
        is_number
        and abs(value) <= sys.float_info.max
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
    ):
        return float(value)
    bounds = {"above": above, "at least": at_least, "below": below}
    limits = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
    wanted = f"{name} must be a number {limits}".rstrip()
    raise (ValueError if is_number else TypeError)(f"{wanted}, it is {value!r}")


def settings_in(settings: Any, bounds: Mapping[str, Mapping[str, float]]) -> None:
    """Check the fields of a dataclass instance that have bounds; raises as `number_in`."""
    for name in settings.__dataclass_fields__:
        if name in bounds:
            number_in(name, getattr(settings, name), **bounds[name])


def row(argument: str, spec: Any, table: Mapping[str, Any]) -> Choice:
    """A row of a table, given as "name" or, where the row has a setting, as "name(setting=number)".

    Raises
    ------
    TypeError, ValueError
    """
    name, given = spec, None
    if isinstance(spec, str) and (match := re.fullmatch(r"(\w+)\((?:(\w+) *= *)?([^()=]+)\)", spec.strip())):
        name, *given = match.groups()
    name = choice(argument, name, table)
    setting = table[name].setting
    if given is None:
        return Choice(name, 0.0 if setting is None else setting.default)
    if setting is None:
        raise ValueError(f"{argument} {name!r} takes no setting, it is given as {spec!r}")
    key, text = given
    if key not in (None, setting.name):
        raise ValueError(f"{argument} {name!r} has the setting {setting.name!r}, it is given {key!r} in {spec!r}")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{argument} must give a number as {setting.name!r}, it is {spec!r}") from None
    limits = {"above": setting.above, "at_least": setting.at_least, "below": setting.below}
    return Choice(name, number_in(f"{argument}'s {setting.name}", value, **limits))


def spec(choice: Choice, table: Mapping[str, Any]) -> str:
    """The shortest text from which `row` makes this choice again."""
    setting = table[choice.name].setting
    if setting is None or choice.setting == setting.default:
        return choice.name
    number = repr(choice.setting).removesuffix(".0")  # as one would write it
    return f"{choice.name}({setting.name}={number})"


def count(name: str, value: Any, at_least: int = 1) -> int:
    """``value`` as an int if it is an integer of at least that.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer of at least {at_least}, it is {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, it is {value}")
    return int(value)


def words(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a dict of strings to strings."""
    if not isinstance(value, dict) or not all(isinstance(word, str) for item in value.items() for word in item):
        raise TypeError(f"{name} must be a dict of strings to strings, it is {value!r}")


def is_resident(values: Any) -> bool:
    """Whether these are numbers in a GPU's memory, as its engine has them."""
    return hasattr(values, "first_not_finite")


def numeric(name: str, values: Any) -> np.ndarray:
    """``values`` as an array of real numbers, not copied where it is one.

    Raises
    ------
    TypeError
    ValueError
        If some are masked, which an array would forget.
    """
    if isinstance(values, np.ma.MaskedArray) and (n_masked := np.ma.count_masked(values)):
        raise ValueError(f"{name} must hold no masked values, {n_masked} of its {values.size} are masked")
    try:
        array = values if is_resident(values) else np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of numbers; it is ragged: {error}") from error
    is_table = array.dtype == object and hasattr(values, "columns")
    if is_table and all(getattr(dtype, "kind", "O") in "biuf" for dtype in values.dtypes):
        array = values.to_numpy(np.float64, na_value=np.nan)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, its dtype is {array.dtype}")
    return array


def finite(name: str, array: Any) -> Any:
    """``array`` if all of it is finite.

    Raises
    ------
    ValueError
        Names the first offender.
    """
    if is_resident(array):
        first = array.first_not_finite()
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            is_finite = np.isfinite(array.sum())  # which is quicker, and no if it overflows
        first = None
        if not is_finite:
            ok = np.isfinite(array)
            first = None if ok.all() else int(np.argmin(ok))
    if first is not None:
        place = ", ".join(str(k) for k in np.unravel_index(first, array.shape))
        raise ValueError(
            f"{name} must hold finite numbers of type {array.dtype}; it holds NaN, infinity or a number too large "
            f"for that type at [{place}]"
        )
    return array


def canonical(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """A read-only, aligned, C-contiguous view or copy: one type for the compiled kernels, whatever came in."""
    if array.dtype != dtype:
        with np.errstate(over="ignore"):  # finite() reports it
            array = array.astype(dtype)
    view = (np.asarray(array, order="C") if array.flags.aligned else array.copy()).view()
    view.flags.writeable = False
    return view


def samples(
    name: str,
    X: Any,
    n_in: int,
    dtype: np.dtype,
    mean: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """Check X and bring it into the network's dtype, standardised where the network has a mean and a scale.

    Returns
    -------
    (n_samples, n_in) read-only array of ``dtype``

    Raises
    ------
    TypeError, ValueError
    """
    X = numeric(name, X)
    if X.ndim != 2 or X.shape[1] != n_in:
        raise ValueError(f"{name} must have shape (n_samples, {n_in}), it has shape {X.shape}")
    if len(X) == 0:
        raise ValueError(f"{name} must hold at least one sample, it has shape {X.shape}")
    if is_resident(X):
        return finite(name, X.converted(dtype, mean, scale))
    if mean is not None and scale is not None:
        X = (X - mean) / scale
    return finite(name, canonical(X, dtype))


def targets(name: str, y: Any, kind: str, n_samples: int, n_out: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Check y against the loss.

    Parameters
    ----------
    kind : {"real", "counts", "positive", "binary", "labels"}
        ``Loss.targets``.

    Returns
    -------
    (n_samples, n_out) array of ``dtype``, int64 (n_samples,) array
        Targets and labels; the one that y does not hold is empty.

    Raises
    ------
    TypeError, ValueError
    """
    y = numeric(name, y)
    no_labels, no_targets = nothing(np.int64), nothing(dtype, 0, 0)
    shapes = f"({n_samples}, {n_out})"
    if kind == "labels":
        shapes = f"({n_samples},) for labels or {shapes} for probabilities"
    elif n_out == 1:
        shapes = f"({n_samples},) or {shapes}"
    flat_is_right = kind == "labels" or n_out == 1
    if y.shape != (n_samples, n_out) and not (y.shape == (n_samples,) and flat_is_right):
        raise ValueError(f"{name} must have shape {shapes} to match X and the network, it has shape {y.shape}")
    if kind == "labels" and y.ndim == 1:
        if y.dtype.kind == "f":
            raise TypeError(f"{name} must hold integer class labels, its dtype is {y.dtype}")
        if y.min() < 0 or y.max() >= n_out:
            raise ValueError(f"{name} must hold class labels from 0 to {n_out - 1}, it holds {y.min()} to {y.max()}")
        return no_targets, canonical(y, np.int64)
    checked = finite(name, canonical(y.reshape(n_samples, n_out), dtype))
    if kind == "real":
        return checked, no_labels
    if kind in ("counts", "positive"):
        if checked.min() < 0 or (kind == "positive" and checked.min() == 0):
            bound = "numbers of at least 0" if kind == "counts" else "numbers above 0"
            raise ValueError(f"{name} must hold {bound} for this loss, it holds {checked.min():g}")
        return checked, no_labels
    if checked.min() < 0 or checked.max() > 1:
        raise ValueError(
            f"{name} must hold probabilities from 0 to 1 for this loss, it holds {checked.min():g} to {checked.max():g}"
        )
    if kind == "labels":
        sums = checked.sum(axis=1, dtype=np.float64)
        worst = int(np.argmax(np.abs(sums - 1)))
        if abs(sums[worst] - 1) > 1e-4:
            raise ValueError(
                f"{name} must hold probabilities that sum to 1 in each row, row {worst} sums to {sums[worst]:g}"
            )
    return checked, no_labels


def weights(name: str, sample_weight: Any, n_samples: int, dtype: np.dtype) -> np.ndarray:
    """Check sample weights: (n_samples,) of at least 0 with a sum above 0; None gives an empty array.

    Those above 0 must leave room for what they are multiplied and divided by.

    Raises
    ------
    TypeError, ValueError
    """
    if sample_weight is None:
        return nothing(dtype)
    array = numeric(name, sample_weight)
    if array.shape != (n_samples,):
        raise ValueError(f"{name} must have shape ({n_samples},), it has shape {array.shape}")
    array = finite(name, canonical(array, dtype))
    if array.min() < 0:
        raise ValueError(f"{name} must not be negative, it holds {array.min():g}")
    if not array.any():
        raise ValueError(f"{name} must hold at least one weight above 0, all are 0")
    highest = float(np.finfo(dtype).max) ** 0.75
    extreme = array[(array > highest) | ((array > 0) & (array < 1 / highest))]
    if extreme.size:
        raise ValueError(
            f"{name} must hold weights of 0 or from {1 / highest:.0e} to {highest:.0e}, it holds {extreme[0]:g}"
        )
    return array


def class_weights(
    class_weight: Any, labels: np.ndarray, sample_weight: np.ndarray, n_classes: int, dtype: np.dtype
) -> np.ndarray:
    """Sample weights (n_samples,) times those of the samples' classes.

    Parameters
    ----------
    class_weight : mapping or sequence or "balanced"
    labels : (n_samples,) int array, or empty
    sample_weight : (n_samples,) array, or empty

    Raises
    ------
    TypeError, ValueError
    """
    if labels.size == 0:
        raise ValueError("class_weight needs y to hold integer labels, for the loss 'cross_entropy'")
    if isinstance(class_weight, str):
        choice("class_weight", class_weight, ["balanced"])
        counts = np.bincount(labels, minlength=n_classes)
        present = counts > 0
        of_class = np.where(present, labels.size / (present.sum() * np.maximum(counts, 1)), 1.0)
    else:
        if not isinstance(class_weight, Mapping):
            if np.ndim(class_weight) != 1:
                raise TypeError(
                    f"class_weight must be 'balanced', a dict or a sequence of numbers, it is {class_weight!r}"
                )
            if len(class_weight) != n_classes:
                raise ValueError(
                    f"class_weight must have a weight for each of the {n_classes} classes, it has {len(class_weight)}"
                )
            class_weight = dict(enumerate(class_weight))
        of_class = np.ones(n_classes)
        for label, weight in class_weight.items():
            if not isinstance(label, (int, np.integer)) or not 0 <= label < n_classes:
                raise ValueError(f"class_weight must be for the classes 0 to {n_classes - 1}, it holds {label!r}")
            of_class[label] = number_in(f"class_weight of class {label}", weight, above=0)
    weight = of_class[labels] * (sample_weight if sample_weight.size else 1.0)
    return weights("class_weight times sample_weight", weight, len(labels), dtype)
