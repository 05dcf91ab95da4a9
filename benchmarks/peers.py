"""fastbp and its peers behind one interface, and the process that each works in.

Every peer starts from the same parameters and takes the same minibatches in the same order: all draw the permutations
that fastbp does, with its code, while they are timed.
"""

from __future__ import annotations

import os
import signal
from itertools import chain
from multiprocessing.connection import Connection
from typing import ClassVar

import numba
import numpy as np

from fastbp.kernels.cpu.epoch import permute
from fastbp.kernels.random import fold, mix

from .benchmarks.timing import repetitions, timed
from .benchmarks.workloads import SEED, WORKLOADS, Training, Workload

LEARNING_RATE = 1e-3
#: After so many epochs the losses of all peers are compared.
EPOCHS = 3


@numba.njit
def _draw(orders, seed, first):
    for k in range(len(orders)):
        permute(orders[k], fold(mix(seed), first + k))


def permutations(samples: int, first: int, count: int) -> np.ndarray:
    """The orders (count, samples) in which fastbp takes its samples from epoch ``first`` on."""
    orders = np.empty((count, samples), np.int64)
    _draw(orders, np.uint64(SEED), first)
    return orders


def flatten(weights: list, biases: list) -> np.ndarray:
    """Parameters in the layout of fastbp's theta."""
    return np.concatenate([np.ravel(part) for part in chain.from_iterable(zip(weights, biases, strict=True))])


class Peer:
    """A library at work on a workload: `prepare` builds the model, `theta` gives its parameters back."""

    #: Modules that must be installed.
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, workload: Workload, threads: int):
        self.workload, self.threads, self.epochs = workload, threads, 0
        self.is_classifier = workload.loss == "cross_entropy"
        self.X, self.y = workload.data()
        net = workload.network()
        self.prepare(net.weights, net.biases)

    def run(self, epochs: int) -> None:
        """Go on for a number of epochs."""
        self.train(permutations(self.workload.samples, self.epochs, epochs))
        self.epochs += epochs


class Fastbp(Peer):
    def prepare(self, weights, biases):
        # On all cores it is fastbp's own choice how many it takes.
        threads = self.threads if self.threads < (os.cpu_count() or 1) else None
        self.training = Training(self.workload, threads)
        self.run = self.training.run

    def theta(self):
        return self.training.net.theta


class Torch(Peer):
    needs = ("torch",)

    def prepare(self, weights, biases):
        import torch

        torch.set_num_threads(self.threads)
        modules: list = []
        for W, b in zip(weights, biases, strict=True):
            linear = torch.nn.Linear(*W.shape)
            linear.load_state_dict({"weight": torch.tensor(W.T), "bias": torch.tensor(b)})
            modules += [linear, torch.nn.ReLU()]
        model = torch.nn.Sequential(*modules[:-1])
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, fused=True)
        self.from_numpy = torch.from_numpy
        self.tensors = torch.from_numpy(self.X), torch.from_numpy(self.y)

        def mean_loss(X, y):
            if self.is_classifier:
                return torch.nn.functional.cross_entropy(model(X), y)
            return torch.nn.functional.mse_loss(model(X), y, reduction="sum") / (2 * len(y))

        self.mean_loss = mean_loss

    def train(self, orders):
        X, y = self.tensors
        for rows in self.from_numpy(orders).view(-1, self.workload.batch):
            self.optimizer.zero_grad()
            self.mean_loss(X[rows], y[rows]).backward()
            self.optimizer.step()

    def theta(self):
        arrays = [parameter.detach().numpy().T for parameter in self.parameters]
        return flatten(arrays[::2], arrays[1::2])


class CompiledTorch(Torch):
    def prepare(self, weights, biases):
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers beside the measurement
        super().prepare(weights, biases)
        import torch

        self.mean_loss = torch.compile(self.mean_loss)


class Jax(Peer):
    """An epoch is one compiled scan."""

    needs = ("jax", "optax")

    def prepare(self, weights, biases):
        # Read when JAX starts.
        os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": str(self.threads)}
        if self.threads == 1:
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        import jax
        import optax

        optimizer, batch = optax.adam(LEARNING_RATE), self.workload.batch

        def mean_loss(layers, X, y):
            *hidden, (W_out, b_out) = layers
            for W, b in hidden:
                X = jax.nn.relu(X @ W + b)
            z = X @ W_out + b_out
            if self.is_classifier:
                return optax.losses.softmax_cross_entropy_with_integer_labels(z, y).mean()
            return ((z - y) ** 2).sum() / (2 * len(y))

        def epoch(layers, state, order, X, y):
            def step(carry, rows):
                layers, state = carry
                updates, state = optimizer.update(jax.grad(mean_loss)(layers, X[rows], y[rows]), state)
                return (optax.apply_updates(layers, updates), state), None

            return jax.lax.scan(step, (layers, state), order.reshape(-1, batch))[0]

        self.epoch, self.wait = jax.jit(epoch, donate_argnums=(0, 1)), jax.block_until_ready
        self.tensors = jax.numpy.array(self.X), jax.numpy.array(self.y)
        self.layers = [(jax.numpy.array(W), jax.numpy.array(b)) for W, b in zip(weights, biases, strict=True)]
        self.state = optimizer.init(self.layers)

    def train(self, orders):
        for order in orders.astype(np.int32):
            self.layers, self.state = self.epoch(self.layers, self.state, order, *self.tensors)
        self.wait(self.layers)

    def theta(self):
        return flatten(*zip(*self.layers, strict=True))


class ScikitLearn(Peer):
    """One call of ``partial_fit`` an epoch, with its own shuffling off, on the samples in the epoch's order."""

    needs = ("sklearn",)

    def prepare(self, weights, biases):
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from threadpoolctl import threadpool_limits

        self.limits = threadpool_limits(self.threads)
        batch, (*sizes, n_out) = self.workload.batch, self.workload.sizes[1:]
        self.model = (MLPClassifier if self.is_classifier else MLPRegressor)(
            hidden_layer_sizes=sizes, alpha=0.0, batch_size=batch, learning_rate_init=LEARNING_RATE, shuffle=False
        )
        # The first call makes the parameters, and an optimizer whose step does not count.
        classes = {"classes": np.arange(n_out)} if self.is_classifier else {}
        self.model.partial_fit(self.X[:batch], self.y[:batch], **classes)
        for mine, given in zip(self.model.coefs_ + self.model.intercepts_, (*weights, *biases), strict=True):
            mine[...] = given
        del self.model._optimizer

    def train(self, orders):
        for order in orders:
            self.model.partial_fit(self.X[order], self.y[order])

    def theta(self):
        return flatten(self.model.coefs_, self.model.intercepts_)


PEERS: dict[str, type[Peer]] = {
    "fastbp": Fastbp,
    "PyTorch": Torch,
    "torch.compile": CompiledTorch,
    "JAX": Jax,
    "scikit-learn": ScikitLearn,
}


class Runner:
    """What a worker is asked to do."""

    def __init__(self, peer: type[Peer], threads: int):
        self.peer, self.threads = peer, threads

    def prepare(self, name: str, seconds: float) -> float:
        """Make ready for turns of so many seconds; returns the loss after ``EPOCHS`` epochs."""
        workload = WORKLOADS[name]
        self.at_work = self.peer(workload, self.threads)
        self.at_work.run(EPOCHS)
        net = workload.network()
        net.theta = self.at_work.theta()
        loss = net.evaluate(*workload.data())["loss"]
        self.epochs = repetitions(self.at_work.run, seconds)
        return loss

    def turn(self) -> float:
        """Microseconds per step."""
        return 1e6 * timed(self.at_work.run, self.epochs) / (self.epochs * self.at_work.workload.steps)


def serve(connection: Connection, name: str, threads: int) -> None:
    """Answer requests ``(method, *arguments)`` with ``(failed, result)`` until the other end hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent that ends
    os.dup2(2, 1)  # what libraries print is no part of the report
    runner = Runner(PEERS[name], threads)
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = False, getattr(runner, method)(*arguments)
        except Exception as error:
            answer = True, f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send(answer)
