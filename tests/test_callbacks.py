"""Early stopping and callbacks that know the network."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import reference
from cases import batches, make_case

import fastbp
from fastbp import schedules


class Recorder(fastbp.Callback):
    def __init__(self):
        self.calls, self.thetas = [], []

    def begin(self, net, controls):
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


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("decay", [None, 0.7])
def test_weight_averaging_by_step(rng, decay, start):
    case = make_case(rng, (5, 17, 3), n_samples=31)
    recorder = EveryUpdate()
    average = fastbp.WeightAveraging(start, decay, by="step")
    case.net.fit(case.X, case.y, batch_size=8, epochs=4, callbacks=[recorder, average])
    mean = None
    for k, theta in enumerate(recorder.thetas[4 * start :]):
        share = 1 / (k + 1) if decay is None or k == 0 else 1 - decay
        mean = theta if mean is None else mean + share * (theta - mean)
    np.testing.assert_allclose(case.net.theta, mean, rtol=1e-12)


class EveryUpdate(fastbp.Callback):
    every = 1

    def __init__(self, stop_after=None):
        self.thetas, self.losses, self.stop_after = [], [], stop_after

    def after_updates(self, net, updates, loss):
        self.thetas.append(net.theta.copy())
        self.losses.append(loss)
        assert updates == len(self.losses)
        return updates == self.stop_after


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 12])
def test_steps_in_place_of_epochs(rng, steps):
    """31 samples in batches of 8 are 4 updates an epoch; the updates are those of whole epochs."""
    start = deepcopy(rng)
    case = make_case(deepcopy(start), (5, 17, 3), n_samples=31)
    recorder = EveryUpdate()
    whole = case.net.fit(case.X, case.y, batch_size=8, epochs=3, callbacks=[recorder])
    case = make_case(deepcopy(start), (5, 17, 3), n_samples=31)
    history = case.net.fit(case.X, case.y, batch_size=8, steps=steps)
    assert np.array_equal(case.net.theta, recorder.thetas[steps - 1])
    assert history.epochs == case.net.epochs == -(-steps // 4)
    assert history.loss[: steps // 4] == whole.loss[: steps // 4]
    assert history.loss[-1] == recorder.losses[steps - 1]
    assert len(history.seconds) == len(history.samples_per_second) == len(history.learning_rate) == history.epochs


def test_steps_continue_with_the_optimizer(rng):
    """Twice 6 updates are two epochs cut short, not three whole ones: each starts anew, with the moments kept."""
    case = make_case(rng, (5, 17, 3), n_samples=31)
    theta, rows = case.net.theta.copy(), batches(31, 8)
    adam = fastbp.Adam()
    for _ in range(2):
        case.net.fit(case.X, case.y, batch_size=8, steps=6, shuffle=False, optimizer=adam)
    order = [*rows, *rows[:2], *rows, *rows[:2]]
    _, expected = reference.train(case.network, theta, case.X, case.y, order, "adam", learning_rate=0.001)
    np.testing.assert_allclose(case.net.theta, expected, rtol=1e-9)


def test_a_callback_between_updates_stops_and_changes_the_learning_rate(rng):
    case = make_case(rng, (5, 17, 3), n_samples=31)
    stopper = EveryUpdate(stop_after=6)
    history = case.net.fit(case.X, case.y, batch_size=8, epochs=5, callbacks=[stopper])
    assert history.epochs == 2
    assert np.array_equal(case.net.theta, stopper.thetas[-1])

    class Freeze(EveryUpdate):
        def begin(self, net, controls):
            self.rates = controls.rates

        def after_updates(self, net, updates, loss):
            super().after_updates(net, updates, loss)
            if updates == 5:
                self.rates.ravel()[5:] = 0

    freeze = Freeze()
    case.net.fit(case.X, case.y, batch_size=8, epochs=3, callbacks=[freeze])
    assert not np.array_equal(freeze.thetas[3], freeze.thetas[4])
    assert all(np.array_equal(theta, freeze.thetas[4]) for theta in freeze.thetas[4:])


@pytest.mark.parametrize(
    ("answer", "epochs"), [(True, 1), (np.True_, 1), (False, 3), (np.False_, 3), (None, 3), (1, 3)]
)
def test_true_stops_and_so_does_numpys(rng, answer, epochs):
    case = make_case(rng, (5, 17, 3))
    assert case.net.fit(case.X, case.y, epochs=3, callbacks=[lambda history: answer]).epochs == epochs


@pytest.mark.parametrize("every", [1.5, "1", -1, 0.5, True, np.nan])
def test_every_is_checked(rng, every):
    case, callback = make_case(rng, (5, 17, 3)), fastbp.Callback()
    callback.every = every
    refuses(case, [callback], f"Callback's every must be .*at least 1, it is {every!r}")
    callback.every = 0
    case.net.fit(case.X, case.y, epochs=1, callbacks=[callback])


def refuses(case, callbacks, words, **settings):
    before = case.net.theta.copy()
    with pytest.raises((ValueError, TypeError), match=words):
        case.net.fit(case.X, case.y, callbacks=callbacks, **settings)
    assert np.array_equal(case.net.theta, before)


@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("other", [fastbp.EarlyStopping(monitor="loss"), fastbp.WeightAveraging(by="step")])
def test_only_one_callback_sets_the_parameters_in_the_end(rng, by, other):
    case, average = make_case(rng, (5, 17, 3)), fastbp.WeightAveraging(by=by)
    for callbacks in ([average, other], [other, average]):
        refuses(case, callbacks, "at most one that sets the parameters in the end, .* and ")
    stopping = fastbp.EarlyStopping(monitor="loss", restore_best=False)
    case.net.fit(case.X, case.y, epochs=2, callbacks=[average, stopping])


def test_an_end_that_fails_keeps_no_other_from_its_own(rng):
    class Failing(fastbp.Callback):
        def end(self, net, history):
            raise RuntimeError

    case, first, last = make_case(rng, (5, 17, 3)), Recorder(), Recorder()
    with pytest.raises(RuntimeError):
        case.net.fit(case.X, case.y, epochs=2, callbacks=[first, Failing(), last])
    assert first.calls == last.calls == ["begin", 1, 2, "end"]


def test_those_that_have_begun_are_ended(rng):
    class Failing(Recorder):
        def begin(self, net, controls):
            raise RuntimeError

    case, first, second = make_case(rng, (5, 17, 3)), Recorder(), Failing()
    for optimizer in ("adam", "lbfgs"):
        with pytest.raises(RuntimeError):
            case.net.fit(case.X, case.y, optimizer=optimizer, callbacks=[first, second, Recorder()])
        assert second.calls == []
    assert first.calls == ["begin", "end"] * 2


@pytest.mark.parametrize("start", [np.int32(1), 1])
def test_averaging_by_step_compiles_nothing_for_another_type_of_start(rng, start):
    case = make_case(rng, (5, 17, 3))
    average = fastbp.WeightAveraging(start=start, by="step")
    assert type(average.start) is int
    case.net.fit(case.X, case.y, epochs=2, callbacks=[average])


@pytest.mark.parametrize("start", [0.5, -1, "1"])
def test_a_bad_start_of_averaging_is_refused(start):
    with pytest.raises((ValueError, TypeError), match=f"start must be .*at least 0, it is {start!r}"):
        fastbp.WeightAveraging(start=start)


def test_averaging_that_starts_after_the_training_is_none(rng):
    case = make_case(rng, (5, 17, 3))
    twin = deepcopy(case.net)
    case.net.fit(case.X, case.y, epochs=2, callbacks=[fastbp.WeightAveraging(start=10**30, by="step")])
    twin.fit(case.X, case.y, epochs=2)
    assert np.array_equal(case.net.theta, twin.theta)


class Dropouts(fastbp.Callback):
    def __init__(self):
        self.values = []

    def begin(self, net, controls):
        self.dropout = controls.dropout
        self.values.append(self.dropout[0])

    def after_epoch(self, net, history):
        self.values.append(self.dropout[0])


def test_annealing_takes_what_fit_does(rng):
    case, seen = make_case(rng, (5, 17, 3), dropout=0.4), Dropouts()
    for dropout in ("polynomial", schedules.WarmUp(4, schedules.Cosine())):
        case.net.fit(case.X, case.y, epochs=4, callbacks=[fastbp.Annealing(dropout), seen])
    np.testing.assert_allclose(seen.values, [0.4, 0.3, 0.2, 0.1, 0, 0, 0.1, 0.2, 0.3, 0.4], atol=1e-15)
    refuses(case, [fastbp.Annealing(schedules.Exponential(2.0))], "dropout .* below 1, not .* 1.6", epochs=3)
    refuses(case, [fastbp.Annealing(weight_decay=schedules.Exponential(2.0))], "inf", optimizer="adamw", epochs=2000)
    for bad in (lambda epoch: 0.1, "reduce_on_plateau", schedules.WarmUp(1, schedules.ByStep(lambda step: 0.1)), 3):
        with pytest.raises(TypeError, match="weight_decay must be"):
            fastbp.Annealing(weight_decay=bad)


@pytest.mark.parametrize("monitor", [3, None, "val_f1"])
def test_a_bad_monitor_is_refused(monitor):
    with pytest.raises((ValueError, TypeError), match=f"monitor.*{monitor}"):
        fastbp.EarlyStopping(monitor=monitor)


@pytest.mark.parametrize("every", [None, 1])
def test_a_checkpoint_that_cannot_be_written_is_refused(rng, tmp_path, every):
    case = make_case(rng, (5, 17, 3))
    refuses(case, [fastbp.Checkpoint(tmp_path / "none" / "net", every)], "path.*folder.*none")
    square = fastbp.Activation(lambda z: z * z, lambda z: 2 * z)
    case = make_case(rng, (5, 17, 3))
    case = case._replace(net=fastbp.MLP((5, 17, 3), activation=square, random_state=0))
    refuses(case, [fastbp.Checkpoint(tmp_path / "net", every)], "cannot be saved")


@pytest.mark.parametrize(("loss", "scale"), [([1.0, 0.5], "log"), ([0.5, -0.5], "linear"), ([0.5, 0.0], "linear")])
def test_the_scale_of_a_plot_has_a_place_for_every_loss(loss, scale):
    pytest.importorskip("matplotlib")
    assert fastbp.History(loss=loss).plot().get_yscale() == scale
    assert fastbp.History(loss=[1.0, 1.0], val_loss=loss).plot().get_yscale() == scale


def test_checkpoints(rng, tmp_path):
    case = make_case(rng, (5, 17, 3), n_samples=31)
    recorder = EveryUpdate()
    by_epoch = fastbp.Checkpoint(tmp_path / "epoch-{epochs}")
    by_update = fastbp.Checkpoint(f"{tmp_path}/update-{{updates}}", every=3)
    case.net.fit(case.X, case.y, batch_size=8, epochs=2, callbacks=[recorder, by_epoch, by_update])
    assert {path.name for path in tmp_path.iterdir()} == {"epoch-1", "epoch-2", "update-3", "update-6"}
    for name, update in [("epoch-1", 4), ("epoch-2", 8), ("update-3", 3), ("update-6", 6)]:
        assert np.array_equal(fastbp.load(tmp_path / name).theta, recorder.thetas[update - 1])
    with pytest.raises(ValueError, match=r"path may hold \{epochs\} and, with every, \{updates\}"):
        fastbp.Checkpoint("net-{updates}")


@pytest.mark.parametrize("name", ["adam", "sgd", "adamw"])
def test_layer_rates(rng, name):
    """Each layer learns as if its rate were everybody's, from the gradient of all."""
    rates = (0.0, 1.0, 0.3)
    case = make_case(rng, (5, 17, 9, 3), normalization=["layer_norm", None], scale_inputs=True)
    start = case.net.theta.copy()
    kind = {"adam": fastbp.Adam, "sgd": fastbp.SGD, "adamw": fastbp.AdamW}[name]
    case.net.train_on_batch(case.X, case.y, optimizer=kind(0.01, layer_rates=rates))
    changed = deepcopy(case.net)
    parts = [(0, "weights"), (0, "biases"), (1, "weights"), (1, "biases"), (2, "weights"), (2, "biases")]
    for rate in {0.01 * rate for rate in rates if rate}:
        case.net.theta[:] = start
        case.net.train_on_batch(case.X, case.y, optimizer=kind(rate))
        for layer, attribute in parts:
            if 0.01 * rates[layer] == rate:
                assert np.array_equal(getattr(changed, attribute)[layer], getattr(case.net, attribute)[layer])
    case.net.theta[:] = start
    for layer, attribute in [*parts[:2], (0, "gains"), (0, "shifts")]:
        assert np.array_equal(getattr(changed, attribute)[layer], getattr(case.net, attribute)[layer])
    assert np.array_equal(changed.input_scale, case.net.input_scale)


def test_layer_rates_are_checked(rng):
    case = make_case(rng, (5, 17, 3))
    with pytest.raises(ValueError, match=r"layer_rates must be one number per layer \(2\), it has 3 numbers"):
        case.net.fit(case.X, case.y, optimizer=fastbp.Adam(layer_rates=(1, 1, 1)))
    with pytest.raises(ValueError, match=r"layer_rates must be .*at least 0"):
        fastbp.Adam(layer_rates=(1, -1))
