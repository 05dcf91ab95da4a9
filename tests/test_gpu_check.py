"""The check of the GPU engine: its results in numba-cuda's simulator, its peers on the CPU, and its arithmetic."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from background import Program

from benchmarks import gpu_check
from benchmarks.benchmarks.workloads import Training, Workload
from benchmarks.peers import permutations

SCRIPT = Path(gpu_check.__file__)
OUTPUT = tempfile.TemporaryDirectory()
PROGRAMS = [Program(str(SCRIPT), "--quick", "--seed=0", f"--output={OUTPUT.name}", NUMBA_ENABLE_CUDASIM="1")]
needs_numba_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed"
)


@needs_numba_cuda
def test_results_are_right_in_the_simulator():
    printed = PROGRAMS[0].output()
    (markdown,), (record,) = (list(Path(OUTPUT.name).glob(f"gpu_simulated*.{kind}")) for kind in ("md", "json"))
    assert printed == markdown.read_text(encoding="utf-8") + "\n"
    record = json.loads(record.read_text(encoding="utf-8"))
    rows = record["correctness"]
    assert f"{len(rows)} of {len(rows)} comparisons passed" in printed
    for start in ("float32", "float64", "tf32", "bf16", "bits of graphs", "bits of fused steps", "fused steps beside"):
        assert [row for row in rows if row["comparison"].startswith(start)], start
    assert record["skipped"] == {"speed": "a simulated GPU has none"}


@needs_numba_cuda
@pytest.mark.parametrize("command", [[str(SCRIPT)], ["-m", "benchmarks.gpu_check"]], ids=["script", "module"])
def test_without_a_gpu_it_says_so_in_a_line(command):
    from fastbp.kernels.cuda import compat

    if compat.is_there():
        pytest.skip("there is a GPU")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, *command], cwd=SCRIPT.parent.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "GPU" in line


def test_a_comparison_that_fails_does_not_pass():
    assert gpu_check.compare("", 1.0, lambda: 1.0).passed
    assert not gpu_check.compare("", 1.0, lambda: 1.1).passed
    assert gpu_check.compare("", 1.0, lambda: np.nan) == gpu_check.Row("", None, 1.0, "it is nan")
    broken = gpu_check.compare("", 1.0, lambda: [][0])
    assert not broken.passed
    assert broken.note == "IndexError: list index out of range"


def test_bits_that_differ_are_counted():
    assert gpu_check.different_bits(np.array([0.0, 1.0, np.nan]), np.array([-0.0, 1.0, np.nan])) == 1


@pytest.mark.parametrize("workload", gpu_check.WORKLOADS.values(), ids=gpu_check.WORKLOADS)
def test_epochs_have_whole_steps_and_little_memory(workload):
    assert workload.samples == workload.steps * workload.batch
    numbers = workload.samples * (workload.sizes[0] + workload.sizes[-1])
    assert workload.steps == 1 or (numbers <= gpu_check.EPOCH_NUMBERS and workload.steps <= gpu_check.EPOCH_STEPS)


def test_floor_by_hand():
    workload = Workload("tiny", (4, 16, 3), 10, "squared_error", 100)
    flops = 10 * (2 * 4 * 16 * 2 + 2 * 16 * 3 * 3)
    n_bytes = 131 * 6 * 4 + 10 * (4 + 3) * 4
    assert gpu_check.floor(workload, 1e3, 1e9) == pytest.approx(flops / 1e3)
    assert gpu_check.floor(workload, 1e9, 1e3) == pytest.approx(n_bytes / 1e3)


@pytest.mark.parametrize("name", ["PyTorch", "JAX"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_peers_take_the_same_steps(name, loss, monkeypatch):
    for module in gpu_check.PEERS[name].needs:
        pytest.importorskip(module)
    monkeypatch.setattr(gpu_check.Torch, "device", "cpu")
    workload = Workload("small", (3, 5, 4), 8, loss, 32)
    # all threads: what a library is told here, it keeps
    peer, training = gpu_check.PEERS[name](workload, os.cpu_count() or 1), Training(workload, 1)
    peer.train(permutations(32, 0, 3))
    training.run(3)
    assert np.allclose(peer.theta(), training.net.theta, rtol=1e-3, atol=1e-5)
    before = peer.theta()
    peer.run(2)
    assert not np.allclose(peer.theta(), before, rtol=1e-3)


def made_up(workload, **microseconds):
    runs = [{"peer": peer, "loss": 1.0, "ready": 2.0, "microseconds": [x]} for peer, x in microseconds.items()]
    return {"workload": workload, "limits": [{"flops": 1e13, "bandwidth": 1e12}], "runs": runs, "skipped": {}}


RESULTS = [
    made_up("field, 128", fastbp=1.0),
    made_up("field, 65536", fastbp=1e3),
    made_up("small, 32", **{"fastbp": 10.0, "PyTorch tf32": 20.0, "JAX": 31.0, "PyTorch": 40.0}),
    made_up("middle, 32", fastbp=10.0, JAX=29.0),
    made_up("large, 32", **{"fastbp": 10.0, "JAX": 5.0, "torch.compile": 9.5}),
    made_up("large, 128", fastbp=10.0),
]


def test_targets_are_judged():
    judged = {target.workload: (target.measured, target.verdict) for target in gpu_check.judge(RESULTS)}
    field = 1e3 / (1e6 * gpu_check.WORKLOADS["field, 65536"].flops_per_step / 1e13)
    assert judged == {
        "field, 65536": (pytest.approx(field), "reached"),
        "small, 32": (pytest.approx(3.1), "reached, without PyTorch CUDA graph, torch.compile"),
        "middle, 32": (pytest.approx(2.9), "missed, without PyTorch, PyTorch CUDA graph, torch.compile"),
        "large, 32": (pytest.approx(0.95), "reached, without PyTorch, PyTorch CUDA graph"),
        "large, 128": (None, "not measured"),
    }


def test_report():
    host = {name: "-" for name in ("device", "driver", "processor", "cores", "system", "python")}
    rows = [gpu_check.Row("good", 0.0, 0.0), gpu_check.Row("bad", None, 0.0, "it broke")]
    record = {"host": host | {"versions": {"fastbp": "0"}}, "seed": 1, "settings": {"rounds": 5, "seconds": 0.1}}
    record |= {"correctness": rows, "results": RESULTS, "skipped": {"JAX": "not installed: jax"}}
    lines = gpu_check.report(record | {"targets": [*gpu_check.judge(RESULTS)]}).splitlines()
    assert any(line.startswith("1 of 2 comparisons passed") for line in lines)
    assert any("it broke" in line and "FAILED" in line for line in lines)
    assert any("10.0 TFLOP/s" in line and "1000 GB/s" in line for line in lines)
    assert "Skipped: JAX: not installed: jax" in lines
    assert "not measured" in lines[-1]


@pytest.mark.parametrize("arguments", ["--seconds 0", "--seconds nan", "--seed -1"])
def test_bad_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.parse(arguments.split())
    assert arguments.split()[0] in capsys.readouterr().err
