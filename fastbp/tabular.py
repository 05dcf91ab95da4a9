"""A recipe for tables that works out of the box: RealMLP (Holzmüller, Grinsztajn & Steinwart, 2024; arXiv 2407.04491).

From the paper's RealMLP-TD: robust scaling with smooth clipping, categories one-hot, a gain for each input, three
layers of 256, SELU for classes and Mish for numbers, the neural tangent parametrization, Adam with beta2 = 0.95, the
learning rate along four cosines, dropout and weight decay constant for one half and then down a cosine, label
smoothing, standardised targets, and the best of 256 epochs. From its simpler RealMLP-TD-S: the first parameters and the
learning rates, and that numbers are not embedded and activations have no parameters.

Which epoch is best, a fifth of the samples says that is held out, by the log loss of classes where the paper counts
errors: few samples are as often right in many epochs. Of a small table a fifth would be a few dozen: there the mean
over five folds says it, and what predicts is the mean of five networks, each trained on four of them. Only epochs at
the end of a cosine are in question there: at a small learning rate chance has less of a say in which one is best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.utils._missing import is_pandas_na
from sklearn.utils.validation import check_is_fitted, validate_data

from .backend import Topology
from .callbacks import Annealing, EarlyStopping
from .history import History
from .kernels.problem import SCALE
from .mlp import MLP
from .optimizers import AdamW
from .schedules import FlatCosine, LogCosine

HIDDEN = (256, 256, 256)
EPOCHS = 256
BATCH_SIZE = 256
VALIDATION_FRACTION = 0.2
#: Tables of fewer samples have so many folds.
SMALL_TABLE, FOLDS = 1000, 5
SCHEDULE = LogCosine()
DROPOUT = 0.15
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.1
#: Of classes, and of numbers.
LEARNING_RATES = 0.04, 0.07
#: What multiplies the learning rate of biases, and of the inputs' gains.
BIAS_RATE, SCALE_RATE = 0.1, 6.0


class SmoothRobustScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Centre by the median, scale by the quartiles, and clip smoothly to (-3, 3): x / sqrt(1 + (x / 3)^2).

    A column whose quartiles coincide is scaled to a range of 2, and one that does not vary to 0.
    """

    def fit(self, X: Any, y: Any = None) -> SmoothRobustScaler:
        X = validate_data(self, X, dtype=np.float64)
        low, self.center_, high = np.quantile(X, (0.25, 0.5, 0.75), axis=0)
        between, across = high - low, X.max(axis=0) - X.min(axis=0)
        with np.errstate(divide="ignore"):
            self.factor_ = np.where(between > 0, 1 / between, np.where(across > 0, 2 / across, 0.0))
        return self

    def transform(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        scaled = (validate_data(self, X, dtype=np.float64, reset=False) - self.center_) * self.factor_
        return scaled / np.hypot(1, scaled / 3)


def _is_of_numbers(column: np.ndarray) -> bool:
    try:
        column.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _seconds(frame: Any) -> np.ndarray:
    """Times as seconds since 1970, spans of time as seconds, and NaN for a missing one."""
    columns = []
    for _, column in frame.items():
        times = np.asarray(column, dtype=f"{column.dtype.kind}8[us]")
        columns.append((times - times.dtype.type(0, "us")) / np.timedelta64(1, "s"))
    return np.column_stack(columns)


def _name(cell: Any) -> str | None:
    """A category by its name, and None for a missing one."""
    if cell is None or is_pandas_na(cell) or cell != cell:
        return None
    # A column of integers becomes one of floats where some are missing.
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)


def _names(X: Any) -> np.ndarray:
    names = np.array(X, dtype=object)
    names.flat[:] = [_name(cell) for cell in names.flat]
    return names


def table_encoder(X: Any) -> Pipeline:
    """What turns a table like X, a DataFrame or an array, into numbers.

    Times and spans of time are numbers of seconds. Other columns that are not of numbers are categories, a missing one
    too; where a number is missing, the median takes its place and another column says so.
    """
    kinds = ["datetime", "datetimetz", "timedelta"]
    if hasattr(X, "columns"):
        frame = X.set_axis(range(X.shape[1]), axis=1)  # labels that are whole numbers would be taken for positions
        times = make_column_selector(dtype_include=kinds)(frame)
        numbers = make_column_selector(dtype_include=np.number, dtype_exclude=kinds)(frame.infer_objects())
    else:
        times, numbers = [], [k for k, column in enumerate(np.asarray(X).T) if _is_of_numbers(column)]
    others = sorted({*range(np.shape(X)[1])} - {*times, *numbers})
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    one_hot = OneHotEncoder(handle_unknown="ignore", drop="if_binary", sparse_output=False)
    columns = make_column_transformer(
        (imputer, numbers),
        (make_pipeline(FunctionTransformer(_seconds), imputer), times),
        (make_pipeline(FunctionTransformer(_names), one_hot), others),
    )
    return make_pipeline(columns, SmoothRobustScaler())


def encode(encoder: Pipeline, X: Any) -> np.ndarray:
    """A table as numbers, by an encoder that has been fitted to one."""
    if hasattr(encoder, "feature_names_in_") and not hasattr(X, "columns"):
        raise TypeError(f"X must be a DataFrame, as it was in fit, it is of type {type(X).__name__}")
    return encoder.transform(X).astype(np.float32)


@dataclass(eq=False)
class NeuralTangentAdam(AdamW):
    """Adam for weights that stand for W sqrt(n_in): their steps shrink by that root, their decay does not."""

    @property
    def rule(self) -> str:
        return "adamw"

    def groups(self, topology: Topology) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hyper, rates, groups = [], [], []
        decay = self.hyper_names.index("weight_decay")

        def group(rate: float, weight_decay: float) -> int:
            settings = self.hyper
            settings[decay] = weight_decay / rate
            hyper.append(settings)
            rates.append(rate)
            return len(rates) - 1

        biases = group(BIAS_RATE, 0.0)
        for layer in topology.layers:
            of_scale = layer.kind == SCALE
            rate = SCALE_RATE if of_scale else layer.n_in**-0.5
            groups.append((group(rate, self.weight_decay * (SCALE_RATE if of_scale else 1.0)), biases))
        return np.array(hyper), np.array(rates), np.array(groups, np.int64)


def train(
    X: np.ndarray,
    y: np.ndarray,
    *,
    held_out: tuple | None = None,
    last_epoch: int | None = None,
    loss: str,
    n_out: int,
    hidden: Sequence[int],
    epochs: int,
    batch_size: int,
    seed: int,
    **settings: Any,
) -> tuple[MLP, History]:
    """A network trained by the recipe on encoded samples, as it was when it was best on ``held_out``, or in the end.

    Parameters
    ----------
    held_out : (X, y, sample_weight), optional
    last_epoch : int, optional
        After how many of the ``epochs`` to stop.
    loss : str
        One for classes, without label smoothing, or one for numbers.
    """
    of_classes = loss in ("cross_entropy", "binary_cross_entropy")
    net = MLP(
        (X.shape[1], *hidden, n_out),
        activation="selu" if of_classes else "mish",
        loss=f"{loss}(label_smoothing={LABEL_SMOOTHING})" if of_classes else loss,
        dropout=DROPOUT,
        scale_inputs=True,
        initializer="lecun_normal",
        dtype=X.dtype,
        random_state=seed,
    )
    rng = np.random.default_rng(seed)
    for b in net.biases[:-1]:
        b[:] = rng.normal(size=b.shape)
    net.weights[-1][:] = 0
    metrics: list[str] = []
    callbacks: list[Any] = [Annealing(FlatCosine(), FlatCosine()), lambda history: history.epochs == last_epoch]
    if held_out is not None:
        metrics.append("log_loss" if of_classes else "rmse")
        callbacks.append(EarlyStopping(monitor=f"val_{metrics[0]}", patience=epochs))
    history = net.fit(
        X,
        y,
        validation_data=held_out,
        metrics=metrics,
        optimizer=NeuralTangentAdam(LEARNING_RATES[not of_classes], beta2=0.95, weight_decay=WEIGHT_DECAY),
        schedule=SCHEDULE,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=callbacks,
        **settings,
    )
    return net, history


def recommended_folds(
    y: np.ndarray, of_classes: bool, fraction: float | None, random_state: np.random.RandomState
) -> list[tuple]:
    """Indices of samples to train on and to score, with classes in proportion where they are not too rare.

    ``y`` is (n_samples, n_out), zeros and ones for classes; ``fraction`` None is the recipe's, or folds.
    """
    labels = y.argmax(axis=1) if y.shape[1] > 1 else y.ravel()
    counts = np.unique(labels, return_counts=True)[1] if of_classes else np.ones(1)
    rarest = counts.min()
    split: Any
    if fraction is None and len(y) < SMALL_TABLE:
        split = StratifiedKFold if rarest >= FOLDS else KFold
        split = split(min(FOLDS, len(y)), shuffle=True, random_state=random_state)
    else:
        fraction = fraction or VALIDATION_FRACTION
        n_fewer = math.floor(len(y) * min(fraction, 1 - fraction))
        split = StratifiedShuffleSplit if rarest > 1 and n_fewer >= len(counts) else ShuffleSplit
        split = split(1, test_size=fraction, random_state=random_state)
    return list(split.split(y, labels))


def train_committee(
    X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray, folds: Sequence[tuple], *, seed: int, **settings: Any
) -> tuple[list[MLP], History, list[float]]:
    """A network for each of the folds, trained on the others up to the epoch at which their mean error is least.

    A single network is trained once and goes back to its best epoch; several are trained again up to theirs, which is
    the last one of a cosine of the learning rate.

    Parameters
    ----------
    folds : sequence of (indices, indices)
        Samples to train on, and samples to score.
    settings
        Of `train`.

    Returns
    -------
    list of MLP, History, list of float
        The networks, what the first one's training reports, and the mean error after each epoch.
    """

    def members(last_epoch: int | None = None) -> list[tuple[MLP, History]]:
        trained = []
        for k, (chosen, rest) in enumerate(folds):
            held_out = (X[rest], y[rest], sample_weight[rest]) if last_epoch is None else None
            one = train(
                X[chosen],
                y[chosen],
                held_out=held_out,
                last_epoch=last_epoch,
                sample_weight=sample_weight[chosen],
                seed=seed + k,
                **settings,
            )
            trained.append(one)
        return trained

    trained = members()
    [metric] = trained[0][1].val_metrics
    errors = np.mean([history.val_metrics[metric] for _, history in trained], axis=0)
    if len(folds) > 1:
        ends = [max(1, round(end)) for end in SCHEDULE.ends(len(errors))]
        trained = members(min(ends, key=lambda end: errors[end - 1]))
    nets, histories = zip(*trained, strict=True)
    return list(nets), histories[0], errors.tolist()
