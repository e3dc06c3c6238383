"""Manifests: tables with a row per image, its path and its label; nothing has to be moved into class folders.

ROOT/train.csv (.tsv, .jsonl), optionally val and test likewise, or one file with a column `split`
    -> rows, checked line by line -> classes (sorted labels of train) -> files looked for, headers read (files.py)
    -> FolderSource per split, in the order of the rows
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from configs.nearest import nearest
from pipelines.source import WHAT_TO_DO, Source
from pipelines.sources.files import Files, index_files, locate
from pipelines.sources.folder import FolderSource
from pipelines.sources.listing import IMAGE_SUFFIXES, NUM_NAMED
from pipelines.sources.table import SUFFIXES, Column, read_header, read_rows
from pipelines.sources.upkeep import IndexCache, empty_classes, some

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
_MISNAMED = {"training": "train", "dev": "val", "testing": "test"}
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"([+-]?)0*([0-9]+)(\.0*)?")  # a whole one, however it is written
_PATH_OPTION, _LABEL_OPTION = "data.path_column", "data.label_column"


class Columns(NamedTuple):
    """The names of the columns. weight: None = the weights are not read."""

    path: str = "path"
    label: str = "label"
    weight: str | None = None


@dataclass(kw_only=True)
class _Rows:
    """The rows of one split, as they stand in the file."""

    file: Path
    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)


def read_manifest(
    root: str,
    *,
    image_root: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 (it cannot be changed)
    show_progress: bool,
    cache: Path | None = None,
    rescan: bool = False,
    verify: bool = False,
    keep_bad: Collection[str] = (),
) -> dict[str, Source]:
    """The splits that a manifest lists: train, and val and test where they exist.

    Args:
        root: The folder that holds train.csv, or one such file.
        image_root: The folder that paths start from; None = the manifest's own.
        columns: The names of the columns.
        show_progress: Whether to draw progress bars, and to say what was noticed.
        cache: The folder that keeps an index of each split, for later starts; None neither reads nor writes one.
        rescan: Look at every file, and read again those that have changed since they were indexed.
        verify: Decode every image once; what fails is bad.
        keep_bad: The splits whose unreadable files stay samples, listed in `Source.bad`; else they are an error.

    Raises:
        FileNotFoundError: There is no such file; the message says what is there instead.
        ValueError: A row or a column that cannot be used, labels that train does not have, files that are not there
            or are no images; each with file and line.
    """
    say = print if show_progress else _say_nothing
    splits = _read_splits(Path(root), columns, say=say)
    own = str(Path(root).parent) if Path(root).is_file() else root
    folder = own if image_root is None else image_root
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"data.image_root={folder} is no folder; paths of the images start from there.")
    train = splits["train"]
    class_names = _name_classes(train, say=say)
    for split, rows in splits.items():
        _check_labels(rows, class_names, split=split, train=train)
    _check_repeated(splits, folder=folder, say=say)
    kept = IndexCache(cache, show_progress=show_progress)
    sources: dict[str, Source] = {}
    for split, rows in splits.items():
        weights_N = _read_weights(rows, column=columns.weight) if split == "train" and columns.weight else None
        numbers = {name: number for number, name in enumerate(class_names)}
        base, names_N = locate(rows.paths, folder=folder)
        labels_N = np.array([numbers[label] for label in rows.labels], dtype=np.int64)
        source = index_files(
            Files(base, class_names, names_N, labels_N),
            key=_key(rows.file, split, base),
            cache=kept,
            rescan=rescan,
            verify=verify,
            show_progress=show_progress,
            on_missing=(lambda ids: None) if split in keep_bad else _refuse_missing(rows, columns, folder),
        )
        _check_bad(source, rows, split=split, keep=split in keep_bad)
        sources[split] = replace(source, weights_N=weights_N)
    return sources


def _say_nothing(text: str) -> None:
    pass


def _key(file: Path, split: str, base: str) -> Path:
    """What the index of a split is kept under: its table, and the folder that the names start from."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(base))).hexdigest()[:12]
    return Path(f"{os.path.realpath(file)}#{split}#{digest}")


# --- the files of the splits


def _read_splits(root: Path, columns: Columns, *, say: Callable[[str], None]) -> dict[str, _Rows]:
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise ValueError(
                f"data.root={root} ends in {root.suffix or 'nothing'}; a manifest ends in .csv, .tsv or .jsonl."
            )
        splits = _read_rows(root, columns, split=None, say=say)
    elif root.exists() and not root.is_dir():
        raise ValueError(
            f"data.root={root} is neither a folder nor a regular file; give a folder that holds train.csv "
            "(or .tsv, .jsonl), or such a file."
        )
    else:
        splits = {}
        for split, file in _find_tables(root).items():
            splits |= _read_rows(file, columns, split=split, say=say)
    if "train" not in splits:
        raise ValueError(f"{root} has no row of train, but of {', '.join(splits) or 'nothing'}; train on something.")
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _find_tables(root: Path) -> dict[str, Path]:
    if not root.exists():
        raise FileNotFoundError(
            f"data.root={root} does not exist (looked from {Path.cwd()}); give a folder that holds train.csv (or .tsv, "
            ".jsonl), or such a file."
        )
    tables: dict[str, Path] = {}
    others = []
    for file in sorted(path for path in root.iterdir() if path.suffix in SUFFIXES and path.is_file()):
        split = _SPLITS.get(file.stem)
        if file.stem in _MISNAMED:
            meant = _MISNAMED[file.stem]
            raise ValueError(f"{file} is called {file.stem}; rename it to {meant}{file.suffix}, or move it away.")
        if split in tables:
            raise ValueError(f"{root} has both {tables[split].name} and {file.name} for {split}; move one away.")
        if split is None:
            others.append(file)
        else:
            tables[split] = file
    if "train" not in tables:
        there = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
        advice = f"use --data.root {others[0]}" if others else "write a table of paths and labels"
        raise FileNotFoundError(
            f"data.root={root} has no train.csv, train.tsv or train.jsonl, but {some(there) or 'nothing'}; {advice}."
        )
    return tables


# --- rows


def _read_rows(file: Path, columns: Columns, *, split: str | None, say: Callable[[str], None]) -> dict[str, _Rows]:
    """The rows of a file by split: all of one, or, if that is None, as the column `split` has it."""
    wanted = _choose_columns(file, columns, split=split, say=say)
    reads_weights, reads_splits = wanted[-1].name == columns.weight, len(wanted) > 2 and wanted[2].name == "split"
    splits: dict[str, _Rows] = {}
    faults = _Faults(file)
    for line, values in read_rows(file, wanted):
        path, label = values[:2]
        own = _split_of(values[2], file, line, of=split) if reads_splits else split or "train"
        if not path:
            faults.add(f"no {columns.path}", line)
        if not label:
            faults.add(f"no {columns.label}", line)
        if "\0" in path:
            faults.add(f"a {columns.path} with a zero byte", line)
        rows = splits.setdefault(own, _Rows(file=file))
        rows.lines.append(line)
        rows.paths.append(path)
        rows.labels.append(label)
        if reads_weights:
            rows.weights.append(values[-1])
    faults.refuse("write one into each, or remove the rows")
    if not splits:
        raise ValueError(f"{file} has no rows; write one per image, or move the file away.")
    return splits


def _choose_columns(file: Path, columns: Columns, *, split: str | None, say: Callable[[str], None]) -> list[Column]:
    """Path, label; the split, where the file has it; the weight, where it is read."""
    names = read_header(file)
    if columns.path == columns.label:
        raise ValueError(
            f"{_PATH_OPTION} and {_LABEL_OPTION} are both {columns.path!r}; name two of the columns of {file}: "
            f"{', '.join(names)}."
        )
    wanted = [Column(columns.path, _PATH_OPTION), Column(columns.label, _LABEL_OPTION)]
    if "split" in names and "split" not in columns:
        wanted.append(Column("split", ""))
    elif split is None and (alike := [name for name in names if name.lower() == "split" and name not in columns]):
        raise ValueError(f"{file}, line 1: only a column 'split' makes splits, and there is {alike[0]!r}; rename it.")
    if split not in (None, "train"):
        return wanted
    if columns.weight is None:
        if "weight" in names:
            say(f"{file}: the column 'weight' is not read; --data.sampling weighted would read it")
        return wanted
    if columns.weight not in names:
        raise ValueError(
            f"{file}, line 1: data.sampling=weighted reads a column {columns.weight!r}, but there are "
            f"{', '.join(names)}; add it, or use --data.sampling balanced."
        )
    return [*wanted, Column(columns.weight, "")]


def _split_of(value: str, file: Path, line: int, *, of: str | None) -> str:
    """The split that a row belongs to; `of` is the one that the whole file is for, if it is for one."""
    if value.lower() not in _SPLITS:
        raise ValueError(
            f"{file}, line {line}: split is {value!r}; {nearest(value.lower(), list(_SPLITS))} (validation and valid "
            "are val)."
        )
    split = _SPLITS[value.lower()]
    if of not in (None, split):
        raise ValueError(
            f"{file}, line {line}: split is {value!r} in a file of {of}; a column split is read of a single file: use "
            f"--data.root {file}, or drop the column."
        )
    return split


class _Faults:
    """What is wrong with the rows of a file: by kind, the lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[str, list[int]] = {}

    def add(self, kind: str, line: int) -> None:
        self._lines.setdefault(kind, []).append(line)

    def refuse(self, what_to_do: str) -> None:
        """Raises a ValueError if there are any."""
        if self._lines:
            texts = [f"{kind} in {_lines(lines)}" for kind, lines in self._lines.items()]
            raise ValueError(f"{self._file}: {'; '.join(texts)}; {what_to_do}.")


def _lines(lines: Sequence[int]) -> str:
    """`line 4`, or `lines 4, 9, ... (17 in all)`."""
    if len(lines) == 1:
        return f"line {lines[0]}"
    shown = ", ".join(str(line) for line in lines[:NUM_NAMED])
    return f"lines {shown}" + (f", ... ({len(lines)} in all)" if len(lines) > NUM_NAMED else "")


def _read_weights(rows: _Rows, *, column: str) -> npt.NDArray[np.float64]:
    weights, faults = [], _Faults(rows.file)
    for line, text in zip(rows.lines, rows.weights, strict=True):
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            faults.add(f"{column} {text!r}", line)
        weights.append(weight)
    faults.refuse("a weight is a number of at least 0")
    if not any(weights):
        raise ValueError(f"{rows.file}: all weights of train are 0; give at least one image a {column} above 0.")
    return np.array(weights, dtype=np.float64)


# --- labels


def _name_classes(train: _Rows, *, say: Callable[[str], None]) -> tuple[str, ...]:
    """The labels of train, sorted; by number if all are integers."""
    labels = set(train.labels)
    _say_which_are_alike(labels, file=train.file, say=say)
    if len(labels) < 2:
        raise ValueError(
            f"{train.file}: all {len(train.labels)} rows of train have the label {train.labels[0]!r}; a classifier "
            "needs at least two."
        )
    if not all(_INTEGER.fullmatch(label) for label in labels):
        return tuple(sorted(labels))
    names = tuple(sorted(labels, key=lambda label: (int(label), label)))
    if names != tuple(str(number) for number in range(len(names))):
        gaps = "" if int(names[-1]) - int(names[0]) == len(names) - 1 else f" with gaps ({len(names)} of them)"
        odd = next(place for place, name in enumerate(names) if name != str(place))
        say(
            f"{train.file}: labels are the integers {names[0]} to {names[-1]}{gaps}, taken as names: the network's "
            f"class {odd} is {names[odd]!r}"
        )
    return names


def _say_which_are_alike(labels: Collection[str], *, file: Path, say: Callable[[str], None]) -> None:
    """Warns of labels such as `Cat` and `cat`, `01` and `1`, `1.0` and `1`: they are classes of their own."""
    first: dict[str, str] = {}
    for label in sorted(labels):
        number = _NUMBER.fullmatch(label)
        plain = number[1].replace("+", "") + number[2] if number else " ".join(label.split()).casefold()
        before = first.setdefault(plain, label)
        if before != label:
            say(
                f"warning: {file}: the labels {before!r} and {label!r} are two classes; if they are one, write it "
                "one way"
            )


def _check_labels(rows: _Rows, class_names: Collection[str], *, split: str, train: _Rows) -> None:
    known = set(class_names)
    first: dict[str, int] = {}
    for line, label in zip(rows.lines, rows.labels, strict=True):
        if label not in known:
            first.setdefault(label, line)
    if first:
        lines = [f"  + {label} ({rows.file}, line {line})" for label, line in sorted(first.items())]
        shown = lines[: 2 * NUM_NAMED] + [f"  ... {len(lines)} in all"] * (len(lines) > 2 * NUM_NAMED)
        raise ValueError(
            f"{split} has labels that train ({train.file}) does not have:\n" + "\n".join(shown) + "\n"
            "The network knows the labels of train alone; correct or remove these rows, or add such to train."
        )


def _check_repeated(splits: Mapping[str, _Rows], *, folder: str, say: Callable[[str], None]) -> None:
    """No file twice in a split; a file of train that is in val or test too is said."""
    places: dict[str, dict[str, int]] = {}
    base = os.path.abspath(folder).rstrip("/")
    for split, rows in splits.items():
        seen = places[split] = {}
        for row, path in enumerate(rows.paths):
            # most paths need no normpath, which takes five times as long as all else here
            is_plain = path[0] not in "/." and "//" not in path and "/." not in path
            whole = f"{base}/{path}" if is_plain else os.path.normpath(os.path.join(base, path))
            before = seen.setdefault(whole, row)
            if before != row:
                one, two = rows.labels[before], rows.labels[row]
                label = f"both with the label {one!r}" if one == two else f"with the labels {one!r} and {two!r}"
                raise ValueError(
                    f"{rows.file}, lines {rows.lines[before]} and {rows.lines[row]}: {path} is listed twice, {label}; "
                    "remove one (to meet an image more often: --data.sampling weighted)."
                )
    for split in places:
        shared = [path for path in places[split] if split != "train" and path in places["train"]]
        if shared:
            say(
                f"warning: {len(shared)} of the {len(places[split])} images of {split} are in train too, so its score "
                f"says less than it seems; for example {shared[0]}"
            )


# --- files that are not there, or are no images


def _refuse_missing(rows: _Rows, columns: Columns, folder: str) -> Callable[[list[int]], None]:
    def refuse(ids: list[int]) -> None:
        if not ids:
            return
        paths = [os.path.join(folder, rows.paths[i]) for i in ids[:NUM_NAMED]]
        named = [
            f"  {rows.file}, line {rows.lines[i]}: {path}" + " (a folder)" * os.path.isdir(path)
            for i, path in zip(ids, paths, strict=False)
        ]
        raise ValueError(
            f"{len(ids)} of the {len(rows.paths)} images of {rows.file} are not there:\n"
            + "\n".join(named + ["  ..."] * (len(ids) > NUM_NAMED))
            + f"\n{_advise(rows.paths[ids[0]], columns=columns, folder=folder)}"
        )

    return refuse


def _advise(path: str, *, columns: Columns, folder: str) -> str:
    """What to do about a path that leads nowhere, by what lies near."""
    if "\\" in path and os.path.isfile(os.path.join(folder, path.replace("\\", "/"))):
        return f"There is {path.replace(chr(92), '/')}: write / instead of \\ into the column {columns.path}."
    for suffix in IMAGE_SUFFIXES:
        if os.path.isfile(os.path.join(folder, path + suffix)):
            return f"There is {path}{suffix}: write the ending into the column {columns.path}."
    inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if not os.path.isabs(path) else []
    for name in inner:
        for suffix in ("", *IMAGE_SUFFIXES):
            if os.path.isfile(os.path.join(folder, name, path + suffix)):
                ending = f", and write the ending {suffix} into the column {columns.path}" if suffix else ""
                return f"There is {name}/{path}{suffix}: use --data.image_root {os.path.join(folder, name)}{ending}."
    return (
        f"Paths start from {os.path.abspath(folder)}: set --data.image_root DIR if that is wrong; else correct the "
        "paths, or remove the rows; or go on without them: --data.on_bad_sample replace (train), "
        "--data.on_bad_eval_sample exclude (val, test)."
    )


def _check_bad(source: FolderSource, rows: _Rows, *, split: str, keep: bool) -> None:
    bad = sorted(source.bad)
    if bad and not keep:
        named = [f"  {rows.file}, line {rows.lines[i]}: {source.describe(i)}: {source.bad[i]}" for i in bad[:NUM_NAMED]]
        raise ValueError(
            f"{len(bad)} of the {len(rows.paths)} images of {rows.file} cannot be read:\n"
            + "\n".join(named + ["  ..."] * (len(bad) > NUM_NAMED))
            + f"\n{WHAT_TO_DO}"
        )
    if bad and split == "train":
        empty = empty_classes(source.class_names, np.delete(source.labels_N, bad))
        if empty:
            raise ValueError(
                f"{rows.file}: {len(empty)} labels have no image that can be read: {some(empty)}; repair the images, "
                "or remove these rows."
            )
