"""Memory that is used again for every image, instead of asking the system for each anew."""

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipelines.jpeg_window import JpegWindowDecoder

_MOST_KEPT = 64 * 2**20  # bytes; a larger image gets memory of its own, so that one giant does not stay


class Scratch:
    """Room for files, an image and windows of it, each valid until it is asked for again. For one thread.

    jpeg_windows: the thread's decoder of windows, with room of its own.
    """

    def __init__(self) -> None:
        self._file = bytearray(0)
        self._pixels = np.empty(0, dtype=np.uint8)
        self._window = np.empty(0, dtype=np.uint8)
        self._boxed = np.empty(0, dtype=np.uint8)
        self._fitted = np.empty(0, dtype=np.uint8)
        self._compact = np.empty(0, dtype=np.uint8)
        self._parts = np.empty(0, dtype=np.uint8)
        self._spliced = np.empty(0, dtype=np.uint8)
        self.jpeg_windows = JpegWindowDecoder()

    def pixels(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for a decoded image, uint8 (M,)."""
        if num_bytes > _MOST_KEPT:
            return np.empty(num_bytes, dtype=np.uint8)
        self._pixels = _grown(self._pixels, num_bytes)
        return self._pixels

    def window(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for a part of it, uint8 (M,)."""
        if num_bytes > _MOST_KEPT:
            return np.empty(num_bytes, dtype=np.uint8)
        self._window = _grown(self._window, num_bytes)
        return self._window

    def fitted(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for a window that was resized, uint8 (M,)."""
        self._fitted = _grown(self._fitted, num_bytes)
        return self._fitted

    def boxed(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for what a letterbox surrounds, uint8 (M,)."""
        self._boxed = _grown(self._boxed, num_bytes)
        return self._boxed

    def read_file(self, path: str | bytes) -> memoryview:
        """The bytes of a file.

        Raises:
            OSError: It cannot be read.
        """
        return _read(path, self.room)

    def spliced(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for a part of a file, uint8 (M,)."""
        if num_bytes > _MOST_KEPT:
            return np.empty(num_bytes, dtype=np.uint8)
        self._spliced = _grown(self._spliced, num_bytes)
        return self._spliced

    def compact(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for a part of it that is handed out, uint8 (M,)."""
        if num_bytes > _MOST_KEPT:
            return np.empty(num_bytes, dtype=np.uint8)
        self._compact = _grown(self._compact, num_bytes)
        return self._compact

    def parts(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """At least `num_bytes` of memory for parts of several files, uint8 (M,)."""
        if num_bytes > _MOST_KEPT:
            return np.empty(num_bytes, dtype=np.uint8)
        self._parts = _grown(self._parts, num_bytes)
        return self._parts

    def room(self, num_bytes: int) -> memoryview:
        """`num_bytes` of memory for a file."""
        if num_bytes > _MOST_KEPT:
            return memoryview(bytearray(num_bytes))
        if num_bytes > len(self._file):
            self._file = bytearray(num_bytes + num_bytes // 4)
        return memoryview(self._file)[:num_bytes]


class Arena:
    """Room for many files, one after the other, valid until `clear`. For one thread at a time."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(0))
        self._used = 0

    def clear(self) -> None:
        """Gives all room free; what was read lies there until it is overwritten."""
        self._used = 0

    def read_file(self, path: str | bytes) -> memoryview:
        """The bytes of a file.

        Raises:
            OSError: It cannot be read.
        """
        return _read(path, self.room)

    def spliced(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """`num_bytes` of memory for a part of a file, uint8 (M,)."""
        return np.frombuffer(self.room(num_bytes), dtype=np.uint8)

    def room(self, num_bytes: int) -> memoryview:
        """`num_bytes` of memory for one more file."""
        if num_bytes > _MOST_KEPT:
            return memoryview(bytearray(num_bytes))
        if self._used + num_bytes > len(self._memory):  # files read before keep the old memory alive
            self._memory = memoryview(bytearray(2 * (self._used + num_bytes)))
            self._used = 0
        start, self._used = self._used, self._used + num_bytes
        return self._memory[start : self._used]


def _read(path: str | bytes, room_for: Callable[[int], memoryview]) -> memoryview:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        num_bytes = os.fstat(file).st_size
        return _filled(room_for(num_bytes), file)
    finally:
        os.close(file)


def _filled(room: memoryview, file: int) -> memoryview:
    filled = 0
    while filled < len(room) and (count := os.readv(file, [room[filled:]])):
        filled += count
    return room[:filled]


def _grown(memory: npt.NDArray[np.uint8], num_bytes: int) -> npt.NDArray[np.uint8]:
    return memory if len(memory) >= num_bytes else np.empty(num_bytes + num_bytes // 4, dtype=np.uint8)
