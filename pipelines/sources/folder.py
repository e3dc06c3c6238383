"""Image files of one split as samples: read by id, decoded, held against what the index says of them.

Index (pipelines/sources/index.py) -> FolderSource -> pixels, or encoded JPEG for DALI
"""

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipelines.decode import decode_image, decode_jpeg, scale_of, scaled_window
from pipelines.jpeg_window import Window
from pipelines.scratch import Arena, Scratch
from pipelines.source import LeastPx, cut, read_one_by_one
from pipelines.sources.index import WHOLE, Index


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Image files of one split; the arrays may be mapped from an index file, read-only.

    names_N: bytes (N,), paths below `root`. num_bytes_N: int64 (N,), the sizes of the files.
    jpeg_orientation_N: uint8 (N,), see `pipelines.decode.Header`. edits_N: see `pipelines.sources.index.Index`.
    whole_N: bool (N,), images that were once decoded whole; reading marks more of them, also in worker processes that
        are forked later, for it lies in memory that they share.
    weights_N: float64 (N,), see `pipelines.source.Source`.
    """

    root: str
    class_names: tuple[str, ...]
    names_N: npt.NDArray[np.bytes_]
    labels_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    num_bytes_N: npt.NDArray[np.int64]
    jpeg_orientation_N: npt.NDArray[np.uint8]
    edits_N: npt.NDArray[np.uint32]
    whole_N: npt.NDArray[np.bool_]
    is_grey: bool
    bad: Mapping[int, str] = field(default_factory=dict)
    weights_N: npt.NDArray[np.float64] | None = None
    known_fingerprint: str = ""  # the index has it, so that no start reads all arrays for it

    def describe(self, sample_id: int) -> str:
        """The path of the file."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names_N[sample_id])))

    def read_image(
        self,
        sample_id: int,
        *,
        channels: int,
        scratch: Scratch | None = None,
        window: Window | None = None,
        least_px: tuple[int, int] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 (H, W, C), of the window, or of the whole image, which has the size in `sizes_N2`.

        Each image is decoded whole once, so that damage is found wherever it lies; after that, of a JPEG, what lies
        beside the window is passed over where that can be done.

        Raises:
            ValueError: The file is gone, cannot be decoded, or is of another size than when it was indexed; the
                message gives the reason, not the path.
        """
        self._check_not_known_bad(sample_id)
        orientation = int(self.jpeg_orientation_N[sample_id])
        scale = scale_of(window, least_px) if window and orientation == 1 else 1
        try:
            if orientation:
                encoded = self._read_jpeg_file(sample_id, scratch)
                if window and scratch and orientation == 1 and self._is_whole(sample_id, encoded):
                    if scale > 1:
                        return _decode_smaller(encoded, window, channels=channels, scratch=scratch, scale=scale)
                    height, width = self.sizes_N2[sample_id].tolist()
                    decode_window = scratch.jpeg_windows.decode
                    part = decode_window(encoded, window, height=height, width=width, channels=channels)
                    if part is not None:
                        return part
                self._check_jpeg_size(sample_id, encoded, orientation)
                pixels = decode_jpeg(encoded, channels=channels, orientation=orientation, scratch=scratch)
            else:
                with open(self.describe(sample_id), "rb") as file:
                    pixels = decode_image(file.read(), channels=channels)
        except ValueError:
            raise
        except Exception as error:  # whatever broken bytes bring about, memory that does not suffice among it
            raise ValueError(explain(error)) from error
        self._check_size(sample_id, *pixels.shape[:2])
        self.whole_N[sample_id] = True
        if window and scale > 1:  # the first time, too: a resumed run makes the pixels of one that was not stopped
            return _decode_smaller(encoded, window, channels=channels, scratch=scratch, scale=scale)
        return pixels if window is None else cut(pixels, window)

    def read_windows(
        self, ids: Sequence[int], windows: Sequence[Window], *, channels: int, scratch: Scratch, least_px: LeastPx
    ) -> Iterator[npt.NDArray[np.uint8] | ValueError]:
        """See `pipelines.source.Source`."""
        return read_one_by_one(self, ids, windows, channels=channels, scratch=scratch, least_px=least_px)

    def read_jpeg(self, sample_id: int, *, scratch: Scratch | Arena | None = None) -> memoryview | None:
        """The encoded bytes of a sample stored as an upright grey or RGB JPEG; None of every other.

        None, too, of a file that has another length than when it was indexed: DALI, which gets these bytes, fills up
        what a file cut short lacks without a word.

        Raises:
            ValueError: The file is gone, is no JPEG any more, or one of another size; the message gives the reason,
                not the path.
        """
        self._check_not_known_bad(sample_id)
        if self.jpeg_orientation_N[sample_id] != 1:
            return None
        try:
            encoded = self._read_jpeg_file(sample_id, scratch)
            self._check_jpeg_size(sample_id, encoded, orientation=1)
        except ValueError:
            raise
        except Exception as error:  # as above
            raise ValueError(explain(error)) from error
        return encoded if len(encoded) == self.num_bytes_N[sample_id] else None

    def take(self, ids: npt.NDArray[np.int64]) -> "FolderSource":
        """The samples `ids`, numbered from 0."""
        bad = np.flatnonzero(np.isin(ids, list(self.bad))).tolist() if self.bad else []
        return replace(
            self,
            names_N=self.names_N[ids],
            labels_N=self.labels_N[ids],
            sizes_N2=self.sizes_N2[ids],
            num_bytes_N=self.num_bytes_N[ids],
            jpeg_orientation_N=self.jpeg_orientation_N[ids],
            edits_N=self.edits_N[ids],
            whole_N=shared_marks(self.whole_N[ids]),
            bad={sample_id: self.bad[int(ids[sample_id])] for sample_id in bad},
            weights_N=None if self.weights_N is None else self.weights_N[ids],
            known_fingerprint="",
        )

    def fingerprint(self) -> str:
        """A hash of class names, relative paths, labels, sizes, edits and weights, if any; no file is read."""
        files = self.known_fingerprint or self._fingerprint_files()
        if self.weights_N is None:
            return files
        return hashlib.sha256(files.encode() + self.weights_N.tobytes()).hexdigest()

    def _fingerprint_files(self) -> str:
        digest = hashlib.sha256(repr((self.class_names, self.names_N.dtype.str)).encode())
        for array in (self.names_N, self.labels_N, self.sizes_N2, self.num_bytes_N, self.edits_N):
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _check_not_known_bad(self, sample_id: int) -> None:
        if sample_id in self.bad:
            raise ValueError(self.bad[sample_id])

    def _read_jpeg_file(self, sample_id: int, scratch: Scratch | Arena | None) -> memoryview:
        path = b"%s/%s" % (os.fsencode(self.root), self.names_N[sample_id])  # a third of the time of `describe`
        encoded = (scratch or Scratch()).read_file(path)
        if bytes(encoded[:2]) != b"\xff\xd8":
            raise ValueError("it was a JPEG when it was indexed, and is none now; use --data.rescan true")
        return encoded

    def _is_whole(self, sample_id: int, encoded: memoryview) -> bool:
        return bool(self.whole_N[sample_id]) and len(encoded) == self.num_bytes_N[sample_id]

    def _check_jpeg_size(self, sample_id: int, encoded: memoryview, orientation: int) -> None:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        self._check_size(sample_id, *((width, height) if orientation >= 5 else (height, width)))

    def _check_size(self, sample_id: int, height: int, width: int) -> None:
        indexed = tuple(self.sizes_N2[sample_id].tolist())
        if (height, width) != indexed:
            raise ValueError(
                f"it is {height} x {width} pixels (height x width), but was {indexed[0]} x {indexed[1]} when it was "
                "indexed; use --data.rescan true"
            )


def source_of_index(index: Index, split: Path) -> FolderSource:
    """The files of an index as samples; the arrays are shared, not copied."""
    return FolderSource(
        root=str(split),
        class_names=index.class_names,
        names_N=index.names_N,
        labels_N=index.labels_N,
        sizes_N2=index.sizes_N2,
        num_bytes_N=index.num_bytes_N,
        jpeg_orientation_N=index.jpeg_orientation_N,
        edits_N=index.edits_N,
        whole_N=shared_marks(index.checked_N == WHOLE),
        is_grey=bool(index.grey_N.all()),
        bad=index.bad,
        known_fingerprint=index.fingerprint,
    )


def _decode_smaller(
    encoded: memoryview, window: Window, *, channels: int, scratch: Scratch | None, scale: int
) -> npt.NDArray[np.uint8]:
    """The window of an upright JPEG made smaller while it is decoded."""
    small = decode_jpeg(encoded, channels=channels, orientation=1, scratch=scratch, scale=scale)
    return cut(small, scaled_window(window, scale))


def shared_marks(marks_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A copy in memory that processes forked later share with this one: else each would decode all images whole."""
    memory = mmap.mmap(-1, max(len(marks_N), 1))
    shared_N = np.frombuffer(memory, dtype=np.bool_, count=len(marks_N))
    shared_N[:] = marks_N
    return shared_N


def explain(error: Exception) -> str:
    """What to tell of an error, without the path, which whoever shows it puts before it."""
    if isinstance(error.__cause__, OSError) and error.__cause__.strerror:
        return explain(error.__cause__)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
