"""What this machine can do at best, and what it is."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

import fastbp

#: Name of an instruction set -> bytes of a vector, and chains of FMAs: enough to hide their latency, in registers.
INSTRUCTION_SETS = {"avx512f": (64, 24), "avx2": (32, 12), "neon": (16, 24), "sse2": (16, 12)}
FMA_ROUNDS = 5_000_000
#: More than what a core has of cache, as much as the moments of a large network.
COPY_BYTES = 128 << 20
LIBRARIES = ("numpy", "numba", "llvmlite", "torch", "jax", "optax", "scikit-learn")


@cache
def instruction_set() -> str:
    """The best vectors of this processor."""
    features = llvmlite.binding.get_host_cpu_features()
    return next((name for name in INSTRUCTION_SETS if features.get(name)), "sse2")


@intrinsic
def _fma_chains(typingctx, rounds):
    """Independent chains of vector FMAs in registers; Numba's own loops may stop at half the width."""

    def codegen(context, builder, signature, args):
        n_bytes, chains = INSTRUCTION_SETS[instruction_set()]
        lanes = n_bytes // 4
        vector = ir.VectorType(ir.FloatType(), lanes)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f32")
        half, one, *starts = (ir.Constant(vector, [x] * lanes) for x in (0.5, 1.0, *map(float, range(chains))))
        sums = [cgutils.alloca_once_value(builder, start) for start in starts]
        with cgutils.for_range(builder, args[0]):
            for total in sums:
                builder.store(builder.call(fma, [builder.load(total), half, one]), total)
        return builder.extract_element(reduce(builder.fadd, map(builder.load, sums)), ir.IntType(32)(0))

    return types.float32(types.int64), codegen


@njit(nogil=True)
def _fma_loop(rounds):
    return _fma_chains(rounds)


def _seconds_together(work: Callable[[int], Any], threads: int) -> float:
    """Seconds from the first start to the last end of ``work(thread)`` on all threads at once."""
    gate = threading.Barrier(threads)

    def run(thread):
        gate.wait()
        started = time.perf_counter()
        work(thread)
        return started, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        starts, ends = zip(*pool.map(run, range(threads)), strict=True)
    return max(ends) - min(starts)


def peak(threads: int) -> float:
    """FLOP/s of float32 multiply-adds that never leave the registers."""
    _fma_loop(1)
    n_bytes, chains = INSTRUCTION_SETS[instruction_set()]
    flops = 2 * FMA_ROUNDS * chains * (n_bytes // 4)
    return threads * flops / _seconds_together(lambda thread: _fma_loop(FMA_ROUNDS), threads)


@cache
def _memory() -> tuple[np.ndarray, np.ndarray]:
    source, target = np.empty(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
    source[:], target[:] = 1, 0
    return source, target


def bandwidth(threads: int) -> float:
    """Bytes/s, read and written, of a copy."""
    source, target = (np.array_split(array, threads) for array in _memory())
    return 2 * COPY_BYTES / _seconds_together(lambda thread: np.copyto(target[thread], source[thread]), threads)


def describe() -> dict[str, Any]:
    """Processor, system and libraries."""
    versions = {"fastbp": fastbp.__version__}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": f"{_model_name()} ({llvmlite.binding.get_host_cpu_name()})",
        "cores": os.cpu_count(),
        "instruction_set": instruction_set(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _model_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
