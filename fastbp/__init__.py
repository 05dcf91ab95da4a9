"""fastbp: train multilayer perceptrons by backpropagation, at the machine's speed."""

from . import schedules
from .backend import DeviceError
from .callbacks import Annealing, Callback, Checkpoint, EarlyStopping, WeightAveraging
from .custom import Activation, DerivativeError, Loss
from .history import History
from .lbfgs import LBFGS
from .mlp import MLP, load
from .optimizers import SGD, Adadelta, Adagrad, Adam, AdamW, CustomOptimizer, Lion, NAdam, Optimizer, RAdam, RMSprop
from .validation import DivergedError

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "MLP",
    "SGD",
    "Activation",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Annealing",
    "Callback",
    "Checkpoint",
    "CustomOptimizer",
    "DerivativeError",
    "DeviceError",
    "DivergedError",
    "EarlyStopping",
    "History",
    "Lion",
    "Loss",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "WeightAveraging",
    "load",
    "schedules",
]
