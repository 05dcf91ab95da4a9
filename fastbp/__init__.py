"""fastbp: train multilayer perceptrons by backpropagation, at the machine's speed."""

from .history import History
from .mlp import MLP, load
from .optimizers import SGD, Adadelta, Adagrad, Adam, AdamW, Lion, NAdam, Optimizer, RAdam, RMSprop
from .validation import DivergedError

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "DivergedError",
    "History",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "load",
]
