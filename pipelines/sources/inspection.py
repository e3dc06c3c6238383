"""What the files of an index hold: headers read, images checked, edits noticed; an index's open rows filled in.

Index, rows not read yet -> headers (sizes, grey, orientation), by threads -> Index
                         -> every image decoded once, where that is asked for -> Index.bad
"""

import os
import stat
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.decode import Header, read_header
from pipelines.parallel import map_in_threads
from pipelines.scratch import Scratch
from pipelines.sources.folder import explain, source_of_index
from pipelines.sources.index import HEADER, UNREAD, WHOLE, Index
from pipelines.sources.listing import stamp


def unread_files(index: Index, split: Path) -> list[int]:
    """The files whose headers are to be read: new and changed ones, and bad ones that have been repaired."""
    bad = sorted(index.bad)

    def is_repaired(sample_id: int) -> bool:
        path = split / os.fsdecode(bytes(index.names_N[sample_id]))
        if index.checked_N[sample_id] == WHOLE:
            return stamp(path) != (index.num_bytes_N[sample_id], index.mtimes_ns_N[sample_id])
        return not isinstance(_look(str(path)), str)

    tried = map_in_threads(is_repaired, bad, title="looking at bad files", unit="file", show_progress=False, cores=1)
    repaired = [sample_id for sample_id, is_good in zip(bad, tried, strict=True) if is_good]
    never = np.setdiff1d(np.flatnonzero(index.checked_N == UNREAD), bad)
    unread: list[int] = np.union1d(never, repaired).astype(np.int64).tolist()
    return unread


class _Read(NamedTuple):
    num_bytes: int
    mtime_ns: int
    header: Header


def _look(path: str) -> _Read | str:
    """Header, size and time of a file; or why it is no image."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for someone to write into it
            return "not a regular file"
        return _Read(status.st_size, status.st_mtime_ns, read_header(path))
    except (OSError, ValueError) as error:
        is_link_to_nothing = isinstance(error, FileNotFoundError) and os.path.islink(path)
        return "a link to a file that is not there" if is_link_to_nothing else explain(error)


def read_headers(index: Index, ids: list[int], split: Path, *, show_progress: bool) -> None:
    """Fills in the rows `ids`; those that cannot be read go into `index.bad`."""
    index.sizes_N2[ids], index.jpeg_orientation_N[ids], index.grey_N[ids], index.checked_N[ids] = 0, 0, True, UNREAD
    source = source_of_index(index, split)

    def read(sample_id: int) -> str | None:
        path = source.describe(sample_id)
        found = _look(path)
        if isinstance(found, str):
            return found
        if index.edits_N[sample_id]:
            index.edits_N[sample_id] = _crc(path)
        index.num_bytes_N[sample_id], index.mtimes_ns_N[sample_id] = found.num_bytes, found.mtime_ns
        index.sizes_N2[sample_id] = found.header.height, found.header.width
        index.jpeg_orientation_N[sample_id] = found.header.jpeg_orientation
        index.grey_N[sample_id] = found.header.grey
        index.checked_N[sample_id] = HEADER  # last: a row that is begun counts as unread
        return None

    reasons = map_in_threads(read, ids, title="reading headers", unit="file", show_progress=show_progress, cores=1)
    for sample_id, reason in zip(ids, reasons, strict=True):
        index.bad.pop(sample_id, None)
        if reason is not None:
            index.bad[sample_id] = reason


def _crc(path: str) -> int:
    """The CRC-32 of a file, never 0, which stands for none; 1 of a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return zlib.crc32(file.read()) or 1
    except OSError:
        return 1


def read_whole(index: Index, split: Path, *, show_progress: bool) -> None:
    """Decodes all images that never were; those that fail go into `index.bad`."""
    ids = np.setdiff1d(np.flatnonzero(index.checked_N == HEADER), sorted(index.bad)).astype(np.int64).tolist()
    source = replace(source_of_index(index, split), bad={})
    own = threading.local()

    def read(sample_id: int) -> str | None:
        own.scratch = getattr(own, "scratch", None) or Scratch()
        try:
            source.read_image(sample_id, channels=3, scratch=own.scratch)
        except ValueError as error:
            if not _may_pass(error.__cause__):
                index.checked_N[sample_id] = WHOLE
            return str(error)
        index.checked_N[sample_id] = WHOLE
        return None

    reasons = map_in_threads(read, ids, title="checking images", unit="image", show_progress=show_progress)
    index.bad.update((i, reason) for i, reason in zip(ids, reasons, strict=True) if reason is not None)


def _may_pass(cause: BaseException | None) -> bool:
    """Whether the fault is the machine's, at this moment, and not the file's."""
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)
