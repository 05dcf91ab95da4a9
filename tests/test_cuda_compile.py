"""What can be known of the CUDA kernels without a GPU: what they are compiled to, and how often they are launched.

Kernels of other precisions than float32 are looked at where FASTBP_EXHAUSTIVE is set.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from background import EXHAUSTIVE, Program

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed", allow_module_level=True)

PRECISIONS = ["float32", *(["float64", "tf32", "bf16"] if EXHAUSTIVE else [])]
DTYPES = sorted({"float32", "float64"} & set(PRECISIONS))
TENSOR_PRECISIONS = {"tf32", "bf16"} & set(PRECISIONS)
PROGRAMS = [Program("specialisations.py", *PRECISIONS)]
ARCHITECTURES = ("sm_80", "sm_90")
#: Registers of a multiprocessor, and the most that a thread can have.
REGISTERS, MOST_REGISTERS = 65536, 255
TILES = ("forward", "delta", "gradient", "fused_step")


@pytest.fixture(scope="module")
def report():
    return json.loads(PROGRAMS[0].output())


def compiled(report):
    """Name, architecture and report of every specialisation."""
    for name, signatures in report["kernels"].items():
        for kernel in signatures:
            for architecture in ARCHITECTURES:
                yield name, architecture, kernel | kernel[architecture]


def test_every_kernel_is_compiled_once_for_each_precision(report):
    folder = Path(__file__).resolve().parent.parent / "kernels" / "cuda"
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    makers = set(re.findall(r"^def make_(\w+)\(.*\bname: str", sources, re.M))
    assert len(makers) > 20
    names = report["kernels"]
    for dtype in DTYPES:
        assert {name.split(f"_{dtype}")[0] for name in names if dtype in name} == makers
    assert {len(signatures) for signatures in names.values()} == {1}


def test_nothing_spills_and_nothing_is_on_the_stack(report):
    assert not [(name, arch) for name, arch, kernel in compiled(report) if kernel["spilled"] or kernel["stack"]]


def test_a_block_finds_its_registers(report):
    for name, architecture, kernel in compiled(report):
        assert kernel["registers"] <= MOST_REGISTERS, (name, architecture)
        assert kernel["registers"] * kernel["threads"] <= REGISTERS, (name, architecture)


def test_float32_kernels_have_no_double_precision(report):
    """But for those that prepare the optimizer's scalars, once in a turn, and standardise samples, once in all."""
    doubles = {name for name, _, kernel in compiled(report) if "float32" in name and kernel["doubles"]}
    assert doubles == {"prepare_float32", "convert_float32"}


def test_tiles_are_loaded_by_128_bits(report):
    tiles = [(name, arch, kernel) for name, arch, kernel in compiled(report) if name.startswith(TILES)]
    assert len(tiles) >= len(ARCHITECTURES) * (2 * len(DTYPES) + 2 * len(TENSOR_PRECISIONS)) * len(TILES)
    for name, architecture, kernel in tiles:
        assert kernel["global loads of 128 bits"] >= 2, (name, architecture)
        if precision_of(name) is None:
            assert kernel["shared loads of 128 bits"] >= 32, (name, architecture)


def test_tensor_cores_multiply_in_the_tiles_of_their_precision(report):
    tiles = [(name, kernel) for name, _, kernel in compiled(report) if name.startswith(TILES)]
    assert {precision_of(name) for name, _ in tiles} == {None, *TENSOR_PRECISIONS}
    for name, kernel in tiles:
        instructions = {None: [], "tf32": ["HMMA.1688.F32.TF32"], "bf16": ["HMMA.16816.F32.BF16"]}
        assert kernel["tensor instructions"] == instructions[precision_of(name)], name


def precision_of(name):
    return next((precision for precision in ("tf32", "bf16") if precision in name), None)


def per_step(report, way, key):
    """What one epoch of 64 steps more takes, and one step of it."""
    one, four = report["launches"][way], report["launches"][f"{way}, four epochs"]
    return (four[key] - one[key]) / 3 / 64


def test_kernels_of_a_step_stay_in_their_budget(report):
    """Three layers: three products forward, the loss, two products back, the gradient and the update; and what an epoch
    has besides, on its share of 64 steps."""
    assert 8 <= per_step(report, "layers", "kernels") <= 8.3
    assert 2 <= per_step(report, "fused", "kernels") <= 2.3


def test_the_driver_is_called_and_waited_for_seldom(report):
    """A graph of sixteen steps is one call; the host waits once in a turn, and once to take over the parameters."""
    for way in ("layers", "fused"):
        assert per_step(report, way, "calls of the driver") <= 0.2
        assert per_step(report, way, "synchronisations") <= 2 / 64
