"""Indexes kept between starts: found again, completed, kept; whoever lists the files of a split hands its index here.

IndexCache.load -> the lister: still right? -> complete_index: headers not read yet, images not checked -> saved
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.parallel import map_in_threads
from pipelines.sources.folder import explain, source_of_index
from pipelines.sources.index import HEADER, Folder, Index, index_path, load_index, save_index
from pipelines.sources.inspection import read_headers, read_whole, unread_files
from pipelines.sources.listing import NUM_NAMED


class IndexCache:
    """The index files of one start; where they cannot be written, that is said once.

    Args:
        folder: Where they lie; None keeps none.
        show_progress: Whether to say anything.
    """

    def __init__(self, folder: Path | None, *, show_progress: bool) -> None:
        self._folder = folder
        self._says = show_progress

    def load(self, key: Path) -> Index | None:
        """The index of a split, if a whole one is there; `key` is its folder, or what else tells it from others."""
        return None if self._folder is None else load_index(index_path(self._folder, key), split=key)

    def save(self, index: Index, key: Path) -> None:
        """Keeps the index of a split, if that is wanted and possible, and another one than is kept."""
        kept = self.load(key)
        if self._folder is None or (kept is not None and index.equals(kept)):
            return
        try:
            save_index(index, index_path(self._folder, key), split=key)
        except OSError as error:
            if self._says:
                print(
                    f"the index of {key} cannot be kept in {self._folder} ({explain(error)}), so every start will "
                    "scan again; set EXACTVISION_CACHE to a folder that can be written."
                )
            self._says = False


def complete_index(
    index: Index, root: Path, *, key: Path, cache: IndexCache, is_kept: bool, verify: bool, show_progress: bool
) -> Index:
    """The index with every header read, and every image checked where that is asked for; kept if it is a new one.

    Args:
        index: What is known of the files.
        root: The folder that their names start from.
        key: What the index is kept under.
        cache: Where it is kept.
        is_kept: Whether `index` is what the cache holds; it comes back as it is if nothing is left to read.
        verify: Whether to decode every image once.
        show_progress: Whether to draw progress bars.
    """
    unread = unread_files(index, root)
    if is_kept:
        if not unread and not (verify and (index.checked_N == HEADER).any()):
            return index
        index = index.copy()
    try:
        read_headers(index, unread, root, show_progress=show_progress)
        if verify:
            read_whole(index, root, show_progress=show_progress)
    finally:  # after Ctrl-C too: the next start goes on where this one ends
        index = replace(index, fingerprint=source_of_index(index, root).fingerprint())
        cache.save(index, key)
    return index


def are_unchanged(folders: Sequence[Folder], root: Path) -> bool:
    """Whether no folder has changed since it was listed, as far as its time tells."""

    def is_unchanged(folder: Folder) -> bool:
        try:
            return folder.settled and os.stat(root / folder.name).st_mtime_ns == folder.mtime_ns
        except OSError:
            return False

    return all(
        map_in_threads(is_unchanged, folders, title="checking folders", unit="folder", show_progress=False, cores=1)
    )


def some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def empty_classes(class_names: Sequence[str], labels_N: npt.NDArray[np.int64]) -> list[str]:
    """The classes that no label stands for."""
    counts = np.bincount(labels_N, minlength=len(class_names))
    return [name for name, count in zip(class_names, counts, strict=True) if count == 0]
