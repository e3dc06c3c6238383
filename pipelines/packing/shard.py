"""A shard while it is written: a tar file, and its rows of the index.

sample -> KEY.jpg, KEY.cls -> SPLIT-NUMBER.tar.tmp -> all on disk -> SPLIT-NUMBER.tar -> SPLIT-NUMBER.part
"""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.packing.job import sync_folder
from pipelines.packing.parts import Part, Refused, save_part
from pipelines.packing.stored import Stored
from pipelines.packing.tar import finish, num_bytes_of_file, num_bytes_of_member, write_member
from pipelines.sources.packed_index import PackedIndex, index_of_rows


class Place(NamedTuple):
    """Where a sample lies: the number of its shard, the first byte of its content, and how many there are."""

    shard: int
    start: int
    num_bytes: int


class Rows:
    """The rows of the index of one shard, sample by sample."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._lengths: list[npt.NDArray[np.uint16]] = []
        self._num_lengths = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, stored: Stored, place: Place, *, label: int, name: bytes) -> None:
        """Adds a sample."""
        segments = stored.segments
        self._rows.append(
            {
                "labels_N": label,
                "shards_N": place.shard,
                "offsets_N": place.start,
                "num_bytes_N": place.num_bytes,
                "sizes_N2": (stored.height, stored.width),
                "crcs_N": stored.crc,
                "kinds_N": stored.kind,
                "grey_N": stored.is_grey,
                "names_N": name,
                "segment_starts_N": self._num_lengths,
                "cuts_N5": (0,) * 5 if segments is None else segments[:5],
            }
        )
        if segments is not None:
            self._lengths.append(segments.lengths_L)
            self._num_lengths += len(segments.lengths_L)

    def index(self, weights_N: npt.NDArray[np.float64] | None) -> PackedIndex:
        """The rows as arrays; weights_N: float64 (N,), of the samples, if they have any."""
        return index_of_rows(self._rows, self._lengths, weights_N=weights_N)


class ShardWriter:
    """Writes a shard.

    Args:
        work: The folder.
        split: The split.
        number: Of the shard in its split.
        weights_N: float64 (N,), of all samples of the split; None = they have none.
    """

    def __init__(self, work: Path, split: str, *, number: int, weights_N: npt.NDArray[np.float64] | None) -> None:
        self._work, self._split, self._number, self._weights_N = work, split, number, weights_N
        self._path = work / f"{split}-{number:05}.tar"
        self._file: BinaryIO | None = None
        self._num_bytes = 0
        self._ids: list[int] = []
        self._rows = Rows()
        self._refused: list[Refused] = []

    def has_room(self, stored: Stored, *, most_bytes: int) -> bool:
        """Whether the file stays within `most_bytes` with one more sample; the first always has room."""
        label = num_bytes_of_member(b"0")
        num_bytes = num_bytes_of_file(self._num_bytes + num_bytes_of_member(stored.content) + label)
        return not self._ids or num_bytes <= most_bytes

    def refuse(self, one: Refused) -> None:
        """Notes that a sample is left out."""
        self._refused.append(one)

    def add(self, sample_id: int, stored: Stored, *, label: int, name: bytes) -> None:
        """Writes a sample.

        Raises:
            OSError: It cannot be written.
        """
        if self._file is None:
            self._file = open(f"{self._path}.tmp", "w+b")  # noqa: SIM115  # close() closes it
        start = write_member(self._file, f"{sample_id:09}.{stored.suffix}", stored.content)
        write_member(self._file, f"{sample_id:09}.cls", str(label).encode())
        self._num_bytes = self._file.tell()
        self._ids.append(sample_id)
        self._rows.add(stored, Place(self._number, start, len(stored.content)), label=label, name=name)

    def close(self, *, next_id: int) -> Part:
        """Everything on disk: the shard first, then its part of the index, which says that it is whole.

        Raises:
            OSError: It cannot be written.
        """
        sha256 = self._close_file() if self._file is not None else ""
        weights_N = None if self._weights_N is None else self._weights_N[np.array(self._ids, dtype=int)]
        name = self._path.name if self._ids else ""
        part = Part(self._rows.index(weights_N), name, self._num_bytes, sha256, next_id, self._refused)
        save_part(part, self._work, self._split, number=self._number)
        return part

    def abandon(self) -> None:
        """Closes the file, which the next call begins again."""
        if self._file is not None:
            self._file.close()

    def _close_file(self) -> str:
        assert self._file is not None
        finish(self._file)
        self._num_bytes = self._file.tell()
        self._file.seek(0)
        sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]
        self._file.close()
        os.replace(f"{self._path}.tmp", self._path)
        sync_folder(self._work)
        return sha256
