"""The API with device="cuda": in numba-cuda's simulator, where this file runs itself, and where there is no GPU."""

from __future__ import annotations

import importlib.util
import signal
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from background import Program
from cases import make_case, relative_error

import fastbp
from fastbp import backend, training

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed", allow_module_level=True)

from numba import cuda

from fastbp.kernels.cuda import compat, feed, resident, session, tensor

PROGRAMS = [] if compat.SIMULATED else [Program("-m pytest", "-q", __file__, NUMBA_ENABLE_CUDASIM="1")]
simulated = pytest.mark.skipif(not compat.SIMULATED, reason="runs in the simulator")
without_gpu = pytest.mark.skipif(compat.SIMULATED or compat.is_there(), reason="there is a GPU")


@pytest.mark.skipif(compat.SIMULATED, reason="this is the simulator")
def test_in_the_simulator():
    print(PROGRAMS[0].output())


@pytest.fixture(autouse=True)
def patience_with_the_simulator(monkeypatch):
    """It waits for its threads by asking them, and turns would be of one update each."""
    monkeypatch.setattr(training, "TURN_SECONDS", 1e6)
    if compat.SIMULATED:
        sys.setswitchinterval(1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unsigned arithmetic that wraps around, as it should
        yield


def fit(case, device="cuda", **settings):
    settings = {"batch_size": 4, "epochs": 2, "progress": False} | settings
    history = case.net.fit(case.X, case.y, sample_weight=case.weight, device=device, **settings)
    return case.net.theta.copy(), history


@pytest.fixture
def make(rng):
    """Makes the same case again and again."""
    seed = int(rng.integers(1 << 31))
    return lambda *args, **settings: make_case(
        np.random.default_rng(seed), *args, **{"n_samples": 13, "dtype": "float32", "weighted": True} | settings
    )


def sessions(monkeypatch, **settings):
    """Let every session of the CUDA engine have these settings."""
    monkeypatch.setattr(session, "Session", partial(session.Session, **settings))


@simulated
def test_a_fused_step_is_that_of_layers(monkeypatch, make):
    thetas = []
    for fused in (True, False):
        with monkeypatch.context() as context:
            sessions(context, fused=fused)
            thetas.append(fit(make((5, 9, 20, 3), "cross_entropy"), epochs=1)[0])
    assert relative_error(*thetas) < 1e-6


@simulated
@pytest.mark.parametrize("fused", [True, False])
def test_graphs_are_plain_launches_to_the_bit(monkeypatch, make, fused):
    thetas = []
    for graph_steps in (0, 16):
        with monkeypatch.context() as context:
            sessions(context, fused=fused, graph_steps=graph_steps)
            thetas.append(fit(make((5, 9, 3), n_samples=19))[0].tobytes())
    assert len(set(thetas)) == 1


@simulated
@pytest.mark.parametrize("fused", [True, False])
def test_what_was_in_memory_before_does_not_matter(monkeypatch, make, fused):
    thetas = []
    for poison in (False, True):

        def start(self, *args, plain=session.Session.start, poison=poison, **kwargs):
            plain(self, *args, **kwargs)
            if poison:
                for array in (self._memory.grad, self._memory.statistics, self._reports.losses, self._published):
                    array.copy_to_device(np.full(array.shape, np.nan, array.dtype))

        with monkeypatch.context() as context:
            context.setattr(session.Session, "start", start)
            sessions(context, fused=fused)
            thetas.append(fit(make((5, 9, 3)))[0].tobytes())
    assert thetas[0] == thetas[1]


@simulated
@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("fused", [True, False])
def test_precision_of_gradients(monkeypatch, make, precision, tolerance, fused):
    sessions(monkeypatch, fused=fused)
    thetas = []
    for device, chosen in (("cpu", None), ("cuda", precision)):
        case = make((5, 10, 9, 3), dtype="float32")
        before = case.net.theta.copy()
        theta, _ = fit(case, device, precision=chosen, optimizer=fastbp.SGD(1.0), epochs=1, batch_size=13)
        thetas.append(theta - before)
    assert 0 < relative_error(*thetas) < tolerance


@simulated
@pytest.mark.parametrize(("piece_bytes", "shuffle"), [(1, False), (300, True), (100_000, True)])
def test_samples_that_do_not_fit_are_streamed(monkeypatch, make, piece_bytes, shuffle):
    whole = fit(make((5, 9, 3), "cross_entropy", n_samples=19), shuffle=shuffle)[0]
    monkeypatch.setattr(compat, "free_memory", lambda: 0)
    monkeypatch.setattr(feed, "PIECE_BYTES", piece_bytes)
    case = make((5, 9, 3), "cross_entropy", n_samples=19)
    theta, history = fit(case, shuffle=shuffle, validation_data=(case.X, case.y, case.weight))
    assert np.array_equal(theta, whole)
    expected = case.net.evaluate(case.X, case.y, case.weight)["loss"]
    assert history.val_loss[-1] == pytest.approx(expected, rel=1e-6)


@simulated
@pytest.mark.parametrize("n_in", [4, 5], ids=["in place", "copied"])
@pytest.mark.parametrize(("loss", "standardised"), [("cross_entropy", False), ("squared_error", True)])
def test_arrays_in_the_memory_of_a_gpu(make, n_in, loss, standardised):
    results = []
    for there in (False, True):
        case = make((n_in, 6, 3), loss)
        if standardised:
            case.net.standardize(case.X)
        if there:
            case = case._replace(X=cuda.to_device(case.X), y=cuda.to_device(case.y), weight=cuda.to_device(case.weight))
        theta, history = fit(case, validation_data=(case.X, case.y, case.weight))
        results.append([theta, history.loss, history.val_loss, case.net.predict(case.X)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@simulated
def test_arrays_are_used_in_place(make):
    X = cuda.to_device(np.ones((3, 4), np.float32))
    there = resident.borrow(X).converted(np.dtype(np.float32))
    X[1, 2] = 5
    assert there.flat.copy_to_host()[6] == 5


@simulated
@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "float16"])
def test_arrays_of_other_types_and_strides(rng, dtype):
    X = (10 * rng.uniform(size=(7, 10))).astype(dtype)
    for view in (X, X[:, 2:5], X[::2], X.T, X[:, 1]):
        there = resident.Resident(cuda.to_device(X[:1]))  # of this kind; then with the view's memory
        there = resident.Resident(type(there._array)(view))
        flat = there.converted(np.dtype(np.float32)).flat.copy_to_host()
        rows = flat.reshape(len(view), -1)
        width = view.shape[1] if view.ndim == 2 else 1
        assert np.array_equal(rows[:, :width], view.reshape(len(view), -1).astype(np.float32))
        assert not rows[:, width:].any()


@simulated
def test_bad_arrays_in_the_memory_of_a_gpu_are_refused(make):
    case = make((5, 6, 3), "cross_entropy")
    bad = case.X.copy()
    bad[7, 1] = np.nan
    there = cuda.to_device
    calls = {
        r"X .* finite .* at \[7, 1\]": lambda: fit(case._replace(X=there(bad))),
        r"X .* shape \(n_samples, 5\), .* \(13, 4\)": lambda: fit(case._replace(X=there(case.X[:, :4].copy()))),
        "y must hold class labels from 0 to 2": lambda: fit(case._replace(X=there(case.X), y=there(case.y + 5))),
        "X lies in a GPU's memory.*'cuda'": lambda: fit(case._replace(X=there(case.X)), "cpu"),
    }
    before = case.net.theta.copy()
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert np.array_equal(case.net.theta, before)


def test_precisions_are_those_of_the_engine():
    assert tuple(tensor.PRECISIONS) == backend.PRECISIONS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "tf32"}, "precision 'tf32' .* 'cpu'"),
        ({"precision": "fp8", "device": "cuda"}, "precision 'fp8' .* tf32, bf16"),
        ({"precision": "bf16", "device": "cuda", "dtype": "float64"}, "precision 'bf16' .* 'float64'"),
    ],
)
def test_bad_precisions_are_refused(make, settings, message):
    case = make((5, 6, 3), dtype=settings.pop("dtype", "float32"))
    with pytest.raises(ValueError, match=message):
        fit(case, **{"device": "cpu"} | settings)


@simulated
def test_divergence_keeps_the_last_finite_epoch(make):
    thetas = []
    for device in ("cpu", "cuda"):
        case = make((5, 9, 3), activation="identity")
        with pytest.raises(fastbp.DivergedError) as caught:
            fit(case, device, optimizer=fastbp.SGD(1e4), epochs=20, shuffle=False, batch_size=13)
        thetas.append((case.net.theta.copy(), caught.value.args))
    assert thetas[0][1] == thetas[1][1]
    assert relative_error(thetas[0][0], thetas[1][0]) < 1e-3


@simulated
def test_loss_and_gradients_of_lbfgs(make):
    results = [fit(make((5, 9, 3), dtype="float64"), device, optimizer="lbfgs", epochs=4) for device in ("cpu", "cuda")]
    assert relative_error(results[1][0], results[0][0]) < 1e-8
    np.testing.assert_allclose(results[1][1].loss, results[0][1].loss, rtol=1e-10)


@simulated
def test_hooks_between_updates(make):
    class Halve(fastbp.Callback):
        every = 2

        def begin(self, net, controls):
            self.rates, self.seen = controls.rates, []

        def after_updates(self, net, updates, loss):
            self.seen.append((updates, loss, net.theta.copy()))
            self.rates[:] *= 0.5

    results = []
    for device in ("cpu", "cuda"):
        watcher = Halve()
        theta, _ = fit(make((5, 9, 3)), device, callbacks=[watcher], steps=7)
        results.append((theta, watcher.seen))
    (ours, seen), (theirs, same) = results
    assert relative_error(theirs, ours) < 1e-5
    assert [row[0] for row in seen] == [row[0] for row in same]
    for one, other in zip(seen, same, strict=True):
        assert other[1] == pytest.approx(one[1], rel=1e-5)
        assert relative_error(other[2], one[2]) < 1e-5


@simulated
def test_an_interruption_keeps_whole_turns(monkeypatch, make):
    """The optimizer has made as many updates as are in the parameters."""
    plain, calls = session.Session._run_updates, []

    def run_updates(self, *args):
        plain(self, *args)
        calls.append(args)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training, "TURN_SECONDS", 1e-9)
    interrupted, optimizer = make((5, 9, 3)), fastbp.Adam()
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(session.Session, "_run_updates", run_updates)
        fit(interrupted, optimizer=optimizer, epochs=50)
    assert 0 < optimizer._step < 50 * 4
    expected, _ = fit(make((5, 9, 3)), steps=optimizer._step)
    assert np.array_equal(interrupted.net.theta, expected)


@simulated
def test_estimators_on_the_gpu(rng):
    from fastbp.sklearn import MLPClassifier

    X, y = rng.normal(size=(30, 3)), rng.integers(2, size=30)
    scores = [
        MLPClassifier((5,), max_iter=2, device=device, random_state=0).fit(X, y).loss_curve_
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)


@without_gpu
def test_without_a_gpu_the_cpu_is_taken_or_the_reason_given(make, capsys):
    case = make((5, 9, 3))
    before = case.net.theta.copy()
    with pytest.raises(fastbp.DeviceError, match=r"'cuda' needs an NVIDIA GPU.* 'cpu'"):
        fit(case)
    assert np.array_equal(case.net.theta, before)
    with pytest.raises(fastbp.DeviceError, match="NVIDIA GPU"):
        fit(case, precision="tf32")
    fit(case, "auto")
    assert "needs an NVIDIA GPU" in backend.describe_gpu()


@without_gpu
def test_without_numba_cuda_the_extra_is_named(monkeypatch, make):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(fastbp.DeviceError, match=r"fastbp\[cuda12\]"):
        fit(make((5, 9, 3)))
    fit(make((5, 9, 3)), "auto")
    assert "numba-cuda" in backend.describe_gpu()


@pytest.mark.skipif(compat.SIMULATED, reason="asks for what no simulator does")
@pytest.mark.parametrize(
    ("found", "oldest", "message"),
    [
        ((7, 0), compat.OLDEST, r"7\.5 or newer, the GPU has 7\.0; take device 'cpu'"),
        ((7, 5), (8, 0), "precision None"),
    ],
)
def test_too_old_a_gpu_is_refused(monkeypatch, found, oldest, message):
    device = type("Device", (), {"compute_capability": found})
    monkeypatch.setattr(compat._cuda, "get_current_device", lambda: device)
    with pytest.raises(fastbp.DeviceError, match=message):
        compat.require_gpu(oldest)


@pytest.mark.skipif(compat.SIMULATED, reason="asks for what no simulator does")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory.*batch_size"),
        (
            compat._cuda.cudadrv.driver.CudaAPIError(2, "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"),
            "out of memory",
        ),
        (
            compat._cuda.cudadrv.driver.CudaAPIError(719, "CUDA_ERROR_LAUNCH_FAILED"),
            "failed.*LAUNCH_FAILED.*new process",
        ),
    ],
)
def test_what_the_driver_raises_becomes_one_sentence(error, message):
    with pytest.raises(fastbp.DeviceError, match=message), compat.device_errors():
        raise error
