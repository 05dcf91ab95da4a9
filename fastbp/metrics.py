"""How good predictions are, besides the loss: one row of a table each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .kernels.losses import Loss, identity_link
from .kernels.problem import Choice, Setting
from .validation import require, row, spec


class Metric(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    score : callable
        From targets, classes (n_samples,) or (n_samples, n_out), outputs z and predictions (n_samples, n_out), sample
        weights or None, and the setting, to a number.
    targets : tuple of str
        The kinds of targets, as in the table of losses, that it is for.
    rises : bool
        Whether more is better.
    of_probabilities : bool
        Whether predictions must be probabilities.
    """

    score: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, float], float]
    targets: tuple[str, ...]
    rises: bool
    setting: Setting | None = None
    of_probabilities: bool = False

    def fits(self, loss: Loss) -> bool:
        """Whether it is for networks of a row of the table of losses."""
        return loss.targets in self.targets and not (self.of_probabilities and loss.link is identity_link)


def accuracy(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Share of samples whose most probable class is the target's, or of outputs on the target's side of 1/2."""
    hits = z.argmax(axis=1) == t if t.ndim == 1 else ((z > 0) == (t > 0.5)).mean(axis=1)
    return float(np.average(hits, weights=weight))


def top_k(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Share of samples whose class is among the k most probable ones; of equal outputs the first counts first."""
    above = (z > np.take_along_axis(z, t[:, None], axis=1)).sum(axis=1)
    return float(np.average(above < setting, weights=weight))


def log_loss(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Mean of -t log p over samples, and of -t log p - (1 - t) log(1 - p) over samples and outputs.

    As in scikit-learn, p is at least the rounding error of 1, and at most 1 less that.
    """
    eps = np.finfo(p.dtype).eps
    p = np.clip(p, eps, 1 - eps)
    if t.ndim == 1:
        losses = -np.log(np.take_along_axis(p, t[:, None], axis=1))
    else:
        losses = -(t * np.log(p) + (1 - t) * np.log1p(-p))
    return float(np.average(losses.mean(axis=1), weights=weight))


def mae(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Mean of abs(p - t) over samples and outputs."""
    return float(np.average(np.abs(p - t).mean(axis=1), weights=weight))


def rmse(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Root of the mean of (p - t)**2 over samples and outputs."""
    return math.sqrt(np.average(((p - t) ** 2).mean(axis=1), weights=weight))


def r2(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Explained share of the variance, the mean over outputs; NaN where targets do not vary."""
    mean = np.average(t, axis=0, weights=weight)
    variance = np.average((t - mean) ** 2, axis=0, weights=weight)
    variance[np.ptp(t if weight is None else t[weight > 0], axis=0) == 0] = np.nan  # rounding may have left something
    return float(np.mean(1 - np.average((p - t) ** 2, axis=0, weights=weight) / variance))


def auc(t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None, setting: float) -> float:
    """Area under the ROC curve by scikit-learn: of one class against the others, the mean over classes or outputs."""
    roc_auc_score = require("sklearn.metrics", "sklearn").roc_auc_score
    if t.ndim == 1 and p.shape[1] == 2:
        return float(roc_auc_score(t, p[:, 1], sample_weight=weight))
    return float(roc_auc_score(t, p, sample_weight=weight, multi_class="ovr"))


CLASSES, NUMBERS = ("labels", "binary"), ("real", "counts", "positive")
METRICS = {
    "accuracy": Metric(accuracy, CLASSES, True),
    "top_k": Metric(top_k, ("labels",), True, Setting("k", 5, at_least=1)),
    "log_loss": Metric(log_loss, CLASSES, False, of_probabilities=True),
    "auc": Metric(auc, CLASSES, True),
    "mae": Metric(mae, NUMBERS, False),
    "rmse": Metric(rmse, NUMBERS, False),
    "r2": Metric(r2, NUMBERS, True),
}


def choose(names: Sequence[str], loss: Loss) -> dict[str, Choice]:
    """Rows of the table, by the names they are reported under, for networks of a row of the table of losses.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"metrics must be a sequence of names, it is {names!r}")
    chosen = [row("metrics", name, METRICS) for name in names]
    for choice in chosen:
        if not METRICS[choice.name].fits(loss):
            fitting = ", ".join(name for name, metric in METRICS.items() if metric.fits(loss))
            raise ValueError(f"metrics {choice.name!r} is not for this network's loss; {fitting} are")
    return {spec(choice, METRICS): choice for choice in chosen}


def check_targets(chosen: dict[str, Choice], name: str, t: np.ndarray, n_out: int) -> None:
    """Refuse targets ``t``, which the user knows by a name, from which a chosen metric cannot be had.

    Raises
    ------
    ValueError
    MissingExtraError
    """
    if "auc" not in chosen:
        return
    require("sklearn.metrics", "sklearn")
    classes = [np.unique(column).tolist() for column in t.reshape(len(t), -1).T]
    if classes != ([list(range(n_out))] if t.ndim == 1 else [[0, 1]] * n_out):
        raise ValueError(
            f"metrics 'auc' needs {name} to hold samples of every class, and of each of several outputs 0 and 1 alone"
        )


def scores(
    chosen: dict[str, Choice], t: np.ndarray, z: np.ndarray, p: np.ndarray, weight: np.ndarray | None
) -> dict[str, float]:
    """Every chosen metric of targets ``t``, outputs ``z``, predictions ``p`` and sample weights."""
    return {name: METRICS[choice.name].score(t, z, p, weight, choice.setting) for name, choice in chosen.items()}
