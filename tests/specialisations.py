"""Every kernel that the CUDA engine can launch, compiled without a GPU, and how often sessions launch them.

``python tests/specialisations.py float32 tf32`` prints as JSON what NVIDIA's assembler says of each that has to do with
these precisions, for every architecture in ``ARCHITECTURES``, and the launches of some trainings. Arrays are stand-ins:
nothing runs.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numba.cuda.dispatcher
import numpy as np
from numba import cuda
from numba.cuda import types
from numba.cuda.typing.typeof import typeof
from twins import CASES, PLAIN

import fastbp
from fastbp import training
from fastbp.kernels.cuda import compat, resident, session

ARCHITECTURES = ("sm_80", "sm_90")
#: Kernels that multiply by tiles, whose instructions are looked at, on the newest of these.
TILES = ("forward", "delta", "gradient", "fused_step")


class Device:
    compute_capability = (8, 0)  # the PTX is for this one and newer ones


class StandIn:
    """An array of the GPU's, whose numbers nobody has computed."""

    def __init__(self, array):
        self.array, self.dtype, self.shape, self.size = array, array.dtype, array.shape, array.size

    def __getitem__(self, key):
        return StandIn(self.array[key])

    def is_c_contiguous(self):
        return False

    def copy_to_device(self, array, stream):
        pass

    def copy_to_host(self, stream):
        events["copies to the host"] += 1
        return self.array.copy()


class Stream:
    def synchronize(self):
        events["synchronisations"] += 1


class Event:
    def synchronize(self):
        pass

    def record(self, stream):
        pass


def type_of(argument):
    if isinstance(argument, StandIn):
        return types.Array(typeof(argument.dtype.type(0)), argument.array.ndim, "C")
    if isinstance(argument, tuple):
        inner = [type_of(item) for item in argument]
        return types.NamedTuple(inner, type(argument)) if hasattr(argument, "_fields") else types.Tuple(inner)
    return types.int64 if isinstance(argument, (int, np.integer)) else typeof(argument)


def launch(which, grid, threads, stream, *args):
    kernel = compat.find_kernel(*which)
    found.setdefault((kernel.py_func.__name__, tuple(map(type_of, args))), kernel)
    events["kernels"] += 1
    events["calls of the driver"] += 1


class Graph:
    """One call of the driver, however many kernels."""

    def __init__(self, stream, launch):
        before = events.copy()
        launch()
        self.kernels = events["kernels"] - before["kernels"]
        events["kernels"], events["calls of the driver"] = before["kernels"], before["calls of the driver"]

    def replay(self):
        events["kernels"] += self.kernels
        events["calls of the driver"] += 1


events, found = Counter(), {}
numba.cuda.dispatcher.get_current_device = Device
compat.require_gpu = lambda *oldest: None
compat.n_multiprocessors = lambda: 132
compat.free_memory = lambda: 1 << 40
compat.new_event = Event
compat.pinned = np.zeros
compat.new_stream = Stream
compat.to_device = lambda array, stream: StandIn(np.ascontiguousarray(array))
compat.address = lambda array: 0
compat.empty = lambda size, dtype: StandIn(np.zeros(size, dtype))
compat.zeros = lambda shape, dtype, stream: StandIn(np.zeros(np.maximum(shape, 1), dtype))
compat.Graph = Graph
compat.launch = launch
session.TURN, training.TURN_SECONDS = 1 << 20, 1e6  # whatever the clock says, one update and then all others


def train(sizes, n_samples, dtype, of_network=None, **of_fit):
    """A training of stand-ins; returns the events of each epoch."""
    X, y = np.zeros((n_samples, sizes[0])), np.zeros((n_samples, sizes[-1]))
    if str((of_network or {}).get("loss")).startswith("gaussian"):
        y = y[:, ::2]
    net = fastbp.MLP(sizes, dtype=dtype, random_state=0, **(of_network or {}))
    events.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.fit(X, y + 1, device="cuda", progress=False, **of_fit)
    return dict(events)


def visit_all(precisions):
    """Launch every kernel once or more: all options, products of all sizes, steps of all kinds."""
    options = [
        case for name, case in CASES.items() if not name.startswith(("activation", "loss", "optimizer", "custom"))
    ]
    for dtype in {"float32", "float64"} & set(precisions):
        for of_network, of_fit in options:
            of_network = {k: v for k, v in (PLAIN | of_network).items() if k not in ("weighted", "soft")}
            sizes, n_samples = of_network.pop("sizes"), of_network.pop("n_samples")
            if "cross_entropy" not in str(of_network.get("loss")):
                train(sizes, n_samples, dtype, of_network, **{"epochs": 1} | of_fit | {"optimizer": "sgd"})
        of_all_sizes = ((1024, 1024, 1024), 4096), ((512, 512, 512), 128), ((64, 64, 64), 1 << 16), ((4, 4, 4), 8)
        for sizes, batch_size in of_all_sizes:
            for precision in (None, *({"tf32", "bf16"} & set(precisions) if dtype == "float32" else ())):
                train(sizes, batch_size, dtype, batch_size=batch_size, epochs=1, precision=precision)
        there = resident.Resident(StandIn(np.zeros((5, 3), dtype)))
        there.converted(np.dtype(dtype)).first_not_finite()
        net = fastbp.MLP((4, 9, 2), dtype=dtype)
        with session.Session(net._topology, net.theta, net._moving, 8) as at_work:
            at_work.gradients(net._data(np.zeros((8, 4)), np.zeros((8, 2))))
            at_work.forward(np.zeros((8, 4), dtype))


def assemble(name, kernel, signature, folder):
    """What becomes of one kernel, by architecture: registers, bytes that spill, and what is in its code."""
    bounds = kernel.targetoptions["launch_bounds"]
    ptx, _ = cuda.compile(
        kernel.py_func, signature, cc=Device.compute_capability, device=False, abi="numba", launch_bounds=bounds
    )
    source, cubin = Path(folder, f"{name}.ptx"), Path(folder, f"{name}.cubin")
    source.write_text(ptx)
    result = {"threads": bounds[0], "doubles": ptx.count(".f64")}
    for architecture in ARCHITECTURES:
        command = [find_program("ptxas"), f"-arch={architecture}", "-v", "-o", cubin, source]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        entry = said[said.index("Compiling entry function") :]
        result[architecture] = {
            "registers": int(re.search(r"Used (\d+) registers", entry)[1]),
            "stack": int(re.search(r"(\d+) bytes stack frame", entry)[1]),
            "spilled": int(re.search(r"(\d+) bytes spill stores", entry)[1]),
        }
        if name.startswith(TILES) and architecture == ARCHITECTURES[-1]:
            sass = subprocess.run([find_program("nvdisasm"), "-c", cubin], capture_output=True, text=True).stdout
            result |= {
                "global loads of 128 bits": len(re.findall(r"\bLDG?\.E\S*\.128", sass)),
                "shared loads of 128 bits": len(re.findall(r"\bLDS\S*\.128", sass)),
                "tensor instructions": sorted(set(re.findall(r"\b\wMMA\S*", sass))),
            }
    return result


def find_program(name):
    """A program that one of NVIDIA's packages brings."""
    roots = importlib.util.find_spec("nvidia").submodule_search_locations
    return next(path for root in roots for path in Path(root).glob(f"*/bin/{name}"))


def main():
    launches = {
        "layers": train((784, 512, 512, 10), 128 * 64, "float32", batch_size=128, epochs=1),
        "layers, four epochs": train((784, 512, 512, 10), 128 * 64, "float32", batch_size=128, epochs=4),
        "fused": train((4, 16, 3), 16 * 64, "float32", batch_size=16, epochs=1),
        "fused, four epochs": train((4, 16, 3), 16 * 64, "float32", batch_size=16, epochs=4),
    }
    visit_all(sys.argv[1:])
    kernels = {}
    with tempfile.TemporaryDirectory() as folder:
        for (name, signature), kernel in found.items():
            kernels.setdefault(name, []).append(assemble(name, kernel, signature, folder))
    print(json.dumps({"kernels": kernels, "launches": launches}))


if __name__ == "__main__":
    main()
