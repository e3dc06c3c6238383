"""Image folders: ROOT/train/<class>/..., optionally ROOT/val/ and ROOT/test/ with the same classes.

first start   ROOT -> list the folders (names, times) -> headers of all files (sizes, grey) -> Index -> FolderSource
                                                                                                 | saved
later starts  ROOT -> time of the last change of every folder: as in the index? -> yes: Index, mapped
                                   no: list the folders again; headers only of files that are new or have changed

What no start notices is a file edited in place, for that changes no folder's time: `rescan` looks at every file.

Folders that were changed just before they were listed are listed again (pipelines/sources/listing.py), and files that
could not be read are tried again at every start.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.parallel import map_in_threads
from pipelines.source import Source
from pipelines.sources.folder import FolderSource, source_of_index
from pipelines.sources.index import UNREAD, Index
from pipelines.sources.listing import IMAGE_SUFFIXES, NUM_NAMED, Class, Top, list_class, list_top
from pipelines.sources.upkeep import IndexCache, are_unchanged, complete_index, empty_classes, some

_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


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
    tops = {split: list_top(Path(root) / split) for split in splits}
    for split in splits[1:]:
        _check_same_classes(tops["train"].class_names, tops[split].class_names, split=split, root=root)
    sources: dict[str, Source] = {}
    kept = IndexCache(cache, show_progress=show_progress)
    for split, top in tops.items():
        index = _index_split(top, cache=kept, rescan=rescan, verify=verify, show_progress=show_progress)
        source = source_of_index(index, top.path)
        _check_bad(source, keep_bad=keep_bad)
        sources[split] = source
    return sources


def _missing_train(root: Path) -> str:
    if not root.exists():
        return f"data.root={root} does not exist (looked from {Path.cwd()}); give the folder that holds train/<class>/."
    if not root.is_dir():
        return f"data.root={root} is a file; give the folder that holds train/<class>/ (unpack an archive first)."
    there = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    shown = ", ".join(there[:NUM_NAMED]) + (", ..." if len(there) > NUM_NAMED else "") if there else "nothing"
    inner = [name for name in there if name.endswith("/") and (root / name / "train").is_dir()]
    advice = f"use --data.root {root / inner[0]}" if inner else "put the class folders into train/, as train/<class>/"
    return f"data.root={root} has no folder train/, but {shown}; {advice}."


def _check_same_classes(train: Sequence[str], other: Sequence[str], *, split: str, root: str) -> None:
    missing, unknown = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if not missing and not unknown:
        return
    lines = [f"  - {name} (in train/, not in {split}/)" for name in missing]
    lines += [f"  + {name} (in {split}/, not in train/)" for name in unknown]
    shown = lines[: 2 * NUM_NAMED] + ([f"  ... {len(lines)} in all"] if len(lines) > 2 * NUM_NAMED else [])
    raise ValueError(
        f"the classes of {root}/{split} are not those of train/:\n" + "\n".join(shown) + "\n"
        "Labels are numbered by class name, so all splits need the same class folders; rename, add or remove these."
    )


def _index_split(top: Top, *, cache: IndexCache, rescan: bool, verify: bool, show_progress: bool) -> Index:
    """The kept index, where nothing has changed and nothing is left to read; else one that is brought up to date."""
    kept = cache.load(top.path)
    if kept is not None and not rescan and _is_current(kept, top):
        index = kept
    else:
        index = _list_files(top, kept, rescan=rescan, show_progress=show_progress)
    if index.num_ignored and show_progress:
        shown = ", ".join(index.ignored) + (", ..." if index.num_ignored > len(index.ignored) else "")
        print(f"{top.path}: {index.num_ignored} files are not used, being no images or in no class folder: {shown}")
    return complete_index(
        index, top.path, key=top.path, cache=cache, is_kept=index is kept, verify=verify, show_progress=show_progress
    )


def _is_current(index: Index, top: Top) -> bool:
    return index.class_names == top.class_names and are_unchanged(index.folders, top.path)


def _list_files(top: Top, kept: Index | None, *, rescan: bool, show_progress: bool) -> Index:
    """A new index: names, labels and times from the folders; what lies in the files only if `kept` has it."""
    classes = list(
        map_in_threads(
            lambda name: list_class(top.path, name),
            top.class_names,
            title="listing folders",
            unit="folder",
            show_progress=show_progress,
            cores=1,
        )
    )
    index = _join(top, classes)
    _check_no_class_is_empty(top.path, top.class_names, index.labels_N, of="images")
    if kept is not None:
        num_edited = index.reuse(kept, mark_edits=rescan)
        changes = index.folder_changes(kept)
        if changes and show_progress:
            print(f"{top.path}: {len(changes)} folders have changed since they were indexed: {some(changes)}")
        if rescan and show_progress:
            print(f"{top.path}: {num_edited} files have been edited since they were indexed")
    return index


def _join(top: Top, classes: list[Class]) -> Index:
    """The index of all classes together, in which no file has been read."""
    counts = [len(found.names_N) for found in classes]
    labels_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    stamps_N2 = np.concatenate([found.stamps_N2 for found in classes])
    ignored = [name for found in classes for name in found.ignored] + top.ignored
    return Index(
        class_names=top.class_names,
        folders=(top.folder, *(folder for found in classes for folder in found.folders)),
        num_ignored=sum(found.num_ignored for found in classes) + len(top.ignored),
        ignored=tuple(ignored[:NUM_NAMED]),
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


def _check_no_class_is_empty(
    split: Path, class_names: Sequence[str], labels_N: npt.NDArray[np.int64], *, of: str
) -> None:
    empty = empty_classes(class_names, labels_N)
    if empty:
        raise ValueError(
            f"{split} has {len(empty)} class folders without {of}: {some(empty)}; add images "
            f"({', '.join(IMAGE_SUFFIXES)}) or remove the folders."
        )


def _check_bad(source: FolderSource, *, keep_bad: bool) -> None:
    bad = sorted(source.bad)
    if bad and not keep_bad:
        lines = [f"{source.describe(sample_id)}: {source.bad[sample_id]}" for sample_id in bad[:NUM_NAMED]]
        raise ValueError(
            f"{len(bad)} of {len(source.labels_N)} files cannot be read as images:\n  "
            + "\n  ".join(lines + ["..."] * (len(bad) > NUM_NAMED))
            + "\nRemove or replace them."
        )
    if bad:
        readable = np.delete(source.labels_N, bad)
        _check_no_class_is_empty(Path(source.root), source.class_names, readable, of="readable images")
