"""What gets compiled, when, and into which instructions."""

from __future__ import annotations

import os
import pickle
import platform
import re
import subprocess
import sys

import numba
import pytest

from fastbp.kernels.cpu import layout

#: The least that a first use can be.
LITTLE = """
import fastbp
for dtype in ("float32", "float64"):
    fastbp.MLP((1, 1), dtype=dtype).predict([[0.0]])
"""

EVERYTHING = """
import itertools, sys
import numpy as np
from numba.core import event
import fastbp
from fastbp.kernels.activations import ACTIVATIONS
from fastbp.kernels.losses import LOSSES
from fastbp.kernels.problem import NORMALIZATIONS
from fastbp.optimizers import BY_NAME

rng = np.random.default_rng(0)
with event.install_recorder("numba:compile") as recorder:
    rows = zip(itertools.cycle(LOSSES), ACTIVATIONS)
    optimizers = [kind() for name, kind in BY_NAME.items() if name != "lbfgs"] + [
        fastbp.SGD(0.1, 0.9), fastbp.SGD(0.1, 0.9, True),
        fastbp.SGD(0.1, 0.9, rate_in_velocity=True), fastbp.SGD(0.1, 0.9, True, True), fastbp.Adam(amsgrad=True),
        fastbp.RMSprop(momentum=0.5), fastbp.RMSprop(centered=True)]
    for dtype, (loss, activation) in itertools.product(("float32", "float64"), list(rows)):
        X = rng.normal(size=(40, 3))
        y = rng.integers(0, 2, size=40) if loss == "cross_entropy" else rng.uniform(size=(40, 2))
        y = y[:, 0] if loss == "gaussian_nll" else y
        net = fastbp.MLP((3, 5, 4, 2), activation=activation, loss=loss, dtype=dtype, dropout=0.1, random_state=0)
        for optimizer in optimizers:
            optimizer.reset()
            net.fit(X, y, optimizer=optimizer, epochs=1)
        net.theta = 0.1 * rng.normal(size=net.n_parameters)
        X.flags.writeable = False
        net.fit(X, y, epochs=2, batch_size=7, accumulate=3, clip_norm=1.0, sample_weight=np.ones(40), threads=2,
                shuffle=False, validation_data=(X[::2], y[::2]), schedule=lambda epoch: 0.1)
        net.fit(np.asfortranarray(X), y.tolist(), batch_size=1, epochs=1)
        net.train_on_batch(X[:1], y[:1])
        net.loss_and_gradients(X, y)
        net.evaluate(X, y)
        net.predict(X)
    fastbp.MLP((1, 1), bias=False).fit([[1.0], [2.0]], [1.0, 2.0], epochs=1)
    for dtype, normalization in itertools.product(("float32", "float64"), NORMALIZATIONS):
        net = fastbp.MLP((4, 4, 4, 2), normalization=normalization, residual=True, scale_inputs=True, input_noise=0.1,
                         max_norm=1.0, dtype=dtype)
        X, y = rng.normal(size=(2, 40, 4))
        net.fit(X, y[:, :2], steps=3, callbacks=[fastbp.WeightAveraging(by="step")], optimizer=fastbp.Adam(
            layer_rates=(0, 1, 2)), validation_data=(X, y[:, :2]))
        net.loss_and_gradients(X, y[:, :2])
        fastbp.MLP((4, 4, 2), normalization="layer_norm").fit(X, y[:, :2], optimizer="lbfgs", epochs=2)
    fastbp.MLP((2,) * 12).fit(np.ones((3, 2)), np.ones((3, 2)), epochs=1)
print([e.data["dispatcher"].py_func.__qualname__ for _, e in recorder.buffer if e.is_start])
"""

#: Four threads begin at the same time, which finds all hooks, and prints whether Numba is as it was.
TOGETHER = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from numba.core.codegen import JITCPUCodegen
from numba.np import arrayobj
import fastbp

def state():
    return dict(vars(JITCPUCodegen)), arrayobj.fix_integer_index

def train(dtype):
    start.wait()
    fastbp.MLP((1, 1), dtype=dtype).fit([[1.0]], [1.0], epochs=1)

before, start = state(), Barrier(4)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(train, ["float32", "float64"] * 2))
print(state() == before)
"""

#: Prints assembly for the processor that the environment names.
NATIVE = """
def show(function):
    print(function.inspect_asm(function.signatures[-1]))
"""

#: Prints assembly for a processor with NEON. The tiles are told that this is one; Numba compiles them for the host, and
#: what its optimizer leaves of them, still in vectors of 4, is translated once more.
NEON = """
import re
import llvmlite.binding as llvm

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
arm, native = llvm.Target.from_triple("aarch64-linux-gnu"), llvm.Target.from_default_triple
llvm.Target.from_default_triple = lambda: arm
import fastbp.kernels.cpu.simd
llvm.Target.from_default_triple = native
machine = arm.create_target_machine(cpu="generic", opt=3)

def show(function):
    source = re.sub("(?m)^target .*$", "", function.inspect_llvm(function.signatures[-1]))
    module = llvm.parse_assembly(source)
    module.triple, module.data_layout = "aarch64-linux-gnu", str(machine.target_data)
    print(machine.emit_assembly(module))
"""

#: Shows the register tiles; nothing is run.
TILES = """
from numba import njit, types
from fastbp.kernels.cpu.gemm import PRODUCT, UNIT_PRODUCT, column_tile, sample_tile

@njit(_nrt=False)
def gradient_tile(code, a, b, s, c, depth, run):
    column_tile(code, a, b, s, c, depth, run)

@njit(_nrt=False)
def narrow_gradient_tile(code, a, b, c, depth, run):
    sample_tile(code, a, b, (), c, depth, run)

for element in (types.float32, types.float64):
    for hook in (PRODUCT, UNIT_PRODUCT):
        hook.dispatcher.compile(hook.kinds(element))
        show(hook.dispatcher)
    panels = types.Tuple((types.Array(element, 1, "C"), types.int64, types.int64, types.int64))
    strided = types.Tuple((types.Array(element, 1, "C"), *[types.int64] * 4))
    gradient_tile.compile((types.int64, strided, panels, strided, strided, types.int64, types.int64))
    show(gradient_tile)
    narrow_gradient_tile.compile((types.int64, panels, panels, panels, types.int64, types.int64))
    show(narrow_gradient_tile)
"""

#: Prints the assembly of the update rules; nothing is run.
RULES = """
import numpy as np
from fastbp.kernels.cpu import ahead
from fastbp.kernels.cpu.gradient import UPDATE_RULE
ahead.refuse()
UPDATE_RULE.address(np.dtype("float32"))
(compiled,) = UPDATE_RULE.dispatcher.overloads.values()
print(compiled.library.get_asm_str())
"""


def run(script: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_nothing_is_compiled_after_the_first_use(tmp_path):
    run(LITTLE, NUMBA_CACHE_DIR=str(tmp_path))
    assert run(EVERYTHING, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "[]"


def test_threads_that_begin_together_leave_numba_as_it_was():
    assert run(TOGETHER).strip() == "True"


@pytest.mark.parametrize(
    ("script", "environment", "said"),
    [
        ("import fastbp", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT"),
        (
            "from numba.core.caching import CacheImpl; CacheImpl._locator_classes = []; import fastbp",
            {},
            "NUMBA_CACHE_DIR",
        ),
    ],
    ids=["no compiler", "nowhere to write"],
)
def test_an_import_in_vain_says_what_to_do(script, environment, said):
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    *_, last = done.stderr.splitlines()
    assert last.startswith("ImportError: fastbp")
    assert said in last


def test_an_index_of_other_kernels_is_not_read(tmp_path, monkeypatch):
    files = layout.transpose._cache._cache_file
    index = tmp_path / "index"
    index.write_bytes(pickle.dumps(numba.__version__) + b"types that are gone")
    monkeypatch.setattr(files, "_index_path", str(index))
    assert files.load("key") is None


def loops(assembly: str, instruction: str) -> list[str]:
    """The basic blocks with at least two such instructions."""
    blocks = re.split(r"\n(?=\.?L?BB)|\n\s*(?:ret|j[a-z]+|b\.[a-z]+|[ct]bn?z)\b.*", assembly)
    return [block for block in blocks if len(re.findall(instruction, block)) >= 2]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86-64 processors")
@pytest.mark.parametrize(
    ("processor", "register", "instruction"),
    [("skylake-avx512", "zmm", "vfmadd"), ("haswell", "ymm", "vfmadd"), ("nehalem", "xmm", "mulp[sd]")],
)
def test_tiles_fill_the_registers_of_each_processor(tmp_path, processor, register, instruction):
    environment = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assembly = run(NATIVE + TILES, **environment)
    found = loops(assembly, instruction)
    assert len(found) >= 8
    for loop in found:
        assert set(re.findall(r"%([xyz]mm)\d", loop)) == {register}
        assert not re.search(r"mm\d+, -?\d*\(%rsp\)|\(%rsp\), %[xyz]mm", loop), f"a register is spilled:\n{loop}"
    assert max(len(re.findall(instruction, loop)) for loop in found) >= {"zmm": 24, "ymm": 12, "xmm": 8}[register]
    assert not re.search(r"call\w*\s.*(fma|exp)", assembly)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86-64 processor")
def test_update_rules_fill_the_registers_and_do_not_divide(tmp_path):
    """On a processor for which LLVM would rather have half of them."""
    environment = {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assembly = run(RULES, **environment)
    assert set(re.findall(r"vrcp14ps\s+%([xyz]mm)\d", assembly)) == {"zmm"}
    assert "zmm" in set(re.findall(r"vrsqrt14ps\s+%([xyz]mm)\d", assembly))
    assert "vsqrtps" not in assembly
    assert "vdivps" not in assembly


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="translates from x86-64")
def test_tiles_fill_the_registers_of_neon(tmp_path):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assembly = run(NEON + TILES, **environment)
    found = loops(assembly, "fmla")
    assert len(found) >= 8
    for loop in found:
        assert not re.search(r"(ld|st)[rp]\s+q\d+,.*\[sp", loop), f"a register is spilled:\n{loop}"
    assert max(len(re.findall("fmla", loop)) for loop in found) == 24
    assert not re.search(r"\bbl\b.*(fma|exp)", assembly)
