"""Full-batch training by L-BFGS, through SciPy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .callbacks import Callback, wants_to_stop
from .history import History
from .validation import DivergedError, count, number_in, require

if TYPE_CHECKING:
    from .backend import Topology
    from .mlp import MLP


@dataclass
class LBFGS:
    """Limited-memory BFGS with bounds (Byrd et al., 1995), on all samples at once: each epoch is one iteration.

    The kernels compute loss and gradient. No state carries over from call to call.

    Parameters
    ----------
    memory : int
        Corrections that approximate the Hessian.
    tol : float
        Stop when no number of the gradient is greater than this, or the loss has fallen by no more than 64 times the
        precision of the network's dtype, relative to it.
    max_evaluations : int
        Of loss and gradient, in a call.
    """

    memory: int = 10
    tol: float = 1e-5
    max_evaluations: int = 15000

    def __post_init__(self) -> None:
        count("memory", self.memory)
        number_in("tol", self.tol, at_least=0)
        count("max_evaluations", self.max_evaluations)

    def check(self, topology: Topology, **given: bool) -> None:
        """Raise ValueError for the first thing that is given, or that the network has, but is not for this method."""
        has = {
            "dropout": any(topology.dropout),
            "input_noise": topology.input_noise > 0,
            "max_norm": topology.max_norm < math.inf,
            "batch_norm": any(row is not None and row.name == "batch_norm" for row in topology.normalizations),
        }
        for name, is_there in (given | has).items():
            if is_there:
                raise ValueError(f"{name} is not for optimizer 'lbfgs', which minimises one loss over all samples")

    def minimize(
        self,
        net: MLP,
        loss_and_gradients: Callable[[np.ndarray], tuple[float, np.ndarray]],
        epochs: int,
        n_samples: int,
        score: Callable[[], dict[str, float]] | None,
        callbacks: Sequence[Callback],
        history: History,
    ) -> None:
        """Train for up to ``epochs`` iterations, and write down the curves; the loss is that after each.

        There is at least one, even if it finds no lower loss.

        Raises
        ------
        DivergedError
        """
        first_epoch, started = net.epochs, time.perf_counter()

        def after_iteration(intermediate_result: Any) -> None:  # SciPy knows it by the name of its argument
            nonlocal started
            if not math.isfinite(intermediate_result.fun):
                raise DivergedError(history.epochs, 0)
            seconds = time.perf_counter() - started
            net.theta = intermediate_result.x
            net.epochs = first_epoch + history.epochs + 1
            history.loss.append(float(intermediate_result.fun))
            history.seconds.append(seconds)
            history.samples_per_second.append(n_samples / seconds)
            history.learning_rate.append(math.nan)
            if score is not None:
                history.add_scores(score())
            if any([wants_to_stop(callback.after_epoch(net, history)) for callback in callbacks]):
                raise StopIteration
            started = time.perf_counter()

        result = require("scipy.optimize", "sklearn").minimize(
            loss_and_gradients,
            net.theta.astype(np.float64),
            method="L-BFGS-B",
            jac=True,
            callback=after_iteration,
            options={
                "maxiter": epochs,
                "maxfun": self.max_evaluations,
                "gtol": self.tol,
                "maxcor": self.memory,
                "ftol": 64 * np.finfo(net.dtype).eps,
            },
        )
        if not history.loss:
            with suppress(StopIteration):
                after_iteration(result)
