"""Early stopping and callbacks that know the network."""

from __future__ import annotations

import numpy as np
import pytest
from cases import make_case

import fastbp


class Recorder(fastbp.Callback):
    def __init__(self):
        self.calls, self.thetas = [], []

    def begin(self, net, rates):
        self.calls.append("begin")

    def after_epoch(self, net, history):
        self.calls.append(history.epochs)
        self.thetas.append(net.theta.copy())
        return history.epochs == 3

    def end(self, net, history):
        self.calls.append("end")


def test_callbacks_see_the_network_after_each_epoch_and_can_stop(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    recorder = Recorder()
    history = case.net.fit(case.X, case.y, epochs=10, callbacks=[recorder])
    assert recorder.calls == ["begin", 1, 2, 3, "end"]
    assert history.epochs == case.net.epochs == 3
    assert len({theta.tobytes() for theta in recorder.thetas}) == 3
    assert np.array_equal(case.net.theta, recorder.thetas[-1])


@pytest.mark.parametrize("monitor", ["loss", "val_loss"])
@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping(rng, monitor, restore_best):
    case = make_case(rng, (5, 33, 3), "cross_entropy")
    held_out = case.X[:10], 2 - case.y[:10]  # what is learned makes these worse
    stop, recorder = fastbp.EarlyStopping(4, monitor=monitor, restore_best=restore_best), Recorder()
    recorder.after_epoch = lambda net, history: recorder.thetas.append(net.theta.copy())
    history = case.net.fit(
        case.X[10:],
        case.y[10:],
        optimizer=fastbp.SGD(5.0),
        epochs=300,
        validation_data=held_out,
        callbacks=[recorder, stop],
    )
    curve = getattr(history, monitor)
    assert history.epochs < 300
    assert stop.best_epoch == int(np.argmin(curve)) == history.epochs - 5
    expected = recorder.thetas[stop.best_epoch if restore_best else -1]
    assert np.array_equal(case.net.theta, expected)


def test_early_stopping_wants_what_it_watches(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    before = case.net.theta.copy()
    with pytest.raises(ValueError, match=r"monitor.*val_loss.*validation_data"):
        case.net.fit(case.X, case.y, callbacks=[fastbp.EarlyStopping()])
    assert np.array_equal(case.net.theta, before)


@pytest.mark.parametrize("decay", [None, 0.7])
def test_weight_averaging(rng, decay):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    recorder = Recorder()
    recorder.after_epoch = lambda net, history: recorder.thetas.append(net.theta.copy())
    case.net.fit(case.X, case.y, epochs=6, callbacks=[recorder, fastbp.WeightAveraging(2, decay)])
    thetas = recorder.thetas[2:]
    weights = np.full(4, 0.25) if decay is None else [0.7**3, 0.3 * 0.7**2, 0.3 * 0.7, 0.3]
    np.testing.assert_allclose(case.net.theta, np.average(thetas, axis=0, weights=weights), rtol=1e-12)


def test_history_as_a_frame(rng):
    pytest.importorskip("pandas")
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    frame = case.net.fit(case.X, case.y, epochs=4).to_frame()
    assert list(frame) == ["loss", "seconds", "samples_per_second", "learning_rate"]
    assert len(frame) == 4
