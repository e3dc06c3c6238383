"""Image folders: ROOT/train/<class>/..., optionally ROOT/val/ and ROOT/test/ with the same classes.

ROOT -> scan of each split (names, labels) -> headers of all files (sizes, grey) -> FolderSource
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.decode import Header, decode_image, read_header
from pipelines.parallel import map_in_threads
from pipelines.source import Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}
_NUM_NAMED = 5  # how many files or classes an error names before it only counts them


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Image files of one split: `names_N` (bytes) are paths below `root`, `num_bytes_N` the sizes of the files."""

    root: str
    class_names: tuple[str, ...]
    names_N: npt.NDArray[np.bytes_]
    labels_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    num_bytes_N: npt.NDArray[np.int64]
    is_grey: bool

    def path(self, sample_id: int) -> str:
        """The path of one file."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names_N[sample_id])))

    def read_image(self, sample_id: int, *, channels: int) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 (H, W, C).

        Raises:
            ValueError: The file is gone or cannot be decoded; the message gives its path and the reason.
        """
        path = self.path(sample_id)
        try:
            with open(path, "rb") as file:
                return decode_image(file.read(), channels=channels)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def take(self, ids: npt.NDArray[np.int64]) -> "FolderSource":
        """The samples `ids`, numbered from 0."""
        return replace(
            self,
            names_N=self.names_N[ids],
            labels_N=self.labels_N[ids],
            sizes_N2=self.sizes_N2[ids],
            num_bytes_N=self.num_bytes_N[ids],
        )

    def fingerprint(self) -> str:
        """A hash of class names, relative paths, labels, image sizes and file sizes; the pixels are not read."""
        digest = hashlib.sha256(repr((self.class_names, self.names_N.dtype.str)).encode())
        for array in (self.names_N, self.labels_N, self.sizes_N2, self.num_bytes_N):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def scan_folder(root: str, *, show_progress: bool) -> dict[str, Source]:
    """The splits found under `root`: train, and val and test where they exist.

    Args:
        root: The folder that holds train/.
        show_progress: Whether to draw a progress bar.

    Raises:
        FileNotFoundError: `root` or its train/ does not exist; the message says what lies there instead.
        ValueError: A class without images, classes that differ between splits, files that are not images, or a split
            under another name than val or test.
    """
    splits = [split for split in ("train", "val", "test") if (Path(root) / split).is_dir()]
    for name, meant in _OTHER_NAMES.items():
        if (Path(root) / name).is_dir() and meant not in splits:
            raise ValueError(f"{root} has a folder {name}/ but no {meant}/; rename it to {meant}/, or move it away.")
    if "train" not in splits:
        raise FileNotFoundError(_missing_train(Path(root)))
    classes = {split: _class_names(Path(root) / split) for split in splits}
    for split in splits[1:]:
        _check_same_classes(classes["train"], classes[split], split=split, root=root)
    return {
        split: _scan_split(Path(root) / split, classes=classes[split], show_progress=show_progress) for split in splits
    }


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


def _class_names(split: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise ValueError(
            f"{split} has {len(names)} class folders ({', '.join(names) or 'none'}); a classifier needs at least two: "
            f"{split.name}/<class>/<image>."
        )
    return tuple(names)


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


def _scan_split(split: Path, *, classes: Sequence[str], show_progress: bool) -> FolderSource:
    names: list[bytes] = []
    counts: list[int] = []
    ignored: list[str] = []
    for name in classes:
        found, others = _image_names(split, class_name=name)
        names += found
        counts.append(len(found))
        ignored += others
    ignored += [entry.name for entry in os.scandir(split) if entry.is_file() and not entry.name.startswith(".")]
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise ValueError(
            f"{split} has {len(empty)} class folders without images: {_some(empty)}; add images "
            f"({', '.join(IMAGE_SUFFIXES)}) or remove the folders."
        )
    if ignored and show_progress:
        print(f"{split}: {len(ignored)} files are not used, being no images or in no class folder: {_some(ignored)}")
    paths = [os.path.join(split, os.fsdecode(name)) for name in names]
    headers = _read_headers(paths, show_progress=show_progress)
    return FolderSource(
        root=str(split),
        class_names=tuple(classes),
        names_N=np.array(names, dtype=np.bytes_),
        labels_N=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        sizes_N2=np.array([(header.height, header.width) for header in headers], dtype=np.int32),
        num_bytes_N=np.array([os.path.getsize(path) for path in paths], dtype=np.int64),
        is_grey=all(header.grey for header in headers),
    )


def _image_names(split: Path, *, class_name: str) -> tuple[list[bytes], list[str]]:
    """Image files below a class folder, sorted, and files that are none, all relative to the split."""
    images, others = [], []
    start = os.path.realpath(split / class_name)
    # links are followed, but not to a folder walked already, nor up to one that holds this class and others
    walked = {start, *(str(parent) for parent in Path(start).parents)}
    for folder, folders, files in os.walk(split / class_name, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if os.path.realpath(os.path.join(folder, name)) not in walked]
        walked.update(os.path.realpath(os.path.join(folder, name)) for name in folders)
        for file in sorted(name for name in files if not name.startswith(".")):
            name = os.path.relpath(os.path.join(folder, file), split)
            if file.lower().endswith(IMAGE_SUFFIXES):
                images.append(os.fsencode(name))
            else:
                others.append(name)
    return images, others


def _read_headers(paths: list[str], *, show_progress: bool) -> list[Header]:
    def header_or_error(path: str) -> Header | str:
        try:
            return read_header(path)
        except ValueError as error:
            return f"{path}: {error}"

    headers = list(
        map_in_threads(header_or_error, paths, title="reading headers", unit="file", show_progress=show_progress)
    )
    bad = [result for result in headers if isinstance(result, str)]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(paths)} files cannot be read as images:\n  "
            + "\n  ".join(bad[:_NUM_NAMED] + ["..."] * (len(bad) > _NUM_NAMED))
            + "\nRemove or replace them."
        )
    return [result for result in headers if isinstance(result, Header)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")
