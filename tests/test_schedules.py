"""Learning-rate schedules: their curves, and that training follows them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from cases import batches, make_case, relative_error

import fastbp
from fastbp import schedules
from fastbp.schedules import learning_rates

EPOCHS = 12
# schedule, its factor after t of 12 epochs
CURVES = {
    "constant": (schedules.Schedule(), lambda t: 1.0),
    "step": (schedules.Step(5, gamma=0.3), lambda t: 0.3 ** (t // 5)),
    "exponential": (schedules.Exponential(0.9), lambda t: 0.9**t),
    "polynomial": (schedules.Polynomial(2, end=0.1), lambda t: 0.1 + 0.9 * (1 - t / 12) ** 2),
    "cosine": (schedules.Cosine(0.2), lambda t: 0.2 + 0.4 * (1 + math.cos(math.pi * t / 12))),
    "restarts": (schedules.CosineRestarts(4), lambda t: 0.5 * (1 + math.cos(math.pi * (t % 4) / 4))),
    "inverse scaling": (schedules.InverseScaling(), lambda t: (t + 1) ** -0.5),
    "warm-up": (
        schedules.WarmUp(3, schedules.Exponential(0.5), by="epoch"),
        lambda t: t / 3 if t < 3 else 0.5 ** (t - 3),
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_curve(name):
    schedule, factor = CURVES[name]
    rates = learning_rates(schedule, 0.1, 7 * EPOCHS, steps=7)
    np.testing.assert_allclose(rates[:, 0], [0.1 * factor(t) for t in range(EPOCHS)], rtol=1e-12, atol=1e-17)


def test_by_step_divides_the_epochs():
    by_step = learning_rates(schedules.Exponential(0.9, by="step"), 0.1, 4 * EPOCHS, steps=4)
    assert by_step.shape == (EPOCHS, 4)
    np.testing.assert_allclose(by_step.ravel(), 0.1 * 0.9 ** (np.arange(48) / 4))


def test_the_curves_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: peers)")
    peers = torch.optim.lr_scheduler
    pairs = [
        (schedules.Step(5, gamma=0.3), lambda o: peers.StepLR(o, 5, 0.3)),
        (schedules.Exponential(0.9), lambda o: peers.ExponentialLR(o, 0.9)),
        (schedules.Polynomial(2), lambda o: peers.PolynomialLR(o, EPOCHS, 2)),
        (schedules.Cosine(), lambda o: peers.CosineAnnealingLR(o, EPOCHS)),
        (schedules.CosineRestarts(2, stretch=2), lambda o: peers.CosineAnnealingWarmRestarts(o, 2, 2)),
    ]
    for ours, make in pairs:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        theirs, rates = make(optimizer), []
        for _ in range(EPOCHS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        np.testing.assert_allclose(learning_rates(ours, 0.1, EPOCHS, 1)[:, 0], rates, atol=1e-9, err_msg=str(ours))


def test_one_cycle_rises_and_falls():
    rates = learning_rates(schedules.OneCycle(), 0.1, 1000, steps=100).ravel()
    top = int(rates.argmax())
    assert top == 300 and rates[top] == pytest.approx(0.1)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert (np.diff(rates[:top]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates[-1] < 0.1 / 25 / 100


@pytest.mark.parametrize("schedule", [schedules.OneCycle(), schedules.ByStep(np.linspace(0, 0.1, 10).__getitem__)])
def test_steps_see_the_whole_schedule(rng, schedule):
    """Ten updates of 64: the schedule's time is theirs, and nothing is asked for after the last."""
    case, seen = make_case(rng, (5, 7, 3), n_samples=64), Rates()
    case.net.fit(case.X, case.y, batch_size=1, steps=10, schedule=schedule, callbacks=[seen])
    np.testing.assert_allclose(seen.rates.ravel()[:10], learning_rates(schedule, 0.001, 10, steps=10).ravel())


class Rates(fastbp.Callback):
    def begin(self, net, controls):
        self.rates = controls.rates


@pytest.mark.parametrize(
    ("then", "after"),
    [
        ("cosine", lambda k: 0.05 * (1 + math.cos(math.pi * k / 32))),
        (None, lambda k: 0.1),
        (lambda epoch: 0.3 - 0.01 * epoch, lambda k: 0.3 - 0.01 * (k // 4)),
        (schedules.ByStep(lambda step: 0.5 - 0.01 * step), lambda k: 0.5 - 0.01 * k),
        (schedules.WarmUp(2, schedules.Exponential(0.5)), lambda k: 0.1 * (k / 8 if k < 8 else 0.5 ** (k / 4 - 2))),
    ],
    ids=["name", "nothing", "callable of the epoch", "callable of the step", "warm-up"],
)
def test_warm_up_in_front_of_any(then, after):
    rates = learning_rates(schedules.WarmUp(2, then), 0.1, 40, steps=4).ravel()
    expected = [after(0) * k / 8 for k in range(8)] + [after(k) for k in range(32)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("name", schedules.BY_NAME)
def test_a_warm_up_may_take_the_whole_training(name):
    for epochs in (4, 6):
        rates = learning_rates(schedules.WarmUp(epochs, name), 0.1, 16, steps=4)
        assert np.isfinite(rates).all() and (rates <= 0.1).all()


def test_a_warm_up_in_front_of_reduce_on_plateau(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    schedule = schedules.WarmUp(2, schedules.ReduceOnPlateau(0.5, patience=3), by="epoch")
    history = case.net.fit(case.X, case.y, optimizer=fastbp.SGD(1e-15), epochs=10, schedule=schedule)
    np.testing.assert_allclose(np.array(history.learning_rate) / 1e-15, [0, 0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_training_follows_the_schedule(rng, by):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    schedule = schedules.Exponential(0.7, by=by)
    rows = batches(31, 8, epochs=5)
    rates = [0.01 * 0.7 ** (k / 4 if by == "step" else k // 4) for k in range(20)]
    _, theta = reference.train(*case.exact, case.y, rows, "adam", learning_rates=rates)
    history = case.net.fit(
        case.X, case.y, optimizer=fastbp.Adam(0.01), batch_size=8, epochs=5, shuffle=False, schedule=schedule
    )
    assert relative_error(case.net.theta, theta) < 1e-9
    np.testing.assert_allclose(history.learning_rate, rates[::4])


def test_a_callable_of_the_step(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    rates = [0.01 / (1 + k) for k in range(20)]
    _, theta = reference.train(*case.exact, case.y, batches(31, 8, epochs=5), "adam", learning_rates=rates)
    schedule = schedules.ByStep(lambda step: 0.01 / (1 + step))
    case.net.fit(case.X, case.y, batch_size=8, epochs=5, shuffle=False, schedule=schedule)
    assert relative_error(case.net.theta, theta) < 1e-9


def test_reduce_on_plateau_waits_for_the_loss(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    # A rate this small moves nothing: every epoch is a plateau.
    schedule = schedules.ReduceOnPlateau(0.5, patience=2)
    history = case.net.fit(case.X, case.y, optimizer=fastbp.SGD(1e-15), epochs=10, schedule=schedule)
    np.testing.assert_allclose(np.array(history.learning_rate) / 1e-15, 0.5 ** np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]))


def test_reduce_on_plateau_leaves_a_falling_loss_alone(rng):
    case = make_case(rng, (5, 17, 3), "cross_entropy")
    history = case.net.fit(case.X, case.y, epochs=10, schedule="reduce_on_plateau", shuffle=False)
    assert set(history.learning_rate) == {0.001}


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Step(1, 10.0),
        schedules.Exponential(2.0),
        schedules.LogCosine(10**4),
        schedules.WarmUp(1, schedules.InverseScaling(1e300)),
    ],
)
def test_a_rate_that_overflows_is_refused(schedule):
    with pytest.raises(ValueError, match="schedule's learning rate must be a number at least 0, it is inf"):
        learning_rates(schedule, 0.1, 2000, steps=1)


def test_restarts_may_be_many():
    rates = learning_rates(schedules.CosineRestarts(1e-17), 0.1, 1000, steps=1)
    assert rates.min() >= 0 and rates.max() <= 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.Step(0), ["every", "0"]),
        (lambda: schedules.Cosine(-1), ["end", "-1"]),
        (lambda: schedules.Cosine(by="hour"), ["by", "hour"]),
        (lambda: schedules.ReduceOnPlateau(1.5), ["reduction", "1.5"]),
        (lambda: schedules.FlatCosine(1.0), ["flat", "1.0"]),
        (lambda: schedules.FlatCosine(-1), ["flat", "-1"]),
        (lambda: schedules.FlatCosine("x"), ["flat", "x"]),
        (lambda: schedules.LogCosine(0), ["cycles", "0"]),
        (lambda: schedules.LogCosine("x"), ["cycles", "x"]),
        (lambda: schedules.ByStep(0.1), ["rate", "0.1"]),
        (lambda: schedules.WarmUp(1, "sinus"), ["then", "sinus", "cosine"]),
        (lambda: schedules.WarmUp(1, 3), ["then", "3"]),
        (lambda: schedules.as_schedule("sinus"), ["schedule", "sinus", "cosine"]),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert all(word in str(error.value) for word in words)
