"""The training loop: turns of compiled updates, with reports between them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from .backend import Progress, Session
from .callbacks import Callback, wants_to_stop
from .history import History
from .optimizers import Optimizer
from .validation import DivergedError

if TYPE_CHECKING:
    from .mlp import MLP

#: The compiled loop returns to Python about this often, in seconds: progress and Ctrl-C live there.
TURN_SECONDS = 0.05


@dataclass
class Training:
    """A started session, and who wants to know about it.

    Attributes
    ----------
    slots : (n_slots, n_parameters) array
        The optimizer's state, which the session writes.
    rates : (epochs, 1) or (epochs, updates) array
        Learning rates, which the session reads.
    n_samples, n_updates : int
        Samples of an epoch, and updates in all.
    score : callable, optional
        Gives the loss and the metrics on validation data.
    """

    net: MLP
    session: Session
    optimizer: Optimizer
    slots: np.ndarray
    rates: np.ndarray
    n_samples: int
    n_updates: int
    score: Callable[[], dict[str, float]] | None
    callbacks: Sequence[Callback]
    progress: bool | None
    _kept: tuple | None = field(default=None, init=False)

    def run(self, history: History) -> None:
        """Train, and write down the curves; an epoch that ``n_updates`` cut short counts as one.

        Raises
        ------
        DivergedError
        """
        self._keep()
        try:
            self._run(history)
        except BaseException as error:
            self._take_over()
            if isinstance(error, DivergedError):
                self._go_back()
            raise
        self._take_over()

    def _run(self, history: History) -> None:
        session, epochs = self.session, len(self.rates)
        epoch_updates = -(-self.n_samples // session.update_rows)
        epoch_by_epoch = self.score is not None or bool(self.callbacks)
        turn, updates, samples, stop, seconds, first_epoch = 1, 0, 0, False, 0.0, self.net.epochs
        with self._bar(min(self.n_samples * epochs, self.n_updates * session.update_rows)) as bar:
            while updates < self.n_updates and not stop:
                before, started = history.epochs, time.perf_counter()
                try:
                    now = session.train(
                        min(turn, self._pause(updates) - updates), before + 1 if epoch_by_epoch else epochs
                    )
                except KeyboardInterrupt:
                    session.publish()
                    raise
                turn_seconds = time.perf_counter() - started
                seconds += turn_seconds
                progressed = now.epochs * self.n_samples + now.position - samples
                samples += progressed
                updates = now.epochs * epoch_updates + -(-now.position // session.update_rows)
                turn = max(1, int(progressed / session.update_rows * TURN_SECONDS / turn_seconds))
                if bar is not None:
                    bar.update(progressed)
                self.net.epochs = first_epoch + now.epochs
                if now.diverged:
                    raise self._diverged(now)
                stop = self._after_updates(updates, now)
                is_cut = now.position > 0 and (stop or updates == self.n_updates)
                completed = now.epochs - before + is_cut
                if not completed:
                    continue
                if is_cut:
                    self._publish(now)
                    self.net.epochs += 1
                history.loss += session.losses[before : now.epochs].tolist() + [session.running_loss] * is_cut
                n_samples = [self.n_samples] * (now.epochs - before) + [now.position] * is_cut
                speed = sum(n_samples) / seconds
                history.seconds += [n / speed for n in n_samples]
                history.samples_per_second += [speed] * completed
                history.learning_rate += self.rates[before : before + completed, 0].tolist()
                seconds = 0.0
                if self.score is not None:
                    history.add_scores(self.score())
                if bar is not None:
                    bar.set_postfix(
                        epoch=f"{history.epochs}/{epochs}",
                        loss=f"{history.loss[-1]:.4g}",
                        **({"val_loss": f"{history.val_loss[-1]:.4g}"} if history.val_loss else {}),
                    )
                if self.callbacks:
                    self._take_over()
                    self._keep()
                stop |= any([wants_to_stop(callback.after_epoch(self.net, history)) for callback in self.callbacks])

    def _bar(self, n_samples: int) -> AbstractContextManager[tqdm | None]:
        """The progress bar; None where nobody would see it, since a hidden one takes as long as a small update."""
        shown = self.progress
        if shown is None:  # a program without a console has no stderr
            shown = sys.stderr is not None and sys.stderr.isatty()
        return tqdm(total=n_samples, unit=" samples", unit_scale=True) if shown else nullcontext()

    def _take_over(self) -> None:
        """Bring the network and the optimizer to what the session has published last."""
        self.session.collect()
        self.optimizer.keep(self.slots, self.session.published_step)

    def _keep(self) -> None:
        """Remember how an epoch has ended, if somebody wants the parameters in the middle of the next."""
        if any(callback.every for callback in self.callbacks):
            self._kept = self.net.snapshot(), self.slots.copy(), self.session.published_step

    def _go_back(self) -> None:
        """Be as at the end of the last finite epoch."""
        if self._kept is not None:
            parameters, self.slots[:], step = self._kept
            self.net.restore(parameters)
            self.optimizer.keep(self.slots, step)

    def _pause(self, updates: int) -> int:
        """The update after which somebody wants to be called, or that is the last."""
        calls = [(updates // callback.every + 1) * callback.every for callback in self.callbacks if callback.every]
        return min([self.n_updates, *calls])

    def _publish(self, now: Progress) -> None:
        """Have the session publish what it has come to."""
        if not self.session.publish():
            raise self._diverged(now)

    def _diverged(self, now: Progress) -> DivergedError:
        return DivergedError(now.epochs, (now.position - 1) // self.session.update_rows)

    def _after_updates(self, updates: int, now: Progress) -> bool:
        """Call who wants to be called after so many updates, with the network as it stands; whether to stop."""
        due = [callback for callback in self.callbacks if callback.every and updates % callback.every == 0]
        if due:
            self._publish(now)
            self._take_over()
            loss = self.session.running_loss
        return any([wants_to_stop(callback.after_updates(self.net, updates, loss)) for callback in due])
