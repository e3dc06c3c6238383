"""JPEG files on disk, and an image folder of links to them, for loaders that read such a one."""

import os
from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = (".jpg", ".jpeg")


def list_jpegs(folder: Path) -> list[Path]:
    """The JPEG files in a folder and the folders within, in order.

    Raises:
        ValueError: There are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(f"there are no files {' or '.join('*' + one for one in _SUFFIXES)} in {folder} or within it.")
    return paths


def link_as_image_folder(paths: Sequence[str | Path], root: Path) -> None:
    """Links the files, in turn, into two classes below `root`/train; a file may come several times."""
    for number, path in enumerate(paths):
        link = root / "train" / "ab"[number % 2] / f"{number:07}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, link)
        except OSError:  # on another disk
            link.symlink_to(Path(path).resolve())
