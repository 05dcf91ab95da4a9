"""The arithmetic behind the benchmarks; .ci/run runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.benchmarks import timing
from benchmarks.benchmarks.workloads import WORKLOADS, Training, Workload
from benchmarks.peers import PEERS, permutations

ROOT = Path(__file__).resolve().parent.parent


class TestWorkloads:
    def test_by_hand(self):
        iris = Workload("iris", (4, 16, 3), 16, "cross_entropy", 144)
        assert iris.flops_per_step == 16 * (2 * 4 * 16 * 2 + 2 * 16 * 3 * 3)
        assert iris.parameters == 4 * 16 + 16 + 16 * 3 + 3
        assert iris.bytes_per_step == 131 * 3 * 2 * 4
        assert iris.floor(peak=1e9, bandwidth=1e8) == pytest.approx(8.704e-6 + 31.44e-6)

    @pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
    def test_agrees_with_fastbp(self, workload):
        topology = workload.network()._topology
        assert workload.flops_per_step == topology.flops(workload.batch)
        assert workload.parameters == topology.n_parameters
        assert workload.samples == workload.steps * workload.batch

    def test_shape(self):
        assert [WORKLOADS[name].shape for name in ("iris", "field", "deep")] == [
            "4-16-3",
            "32-64-64-64-64-4",
            "128x9-10",
        ]

    def test_the_readme_has_them_all(self):
        rows = [line.strip("| \n").split("|") for line in (ROOT / "README.md").open(encoding="utf-8") if "|" in line]
        cells = [
            tuple(cell.strip() for cell in row[:4]) for row in rows if row[0].strip() in WORKLOADS and len(row) > 4
        ]
        if not cells:
            pytest.skip("README.md has no table of workloads yet")
        assert set(cells) == {(w.name, w.shape, str(w.batch), w.loss) for w in WORKLOADS.values()}


def test_peers_see_the_samples_in_the_order_of_fastbp():
    workload = Workload("small", (3, 5, 2), 8, "squared_error", 32)
    shuffled, given = Training(workload, 1), Training(workload, 1)
    shuffled.run(3)
    for order in permutations(32, 0, 3):
        given.net.fit(given.X[order], given.y[order], optimizer=given.optimizer, batch_size=8, epochs=1, shuffle=False)
    assert np.array_equal(shuffled.net.theta, given.net.theta)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_peers_take_the_same_steps(name, loss):
    for module in PEERS[name].needs:
        pytest.importorskip(module)
    if name == "torch.compile":
        pytest.skip("compiles for a minute")
    workload = Workload("small", (3, 5, 4), 8, loss, 32)
    # all threads: what a library is told here, it keeps
    peer, training = PEERS[name](workload, os.cpu_count() or 1), Training(workload, 1)
    assert np.array_equal(peer.theta(), training.net.theta)
    for _ in range(2):
        peer.run(2)
        training.run(2)
    assert np.allclose(peer.theta(), training.net.theta, rtol=1e-3, atol=1e-5)


def made_up(peer, threads, microseconds, loss=1.0):
    return {"peer": peer, "threads": threads, "microseconds": microseconds, "loss": loss}


RESULT = {
    "workload": "iris",
    "limits": [
        {"threads": 1, "peak": [1e9, 1e9, 9e9], "bandwidth": [1e8, 1e8, 1e8]},
        {"threads": 2, "peak": [2e9], "bandwidth": [2e8]},
    ],
    "runs": [
        made_up("fastbp", 1, [50.0, 40.0, 90.0, 60.0, 70.0]),
        made_up("fastbp", 2, [20.072]),
        made_up("JAX", 1, [120.0], loss=1.005),
        made_up("PyTorch", 1, [400.0], loss=1.02),
        made_up("JAX", 2, [100.36]),
    ],
    "skipped": {"PyTorch, 2 threads": "out of order"},
}


class TestCompare:
    def test_summary(self):
        one, two = compare.summarize(RESULT)
        assert one["step"] == (60.0, 40.0, 50.0, 70.0)
        assert one["over_floor"] == pytest.approx(60 / 40.144)
        assert (one["peer"], one["peer_over_ours"]) == ("JAX, 1 thread", 2.0)
        assert two["over_floor"] == pytest.approx(1.0)
        assert (two["peer"], two["peer_over_ours"]) == ("JAX, 2 threads", pytest.approx(5.0))

    def test_losses_that_differ_are_named(self):
        assert compare.disagreements(RESULT) == ["iris: PyTorch reached a loss of 1.02, fastbp 1"]

    def test_report_and_picture(self, tmp_path):
        host = {name: "-" for name in ("processor", "cores", "instruction_set", "system", "python")}
        record = {
            "host": host | {"versions": {"fastbp": "0"}},
            "settings": {"rounds": 5, "seconds": 1.0},
            "skipped": {"scikit-learn": "not installed: sklearn"},
            "results": [RESULT],
        }
        lines = compare.report(record).splitlines()
        assert any("60.0 (50.0 to 70.0)" in line and "JAX, 1 thread" in line for line in lines)
        *_, times = (line for line in lines if line.startswith("| iris"))
        assert times.replace(" ", "") == "|iris|20.1|400|-|100|"
        assert {line for line in lines if line.startswith("Skipped")} == {
            "Skipped: scikit-learn: not installed: sklearn",
            "Skipped: iris: PyTorch, 2 threads: out of order",
        }
        pytest.importorskip("matplotlib")
        compare.draw([RESULT], tmp_path / "compare.png")
        assert (tmp_path / "compare.png").stat().st_size > 5000

    @pytest.mark.parametrize(
        "arguments", ["--rounds 0", "--seconds 0", "--seconds nan", "--threads 0", "--workloads none"]
    )
    def test_bad_options_are_refused(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            compare.parse(arguments.split())
        assert arguments.split()[0] in capsys.readouterr().err


def test_repetitions_fill_the_time(monkeypatch):
    monkeypatch.setattr(timing, "timed", lambda run, n: 0.5 + 0.25 * n)
    assert timing.repetitions(None, seconds=20.0) == round(32 * 20.0 / 8.5)


def test_asv_finds_the_suite():
    pytest.importorskip("asv", reason="asv is not installed (extra: bench)")
    done = subprocess.run(
        [sys.executable, "-m", "asv", "check", "--environment", "existing"],
        cwd=ROOT / "benchmarks",
        env=os.environ | {"ASV_PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_tables_are_measured():
    tables = pytest.importorskip("benchmarks.tables")
    results = tables.measure("wine", 1, 2)
    assert set(results) == {"defaults", "scaled", "preset"}
    assert 0.9 < results["preset"][0] <= 1
