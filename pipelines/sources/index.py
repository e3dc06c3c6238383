"""The index of one split: what a scan found out, in one file that every later start maps instead of scanning again.

scan -> Index -> save_index -> CACHE/<hash of the split's path>.index -> load_index -> Index (arrays mapped, not read)

The file is that of pipelines/sources/blocks.py: mapped, never changed, only replaced by a new one. Across machines that
share a cache over NFS, replacing it (changed data, --data.rescan) can end a running job on another machine, so give
each its own by EXACTVISION_CACHE.

Legend of shape letters: N files.
"""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.sources.blocks import load_blocks, save_blocks

_VERSION = 1
_ARRAYS = (  # in the order of the blocks: the wide ones first, so that each starts at a multiple of its item's size
    "labels_N",
    "num_bytes_N",
    "mtimes_ns_N",
    "sizes_N2",
    "edits_N",
    "names_N",
    "jpeg_orientation_N",
    "grey_N",
    "checked_N",
)
_ARRAYS_READ = ("sizes_N2", "edits_N", "jpeg_orientation_N", "grey_N", "checked_N")  # known only from the files

# Index.checked_N: how much of a file has been read
UNREAD, HEADER, WHOLE = 0, 1, 2


class Folder(NamedTuple):
    """A folder as it was when it was listed.

    name: its path below the split; "." is the split itself. mtime_ns: when entries were last added, removed or renamed.
    num_entries: how many there were. settled: the last change was so long before that another one would show in mtime.
    """

    name: str
    mtime_ns: int
    num_entries: int
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Index:
    """What is known of the image files of one split, in the order of the sample ids.

    class_names: one per label.
    folders: every folder that was walked.
    num_ignored, ignored: how many files are not used, and the names of the first few.
    bad: the files that cannot be read, and why.
    fingerprint: that of the whole split.
    labels_N: int64 (N,).
    num_bytes_N, mtimes_ns_N: int64 (N,), size and time of the last change of each file when it was read.
    sizes_N2: int32 (N, 2), height and width in pixels; 0, 0 where the header cannot be read.
    edits_N: uint32 (N,), 0, or the CRC-32 of a file that was edited in place after it had been indexed.
    names_N: fixed-width bytes (N,), paths below the split.
    jpeg_orientation_N: uint8 (N,), see `pipelines.decode.Header`.
    grey_N: bool (N,), True also where the header cannot be read.
    checked_N: uint8 (N,), how much of the file has been read: UNREAD, its HEADER, or the WHOLE file, decoded.
    """

    class_names: tuple[str, ...]
    folders: tuple[Folder, ...]
    num_ignored: int
    ignored: tuple[str, ...]
    bad: dict[int, str]
    fingerprint: str
    labels_N: npt.NDArray[np.int64]
    num_bytes_N: npt.NDArray[np.int64]
    mtimes_ns_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    edits_N: npt.NDArray[np.uint32]
    names_N: npt.NDArray[np.bytes_]
    jpeg_orientation_N: npt.NDArray[np.uint8]
    grey_N: npt.NDArray[np.bool_]
    checked_N: npt.NDArray[np.uint8]

    def copy(self) -> "Index":
        """The same in memory, to be written to; its fingerprint is open again."""
        arrays: dict[str, Any] = {name: np.array(getattr(self, name)) for name in _ARRAYS}
        return dataclasses.replace(self, bad=dict(self.bad), fingerprint="", **arrays)

    def equals(self, other: "Index") -> bool:
        """Whether both know the same, of the same files."""
        mine, others = vars(self), vars(other)
        return all(
            np.array_equal(mine[name], others[name]) if name in _ARRAYS else mine[name] == others[name] for name in mine
        )

    def reuse(self, kept: "Index", *, mark_edits: bool) -> int:
        """Fills in what an older index knows of files whose name, size and time are still the same.

        Args:
            kept: The older index.
            mark_edits: Whether a file under its old name that has changed is to count as edited.

        Returns:
            How many files under their old names have changed.
        """
        places_N = _find(self.names_N, among_M=kept.names_N)
        is_known_N = places_N >= 0
        is_same_N = self.num_bytes_N == kept.num_bytes_N[places_N]
        is_same_N &= self.mtimes_ns_N == kept.mtimes_ns_N[places_N]
        same, edited = np.flatnonzero(is_known_N & is_same_N), np.flatnonzero(is_known_N & ~is_same_N)
        for name in _ARRAYS_READ:
            getattr(self, name)[same] = getattr(kept, name)[places_N[same]]
        # whatever is not 0 stands for "to be computed" until the file is read
        self.edits_N[edited] = 1 if mark_edits else kept.edits_N[places_N[edited]]
        was_bad = same[np.isin(places_N[same], list(kept.bad)) & (self.checked_N[same] != UNREAD)]
        self.bad.update((int(sample_id), kept.bad[int(places_N[sample_id])]) for sample_id in was_bad)
        return len(edited)

    def folder_changes(self, kept: "Index") -> list[str]:
        """A phrase for each folder that is not as it was in an older index."""
        before, now = ({folder.name: folder for folder in index.folders} for index in (kept, self))
        both = [(before[name], now[name]) for name in now if name in before]
        return (
            [
                f"{new.name} ({old.num_entries} entries, now {new.num_entries})"
                for old, new in both
                if old[:3] != new[:3]
            ]
            + [f"{name} (new)" for name in now if name not in before]
            + [f"{name} (gone)" for name in before if name not in now]
        )


def default_cache() -> Path:
    """Where indexes are kept: $EXACTVISION_CACHE, else $XDG_CACHE_HOME/exactvision, else ~/.cache/exactvision."""
    if own := os.environ.get("EXACTVISION_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "exactvision"
    try:
        return Path.home() / ".cache" / "exactvision"
    except RuntimeError:  # no home: a folder that cannot be written, which the scan says
        return Path("/nonexistent")


def index_path(cache: Path, split: Path) -> Path:
    """The index file of a split: links lead to the same one, another place on disk to another one."""
    return cache / f"{hashlib.sha256(os.fsencode(os.path.realpath(split))).hexdigest()[:32]}.index"


def save_index(index: Index, path: Path, *, split: Path) -> None:
    """Writes the file whole or not at all; of several processes that write at once one wins.

    Raises:
        OSError: The folder of `path` cannot be made or written.
    """
    meta = {
        "version": _VERSION,
        "split": os.path.realpath(split),
        "class_names": index.class_names,
        "folders": index.folders,
        "num_ignored": index.num_ignored,
        "ignored": index.ignored,
        "bad": dict(sorted(index.bad.items())),
        "fingerprint": index.fingerprint,
    }
    save_blocks(path, meta=meta, arrays=[getattr(index, name) for name in _ARRAYS])


def load_index(path: Path, *, split: Path) -> Index | None:
    """The index that `save_index` wrote, its arrays mapped read-only; None of a file that is not there or not whole.

    Whether the split has changed since is not looked at.
    """
    try:
        meta, mapped = load_blocks(path)
        if (meta["version"], meta["split"]) != (_VERSION, os.path.realpath(split)):
            return None
        arrays: dict[str, Any] = dict(zip(_ARRAYS, mapped, strict=True))
        return Index(
            class_names=tuple(meta["class_names"]),
            folders=tuple(Folder(*folder) for folder in meta["folders"]),
            num_ignored=meta["num_ignored"],
            ignored=tuple(meta["ignored"]),
            bad={int(sample_id): reason for sample_id, reason in meta["bad"].items()},
            fingerprint=meta["fingerprint"],
            **arrays,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # of another version, or no index at all: the scan makes a new one
        return None


def _find(names_N: npt.NDArray[np.bytes_], *, among_M: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """Where each name is in the other array, int64 (N,); -1 where it is not."""
    order_M = np.argsort(among_M, kind="stable")
    places_N = np.searchsorted(among_M, names_N, sorter=order_M)
    places_N = order_M[np.minimum(places_N, len(among_M) - 1)]
    return np.where(among_M[places_N] == names_N, places_N, -1)
