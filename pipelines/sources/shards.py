"""Shard files, read at any place by any thread: opened once, told beforehand what will be read.

(shard, start, number of bytes) -> pread, the GIL free -> memory of the caller
"""

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.kernels import expect_reading

try:
    import resource
except ImportError:  # not of Windows
    resource = None  # type: ignore[assignment]

_MOST_OTHER_FILES = 1024  # that the program has open beside shards


class Shards:
    """Files that are opened when they are first read; sent to another process, they are opened there anew.

    Args:
        paths: The files, by number.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._open_nothing()

    def read(self, shard: int, *, start: int, room: memoryview) -> None:
        """Fills `room` with the bytes from `start` on.

        Raises:
            OSError: The file cannot be read.
            ValueError: It ends before that.
        """
        file, filled = self.file(shard), 0
        while filled < len(room):
            count = os.preadv(file, [room[filled:]], start + filled)
            if count == 0:
                raise ValueError(f"{self.paths[shard]} ends before byte {start + len(room)}: it has been cut short")
            filled += count

    def files(self, shards_N: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Their descriptors, int64 (N,), open as long as this object is.

        Raises:
            OSError: One cannot be opened.
        """
        return np.array([self.file(shard) for shard in shards_N.tolist()])

    def expect(
        self,
        shards_N: npt.NDArray[np.int32],
        starts_N: npt.NDArray[np.int64],
        num_bytes_N: npt.NDArray[np.int64],
    ) -> None:
        """Has the system fetch parts that will soon be read, where it can be asked to.

        Raises:
            OSError: A file cannot be opened.
        """
        if hasattr(os, "posix_fadvise"):
            expect_reading(self.files(shards_N), starts_N, num_bytes_N, os.POSIX_FADV_WILLNEED)

    def mapped(self, shard: int) -> npt.NDArray[np.uint8]:
        """All bytes of a shard, uint8 (B,), read-only, read from the disk when they are touched.

        The system ends a program that touches what is no longer there: a shard must not be cut short while it is read.

        Raises:
            OSError: The file cannot be opened.
        """
        found = self._maps[shard]
        if found is None:
            # not as a memmap, whose every slice costs microseconds
            found = self._maps[shard] = np.memmap(self.paths[shard], dtype=np.uint8, mode="r").view(np.ndarray)
        return found

    def __getstate__(self) -> tuple[str, ...]:
        return self.paths

    def __setstate__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._files: list[int | None] = [None] * len(self.paths)
        self._maps: list[npt.NDArray[np.uint8] | None] = [None] * len(self.paths)
        self._lock = threading.Lock()
        _allow_open_files(
            _MOST_OTHER_FILES + 4 * len(self.paths)
        )  # a shard is opened, and mapped; of other splits, too
        weakref.finalize(self, _close, self._files)

    def file(self, shard: int) -> int:
        """Its descriptor, open as long as this object is.

        Raises:
            OSError: It cannot be opened.
        """
        file = self._files[shard]
        if file is not None:
            return file
        with self._lock:
            file = self._files[shard]
            if file is None:
                file = os.open(self.paths[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                if hasattr(os, "posix_fadvise"):  # the order is random: what lies behind a sample is not read next
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
                self._files[shard] = file
        return file


def _allow_open_files(count: int) -> None:
    """Raises what this process may have open: mostly it is 1,024 files, though the system would allow many more."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _close(files: list[Any]) -> None:
    for file in files:
        if file is not None:
            os.close(file)
