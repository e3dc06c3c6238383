"""Which files lie in the class folders of a split: names, sizes in bytes and times, without opening any.

split folder -> list_top -> Top (class names) -> list_class of each -> Class (files, folders walked)

A folder changed within two seconds before it was listed counts as unsettled, and is listed again at the next start: one
more change may have fallen into the same tick of the file system's clock (git's index knows the problem as "racily
clean").
"""

import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.sources.folder import explain
from pipelines.sources.index import Folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
NUM_NAMED = 5  # how many files or classes a message names before it only counts them
SETTLED_AFTER_NS = 2 * 10**9  # the coarsest clock of a file system in use (FAT) ticks every two seconds


class Top(NamedTuple):
    """What lies directly in the folder of a split."""

    path: Path
    folder: Folder
    class_names: tuple[str, ...]
    ignored: list[str]


class Class(NamedTuple):
    """What lies in a class folder.

    names_N: bytes (N,), image files, relative to the split. stamps_N2: int64 (N, 2), their size in bytes and the time
    of their last change. folders: all that were walked. num_ignored, ignored: files that are no images.
    """

    names_N: npt.NDArray[np.bytes_]
    stamps_N2: npt.NDArray[np.int64]
    folders: list[Folder]
    num_ignored: int
    ignored: list[str]


def _list(path: str, *, name: str) -> tuple[Folder, list[os.DirEntry[str]]]:
    """A folder and its entries, sorted by name."""
    now_ns = time.time_ns()
    try:
        mtime_ns = os.stat(path).st_mtime_ns  # before the listing: a change during it must show at the next start
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{path} cannot be listed ({explain(error)}); make it readable, or move it away.") from error
    return Folder(name, mtime_ns, len(found), mtime_ns < now_ns - SETTLED_AFTER_NS), found


def list_top(split: Path) -> Top:
    """The class folders of a split.

    Raises:
        ValueError: Fewer than two class folders, or the folder cannot be listed.
    """
    folder, entries = _list(str(split), name=".")
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = tuple(entry.name for entry in visible if _is_folder(entry))
    if len(names) < 2:
        raise ValueError(
            f"{split} has {len(names)} class folders ({', '.join(names) or 'none'}); a classifier needs at least two: "
            f"{split.name}/<class>/<image>."
        )
    return Top(split, folder, names, [entry.name for entry in visible if not _is_folder(entry)])


def list_class(split: Path, class_name: str) -> Class:
    """Image files below a class folder, sorted, and how many files are none, all named relative to the split."""
    start = os.path.realpath(split / class_name)
    # links are followed, but not to a folder walked already, nor up to one that holds this class and others
    walked = {start, *(str(parent) for parent in Path(start).parents)}
    names: list[bytes] = []
    stamps: list[tuple[int, int]] = []
    folders: list[Folder] = []
    ignored: list[str] = []
    pending = [class_name]
    while pending:
        name = pending.pop()
        folder, entries = _list(os.path.join(split, name), name=name)
        folders.append(folder)
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        inner = [entry for entry in visible if _is_folder(entry) and os.path.realpath(entry.path) not in walked]
        walked.update(os.path.realpath(entry.path) for entry in inner)
        pending += [os.path.join(name, entry.name) for entry in reversed(inner)]
        for entry in visible:
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not _is_folder(entry):
                names.append(os.fsencode(os.path.join(name, entry.name)))
                stamps.append(stamp(entry))
            elif not _is_folder(entry):
                ignored.append(os.path.join(name, entry.name))
    return Class(
        np.array(names, dtype=np.bytes_),
        np.array(stamps, dtype=np.int64).reshape(-1, 2),
        folders,
        len(ignored),
        ignored[:NUM_NAMED],
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example
        return False


def stamp(file: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Size in bytes and time of the last change of a regular file; of anything else zeros."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)
