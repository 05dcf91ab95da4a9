"""Samples that already lie in the GPU's memory, as others hold them: used in place, or copied from there to there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import compat
from .compat import cuda, device_function, kernel
from .forward import MOST_BLOCKS, THREADS
from .layout import padded
from .ptx import ALIGNMENT

#: Where a search for numbers begins that finds none.
NONE = 1 << 62


def make_convert(dtype, n_dims: int, name: str):
    """Copy a matrix or vector of any numbers, row after row, with zeros up to a stride; standardising is in double
    precision.
    """
    number, zero = dtype.type, dtype.type(0)
    get = device_function((lambda source, i, k: source[i]) if n_dims == 1 else (lambda source, i, k: source[i, k]))

    @kernel(THREADS, name)
    def convert(source, n_columns, mean, scale, standardised, stride, out):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            row, column = i // stride, i % stride
            out[i] = zero
            if column < n_columns:
                x = get(source, row, column)
                out[i] = number((x - mean[column]) / scale[column]) if standardised else number(x)

    return convert


def make_find_bad(dtype, name: str):
    """The first number that is not finite."""
    zero = dtype.type(0)

    @kernel(THREADS, name)
    def find_bad(numbers, place):
        for i in range(cuda.grid(1), numbers.size, cuda.gridsize(1)):
            if numbers[i] - numbers[i] != zero:
                cuda.atomic.min(place, 0, i)

    return find_bad


class Resident:
    """A matrix or a vector in the GPU's memory, with as much of a NumPy array as its checks want.

    Attributes
    ----------
    shape, ndim, size, dtype
        As of a NumPy array.
    flat : 1-D array on the GPU, or None before `converted`
        The numbers as kernels want them, row after row, each padded by zeros.
    """

    def __init__(self, array: Any, flat: Any = None):
        self._array, self.flat = array, flat
        self.shape, self.ndim = tuple(array.shape), len(array.shape)
        self.size = math.prod(self.shape)
        self.dtype = np.dtype((array if flat is None else flat).dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self._array.copy_to_host(), dtype)

    def sum(self, dtype: Any) -> Any:
        return np.asarray(self).sum(dtype=dtype)

    def converted(
        self, dtype: np.dtype, mean: np.ndarray | None = None, scale: np.ndarray | None = None, pad: bool = True
    ) -> Resident:
        """The numbers in another type, standardised where mean and scale are given; in place where nothing changes."""
        array, standardised = self._array, mean is not None
        mean, scale = (np.zeros(1), np.ones(1)) if mean is None or scale is None else (mean, scale)
        n_columns = self.shape[1] if self.ndim == 2 else 1
        stride = padded(n_columns) if pad and self.ndim == 2 else n_columns
        in_place = array.is_c_contiguous() and compat.address(array) % ALIGNMENT == 0
        if in_place and not standardised and self.dtype == dtype and stride == n_columns:
            return Resident(array, array.reshape(self.size))
        stream = compat.new_stream()
        with compat.device_errors():
            out = compat.empty(len(self) * stride, dtype)
            self._launch(
                (make_convert, np.dtype(dtype), self.ndim),
                stream,
                array,
                n_columns,
                compat.to_device(mean, stream),
                compat.to_device(scale, stream),
                int(standardised),
                stride,
                out,
            )
            stream.synchronize()
        return Resident(array, out)

    def first_not_finite(self) -> int | None:
        """Its number, counted through the rows. Precondition: `converted`."""
        stream = compat.new_stream()
        with compat.device_errors():
            place = compat.to_device(np.array([NONE]), stream)
            self._launch((make_find_bad, self.dtype), stream, self.flat, place)
            found = place.copy_to_host(stream=stream)
            stream.synchronize()
        found = int(found[0])
        if found == NONE:
            return None
        row = self.flat.size // len(self)
        return found // row * (self.size // len(self)) + found % row

    def _launch(self, which: tuple, stream: Any, *args: Any) -> None:
        grid = min(compat.n_blocks(self.size, THREADS), MOST_BLOCKS)
        compat.launch(which, grid, THREADS, stream, *args)


def borrow(values: Any) -> Resident:
    """What lies in the GPU's memory, by the CUDA array interface or DLPack; its owner's stream is waited for.

    Raises
    ------
    DeviceError
    """
    with compat.device_errors():
        return Resident(compat.as_device_array(values))
