"""The samples of a training or an evaluation: in the GPU's memory as a whole, or piece by piece through pinned memory
where they are too many, the next piece while the last one is in work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..problem import Data, DeviceError
from . import compat
from .layout import Samples, padded
from .resident import Resident

#: The share of the free memory that samples may take as a whole, and the bytes of a piece of X.
SHARE, PIECE_BYTES = 0.5, 1 << 28


class Piece(NamedTuple):
    """Samples that are there, the number of the memory that they are in, where in the epoch the first of them belongs,
    and where updates go on and how many there are.
    """

    samples: Samples
    buffer: int
    base: int
    position: int
    n_updates: int


class Feed:
    """Brings samples.

    Parameters
    ----------
    data : Data
    stream : stream
        Where they are put to work.
    shuffle : bool
    update_rows : int
        Of which a piece has a multiple.

    Raises
    ------
    DeviceError
    """

    def __init__(self, data: Data, stream: Any, shuffle: bool, update_rows: int):
        self.data, self._stream, self._update_rows = data, stream, update_rows
        self._n_samples = len(data.X)
        if shuffle and self._n_samples > np.iinfo(np.int32).max:
            raise DeviceError(f"device 'cuda' shuffles fewer than 2**31 samples, there are {self._n_samples}")
        self.shuffle = shuffle
        # Two, so that one is drawn while the other is on its way.
        self._orders = [compat.pinned((self._n_samples if shuffle else 1,), np.int32) for _ in range(2)]
        self._sent = [compat.new_event() for _ in range(2)]
        self._epoch = 0
        self._arrays = [data.X, data.targets, data.labels, data.weight]
        n_bytes = 0 if isinstance(data.X, Resident) else sum(array.nbytes for array in self._arrays)
        self._piece_updates = 0
        if n_bytes > SHARE * compat.free_memory():
            self._piece_updates = max(1, PIECE_BYTES * self._n_samples // (n_bytes * update_rows))
            self._buffers = [_Buffer(self._arrays, self._piece_updates * update_rows, stream) for _ in range(2)]
            self._turn = 0
        else:
            there = [self._bring(array) for array in self._arrays]
            self.samples = _samples(there, self._arrays, compat.to_device(self._orders[0], stream), shuffle)

    def _bring(self, array: np.ndarray | Resident) -> Any:
        if isinstance(array, Resident):
            return array.flat
        rows = array
        if array is self.data.X:
            rows = np.zeros((len(array), padded(array.shape[1])), array.dtype)
            rows[:, : array.shape[1]] = array
        return compat.to_device(rows.ravel() if rows.size else np.zeros(1, rows.dtype), self._stream)

    def next_order(self) -> np.ndarray:
        """Where the order of the next epoch is to be written, before `shuffled`."""
        number = (self._epoch + 1) % 2
        self._sent[number].synchronize()
        return self._orders[number]

    def shuffled(self) -> None:
        """Take over the order that has been written."""
        self._epoch += 1
        if not self._piece_updates:
            self.samples.order.copy_to_device(self._orders[self._epoch % 2], stream=self._stream)
            self._sent[self._epoch % 2].record(self._stream)

    def pieces(self, position: int, n_updates: int) -> Iterator[Piece]:
        """What so many updates want from a position of the epoch on; a piece must be in work before the next is asked
        for.
        """
        if not self._piece_updates:
            yield Piece(self.samples, 0, 0, position, n_updates)
            return
        while n_updates > 0:
            count = min(n_updates, self._piece_updates)
            end = min(position + count * self._update_rows, self._n_samples)
            number, self._turn = self._turn, 1 - self._turn
            rows = self._orders[self._epoch % 2][position:end] if self.shuffle else slice(position, end)
            buffer = self._buffers[number]
            yield Piece(buffer.fill(self._arrays, rows), number, position, position, count)
            buffer.release()
            position, n_updates = end, n_updates - count


class _Buffer:
    """Pinned memory and memory of the GPU for a piece."""

    def __init__(self, arrays: list, n_rows: int, stream: Any):
        self._stream, self._copies = stream, compat.new_stream()
        self._filled, self._released = compat.new_event(), compat.new_event()
        self._pinned = []
        for k, array in enumerate(arrays):
            shape = (n_rows, padded(array.shape[1])) if k == 0 else (n_rows, *array.shape[1:])
            self._pinned.append(compat.pinned(shape if array.size else (1,), array.dtype))
        self._there = [compat.to_device(pinned.ravel(), stream) for pinned in self._pinned]
        order = compat.to_device(np.zeros(1, np.int32), stream)
        self._samples = _samples(self._there, arrays, order, False)
        stream.synchronize()

    def fill(self, arrays: list, rows: Any) -> Samples:
        self._filled.synchronize()  # the last piece has left the pinned memory
        self._released.wait(self._copies)
        for array, pinned, there in zip(arrays, self._pinned, self._there, strict=True):
            if array.size:
                piece = array[rows]
                pinned.reshape(len(pinned), -1)[: len(piece), : piece[0].size] = piece.reshape(len(piece), -1)
                there.copy_to_device(pinned.ravel(), stream=self._copies)
        self._filled.record(self._copies)
        self._filled.wait(self._stream)
        return self._samples

    def release(self) -> None:
        """What has been launched so far is the last that reads this piece."""
        self._released.record(self._stream)


def _samples(there: list, arrays: list, order: Any, shuffle: bool) -> Samples:
    X, targets, labels, weight = there
    return Samples(X, targets, labels, weight, order, int(arrays[2].size > 0), int(arrays[3].size > 0), int(shuffle))
