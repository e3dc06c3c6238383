"""Image folders: ROOT/train/<class>/..., optionally ROOT/val/ and ROOT/test/ with the same classes.

first start   ROOT -> list the folders (names, times) -> headers of all files (sizes, grey) -> Index -> FolderSource
                                                                                                 | saved
later starts  ROOT -> time of the last change of every folder: as in the index? -> yes: Index, mapped
                                   no: list the folders again; headers only of files that are new or have changed

What no start notices is a file edited in place, for that changes no folder's time: `rescan` looks at every file.

A folder changed within two seconds before it was listed is listed again at the next start: one more change may have
fallen into the same tick of the file system's clock (git's index knows the problem as "racily clean"). Files that
could not be read are tried again at every start.
"""

import hashlib
import os
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg
from tqdm import tqdm

from pipelines.decode import Header, decode_image, decode_jpeg, read_header
from pipelines.index import HEADER, UNREAD, WHOLE, Folder, Index, index_path, load_index, save_index
from pipelines.scratch import Scratch
from pipelines.source import Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
_NUM_NAMED = 5  # how many files or classes an error names before it only counts them
_SETTLED_AFTER_NS = 2 * 10**9  # the coarsest clock of a file system in use (FAT) ticks every two seconds
_MOST_THREADS = 64
_NUM_TIMED, _TIMED_S = 32, 0.2  # calls, and seconds, by which the number of threads is chosen
_CHUNK = 64  # items per task

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Image files of one split; the arrays may be mapped from an index file, read-only.

    names_N: bytes (N,), paths below `root`. num_bytes_N: int64 (N,), the sizes of the files.
    jpeg_orientation_N: uint8 (N,), see `pipelines.decode.Header`. edits_N: see `pipelines.index.Index`.
    """

    root: str
    class_names: tuple[str, ...]
    names_N: npt.NDArray[np.bytes_]
    labels_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    num_bytes_N: npt.NDArray[np.int64]
    jpeg_orientation_N: npt.NDArray[np.uint8]
    edits_N: npt.NDArray[np.uint32]
    is_grey: bool
    bad: Mapping[int, str] = field(default_factory=dict)
    known_fingerprint: str = ""  # the index has it, so that no start reads all arrays for it

    def describe(self, sample_id: int) -> str:
        """The path of the file."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names_N[sample_id])))

    def read_image(self, sample_id: int, *, channels: int, scratch: Scratch | None = None) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 (H, W, C), of the size that `sizes_N2` says; in `scratch`, if given, until its next use.

        Raises:
            ValueError: The file is gone, cannot be decoded, or is of another size than when it was indexed; the
                message gives the reason, not the path.
        """
        self._check_not_known_bad(sample_id)
        orientation = int(self.jpeg_orientation_N[sample_id])
        try:
            if orientation:
                encoded = self._read_jpeg_file(sample_id, scratch)
                pixels = decode_jpeg(encoded, channels=channels, orientation=orientation, scratch=scratch)
            else:
                with open(self.describe(sample_id), "rb") as file:
                    pixels = decode_image(file.read(), channels=channels)
        except ValueError:
            raise
        except Exception as error:  # whatever broken bytes bring about, memory that does not suffice among it
            raise ValueError(_reason(error)) from error
        self._check_size(sample_id, *pixels.shape[:2])
        return pixels

    def read_jpeg(self, sample_id: int, *, scratch: Scratch | None = None) -> memoryview | None:
        """The encoded bytes of a sample stored as an upright grey or RGB JPEG; None of every other.

        Raises:
            ValueError: The file is gone, is no JPEG any more, or one of another size; the message gives the reason,
                not the path.
        """
        self._check_not_known_bad(sample_id)
        if self.jpeg_orientation_N[sample_id] != 1:
            return None
        try:
            encoded = self._read_jpeg_file(sample_id, scratch)
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        except ValueError:
            raise
        except Exception as error:  # as above
            raise ValueError(_reason(error)) from error
        self._check_size(sample_id, height, width)
        return encoded

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
            bad={sample_id: self.bad[int(ids[sample_id])] for sample_id in bad},
            known_fingerprint="",
        )

    def fingerprint(self) -> str:
        """A hash of class names, relative paths, labels, image and file sizes, and edits; no file is read."""
        if self.known_fingerprint:
            return self.known_fingerprint
        digest = hashlib.sha256(repr((self.class_names, self.names_N.dtype.str)).encode())
        for array in (self.names_N, self.labels_N, self.sizes_N2, self.num_bytes_N, self.edits_N):
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _check_not_known_bad(self, sample_id: int) -> None:
        if sample_id in self.bad:
            raise ValueError(self.bad[sample_id])

    def _read_jpeg_file(self, sample_id: int, scratch: Scratch | None) -> memoryview:
        encoded = (scratch or Scratch()).read_file(self.describe(sample_id))
        if bytes(encoded[:2]) != b"\xff\xd8":
            raise ValueError("it was a JPEG when it was indexed, and is none now; use --data.rescan true")
        return encoded

    def _check_size(self, sample_id: int, height: int, width: int) -> None:
        indexed = tuple(self.sizes_N2[sample_id].tolist())
        if (height, width) != indexed:
            raise ValueError(
                f"it is {height} x {width} pixels (height x width), but was {indexed[0]} x {indexed[1]} when it was "
                "indexed; use --data.rescan true"
            )


class _Top(NamedTuple):
    """What lies directly in the folder of a split."""

    path: Path
    folder: Folder
    class_names: tuple[str, ...]
    ignored: list[str]


class _Class(NamedTuple):
    """What lies in a class folder.

    names_N: bytes (N,), image files, relative to the split. stamps_N2: int64 (N, 2), their size in bytes and the time
    of their last change. folders: all that were walked. num_ignored, ignored: files that are no images.
    """

    names_N: npt.NDArray[np.bytes_]
    stamps_N2: npt.NDArray[np.int64]
    folders: list[Folder]
    num_ignored: int
    ignored: list[str]


def scan_folder(
    root: str,
    *,
    show_progress: bool,
    cache: Path | None = None,
    rescan: bool = False,
    verify: bool = False,
    keep_bad: bool = False,
) -> dict[str, Source]:
    """The splits found under `root`: train, and val and test where they exist.

    Args:
        root: The folder that holds train/.
        show_progress: Whether to draw progress bars, and to say what was noticed.
        cache: The folder that keeps an index of each split, for later starts; None neither reads nor writes one.
        rescan: Look at every file, and read again those that have changed since they were indexed.
        verify: Decode every image once; what fails is bad. The index remembers it, per file.
        keep_bad: Files that cannot be read stay samples, listed in `Source.bad`; else they are an error.

    Raises:
        FileNotFoundError: `root` or its train/ does not exist; the message says what lies there instead.
        ValueError: A class without images, classes that differ between splits, files that are not images, a folder
            that cannot be listed, or a split under another name than val or test.
    """
    splits = [split for split in ("train", "val", "test") if (Path(root) / split).is_dir()]
    for name, meant in _OTHER_NAMES.items():
        if (Path(root) / name).is_dir() and meant not in splits:
            raise ValueError(f"{root} has a folder {name}/ but no {meant}/; rename it to {meant}/, or move it away.")
    if "train" not in splits:
        raise FileNotFoundError(_missing_train(Path(root)))
    tops = {split: _list_top(Path(root) / split) for split in splits}
    for split in splits[1:]:
        _check_same_classes(tops["train"].class_names, tops[split].class_names, split=split, root=root)
    sources: dict[str, Source] = {}
    kept = _Cache(cache, show_progress=show_progress)
    for split, top in tops.items():
        index = _index_split(top, cache=kept, rescan=rescan, verify=verify, show_progress=show_progress)
        source = _to_source(index, top.path)
        _check_bad(source, keep_bad=keep_bad)
        sources[split] = source
    return sources


def _missing_train(root: Path) -> str:
    if not root.exists():
        return f"data.root={root} does not exist (looked from {Path.cwd()}); give the folder that holds train/<class>/."
    if not root.is_dir():
        return f"data.root={root} is a file; give the folder that holds train/<class>/ (unpack an archive first)."
    there = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    shown = ", ".join(there[:_NUM_NAMED]) + (", ..." if len(there) > _NUM_NAMED else "") if there else "nothing"
    inner = [name for name in there if name.endswith("/") and (root / name / "train").is_dir()]
    advice = f"use --data.root {root / inner[0]}" if inner else "put the class folders into train/, as train/<class>/"
    return f"data.root={root} has no folder train/, but {shown}; {advice}."


def _check_same_classes(train: Sequence[str], other: Sequence[str], *, split: str, root: str) -> None:
    missing, unknown = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if not missing and not unknown:
        return
    lines = [f"  - {name} (in train/, not in {split}/)" for name in missing]
    lines += [f"  + {name} (in {split}/, not in train/)" for name in unknown]
    shown = lines[: 2 * _NUM_NAMED] + ([f"  ... {len(lines)} in all"] if len(lines) > 2 * _NUM_NAMED else [])
    raise ValueError(
        f"the classes of {root}/{split} are not those of train/:\n" + "\n".join(shown) + "\n"
        "Labels are numbered by class name, so all splits need the same class folders; rename, add or remove these."
    )


class _Cache:
    """The index files of one scan; where they cannot be written, that is said once.

    Args:
        folder: Where they lie; None keeps none.
        show_progress: Whether to say anything.
    """

    def __init__(self, folder: Path | None, *, show_progress: bool) -> None:
        self._folder = folder
        self._says = show_progress

    def load(self, split: Path) -> Index | None:
        """The index of a split, if a whole one is there."""
        return None if self._folder is None else load_index(index_path(self._folder, split), split=split)

    def save(self, index: Index, split: Path) -> None:
        """Keeps the index of a split, if that is wanted and possible."""
        if self._folder is None:
            return
        try:
            save_index(index, index_path(self._folder, split), split=split)
        except OSError as error:
            if self._says:
                print(
                    f"the index of {split} cannot be kept in {self._folder} ({_reason(error)}), so every start will "
                    "scan again; set EXACTVISION_CACHE to a folder that can be written."
                )
            self._says = False


def _index_split(top: _Top, *, cache: _Cache, rescan: bool, verify: bool, show_progress: bool) -> Index:
    """The kept index, where nothing has changed and nothing is left to read; else one that is brought up to date."""
    kept = cache.load(top.path)
    if kept is not None and not rescan and _is_current(kept, top):
        index = kept
    else:
        index = _list_files(top, kept, rescan=rescan, show_progress=show_progress)
    if index.num_ignored and show_progress:
        shown = ", ".join(index.ignored) + (", ..." if index.num_ignored > len(index.ignored) else "")
        print(f"{top.path}: {index.num_ignored} files are not used, being no images or in no class folder: {shown}")
    unread = _unread(index, top.path)
    if index is kept:
        if not unread and not (verify and (index.checked_N == HEADER).any()):
            return index
        index = kept.copy()
    try:
        _read_headers(index, unread, top.path, show_progress=show_progress)
        if verify:
            _read_whole(index, top.path, show_progress=show_progress)
    finally:  # after Ctrl-C too: the next start goes on where this one ends
        index = replace(index, fingerprint=_to_source(index, top.path).fingerprint())
        cache.save(index, top.path)
    return index


def _is_current(index: Index, top: _Top) -> bool:
    """Whether no folder has changed since it was listed, as far as its time tells."""

    def is_unchanged(folder: Folder) -> bool:
        try:
            return folder.settled and os.stat(top.path / folder.name).st_mtime_ns == folder.mtime_ns
        except OSError:
            return False

    return index.class_names == top.class_names and all(
        _map_waiting(is_unchanged, index.folders, title="checking folders", unit="folder", show_progress=False)
    )


def _list(path: str, *, name: str) -> tuple[Folder, list[os.DirEntry[str]]]:
    """A folder and its entries, sorted by name."""
    now_ns = time.time_ns()
    try:
        mtime_ns = os.stat(path).st_mtime_ns  # before the listing: a change during it must show at the next start
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{path} cannot be listed ({_reason(error)}); make it readable, or move it away.") from error
    return Folder(name, mtime_ns, len(found), mtime_ns < now_ns - _SETTLED_AFTER_NS), found


def _list_top(split: Path) -> _Top:
    folder, entries = _list(str(split), name=".")
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = tuple(entry.name for entry in visible if _is_folder(entry))
    if len(names) < 2:
        raise ValueError(
            f"{split} has {len(names)} class folders ({', '.join(names) or 'none'}); a classifier needs at least two: "
            f"{split.name}/<class>/<image>."
        )
    return _Top(split, folder, names, [entry.name for entry in visible if not _is_folder(entry)])


def _list_class(split: Path, class_name: str) -> _Class:
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
                stamps.append(_stamp(entry))
            elif not _is_folder(entry):
                ignored.append(os.path.join(name, entry.name))
    return _Class(
        np.array(names, dtype=np.bytes_),
        np.array(stamps, dtype=np.int64).reshape(-1, 2),
        folders,
        len(ignored),
        ignored[:_NUM_NAMED],
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example
        return False


def _stamp(file: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Size in bytes and time of the last change of a regular file; of anything else zeros."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)


def _list_files(top: _Top, kept: Index | None, *, rescan: bool, show_progress: bool) -> Index:
    """A new index: names, labels and times from the folders; what lies in the files only if `kept` has it."""
    classes = list(
        _map_waiting(
            lambda name: _list_class(top.path, name),
            top.class_names,
            title="listing folders",
            unit="folder",
            show_progress=show_progress,
        )
    )
    index = _join(top, classes)
    _check_no_class_is_empty(top.path, top.class_names, index.labels_N, of="images")
    if kept is not None:
        num_edited = index.reuse(kept, mark_edits=rescan)
        changes = index.folder_changes(kept)
        if changes and show_progress:
            print(f"{top.path}: {len(changes)} folders have changed since they were indexed: {_some(changes)}")
        if rescan and show_progress:
            print(f"{top.path}: {num_edited} files have been edited since they were indexed")
    return index


def _join(top: _Top, classes: list[_Class]) -> Index:
    """The index of all classes together, in which no file has been read."""
    counts = [len(found.names_N) for found in classes]
    labels_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    stamps_N2 = np.concatenate([found.stamps_N2 for found in classes])
    ignored = [name for found in classes for name in found.ignored] + top.ignored
    return Index(
        class_names=top.class_names,
        folders=(top.folder, *(folder for found in classes for folder in found.folders)),
        num_ignored=sum(found.num_ignored for found in classes) + len(top.ignored),
        ignored=tuple(ignored[:_NUM_NAMED]),
        bad={},
        fingerprint="",
        labels_N=labels_N,
        num_bytes_N=stamps_N2[:, 0].copy(),
        mtimes_ns_N=stamps_N2[:, 1].copy(),
        sizes_N2=np.zeros((len(labels_N), 2), dtype=np.int32),
        edits_N=np.zeros(len(labels_N), dtype=np.uint32),
        names_N=np.concatenate([found.names_N for found in classes]),
        jpeg_orientation_N=np.zeros(len(labels_N), dtype=np.uint8),
        grey_N=np.ones(len(labels_N), dtype=np.bool_),
        checked_N=np.full(len(labels_N), UNREAD, dtype=np.uint8),
    )


def _unread(index: Index, split: Path) -> list[int]:
    """The files whose headers are to be read: new and changed ones, and bad ones that have been repaired."""
    bad = sorted(index.bad)

    def is_repaired(sample_id: int) -> bool:
        path = split / os.fsdecode(bytes(index.names_N[sample_id]))
        if index.checked_N[sample_id] == WHOLE:
            return _stamp(path) != (index.num_bytes_N[sample_id], index.mtimes_ns_N[sample_id])
        return not isinstance(_look(str(path)), str)

    tried = _map_waiting(is_repaired, bad, title="looking at bad files", unit="file", show_progress=False)
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
        return "a link to a file that is not there" if is_link_to_nothing else _reason(error)


def _read_headers(index: Index, ids: list[int], split: Path, *, show_progress: bool) -> None:
    """Fills in the rows `ids`; those that cannot be read go into `index.bad`."""
    index.sizes_N2[ids], index.jpeg_orientation_N[ids], index.grey_N[ids], index.checked_N[ids] = 0, 0, True, UNREAD
    source = _to_source(index, split)

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

    reasons = _map_waiting(read, ids, title="reading headers", unit="file", show_progress=show_progress)
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


def _read_whole(index: Index, split: Path, *, show_progress: bool) -> None:
    """Decodes all images that never were; those that fail go into `index.bad`."""
    ids = np.setdiff1d(np.flatnonzero(index.checked_N == HEADER), sorted(index.bad)).astype(np.int64).tolist()
    source = replace(_to_source(index, split), bad={})
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

    reasons = _map_waiting(
        read, ids, title="checking images", unit="image", show_progress=show_progress, num_cores=_num_cores()
    )
    index.bad.update((i, reason) for i, reason in zip(ids, reasons, strict=True) if reason is not None)


def _may_pass(cause: BaseException | None) -> bool:
    """Whether the fault is the machine's, at this moment, and not the file's."""
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def _to_source(index: Index, split: Path) -> FolderSource:
    return FolderSource(
        root=str(split),
        class_names=index.class_names,
        names_N=index.names_N,
        labels_N=index.labels_N,
        sizes_N2=index.sizes_N2,
        num_bytes_N=index.num_bytes_N,
        jpeg_orientation_N=index.jpeg_orientation_N,
        edits_N=index.edits_N,
        is_grey=bool(index.grey_N.all()),
        bad=index.bad,
        known_fingerprint=index.fingerprint,
    )


def _check_no_class_is_empty(
    split: Path, class_names: Sequence[str], labels_N: npt.NDArray[np.int64], *, of: str
) -> None:
    counts = np.bincount(labels_N, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        raise ValueError(
            f"{split} has {len(empty)} class folders without {of}: {_some(empty)}; add images "
            f"({', '.join(IMAGE_SUFFIXES)}) or remove the folders."
        )


def _check_bad(source: FolderSource, *, keep_bad: bool) -> None:
    bad = sorted(source.bad)
    if bad and not keep_bad:
        lines = [f"{source.describe(sample_id)}: {source.bad[sample_id]}" for sample_id in bad[:_NUM_NAMED]]
        raise ValueError(
            f"{len(bad)} of {len(source.labels_N)} files cannot be read as images:\n  "
            + "\n  ".join(lines + ["..."] * (len(bad) > _NUM_NAMED))
            + "\nRemove or replace them."
        )
    if bad:
        readable = np.delete(source.labels_N, bad)
        _check_no_class_is_empty(Path(source.root), source.class_names, readable, of="readable images")


def _map_waiting(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    title: str,
    unit: str,
    show_progress: bool,
    num_cores: int = 1,
) -> Iterator[_Result]:
    """`function` of each item, in order, by as many threads as keep `num_cores` cores busy.

    Those are as many threads where files are at hand, and more where calls wait for a distant disk: the first calls
    are timed to know. What holds the GIL keeps one core busy, and more threads only wait for it (Pillow's headers: 42
    us each by one thread, 54 by two, 158 by sixteen; two cores, AMD EPYC, Python 3.11, 2026-11-20).
    """
    with tqdm(total=len(items), desc=title, unit=unit, disable=not show_progress or None) as bar:
        start_s, busy_s, num_done = time.perf_counter(), time.thread_time(), 0
        while num_done < min(len(items), _NUM_TIMED) and time.perf_counter() < start_s + _TIMED_S:
            yield function(items[num_done])
            num_done += 1
            bar.update()
        waiting = (time.perf_counter() - start_s) / max(time.thread_time() - busy_s, 1e-6)
        chunk = max(1, min(_CHUNK, (len(items) - num_done) // (4 * _MOST_THREADS)))

        def compute(start: int) -> list[_Result]:
            return [function(item) for item in items[start : start + chunk]]

        pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, max(num_cores, round(num_cores * waiting))))
        try:
            for results in pool.map(compute, range(num_done, len(items), chunk)):
                yield from results
                bar.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing else is begun


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(error: Exception) -> str:
    """What to tell of an error, without the path, which whoever shows it puts before it."""
    if isinstance(error.__cause__, OSError) and error.__cause__.strerror:
        return _reason(error.__cause__)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")
