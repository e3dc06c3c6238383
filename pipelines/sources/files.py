"""Image files that a table lists, not their folders: found on disk, indexed, kept, as samples in the table's order.

Files (root, names, labels) -> as in the kept index, and no folder changed? -> yes: Index, mapped
                               no: times of all files; headers only of those that are new or have changed -> Index
                            -> FolderSource
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.parallel import map_in_threads
from pipelines.sources.folder import FolderSource, source_of_index
from pipelines.sources.index import UNREAD, Folder, Index
from pipelines.sources.listing import SETTLED_AFTER_NS, stamp
from pipelines.sources.upkeep import IndexCache, are_unchanged, complete_index


class Files(NamedTuple):
    """The image files of a split.

    root: the folder that names start from. names_N: bytes (N,), paths below it. labels_N: int64 (N,).
    """

    root: str
    class_names: tuple[str, ...]
    names_N: npt.NDArray[np.bytes_]
    labels_N: npt.NDArray[np.int64]


def locate(paths: Sequence[str], *, folder: str) -> tuple[str, npt.NDArray[np.bytes_]]:
    """A root and the names of all files below it: `folder`, or where some paths are absolute the one above them all."""
    if not any(os.path.isabs(path) for path in paths):
        return folder, np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
    base = os.path.abspath(folder)
    whole = [os.path.join(base, path) for path in paths]
    # normpath leaves two slashes at the beginning as they are
    whole = ["/" + os.path.normpath(path).lstrip("/") if "//" in path or "/./" in path else path for path in whole]
    root = os.path.commonpath({os.path.dirname(path) for path in whole})
    first = len(root.rstrip("/")) + 1
    return root, np.array([os.fsencode(path[first:]) for path in whole], dtype=np.bytes_)


def index_files(
    files: Files,
    *,
    key: Path,
    cache: IndexCache,
    rescan: bool,
    verify: bool,
    show_progress: bool,
    on_missing: Callable[[list[int]], None] = lambda ids: None,
) -> FolderSource:
    """The files as samples, in their order.

    Args:
        files: What is listed.
        key: What the index is kept under: a path that tells the list from others, whether or not it exists.
        cache: Where the index is kept.
        rescan: Look at every file, and read again those that have changed since they were indexed.
        verify: Decode every image once.
        show_progress: Whether to draw progress bars, and to say what was noticed.
        on_missing: Told the ids of files that are not there, before any file is opened.
    """
    root, kept = Path(files.root), cache.load(key)
    if kept is not None and not rescan and _lists_the_same(kept, files) and are_unchanged(kept.folders, root):
        index = kept
    else:
        index = _look_for(files, show_progress=show_progress)
        on_missing(np.flatnonzero((index.mtimes_ns_N == 0) & (index.num_bytes_N == 0)).tolist())
        num_edited = 0 if kept is None else index.reuse(kept, mark_edits=rescan)
        if rescan and kept is not None and show_progress:
            print(f"{key.name.partition('#')[0]}: {num_edited} files have been edited since they were indexed")
    index = complete_index(
        index, root, key=key, cache=cache, is_kept=index is kept, verify=verify, show_progress=show_progress
    )
    return source_of_index(index, root)


def _lists_the_same(index: Index, files: Files) -> bool:
    return (
        index.class_names == files.class_names
        and np.array_equal(index.labels_N, files.labels_N)
        and np.array_equal(index.names_N, files.names_N)
    )


def _look_for(files: Files, *, show_progress: bool) -> Index:
    """A new index: sizes and times of all files, zeros of those that are not there; no file has been read."""
    root, count = os.fsencode(files.root), len(files.names_N)
    folders = _folders(files)  # before the files: a change during it must show at the next start
    stamps = map_in_threads(
        lambda name: stamp(Path(os.fsdecode(os.path.join(root, name)))),
        files.names_N.tolist(),
        title="looking for files",
        unit="file",
        show_progress=show_progress,
        cores=1,
    )
    stamps_N2 = np.array(list(stamps), dtype=np.int64).reshape(-1, 2)
    return Index(
        class_names=files.class_names,
        folders=folders,
        num_ignored=0,
        ignored=(),
        bad={},
        fingerprint="",
        labels_N=files.labels_N,
        num_bytes_N=stamps_N2[:, 0].copy(),
        mtimes_ns_N=stamps_N2[:, 1].copy(),
        sizes_N2=np.zeros((count, 2), dtype=np.int32),
        edits_N=np.zeros(count, dtype=np.uint32),
        names_N=files.names_N,
        jpeg_orientation_N=np.zeros(count, dtype=np.uint8),
        grey_N=np.ones(count, dtype=np.bool_),
        checked_N=np.full(count, UNREAD, dtype=np.uint8),
    )


def _folders(files: Files) -> tuple[Folder, ...]:
    """The folders that hold files of the list, by name, with how many."""
    counts: dict[bytes, int] = {}
    for name in files.names_N.tolist():
        inner = name.rpartition(b"/")[0]
        counts[inner] = counts.get(inner, 0) + 1
    return tuple(_folder(files.root, os.fsdecode(inner) or ".", count) for inner, count in sorted(counts.items()))


def _folder(root: str, name: str, count: int) -> Folder:
    now_ns = time.time_ns()
    try:
        mtime_ns = os.stat(os.path.join(root, name)).st_mtime_ns
    except OSError:  # it is not there, nor are its files
        return Folder(name, 0, count, False)
    return Folder(name, mtime_ns, count, mtime_ns < now_ns - SETTLED_AFTER_NS)
