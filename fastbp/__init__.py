"""fastbp: train multilayer perceptrons by backpropagation, at the machine's speed."""

from .history import History
from .mlp import MLP, load
from .optimizers import SGD, Adam, AdamW, Optimizer
from .validation import DivergedError

__version__ = "0.1.0"

__all__ = ["MLP", "SGD", "Adam", "AdamW", "DivergedError", "History", "Optimizer", "load"]
