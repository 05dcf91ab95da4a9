"""The multilayer perceptron: its description, its parameters, and the training loop."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from . import custom, io, parameters, validation
from .backend import DEVICES, PRECISIONS, Data, Session, Sessions, Topology, Update, borrow, on_gpu
from .callbacks import Callback, Controls, PlainCallback, Reduction, WeightAveraging, begun, check_all
from .custom import Activation
from .history import History
from .kernels.activations import ACTIVATIONS
from .kernels.losses import LOSSES
from .kernels.problem import NORMALIZATIONS, Choice, Custom
from .lbfgs import LBFGS
from .metrics import CLASSES, check_targets, choose, scores
from .optimizers import Adam, Optimizer, as_optimizer
from .parameters import Views
from .schedules import ReduceOnPlateau, Schedule, as_schedule, learning_rates
from .training import Training

#: Rows of a batch for evaluation: enough for all threads.
EVALUATION_ROWS = 1024


class MLP:
    """A multilayer perceptron, trained by backpropagation.

    z[l] = a[l-1] @ W[l] + b[l] and a[l] = f(z[l]), up to the last layer's z; the loss decides the link from there
    to predictions.

    Parameters
    ----------
    layer_sizes : sequence of int
        Widths from input to output: (64, 128, 10). Two widths make a single layer.
    activation : str, Activation, or sequence of them
        One for all hidden layers, or one for each: identity, logistic, tanh, relu, leaky_relu(negative_slope=0.01),
        elu(alpha=1), selu, celu(alpha=1), gelu, gelu_tanh, silu, mish, softplus, softsign, hard_sigmoid, hard_swish,
        relu6, sine(omega=30). A setting may be given, as in "leaky_relu(negative_slope=0.2)". Definitions are
        PyTorch's; sine is sin(omega z). `fastbp.Activation` makes one of your own.
    loss : str or Loss
        Summed over outputs, averaged over samples; settings are given as those of activations. With predictions z
        for real targets: squared_error (1/2 (z - t)^2), absolute_error, huber(delta=1), log_cosh, quantile(q=0.5).
        gaussian_nll(epsilon=1e-6) has two outputs for each target, mean and log variance side by side, of which the
        predictions are mean and variance.
        With predictions exp(z): poisson (counts), gamma (positive targets), as scikit-learn's half deviances without
        what depends on the target alone. "cross_entropy(label_smoothing=0)": softmax; targets are labels
        (n_samples,) or probabilities (n_samples, n_out). With independent targets from 0 to 1:
        binary_cross_entropy(label_smoothing=0) and focal(gamma=2), whose predictions are logistic(z), hinge and
        squared_hinge, whose predictions are z. `fastbp.Loss` makes one of your own.
    dropout : float or sequence of float
        Probability, below 1, of dropping a hidden unit in training, for all hidden layers or one for each; the others
        are scaled up.
    l1, l2 : float
        Penalties l1 sum |W| + l2 sum W^2 / 2 over weights, not biases, in the training loss and its gradient;
        `evaluate` and validation curves leave them out.
    penalty_by_batch : bool
        Divide the penalties by the number of samples (or their weight) of each batch, as scikit-learn does.
    normalization : str or None, or sequence of them
        Between z and activation of all hidden layers, or of each: layer_norm(epsilon=1e-5), rms_norm(epsilon=1e-6) or
        batch_norm(epsilon=1e-5), as PyTorch defines them, with gains and, unless ``bias`` is False, shifts (rms_norm
        has none). batch_norm takes its statistics over each update's samples, whatever their weights, and predicts
        with averages that move by a tenth per update.
    residual : bool or sequence of bool
        Add the input of a hidden layer to its output: True does so wherever the widths are equal.
    scale_inputs : bool
        Learn a gain for each input, 1 at first.
    input_noise : float
        Standard deviation of Gaussian noise that is added to (standardised) inputs in training.
    max_norm : float, optional
        After each update, scale the weights into a unit down to this Euclidean norm where theirs is greater
        (Srivastava et al., 2014).
    initializer : str, number or array, optional
        glorot_, he_ or lecun_uniform or _normal, orthogonal, siren or zeros; a number for all weights; or an array
        (n_parameters,) for theta. Biases start at 0. None takes what fits the activation that follows: siren for a
        sine, lecun_normal for selu, he_uniform for the relu family, glorot_uniform elsewhere.
    bias : bool
        Whether layers have biases.
    dtype : {"float32", "float64"}
    random_state : int, optional
        Seed, 0 <= seed < 2**64, of initialisation, shuffling and dropout; the same seed gives the same bits on any
        number of threads. None draws one, which is then found in the attribute.

    Attributes
    ----------
    theta : (n_parameters,) array
        All parameters, layer by layer, W[l] row by row, then b[l], then gains and shifts of its normalization; gains
        of the inputs come first.
    weights, biases : tuple of arrays
        Writable views on theta: W[l] is (n_in, n_out), b[l] is (n_out,).
    gains, shifts : tuple of arrays
        The same of normalizations, (n_out,) each.
    input_scale : (n_in,) array or None
        The same of the inputs' gains.
    running_means, running_variances : tuple of arrays
        Writable averages that batch_norm predicts with, (n_out,) each.
    feature_mean, feature_scale : (n_in,) float64 arrays or None
        Set by `standardize`.
    metadata : dict of str to str
        The user's own words, saved with the network.
    epochs : int
        Passes over data that the network has been trained for.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    gains: tuple[np.ndarray, ...]
    shifts: tuple[np.ndarray, ...]
    input_scale: np.ndarray | None
    running_means: tuple[np.ndarray, ...]
    running_variances: tuple[np.ndarray, ...]

    def __init__(
        self,
        layer_sizes: Sequence[int],
        *,
        activation: str | Activation | Sequence[str | Activation] = "relu",
        loss: str | custom.Loss = "squared_error",
        dropout: float | Sequence[float] = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        penalty_by_batch: bool = False,
        normalization: str | Sequence[str | None] | None = None,
        residual: bool | Sequence[bool] = False,
        scale_inputs: bool = False,
        input_noise: float = 0.0,
        max_norm: float | None = None,
        initializer: Any = None,
        bias: bool = True,
        dtype: Any = "float32",
        random_state: int | None = None,
    ):
        sizes = _layer_sizes(layer_sizes)
        activations = _activations(activation, len(sizes) - 2)
        loss_row: Choice | Custom
        if isinstance(loss, custom.Loss):
            loss_row, self._loss = loss._row, loss._table_row
        else:
            loss_row = validation.row("loss", loss, LOSSES)
            self._loss = LOSSES[loss_row.name]
        if self._loss.pairs and sizes[-1] % 2:
            raise ValueError(
                f"loss {loss!r} needs two outputs for each target, mean and log variance, layer_sizes ends with "
                f"{sizes[-1]}"
            )
        if self._loss.softmax and sizes[-1] < 2:
            raise ValueError(
                f"loss {loss!r} needs at least 2 outputs, layer_sizes ends with {sizes[-1]}; "
                f"a single output takes 'binary_cross_entropy'"
            )
        for name, flag in (("bias", bias), ("penalty_by_batch", penalty_by_batch), ("scale_inputs", scale_inputs)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, it is {flag!r}")
        self._topology = Topology(
            layer_sizes=sizes,
            activations=activations,
            loss=loss_row,
            normalizations=_normalizations(normalization, len(sizes) - 2),
            residual=_residual(residual, sizes),
            scale_inputs=scale_inputs,
            bias=bias,
            dropout=_dropout(dropout, len(sizes) - 2),
            input_noise=validation.number_in("input_noise", input_noise, at_least=0),
            max_norm=math.inf if max_norm is None else validation.number_in("max_norm", max_norm, above=0),
            l1=validation.number_in("l1", l1, at_least=0),
            l2=validation.number_in("l2", l2, at_least=0),
            penalty_by_batch=penalty_by_batch,
            dtype=_dtype(dtype),
            seed=_seed(random_state),
        )
        self._theta = parameters.initialize(self._topology, initializer)
        self._moving = np.zeros((2, parameters.batch_units(self._topology)))
        self._moving[1] = 1
        self._take_views()
        self._sessions = Sessions()
        self._optimizer = Adam()
        self.feature_mean: np.ndarray | None = None
        self.feature_scale: np.ndarray | None = None
        self.metadata: dict[str, str] = {}
        self.epochs = 0

    layer_sizes = property(lambda self: self._topology.layer_sizes, doc="Widths from input to output.")
    loss = property(lambda self: _spec(self._topology.loss, LOSSES), doc="The loss, as it can be given.")
    dropout = property(lambda self: self._topology.dropout, doc="Probability of dropping a unit, by hidden layer.")
    l1 = property(lambda self: self._topology.l1, doc="Factor of sum |W| in the training loss.")
    l2 = property(lambda self: self._topology.l2, doc="Factor of sum W^2 / 2 in the training loss.")
    penalty_by_batch = property(lambda self: self._topology.penalty_by_batch, doc="Divide them by a batch's weight.")
    residual = property(lambda self: self._topology.residual, doc="Whether an input is added, by hidden layer.")
    scale_inputs = property(lambda self: self._topology.scale_inputs, doc="Whether each input has a gain.")
    input_noise = property(lambda self: self._topology.input_noise, doc="Standard deviation of noise on inputs.")
    bias = property(lambda self: self._topology.bias, doc="Whether layers have biases.")
    dtype = property(lambda self: self._topology.dtype, doc="numpy.dtype of parameters and arithmetic.")
    random_state = property(lambda self: self._topology.seed, doc="The seed.")
    n_parameters = property(lambda self: self._topology.n_parameters, doc="Length of theta.")

    @property
    def activations(self) -> tuple[str, ...]:
        """One per hidden layer, as they can be given."""
        return tuple(_spec(activation, ACTIVATIONS) for activation in self._topology.activations)

    @property
    def normalization(self) -> tuple[str | None, ...]:
        """One per hidden layer, as they can be given."""
        return tuple(row and validation.spec(row, NORMALIZATIONS) for row in self._topology.normalizations)

    @property
    def max_norm(self) -> float | None:
        """Largest norm of the weights into a unit."""
        return None if math.isinf(self._topology.max_norm) else self._topology.max_norm

    @property
    def theta(self) -> np.ndarray:
        """All parameters as one writable vector; assigning copies into it."""
        return self._theta

    @theta.setter
    def theta(self, values: Any) -> None:
        values = validation.finite("theta", validation.canonical(validation.numeric("theta", values), self.dtype))
        if values.shape != self._theta.shape:
            raise ValueError(f"theta must have shape {self._theta.shape}, it has shape {values.shape}")
        self._theta[:] = values

    def __repr__(self) -> str:
        sizes = "-".join(str(n) for n in self.layer_sizes)
        return f"MLP({sizes}, loss={self.loss!r}, dtype={self.dtype.name!r}, {self.n_parameters} parameters)"

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles would hold theta and its views as separate arrays: leave the views out, and sessions."""
        return {name: value for name, value in self.__dict__.items() if name not in (*Views._fields, "_sessions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        for name in ("_theta", "_moving"):  # read-only if they were unpickled into a mapped file
            state[name] = np.require(state[name], requirements="W")
        self._sessions = Sessions()
        self._take_views()

    def _take_views(self) -> None:
        self.__dict__ |= parameters.views(self._topology, self._theta, self._moving)._asdict()

    def standardize(self, X: Any) -> MLP:
        """Measure mean and scale of the features; from now on every X is standardised before the first layer.

        Parameters
        ----------
        X : (n_samples, n_in) array
            A feature that does not vary keeps its scale.

        Returns
        -------
        MLP
            The network itself.

        Raises
        ------
        ValueError, TypeError
        """
        X = validation.samples("X", X, self.layer_sizes[0], np.dtype(np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = X.mean(axis=0), X.std(axis=0)
        validation.finite("X's standard deviation by feature", scale)
        scale[X.min(axis=0) == X.max(axis=0)] = 0  # what rounding may have left of it
        self.feature_mean, self.feature_scale = mean, np.where(scale > 0, scale, 1.0)
        return self

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | Sequence[float] | str | None = None,
        optimizer: str | Optimizer | LBFGS = "adam",
        batch_size: int = 32,
        epochs: int = 10,
        steps: int | None = None,
        shuffle: bool = True,
        validation_data: Sequence[Any] | None = None,
        metrics: Sequence[str] = (),
        schedule: str | Schedule | Callable[[int], float] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        accumulate: int = 1,
        callbacks: Sequence[Callback | Callable[[History], Any]] = (),
        threads: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
        progress: bool | None = None,
    ) -> History:
        """Train for a number of epochs.

        Parameters
        ----------
        X : (n_samples, n_in) array
            What NumPy can see as an array, or, for device "cuda", an array in the GPU's memory (CuPy, PyTorch, JAX,
            Numba: by the CUDA array interface or DLPack), which is not copied through the host.
        y : array
            Likewise. Targets as the loss wants them: (n_samples, n_out), (n_samples,) for a single output, or integer
            labels (n_samples,) for "cross_entropy".
        sample_weight : (n_samples,) array, optional
            At least 0; losses become weighted means.
        class_weight : dict or sequence of float or "balanced", optional
            With integer labels: a weight above 0 for each class, which multiplies that of its samples. "balanced"
            takes n_samples / (n_classes count of the class), as scikit-learn does.
        optimizer : str, Optimizer or LBFGS
            A name (sgd, adam, adamw, nadam, radam, lion, adagrad, adadelta, rmsprop, lbfgs) for default settings, or an
            instance, whose state carries on. With L-BFGS an epoch is an iteration over all samples at once, and
            ``batch_size`` and ``shuffle`` mean nothing.
        batch_size : int
            Samples of a minibatch; the last of an epoch may be shorter.
        epochs : int
            Passes over the data in this call.
        steps : int, optional
            Updates in this call, in place of ``epochs``; the last epoch may be cut short, and counts as one.
        shuffle : bool
            Draw a new order in each epoch.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Its loss is computed after each epoch.
        metrics : sequence of str
            Computed on the validation data after each epoch, as by `evaluate`, into ``val_metrics`` of the History.
        schedule : str, Schedule or callable, optional
            What becomes of the learning rate: one of `fastbp.schedules` or its name (constant, polynomial, cosine,
            flat_cosine, log_cosine, inverse_scaling, one_cycle, reduce_on_plateau), or a callable from the epoch,
            counted from 0 in this call, to the rate in place of the optimizer's.
        clip_norm : float, optional
            Scale gradients of a greater Euclidean norm, over all parameters, down to this one.
        clip_value : float, optional
            Bring each number of the gradient between -clip_value and clip_value, after ``clip_norm``.
        accumulate : int
            Minibatches per update: their gradient is that of one batch as large as all of them.
        callbacks : sequence of Callback or callables
            `fastbp.EarlyStopping` and its like; a plain callable is called with the History after each epoch, and
            training stops when it returns True.
        threads : int, optional
            None lets a cost model choose; many more than there are cores are not taken. The result is the same, to the
            bit, for any number.
        device : {"cpu", "cuda", "auto"}
            "cuda" is an NVIDIA GPU; "auto" takes it where there is one and it should be faster. Results differ between
            devices by rounding alone.
        precision : {"tf32", "bf16"}, optional
            On a GPU, multiply float32 matrices by tensor cores, which round their operands to 11 or 8 binary digits and
            add up in float32; parameters, updates and all else stay float32.
        progress : bool, optional
            Show a progress bar; None shows it on a terminal only.

        Returns
        -------
        History

        Raises
        ------
        ValueError, TypeError
            Before anything changes.
        DivergedError
            When the loss or a parameter becomes NaN or infinite; the network keeps the weights of the last finite
            epoch.
        DeviceError
            When the GPU that was asked for cannot be used, or fails; the network keeps the weights that it had, or,
            with callbacks, those of the last epoch that they have seen.
        MissingExtraError
            For "lbfgs" and the metric "auc", if SciPy or scikit-learn is not installed.
        """
        batch_size, epochs = validation.count("batch_size", batch_size), validation.count("epochs", epochs)
        accumulate = validation.count("accumulate", accumulate)
        if steps is not None:
            steps = validation.count("steps", steps)
        if threads is not None:
            threads = validation.count("threads", threads)
        norm = math.inf if clip_norm is None else validation.number_in("clip_norm", clip_norm, above=0)
        value = math.inf if clip_value is None else validation.number_in("clip_value", clip_value, above=0)
        optimizer = as_optimizer(optimizer)
        if not isinstance(callbacks, Sequence) or not all(
            isinstance(c, Callback) or (callable(c) and not isinstance(c, type)) for c in callbacks
        ):
            raise TypeError(f"callbacks must be a sequence of Callbacks or callables, it is {callbacks!r}")
        watchers = [c if isinstance(c, Callback) else PlainCallback(c) for c in callbacks]
        schedule = as_schedule(schedule)
        data = self._data(X, y, sample_weight)
        if class_weight is not None:
            n_out = self.layer_sizes[-1]
            data = data._replace(
                weight=validation.class_weights(class_weight, np.asarray(data.labels), data.weight, n_out, self.dtype)
            )
        held_out = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)):
                raise TypeError(
                    f"validation_data must be a tuple (X, y) or (X, y, sample_weight), it is of type "
                    f"{type(validation_data).__name__}"
                )
            if len(validation_data) not in (2, 3):
                raise ValueError(
                    f"validation_data must be (X, y) or (X, y, sample_weight), it has {len(validation_data)} entries"
                )
            held_out = self._data(*validation_data, prefix="validation_data's ")
        validation.choice("device", device, DEVICES)
        on_a_gpu = any(validation.is_resident(given.X) for given in (data, held_out) if given is not None)
        if on_a_gpu and device == "cpu":
            raise ValueError("X lies in a GPU's memory, out of reach of device 'cpu': it must be 'cuda'")
        if precision is not None:
            validation.choice("precision", precision, PRECISIONS)
            if device != "cuda" or self.dtype != np.float32:
                raise ValueError(
                    f"precision {precision!r} is for dtype 'float32' on device 'cuda', they are {self.dtype.name!r} "
                    f"and {device!r}"
                )
        if on_a_gpu:
            device = "cuda"
        chosen = choose(metrics, self._loss)
        if chosen:
            if held_out is None:
                raise ValueError(f"metrics {list(metrics)} need validation_data, it is None")
            check_targets(chosen, "validation_data's y", self._scored(held_out), self.layer_sizes[-1])
        curves = ["loss"] if held_out is None else ["loss", "val_loss", *(f"val_{name}" for name in chosen)]
        check_all(self, watchers, curves)
        averaging = next((c for c in watchers if isinstance(c, WeightAveraging) and c.by == "step"), None)
        history = History(val_metrics={name: [] for name in chosen})
        if isinstance(optimizer, LBFGS):
            optimizer.check(
                self._topology,
                schedule=type(schedule) is not Schedule,
                clip_norm=clip_norm is not None,
                clip_value=clip_value is not None,
                accumulate=accumulate > 1,
                steps=steps is not None,
                **{"a callback between updates": averaging is not None or any(c.every for c in watchers)},
            )
            return self._minimize(
                optimizer, data, epochs, held_out, chosen, watchers, (threads, device, precision), history
            )
        slots, step = optimizer.state(self.n_parameters, self.dtype)
        groups = optimizer.groups(self._topology)
        batch_rows, update_rows = (min(rows, len(data.X)) for rows in (batch_size, batch_size * accumulate))
        epoch_updates = -(-len(data.X) // update_rows)
        n_updates = epochs * epoch_updates if steps is None else steps
        rates = learning_rates(schedule, optimizer.learning_rate, n_updates, epoch_updates)
        if any(callback.every for callback in watchers):
            rates = np.repeat(rates, epoch_updates // rates.shape[1], axis=1)
        update = Update(optimizer.rule, *groups, norm, value)
        if averaging is not None:
            decay = math.inf if averaging.decay is None else averaging.decay
            start = min(averaging.start * epoch_updates, n_updates)
            update = update._replace(average_from=step + start, average_decay=decay)
        n_calls = 1 if held_out is None and not watchers else -(-n_updates // epoch_updates)
        where = threads, device, precision
        with self._session(batch_rows, update_rows, n_updates, *where, n_calls=n_calls) as session:
            session.start(
                data,
                update,
                slots,
                step,
                learning_rate=rates,
                shuffle=bool(shuffle),
                first_epoch=self.epochs,
                theta=self._theta,
                moving=self._moving,
            )
            if isinstance(schedule.last, ReduceOnPlateau):
                watchers.append(Reduction(schedule.last))
            decays = [update.hyper[:, k] for k, name in enumerate(optimizer.hyper_names) if name == "weight_decay"]
            controls = Controls(rates, session.dropout, decays[0] if decays else np.zeros(0))
            score = None if held_out is None else partial(self._scores, session, held_out, chosen)
            with begun(self, watchers, controls, history):
                Training(self, session, optimizer, slots, rates, len(data.X), n_updates, score, watchers, progress).run(
                    history
                )
                if session.published_step > update.average_from and averaging is not None:
                    self.theta = session.average()
        return history

    def _minimize(
        self,
        optimizer: LBFGS,
        data: Data,
        epochs: int,
        held_out: Data | None,
        metrics: dict[str, Choice],
        callbacks: Sequence[Callback],
        where: tuple[int | None, str, str | None],
        history: History,
    ) -> History:
        """Train by a method that looks at all samples at once."""
        n_samples = len(data.X)
        with self._session(n_samples, None, epochs, *where, n_calls=epochs) as session:

            def loss_and_gradients(theta: np.ndarray) -> tuple[float, np.ndarray]:
                session.load(theta.astype(self.dtype))
                loss, grad = session.gradients(data)
                return loss, grad.astype(np.float64)

            def score(held_out: Data) -> dict[str, float]:
                session.load(self._theta)
                return self._scores(session, held_out, metrics)

            scorer = None if held_out is None else partial(score, held_out)
            controls = Controls(np.full((epochs, 1), math.nan), np.zeros(0), np.zeros(0))
            with begun(self, callbacks, controls, history):
                optimizer.minimize(self, loss_and_gradients, epochs, n_samples, scorer, callbacks, history)
        return history

    def partial_fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | Sequence[float] | str | None = None,
        optimizer: str | Optimizer | LBFGS | None = None,
        batch_size: int = 32,
        shuffle: bool = True,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        accumulate: int = 1,
        threads: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> float:
        """One pass over the data in minibatches.

        Parameters are those of `fit`, except that ``optimizer`` None takes one Adam that the network keeps, with its
        state, for `partial_fit` and `train_on_batch`.

        Returns
        -------
        float
            Mean loss of the pass, each minibatch's taken before its update.

        Raises
        ------
        ValueError, TypeError, DivergedError
            As `fit`.
        """
        history = self.fit(
            X,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            optimizer=self._optimizer if optimizer is None else optimizer,
            batch_size=batch_size,
            epochs=1,
            shuffle=shuffle,
            clip_norm=clip_norm,
            clip_value=clip_value,
            accumulate=accumulate,
            threads=threads,
            device=device,
            precision=precision,
            progress=False,
        )
        return history.loss[0]

    def train_on_batch(
        self, X: Any, y: Any, *, sample_weight: Any = None, optimizer: str | Optimizer | None = None
    ) -> float:
        """One update from one batch.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        optimizer : str or Optimizer, optional
            As for `partial_fit`.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        ValueError, TypeError, DivergedError
            As `fit`.
        """
        rule = self._optimizer if optimizer is None else as_optimizer(optimizer)
        if isinstance(rule, LBFGS):
            return self.partial_fit(X, y, sample_weight=sample_weight, optimizer=rule)
        # What fit does, but for what a single update has no use for: that takes longer than one of a small network.
        data = self._data(X, y, sample_weight)
        slots, step = rule.state(self.n_parameters, self.dtype)
        update = Update(rule.rule, *rule.groups(self._topology), math.inf, math.inf)
        with self._session(len(data.X), device=_home(data.X)) as session:
            session.start(
                data,
                update,
                slots,
                step,
                learning_rate=np.full((1, 1), rule.learning_rate),
                shuffle=False,
                first_epoch=self.epochs,
                theta=self._theta,
                moving=self._moving,
            )
            try:
                if session.train(1, 1).diverged:
                    raise validation.DivergedError(0, 0)
            finally:
                session.collect()
                rule.keep(slots, session.published_step)
            self.epochs += 1
            return float(session.losses[0])

    def loss_and_gradients(self, X: Any, y: Any, sample_weight: Any = None) -> tuple[float, np.ndarray]:
        """Mean loss over the samples and its gradient, without dropout and without an update.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        float, (n_parameters,) array
            The gradient is laid out like ``theta``.

        Raises
        ------
        ValueError, TypeError
        """
        data = self._data(X, y, sample_weight)
        with self._session(len(data.X), device=_home(data.X)) as session:
            return session.gradients(data)

    def forward(self, X: Any) -> np.ndarray:
        """Outputs before the link (logits).

        Parameters
        ----------
        X : (n_samples, n_in) array

        Returns
        -------
        (n_samples, n_out) array

        Raises
        ------
        ValueError, TypeError
        """
        X = self._samples(X)
        with self._session_for(X) as session:
            return session.forward(X)

    def predict(self, X: Any) -> np.ndarray:
        """Outputs after the link: values, or probabilities for the two cross-entropies.

        Parameters
        ----------
        X : (n_samples, n_in) array

        Returns
        -------
        (n_samples, n_out) array

        Raises
        ------
        ValueError, TypeError
        """
        return self._predictions(self.forward(X))

    def evaluate(
        self, X: Any, y: Any, sample_weight: Any = None, *, metrics: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Quality on data: "loss", the weighted mean, and metrics by their names.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        metrics : sequence of str, optional
            Of accuracy, top_k(k=5), log_loss and auc for classes, or mae, rmse and r2 for numbers. None takes accuracy
            for classes, and none for numbers.

        Raises
        ------
        ValueError, TypeError
        MissingExtraError
            For auc, if scikit-learn is not installed.
        """
        if metrics is None:
            metrics = ["accuracy"] if self._loss.targets in CLASSES else []
        chosen = choose(metrics, self._loss)
        data = self._data(X, y, sample_weight)
        if chosen:
            check_targets(chosen, "y", self._scored(data), self.layer_sizes[-1])
        with self._session_for(data.X) as session:
            return self._scores(session, data, chosen)

    def _scores(self, session: Session, data: Data, chosen: dict[str, Choice]) -> dict[str, float]:
        """Loss and metrics of a network at work."""
        loss, z = session.evaluate(data, wants_outputs=bool(chosen))
        result = {"loss": loss}
        if chosen:
            predictions = self._predictions(z)
            if self._loss.pairs:
                z, predictions = z[:, ::2], predictions[:, ::2]
            weight = np.asarray(data.weight) if data.weight.size else None
            result |= scores(chosen, self._scored(data), z, predictions, weight)
        return result

    def _predictions(self, z: np.ndarray) -> np.ndarray:
        """Outputs after the link, where an exponential may be infinite."""
        with np.errstate(over="ignore"):
            return self._loss.link(z)

    def _scored(self, data: Data) -> np.ndarray:
        """Targets as metrics want them."""
        targets = np.asarray(data.labels if data.labels.size else data.targets)
        if self._loss.targets == "labels" and targets.ndim == 2:
            return targets.argmax(axis=1)
        return targets[:, ::2] if self._loss.pairs else targets

    def snapshot(self) -> tuple[np.ndarray, np.ndarray]:
        """A copy of all that training changes, for `restore`."""
        return self._theta.copy(), self._moving.copy()

    def restore(self, snapshot: tuple[np.ndarray, np.ndarray]) -> None:
        """Go back to what `snapshot` gave."""
        self._theta[:], self._moving[:] = snapshot

    def save(self, path: str | os.PathLike) -> None:
        """Write the network to a safetensors file, which holds no code.

        Tensors are named ``layers.0.weight`` (n_in, n_out), ``layers.0.bias`` (n_out,) and so on; `fastbp.load` reads
        it back. Optimizer states are not saved.

        Parameters
        ----------
        path : path-like
            A file that exists is replaced, once the new one is whole.

        Raises
        ------
        OSError
        TypeError
            If ``metadata`` holds anything but strings.
        ValueError
            If the network has an activation or a loss of the user's own, or parameters that are not finite.
        """
        description = self._description()
        scaler = {}
        if self.feature_mean is not None and self.feature_scale is not None:
            scaler = {"feature_mean": self.feature_mean, "feature_scale": self.feature_scale}
        tensors = self._tensors() | scaler
        for name, tensor in tensors.items():
            validation.finite(name, tensor)
        io.write(path, description, tensors)

    def _description(self) -> dict[str, Any]:
        """What a file says of the network besides its tensors; raises as `save`."""
        if "custom" in (self.loss, *self.activations):
            raise ValueError("a network with an Activation or a Loss of your own cannot be saved: a file holds no code")
        validation.words("metadata", self.metadata)
        return {
            "layer_sizes": self.layer_sizes,
            "activation": self.activations,
            "loss": self.loss,
            "dropout": self.dropout,
            "normalization": self.normalization,
            "residual": self.residual,
            "scale_inputs": self.scale_inputs,
            "input_noise": self.input_noise,
            "max_norm": self.max_norm,
            "l1": self.l1,
            "l2": self.l2,
            "penalty_by_batch": self.penalty_by_batch,
            "bias": self.bias,
            "dtype": self.dtype.name,
            "random_state": self.random_state,
            "epochs": self.epochs,
            "metadata": self.metadata,
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        """Views on the parameters by their names in a file."""
        names = {
            "layers.{}.weight": self.weights,
            "layers.{}.bias": self.biases,
            "normalizations.{}.gain": self.gains,
            "normalizations.{}.shift": self.shifts,
            "normalizations.{}.running_mean": self.running_means,
            "normalizations.{}.running_variance": self.running_variances,
            "input_scale": [] if self.input_scale is None else [self.input_scale],
        }
        return {name.format(k): tensor for name, tensors in names.items() for k, tensor in enumerate(tensors)}

    def _session(self, batch_rows: int, *args: Any, **settings: Any) -> AbstractContextManager[Session]:
        """The network at work; for arguments see `Sessions.open`."""
        return self._sessions.open(self._topology, self._theta, self._moving, batch_rows, *args, **settings)

    def _session_for(self, X: Any) -> AbstractContextManager[Session]:
        """One that takes samples forward where they lie."""
        rows = min(EVALUATION_ROWS, len(X))
        return self._session(rows, n_updates=-(-len(X) // rows), device=_home(X))

    def _samples(self, X: Any, name: str = "X") -> Any:
        if on_gpu(X):
            X = borrow(X)
        return validation.samples(name, X, self.layer_sizes[0], self.dtype, self.feature_mean, self.feature_scale)

    def _data(self, X: Any, y: Any, sample_weight: Any = None, *, prefix: str = "") -> Data:
        X = self._samples(X, f"{prefix}X")
        n_outputs = 2 if self._loss.pairs else 1
        there = borrow(y) if on_gpu(y) else None
        targets, labels = validation.targets(
            f"{prefix}y",
            y if there is None else np.asarray(there),
            self._loss.targets,
            len(X),
            self.layer_sizes[-1] // n_outputs,
            self.dtype,
        )
        if self._loss.pairs:
            targets = validation.canonical(np.repeat(targets, 2, axis=1), self.dtype)
        elif there is not None and validation.is_resident(X):
            # What was copied to the host was for the checks alone.
            targets, labels = (
                there.converted(part.dtype, pad=False) if part.size else part for part in (targets, labels)
            )
        if on_gpu(sample_weight):
            sample_weight = np.asarray(borrow(sample_weight))
        weight = validation.weights(f"{prefix}sample_weight", sample_weight, len(X), self.dtype)
        return Data(X, targets, labels, weight, np.zeros(0, np.int64))


def load(path: str | os.PathLike) -> MLP:
    """Read a network that `MLP.save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    MLP
        With the same parameters, bit for bit, and the same predictions.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it does not hold a whole network of this format.
    """
    description, tensors = io.read(path)
    try:
        epochs, metadata = description.pop("epochs"), description.pop("metadata")
        sizes = description["layer_sizes"]
        # Before memory is taken for what a damaged description asks.
        for k, shape in enumerate(pairwise(sizes)):
            if tensors[f"layers.{k}.weight"].shape != shape:
                raise ValueError(f"the tensor of layer {k} does not fit layer_sizes {sizes}")
        net = MLP(**description)
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(f"epochs must be an integer of at least 0, it is {epochs!r}")
        validation.words("metadata", metadata)
        if "feature_mean" in tensors or "feature_scale" in tensors:
            net.feature_mean, net.feature_scale = tensors.pop("feature_mean"), tensors.pop("feature_scale")
            shapes = {(array.shape, array.dtype.name) for array in (net.feature_mean, net.feature_scale)}
            if shapes != {((sizes[0],), "float64")} or not (net.feature_scale > 0).all():
                raise ValueError("feature_mean and feature_scale do not fit the network")
            validation.finite("feature_mean", net.feature_mean)
            validation.finite("feature_scale", net.feature_scale)
        targets = net._tensors()
        if {name: (t.shape, t.dtype) for name, t in tensors.items()} != {
            name: (t.shape, t.dtype) for name, t in targets.items()
        }:
            raise ValueError("its tensors do not fit its description")
        for name, target in targets.items():
            target[...] = validation.finite(name, tensors[name])
            if name.endswith("running_variance") and target.min() < 0:
                raise ValueError(f"{name} is negative")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a damaged fastbp network: {error}") from error
    net.epochs, net.metadata = epochs, metadata
    return net


def _home(X: Any) -> str:
    """The device that samples lie on."""
    return "cuda" if validation.is_resident(X) else "cpu"


def _layer_sizes(layer_sizes: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(layer_sizes)
    except TypeError:
        raise TypeError(f"layer_sizes must be a sequence of widths, it is {layer_sizes!r}") from None
    if len(sizes) < 2:
        raise ValueError(f"layer_sizes must have at least an input and an output width, it is {layer_sizes!r}")
    return tuple(validation.count("layer_sizes' widths", n) for n in sizes)


def _activations(activation: Any, n_hidden: int) -> tuple[Choice | Custom, ...]:
    if isinstance(activation, (str, Activation)):
        return (_activation(activation),) * n_hidden
    if not isinstance(activation, Sequence):
        raise TypeError(f"activation must be a name, an Activation or a sequence of them, it is {activation!r}")
    if len(activation) != n_hidden:
        raise ValueError(f"activation must be one name or one per hidden layer ({n_hidden}), it has {len(activation)}")
    return tuple(_activation(given) for given in activation)


def _activation(given: Any) -> Choice | Custom:
    return given._row if isinstance(given, Activation) else validation.row("activation", given, ACTIVATIONS)


def _spec(row: Choice | Custom, table: Mapping[str, Any]) -> str:
    return "custom" if isinstance(row, Custom) else validation.spec(row, table)


def _normalizations(normalization: Any, n_hidden: int) -> tuple[Choice | None, ...]:
    if normalization is None or isinstance(normalization, str):
        normalization = (normalization,) * n_hidden
    if not isinstance(normalization, Sequence):
        raise TypeError(f"normalization must be None, a name or a sequence of them, it is {normalization!r}")
    if len(normalization) != n_hidden:
        raise ValueError(
            f"normalization must be one name or one per hidden layer ({n_hidden}), it has {len(normalization)}"
        )
    return tuple(
        None if given is None else validation.row("normalization", given, NORMALIZATIONS) for given in normalization
    )


def _residual(residual: Any, sizes: tuple[int, ...]) -> tuple[bool, ...]:
    fitting = tuple(n_in == n_out for n_in, n_out in pairwise(sizes[:-1]))
    if isinstance(residual, bool):
        if residual and not any(fitting):
            raise ValueError(
                f"residual is True, but no hidden layer is as wide as its input: layer_sizes is {list(sizes)}"
            )
        return tuple(residual and fits for fits in fitting)
    if not isinstance(residual, Sequence) or not all(isinstance(flag, bool) for flag in residual):
        raise TypeError(f"residual must be True, False or a sequence of them, it is {residual!r}")
    if len(residual) != len(fitting):
        raise ValueError(f"residual must be one flag or one per hidden layer ({len(fitting)}), it has {len(residual)}")
    for k, (flag, fits) in enumerate(zip(residual, fitting, strict=True)):
        if flag and not fits:
            raise ValueError(f"residual is True for hidden layer {k}, whose widths are {sizes[k]} and {sizes[k + 1]}")
    return tuple(residual)


def _dropout(dropout: float | Sequence[float], n_hidden: int) -> tuple[float, ...]:
    one = isinstance(dropout, str) or np.ndim(dropout) == 0
    rates = (dropout,) * n_hidden if one else tuple(dropout)  # type: ignore[arg-type]
    if len(rates) != n_hidden:
        raise ValueError(f"dropout must be one number or one per hidden layer ({n_hidden}), it has {len(rates)}")
    return tuple(validation.number_in("dropout", rate, at_least=0, below=1) for rate in rates)


def _dtype(dtype: Any) -> np.dtype:
    try:
        known = np.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    if dtype is None or known.name not in ("float32", "float64") or not known.isnative:
        raise ValueError(f"dtype must be 'float32' or 'float64', it is {dtype!r}")
    return known


def _seed(random_state: int | None) -> int:
    if random_state is None:
        return secrets.randbits(32)
    if not isinstance(random_state, (int, np.integer)) or isinstance(random_state, bool):
        raise TypeError(f"random_state must be an integer or None, it is {random_state!r}")
    if not 0 <= random_state < 2**64:
        raise ValueError(f"random_state must be from 0 to 2**64 - 1, it is {random_state}")
    return int(random_state)
