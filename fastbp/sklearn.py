"""scikit-learn's multilayer perceptrons, trained by fastbp's kernels.

The estimators are scikit-learn's own classes: every parameter, attribute, check and stopping rule is theirs, and so
are the first weights. What they hand over is the work: the epochs of "sgd" and "adam", loss and gradient for "lbfgs",
and the forward pass.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import chain
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from scipy.special import xlogy
from sklearn import neural_network
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, validate_data

from .callbacks import Callback, Controls
from .history import History
from .mlp import MLP
from .optimizers import SGD, Adam, Optimizer
from .tabular import BATCH_SIZE, EPOCHS, HIDDEN, encode, recommended_folds, table_encoder, train_committee
from .validation import DivergedError

__all__ = ["MLPClassifier", "MLPRegressor"]


@dataclass(eq=False)
class _Adam(Adam):
    """Adam with epsilon beside the uncorrected root of v."""

    @property
    def rule(self) -> str:
        return "adam"

    @property
    def hyper(self) -> np.ndarray:
        hyper = super().hyper
        hyper[self.hyper_names.index("epsilon")] *= -1
        return hyper


class _Iterations(Callback):
    """scikit-learn's bookkeeping after each epoch, and its decision when to stop."""

    def __init__(self, estimator: Any, n_samples: int, held_out: tuple | None, offset: float):
        self.estimator, self.n_samples, self.held_out, self.offset = estimator, n_samples, held_out, offset

    def begin(self, net: MLP, controls: Controls) -> None:
        self.rates = controls.rates

    def after_epoch(self, net: MLP, history: History) -> bool:
        estimator = self.estimator
        estimator.n_iter_ += 1
        estimator.t_ += self.n_samples
        estimator.loss_ = history.loss[-1] + self.offset
        estimator.loss_curve_.append(estimator.loss_)
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
        estimator._update_no_improvement_count(self.held_out is not None, *(self.held_out or (None, None, None)))
        if estimator._no_improvement_count <= estimator.n_iter_no_change:
            return False
        watched = "Training loss" if self.held_out is None else "Validation score"
        message = (
            f"{watched} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} "
            f"consecutive epochs."
        )
        optimizer = estimator._optimizer
        if estimator.learning_rate == "adaptive" and estimator.solver == "sgd" and optimizer.learning_rate > 1e-6:
            optimizer.learning_rate /= 5
            self.rates[history.epochs :] = optimizer.learning_rate
            estimator._no_improvement_count = 0
            if estimator.verbose:
                print(f"{message} Setting learning rate to {optimizer.learning_rate:f}")
            return False
        if estimator.verbose:
            print(f"{message} Stopping.")
        return True


class _Trained:
    """What both estimators hand over to fastbp."""

    #: Parameters of ours and scikit-learn's; a subclass need not have all.
    _defaults: ClassVar[Mapping[str, inspect.Parameter]]
    # set by scikit-learn's classes
    activation: Any
    solver: str
    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    out_activation_: str

    @property
    def _loss_name(self) -> str:
        link = {"softmax": "cross_entropy", "logistic": "binary_cross_entropy", "exp": "poisson"}
        return link.get(self.out_activation_, "squared_error")

    def _theta(self) -> np.ndarray:
        """The estimator's weights as a network has them."""
        parameters = chain.from_iterable(zip(self.coefs_, self.intercepts_, strict=True))
        return np.concatenate([part.ravel() for part in parameters])

    def _network(self, **settings: Any) -> MLP:
        """A fastbp network with the estimator's weights."""
        dtype = self.coefs_[0].dtype
        return MLP(
            (len(self.coefs_[0]), *(W.shape[1] for W in self.coefs_)),
            activation=self.activation if isinstance(self.activation, str) else list(self.activation),
            loss=self._loss_name,
            initializer=self._theta(),
            dtype=dtype,
            **{"random_state": 0, **settings},
        )

    def _penalized(self, **settings: Any) -> MLP:
        return self._network(l2=float(self.alpha), penalty_by_batch=True, **settings)  # type: ignore[attr-defined]

    def _init_coef(self, *shape_and_dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        estimator: Any = self
        # scikit-learn compares the activation with a name, as an array of them cannot be.
        settings: Any = SimpleNamespace(activation=str(self.activation), _random_state=estimator._random_state)
        return neural_network.MLPClassifier._init_coef(settings, *shape_and_dtype)

    def _fit_either(self, fit: Callable, X, y, sample_weight, validation_data) -> Any:
        """scikit-learn's ``fit``, once all is checked."""
        estimator: Any = self
        if estimator.preset is not None:
            return self._fit_encoded(fit, X, y, sample_weight, validation_data)
        for name in ("dropout", "optimizer"):
            if self.solver == "lbfgs" and not self._is_default(name):
                raise ValueError(f"{name} is not for solver='lbfgs', which minimises one loss over all samples")
        if validation_data is not None:
            reader = clone(estimator)
            validate_data(reader, X, skip_check_array=True)
            read = partial(validate_data, reader, accept_sparse=["csr", "csc"], reset=False)
            validation_data = _read_held_out(validation_data, read)
        return self._fit_beside(validation_data, fit, X, y, sample_weight)

    def _fit_encoded(self, fit: Callable, X, y, sample_weight, validation_data) -> Any:
        """The same of a table, as numbers."""
        estimator: Any = self
        self._check_preset(X)
        encoder = table_encoder(X)
        encoded = encode(encoder.fit(X), X)
        sample_weight = _check_sample_weight(sample_weight, encoded)
        n_samples = np.count_nonzero(sample_weight)
        if validation_data is not None:
            X_val, y_val, weight_val = _read_held_out(validation_data, partial(encode, encoder))
            unknown = set(np.ravel(y_val).tolist()) - set(np.ravel(y).tolist())
            if is_classifier(self) and unknown:
                raise ValueError(f"validation_data's y must hold classes of y, it holds {unknown.pop()!r}")
            validation_data = X_val, y_val, _check_sample_weight(weight_val, X_val)
        elif n_samples < 2:
            raise ValueError(
                f"X must hold at least 2 samples of a weight above 0 with preset='tabular', it holds {n_samples}"
            )
        self._fit_beside(validation_data, fit, encoded, y, sample_weight)
        estimator._encoder = encoder
        validate_data(estimator, X, skip_check_array=True)
        return self

    def _fit_beside(self, validation_data: tuple | None, fit: Callable, *args: Any) -> Any:
        """Fit while what is held out is at hand, and not kept."""
        self._validation_data = validation_data
        try:
            return fit(*args)
        finally:
            del self._validation_data

    def _check_partial_fit(self) -> None:
        estimator: Any = self
        if estimator.preset is not None:
            raise ValueError(f"preset must be None for partial_fit, it is {estimator.preset!r}, a recipe for fit")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.allow_nan = tags.input_tags.categorical = self.preset is not None  # type: ignore[attr-defined]
        return tags

    def _new_optimizer(self) -> Optimizer:
        estimator: Any = self
        if estimator.optimizer is not None:
            optimizer = copy(estimator.optimizer)
            optimizer.reset()
            return optimizer
        rate = float(estimator.learning_rate_init)
        if self.solver == "adam":
            return _Adam(rate, float(estimator.beta_1), float(estimator.beta_2), float(estimator.epsilon))
        momentum = min(float(estimator.momentum), math.nextafter(1.0, 0.0))
        nesterov = bool(estimator.nesterovs_momentum and momentum > 0)
        return SGD(rate, momentum, nesterov, rate_in_velocity=True)

    def _fit_stochastic(self, X, y, sample_weight, *unused) -> None:
        """Train by minibatches; ``unused`` are scikit-learn's buffers, layer sizes, and whether this is partial_fit."""
        estimator: Any = self
        if estimator.preset is not None:
            self._fit_table(X, y, sample_weight)
            return
        incremental = unused[-1]
        if estimator.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        is_new = not incremental or not hasattr(self, "_optimizer")
        if is_new:
            estimator._optimizer = self._new_optimizer()
        X, held_out = _dense(X), None
        if estimator.early_stopping:
            X, y, sample_weight, held_out = self._hold_out(X, y, sample_weight)
        n_samples = X.shape[0]
        if estimator.batch_size == "auto":
            batch_size = min(200, n_samples)
        else:
            if estimator.batch_size > n_samples:
                warnings.warn("batch_size is larger than the sample size and will be clipped", stacklevel=2)
            batch_size = min(int(estimator.batch_size), n_samples)
        epochs = 1 if incremental else estimator.max_iter
        seen, rate = estimator.t_, estimator._optimizer.learning_rate
        schedule = None
        if estimator.learning_rate == "invscaling" and self.solver == "sgd":

            def schedule(epoch):
                if is_new and epoch == 0:
                    return rate
                return rate / (seen + epoch * n_samples + 1) ** estimator.power_t

        seed = int(estimator._random_state.randint(2**31 - 1))
        net = self._penalized(dropout=estimator.dropout, random_state=seed)
        # Views, so that a score in the middle of the training sees the network as it is.
        self.coefs_, self.intercepts_ = list(net.weights), list(net.biases)
        estimator.n_iter_ = 0
        try:
            net.fit(
                X,
                self._targets(y),
                sample_weight=sample_weight,
                optimizer=estimator._optimizer,
                batch_size=batch_size,
                epochs=epochs,
                shuffle=estimator.shuffle,
                schedule=schedule,
                callbacks=[_Iterations(self, n_samples, held_out, self._offset(y, sample_weight))],
                threads=estimator.threads,
                device=estimator.device,
                progress=False,
            )
            goes_on = estimator._no_improvement_count <= estimator.n_iter_no_change
            if not incremental and estimator.n_iter_ == estimator.max_iter and goes_on:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({estimator.max_iter}) reached and the optimization "
                    f"hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        except DivergedError as error:
            raise ValueError(
                f"Solver produced non-finite parameter weights. The input data may contain large values and need to "
                f"be preprocessed. ({error})"
            ) from error
        if estimator.early_stopping:
            self.coefs_, self.intercepts_ = estimator._best_coefs, estimator._best_intercepts

    def _check_preset(self, X) -> None:
        estimator: Any = self
        for name, value in estimator.get_params(deep=False).items():
            if name not in _WITH_PRESET and not self._is_default(name):
                raise ValueError(f"{name} is {value!r}, but with preset='tabular' the recipe decides it")
        if estimator.preset != "tabular":
            raise ValueError(f"preset must be 'tabular' or None, it is {estimator.preset!r}")
        if sparse.issparse(X):
            raise TypeError("X must be a DataFrame or an array with preset='tabular', it is a sparse matrix")
        if np.ndim(X) != 2:
            raise ValueError(f"X must be a table of two dimensions with preset='tabular', it has {np.ndim(X)}")

    def _is_default(self, name: str) -> bool:
        return np.array_equal(getattr(self, name), self._defaults[name].default)

    def _recipe(self, name: str, recipe: Any) -> Any:
        """A parameter, or the recipe's if it has been left at its default."""
        return recipe if self._is_default(name) else getattr(self, name)

    def _fit_table(self, X, y, sample_weight) -> None:
        """Train by the preset's recipe on encoded samples."""
        estimator: Any = self
        # A fold of samples that do not count would have no score.
        X, y, weight = (part[sample_weight != 0] for part in (X, y, sample_weight))
        n_samples = len(X)
        y = y.reshape(n_samples, -1).astype(np.float64)
        self._target_mean, self._target_scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
        if self._loss_name == "squared_error":
            self._target_mean, scale = np.average(y, axis=0, weights=weight), y.std(axis=0)
            self._target_scale = np.where(scale > 0, scale, 1.0)
        self._target_range = y.min(axis=0), y.max(axis=0)
        if estimator._validation_data is None:
            fraction = None if self._is_default("validation_fraction") else estimator.validation_fraction
            folds = recommended_folds(y, is_classifier(self), fraction, estimator._random_state)
        else:
            X_val, y_val, weight_val = estimator._validation_data
            y_val = estimator._label_binarizer.transform(y_val) if is_classifier(self) else np.asarray(y_val)
            X, y = np.concatenate([X, X_val]), np.concatenate([y, y_val.reshape(len(y_val), -1)])
            weight = np.concatenate([weight, weight_val])
            folds = [(np.arange(n_samples), np.arange(n_samples, len(X)))]
        self._nets, history, estimator.validation_scores_ = train_committee(
            X,
            self._targets((y - self._target_mean) / self._target_scale),
            weight,
            folds,
            loss=self._loss_name,
            n_out=y.shape[1],
            hidden=np.atleast_1d(self._recipe("hidden_layer_sizes", HIDDEN)).tolist(),
            epochs=self._recipe("max_iter", EPOCHS),
            batch_size=self._recipe("batch_size", BATCH_SIZE),
            seed=int(estimator._random_state.randint(2**31 - 1)),
            threads=estimator.threads,
            device=estimator.device,
            progress=bool(estimator.verbose),
        )
        first = self._nets[0]
        self.coefs_, self.intercepts_ = list(first.weights), list(first.biases)
        estimator.n_layers_ = len(first.layer_sizes)
        estimator.n_iter_, estimator.t_ = history.epochs, history.epochs * n_samples
        estimator.loss_curve_, estimator.loss_, estimator.best_loss_ = history.loss, history.loss[-1], None

    def _hold_out(self, X, y, sample_weight) -> tuple:
        """Set samples aside to score: the training's X, y and sample_weight, and those of the others."""
        estimator: Any = self
        if estimator._validation_data is not None:
            return X, y, sample_weight, estimator._validation_data
        stratify = y if is_classifier(self) and y.shape[1] == 1 else None
        arrays = (X, y) if sample_weight is None else (X, y, sample_weight)
        parts = train_test_split(
            *arrays, random_state=estimator._random_state, test_size=estimator.validation_fraction, stratify=stratify
        )
        (X, X_val, y, y_val), weights = parts[:4], parts[4:] or (None, None)
        if X_val.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            y_val = estimator._label_binarizer.inverse_transform(y_val)
        return X, y, weights[0], (X_val, y_val, weights[1])

    def _offset(self, y: np.ndarray, sample_weight: np.ndarray | None) -> float:
        """What the deviance of counts has of the targets alone, which scikit-learn includes."""
        if self.out_activation_ != "exp":
            return 0.0
        return float(np.average((xlogy(y, y) - y).sum(axis=1), weights=sample_weight))

    def _targets(self, y: np.ndarray) -> np.ndarray:
        return y.argmax(axis=1) if self.out_activation_ == "softmax" else y

    def _fit_lbfgs(self, X, y, sample_weight, *rest) -> None:
        estimator: Any = self
        net = self._penalized()
        data = net._data(_dense(X), self._targets(y), sample_weight)
        n = estimator.max_iter  # and as many calls
        with net._session(len(data.X), None, n, estimator.threads, estimator.device, n_calls=n) as session:
            super()._fit_lbfgs((net, session, data), y, sample_weight, *rest)  # type: ignore[misc]

    def _loss_grad_lbfgs(self, packed, work, y, sample_weight, *unused) -> tuple[float, np.ndarray]:
        """Loss and gradient, laid out as all coefs_, then all intercepts_; ``unused`` are scikit-learn's buffers."""
        net, session, data = work
        self._unpack(packed.astype(net.dtype, copy=False))  # type: ignore[attr-defined]
        session.load(self._theta())
        # Neither need be finite where a line search looks: it will look elsewhere.
        loss, net._theta[:] = session.gradients(data)
        loss += self._offset(y, sample_weight)
        return loss, np.concatenate([part.ravel() for part in (*net.weights, *net.biases)]).astype(np.float64)

    def _forward_pass_fast(self, X, check_input: bool = True) -> np.ndarray:
        if self.preset is not None:  # type: ignore[attr-defined]
            estimator: Any = self
            encoded = encode(estimator._encoder, X)
            y = np.mean([net.predict(encoded) for net in self._nets], axis=0)
            if is_classifier(self):
                return y
            return np.clip(y * self._target_scale + self._target_mean, *self._target_range)
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        return self._network().predict(_dense(X))


def _read_held_out(validation_data: Any, read: Callable) -> tuple:
    """``validation_data`` as X, y and sample_weight, with ``read`` to check and convert X."""
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
        given = type(validation_data).__name__
        if isinstance(validation_data, (tuple, list)):
            given += f" of {len(validation_data)}"
        raise ValueError(f"validation_data must be a tuple (X, y) or (X, y, sample_weight), it is a {given}")
    X, y, sample_weight = (*validation_data, None)[:3]
    try:
        X = read(X)
        check_consistent_length(X, y, sample_weight)
    except (TypeError, ValueError) as error:
        raise ValueError(f"validation_data: {error}") from error
    return X, y, sample_weight


def _dense(X: Any) -> np.ndarray:
    return X.toarray() if sparse.issparse(X) else X


#: Parameters that mean something beside a preset.
_WITH_PRESET = (
    "preset",
    "hidden_layer_sizes",
    "max_iter",
    "batch_size",
    "validation_fraction",
    "random_state",
    "verbose",
    "class_weight",
    "threads",
    "device",
)
_CONSTRAINTS = {
    "preset": [str, None],
    "activation": [str, "array-like"],
    "optimizer": [Optimizer, None],
    "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
    "threads": [Interval(Integral, 1, None, closed="left"), None],
    "device": [str],
}


_if_stochastic = available_if(lambda estimator: estimator._check_solver())


def _weighted(sample_weight: Any, class_weight: Any, y: Any) -> np.ndarray:
    weight = compute_sample_weight(class_weight, y)
    return weight if sample_weight is None else weight * np.asarray(sample_weight)


def _make_init(parent: Any, **ours: Any) -> Callable:
    """The constructor of ``parent`` with keywords of ours; scikit-learn reads its signature."""
    theirs = inspect.signature(parent.__init__)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=ours[name]) for name in ours]
    signature = theirs.replace(parameters=[*theirs.parameters.values(), *added])

    def __init__(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        settings = {name: bound.arguments.pop(name) for name in ours}
        parent.__init__(*bound.args, **bound.kwargs)
        for name, value in settings.items():
            setattr(self, name, value)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


class MLPClassifier(_Trained, neural_network.MLPClassifier):
    """scikit-learn's MLPClassifier at fastbp's speed.

    Every parameter of scikit-learn's class, with its meaning and default, and these:

    Parameters
    ----------
    activation : str or sequence of str
        Any of fastbp's, one for all hidden layers or one for each.
    dropout : float or sequence of float
        Probability of dropping a hidden unit in training, for all layers or one for each.
    optimizer : fastbp.Optimizer, optional
        In place of ``solver`` "sgd" or "adam" and its settings. A copy trains: `fit` begins with a fresh state, which
        ``partial_fit`` carries on.
    class_weight : dict or "balanced", optional
        As in scikit-learn's other classifiers; ``partial_fit`` takes a dict alone.
    threads : int, optional
        None lets a cost model choose.
    device : {"cpu", "cuda", "auto"}
        As in `fastbp.MLP.fit`.
    preset : {"tabular"}, optional
        Train a table with categories and missing values, a DataFrame or an array, by the recipe of RealMLP (see
        `fastbp.tabular`), which decides all but ``hidden_layer_sizes``, ``max_iter``, ``batch_size`` and
        ``validation_fraction``; left at their defaults, these are its own too. Fewer than 1000 samples make a
        committee of five networks: ``coefs_``, ``intercepts_`` and ``loss_curve_`` are then the first one's.
        ``validation_scores_`` are errors after each epoch: the log loss of classes, the RMSE of standardised targets.
        ``verbose`` shows a progress bar for each training.

    Notes
    -----
    Minibatches are drawn by fastbp's generator, so that with ``shuffle`` a seed gives another order than
    scikit-learn's. Sparse input is trained on as a dense copy. With sample weights and minibatches ``loss_`` and
    ``loss_curve_`` are means over weights; scikit-learn weighs minibatches by their rows.
    """

    _parameter_constraints: ClassVar[dict] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
        "class_weight": [dict, str, None],
    }

    __init__ = _make_init(
        neural_network.MLPClassifier,
        dropout=0.0,
        optimizer=None,
        class_weight=None,
        threads=None,
        device="cpu",
        preset=None,
    )
    _defaults = inspect.signature(__init__).parameters

    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Fit the model.

        Parameters
        ----------
        X : (n_samples, n_features) array or sparse matrix
        y : (n_samples,) or (n_samples, n_outputs) array
        sample_weight : (n_samples,) array, optional
        validation_data : (X, y) or (X, y, sample_weight), optional
            What ``early_stopping`` scores, in place of a share of the training data.

        Returns
        -------
        MLPClassifier
        """
        if self.class_weight is not None:
            sample_weight = _weighted(sample_weight, self.class_weight, y)
        return self._fit_either(super().fit, X, y, sample_weight, validation_data)

    @_if_stochastic
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch more; parameters are those of scikit-learn's.

        Returns
        -------
        MLPClassifier
        """
        self._check_partial_fit()
        if self.class_weight is not None:
            if not isinstance(self.class_weight, dict):
                raise ValueError(f"class_weight must be a dict or None for partial_fit, it is {self.class_weight!r}")
            # Samples of one call need not have all classes.
            weights = {label: self.class_weight.get(label, 1.0) for label in np.unique(y).tolist()}
            sample_weight = _weighted(sample_weight, weights, y)
        return super().partial_fit(X, y, sample_weight, classes)


class MLPRegressor(_Trained, neural_network.MLPRegressor):
    """scikit-learn's MLPRegressor at fastbp's speed.

    Every parameter of scikit-learn's class, with its meaning and default, and those of `MLPClassifier` but
    ``class_weight``.

    Notes
    -----
    With several outputs ``loss_`` and ``loss_curve_`` are sums over them, of which the gradient is taken;
    scikit-learn reports their mean.
    """

    _parameter_constraints: ClassVar[dict] = {**neural_network.MLPRegressor._parameter_constraints, **_CONSTRAINTS}

    __init__ = _make_init(
        neural_network.MLPRegressor, dropout=0.0, optimizer=None, threads=None, device="cpu", preset=None
    )
    _defaults = inspect.signature(__init__).parameters

    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Fit the model; parameters are those of `MLPClassifier.fit`."""
        return self._fit_either(super().fit, X, y, sample_weight, validation_data)

    @_if_stochastic
    def partial_fit(self, X, y, sample_weight=None):
        """Train for one epoch more; parameters are those of scikit-learn's."""
        self._check_partial_fit()
        return super().partial_fit(X, y, sample_weight)
