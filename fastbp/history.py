"""What a training reports, epoch by epoch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from .validation import require


@dataclass
class History:
    """Curves of one call of ``fit``, one entry per completed epoch.

    Attributes
    ----------
    loss : list of float
        Mean training loss, each minibatch's taken before its update.
    val_loss : list of float
        Loss on the validation data after the epoch; empty without validation data.
    seconds : list of float
        Time spent training, validation excluded.
    samples_per_second : list of float
    learning_rate : list of float
        At the start of the epoch.
    val_metrics : dict of str to list of float
        Metrics on the validation data after the epoch, by their names.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples_per_second: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    val_metrics: dict[str, list[float]] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        return len(self.loss)

    def add_scores(self, scores: dict[str, float]) -> None:
        """Append the validation data's loss and metrics after an epoch."""
        self.val_loss.append(scores["loss"])
        for name, curve in self.val_metrics.items():
            curve.append(scores[name])

    @property
    def curves(self) -> dict[str, list[float]]:
        """The curves that are not empty, by their names; metrics as val_<name>."""
        curves = asdict(self)
        curves |= {f"val_{name}": curve for name, curve in curves.pop("val_metrics").items()}
        return {name: curve for name, curve in curves.items() if curve}

    def to_frame(self) -> Any:
        """The curves as a pandas.DataFrame, one row per epoch, metrics as val_<name>.

        `dataclasses.asdict` gives them as a dict.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        return require("pandas", "cli").DataFrame(self.curves)

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Draw the loss curves, on a logarithmic scale if all of them is above 0.

        Parameters
        ----------
        path : path-like, optional
            Where to save the picture; its suffix gives the format.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        """
        require("matplotlib", "plot")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        scale = "log" if all(loss > 0 for loss in self.loss + self.val_loss) else "linear"
        axes = figure.add_subplot(xlabel="epoch", ylabel="loss", yscale=scale)
        epochs = range(1, self.epochs + 1)
        axes.plot(epochs, self.loss, label="training")
        if self.val_loss:
            axes.plot(epochs, self.val_loss, label="validation")
        axes.legend()
        axes.grid(alpha=0.3)
        if path is not None:
            figure.savefig(path, dpi=150)
        return axes
