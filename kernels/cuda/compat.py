"""All contact with numba-cuda, but for the instructions in ``ptx.py``: compilation, memory, launches, the simulator."""

import functools
import math
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import numpy as np
from numba import config
from numba import cuda as _cuda
from numba.np.numpy_support import as_dtype, from_dtype

from ..digest import DIGEST
from ..problem import DeviceError

_lock = threading.Lock()
#: Kernels run as Python threads, for tests without a GPU.
SIMULATED = bool(config.ENABLE_CUDASIM)
#: What was compiled by another is not read.
VERSION = metadata.version("numba-cuda")
#: The oldest GPUs that CUDA 12 and 13 compile for and that have what the kernels use.
OLDEST = (7, 5)


class _SharedMemory:
    """The simulator's own makes an array twice if two threads ask for it at the same time, and knows them by reading
    the whole stack.
    """

    def __init__(self, launch: Any):
        self._launch = launch

    def array(self, shape: int, dtype: Any, alignment: int = 0) -> np.ndarray:
        caller = sys._getframe(1)
        with _lock:
            arrays = self._launch.__dict__.setdefault("arrays", {})
            return arrays.setdefault((caller.f_code, caller.f_lineno), np.full(shape, np.nan, as_dtype(dtype)))


class _Simulator:
    """The module ``cuda`` as kernels see it in the simulator, whichever file their functions are in."""

    def __getattr__(self, name: str) -> Any:
        from numba.cuda.simulator import kernel

        launch = kernel._kernel_context
        return _SharedMemory(launch) if name == "shared" else getattr(launch, name)


#: What kernels take threadIdx, shared memory and barriers from.
cuda: Any = _Simulator() if SIMULATED else _cuda


def device_function(function: Callable) -> Callable:
    """Compile a function that becomes part of the kernels that call it."""
    return function if SIMULATED else _cuda.jit(device=True, forceinline=True, lto=False)(function)


def kernel(threads: int, name: str | None) -> Callable:
    """Compile a kernel for blocks of at most so many threads; without a name it is not kept on disk."""

    def decorate(function: Callable) -> Any:
        if SIMULATED:
            return _cuda.jit(function)
        # One block must find room on a multiprocessor: for more of them, the assembler would rather spill registers.
        # There is nothing to link that could be optimised, and so what is launched is what the tests assemble.
        options = {"launch_bounds": (threads, 1), "lto": False}
        if name is None:
            return _cuda.jit(**options)(function)
        function.__qualname__ = function.__name__ = name
        dispatcher: Any = _cuda.jit(cache=True, **options)(function)
        # A closure over compiled functions has no stable key of its own; the name and the digest stand for it.
        cache = dispatcher._cache
        cache._cache_file._source_stamp = DIGEST
        cache._index_key = lambda signature, codegen: (signature, codegen.magic_tuple(), VERSION, name)
        return dispatcher

    return decorate


def select(rows: Sequence[Any], make: Callable) -> Callable:
    """Turn a table into one device function ``f(code, args)`` that branches to the row with that code.

    ``make`` gives a row's device function ``f(*args)``; all return the same type.
    """
    if len(rows) == 1:
        function = make(rows[0])
        return device_function(lambda code, args: function(*args))
    # By halves: nested one in the other, the branches would need more registers to meet again than there are.
    rows = sorted(rows, key=lambda row: row.code)
    half = len(rows) // 2
    lower, upper, first = select(rows[:half], make), select(rows[half:], make), rows[half].code

    def choose(code, args):
        if code < first:
            return lower(code, args)
        return upper(code, args)

    return device_function(choose)


_of_user: set[int] = set()


def plain(function: Callable) -> Callable:
    """A function of the user's as a device function."""
    return device_function(getattr(function, "py_func", function))


def mark(function: Callable) -> Callable:
    """Note that a device function holds one of the user's, so that what calls it is not kept on disk."""
    _of_user.add(id(function))
    return function


def is_marked(function: Any) -> bool:
    return id(function) in _of_user


@functools.cache
def find_kernel(make: Callable, dtype: np.dtype, *settings: Any) -> Any:
    """The kernel that ``make(dtype, *settings, name)`` gives; one with a function of the user's has no name."""
    words = [make.__name__.removeprefix("make_"), dtype.name]
    words += ["x".join(map(str, s)) if isinstance(s, tuple) else s for s in settings if isinstance(s, (tuple, str))]
    return make(dtype, *settings, None if any(map(is_marked, settings)) else "_".join(words))


def launch(which: tuple, grid: int | tuple[int, int], threads: int, stream: Any, *args: Any) -> None:
    """Launch the kernel that `find_kernel` finds by ``which``."""
    function = find_kernel(*which)
    if SIMULATED:
        function[grid, threads](*args)
        return
    from numba.cuda.dispatcher import config

    # Small networks have small grids, and Numba would warn of each.
    warns, config.CUDA_LOW_OCCUPANCY_WARNINGS = config.CUDA_LOW_OCCUPANCY_WARNINGS, 0
    configured = function[grid, threads, stream]
    config.CUDA_LOW_OCCUPANCY_WARNINGS = warns
    configured(*args)


def numba_type(dtype) -> Any:
    return from_dtype(np.dtype(dtype))


def describe() -> str:
    """The GPU that would be used, in a line.

    Raises
    ------
    DeviceError
    """
    if SIMULATED:
        return "simulated by numba-cuda, without a GPU"
    found = find()
    name = found.name.decode() if isinstance(found.name, bytes) else found.name
    free, total = _cuda.current_context().get_memory_info()
    capability = ".".join(map(str, found.compute_capability))
    return f"{name}, compute capability {capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def find(oldest: tuple[int, int] = OLDEST) -> Any:
    """The current GPU.

    Raises
    ------
    DeviceError
        If there is none of at least this compute capability.
    """
    try:
        found = _cuda.get_current_device()
    except Exception as error:  # of many kinds, by what is missing
        cause = " ".join(str(error).split()).strip(" :.")
        raise DeviceError(
            f"device 'cuda' needs an NVIDIA GPU with its driver, and none can be used: {cause}; "
            "install the driver, or take device 'cpu'"
        ) from None
    if found.compute_capability < oldest:
        here, wanted = (".".join(map(str, pair)) for pair in (found.compute_capability, oldest))
        other = "device 'cpu'" if oldest == OLDEST else "precision None"
        raise DeviceError(f"this needs compute capability {wanted} or newer, the GPU has {here}; take {other}")
    return found


def require_gpu(oldest: tuple[int, int] = OLDEST) -> None:
    """Raise DeviceError unless kernels can run that need this compute capability."""
    if not SIMULATED:
        find(oldest)


def is_there() -> bool:
    """Whether kernels can run."""
    try:
        require_gpu()
    except DeviceError:
        return False
    return True


def n_multiprocessors() -> int:
    return 16 if SIMULATED else find().MULTIPROCESSOR_COUNT


@contextmanager
def device_errors():
    """Turn what the driver raises into one sentence."""
    if SIMULATED:
        yield
        return
    from cuda.core._utils.cuda_utils import CUDAError
    from cuda.pathfinder import DynamicLibNotFoundError

    try:
        yield
    except (ImportError, DynamicLibNotFoundError) as error:
        cause = " ".join(str(error).split())
        raise DeviceError(
            f'device \'cuda\' needs the CUDA compiler ({cause}): pip install "fastbp[cuda12]" or "fastbp[cuda13]", by '
            f"the CUDA that the driver is for, or take device 'cpu'"
        ) from error
    except (_cuda.cudadrv.driver.CudaAPIError, CUDAError, MemoryError) as error:
        if isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error):
            raise DeviceError(
                "the GPU is out of memory: a smaller batch_size needs less, and device 'cpu' none of it"
            ) from error
        raise DeviceError(f"the GPU failed ({error}); start a new process, or take device 'cpu'") from error


def new_stream() -> Any:
    return _cuda.stream()


def new_event() -> Any:
    return _cuda.event() if SIMULATED else _cuda.event(timing=False)


def pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros in memory that the GPU copies from by itself."""
    array = _cuda.pinned_array(shape, dtype)
    array[:] = 0
    return array


def free_memory() -> float:
    """Bytes of the GPU's."""
    return math.inf if SIMULATED else _cuda.current_context().get_memory_info()[0]


def to_device(array: np.ndarray, stream: Any) -> Any:
    return _cuda.to_device(np.ascontiguousarray(array), stream=stream)


def as_device_array(values: Any) -> Any:
    """A view of what others hold in the GPU's memory; there is no copy, and what holds it is kept alive.

    Of objects with both, DLPack is taken before the CUDA array interface, whose older versions name no stream to wait
    for.
    """
    if hasattr(values, "__cuda_ndarray__"):
        if getattr(values, "stream", 0):
            values.stream.synchronize()
        return values
    if not hasattr(values, "__dlpack__"):
        return _cuda.as_cuda_array(values)
    from cuda.core.utils import StridedMemoryView

    stream = new_stream()
    view = StridedMemoryView.from_dlpack(values, stream_ptr=int(stream.handle))
    stream.synchronize()
    strides = view.strides and tuple(step * view.dtype.itemsize for step in view.strides)
    interface = {
        "version": 3,
        "shape": tuple(view.shape),
        "strides": strides,
        "typestr": view.dtype.str,
        "data": (view.ptr, view.readonly),
    }
    return _cuda.from_cuda_array_interface(interface, owner=view)


def address(array: Any) -> int:
    """Where an array begins."""
    return 0 if SIMULATED else int(array.__cuda_array_interface__["data"][0])


def empty(size: int, dtype: Any) -> Any:
    return _cuda.device_array(int(size), dtype)  # numba-cuda knows a size by its type


def zeros(shape: int | tuple[int, ...], dtype: Any, stream: Any) -> Any:
    """An array of zeros, never empty: a kernel's argument needs an address."""
    shape = tuple(map(int, np.atleast_1d(shape)))
    if math.prod(shape) == 0:
        shape = (1,)
    if SIMULATED:
        return _cuda.to_device(np.zeros(shape, dtype))
    from numba.cuda.cudadrv.driver import device_memset

    array = _cuda.device_array(shape, dtype)
    device_memset(array, 0, array.size * array.dtype.itemsize, stream)
    return array


def n_blocks(size: int, step: int) -> int:
    return max(1, math.ceil(size / step))


class Graph:
    """Launches that are captured once, for the driver to repeat them all at one call.

    Precondition: whatever they launch has been launched before, so that nothing is loaded while they are captured.
    """

    def __init__(self, stream: Any, launch: Callable[[], None]):
        self._stream = stream
        if SIMULATED:
            self._launch = launch
            return
        from numba.cuda.cudadrv.driver import binding, driver

        # Relaxed: an array that is freed meanwhile must not end the capture.
        driver.cuStreamBeginCapture(stream.handle, binding.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            launch()
        except BaseException:
            with suppress(Exception):  # what has failed is the launch
                driver.cuGraphDestroy(driver.cuStreamEndCapture(stream.handle))
            raise
        graph = driver.cuStreamEndCapture(stream.handle)
        self._executable = driver.cuGraphInstantiate(graph, 0)
        driver.cuGraphDestroy(graph)
        weakref.finalize(self, driver.cuGraphExecDestroy, self._executable).atexit = False

    def replay(self) -> None:
        if SIMULATED:
            self._launch()
            return
        from numba.cuda.cudadrv.driver import driver

        driver.cuGraphLaunch(self._executable, self._stream.handle)
