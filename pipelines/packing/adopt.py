"""WebDataset shards that are there already -> a packed data set around them: links and an index, nothing rewritten.

folder -> find_shards -> members.py: samples -> workers: label and facts of each (examine.py)
   -> a link to each shard, its part of the index -> classes numbered -> DEST.packing becomes DEST (job.py)
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pipelines.packing.examine import Examined, Examiner
from pipelines.packing.in_order import map_in_order, telling_of_killed_workers
from pipelines.packing.job import hash_job, making
from pipelines.packing.members import Found, find_samples
from pipelines.packing.parts import Packed, Part, Refused, check_not_empty, load_parts, save_part, sum_up, write_whole
from pipelines.packing.shard import Place, Rows
from pipelines.sources.packed import DATASET_FILE, VERSION

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_CLASS_FILES = ("classnames.txt", "classes.txt", "labels.txt")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
_CHUNK = 8  # samples per task of a worker
_MOST_CLASSES = 100_000


class Adopting(NamedTuple):
    """Shards to be taken over.

    shards: of each split. class_names: those of a file beside them, None where there is none. decode: whether each
    image is decoded whole; else its header is believed, for somebody else will decode it.
    """

    shards: Mapping[str, Sequence[Path]]
    class_names: tuple[str, ...] | None
    decode: bool


def has_shards(root: Path) -> bool:
    """Whether a folder holds WebDataset shards, in itself or in a folder for each split.

    Class folders say that it does not: the tar files that images came in may lie beside them.
    """
    folders = [root / name for name in _SPLITS if (root / name).is_dir()]
    if any(path.is_dir() for folder in folders for path in folder.iterdir()):
        return False
    return any(map(_tars, [*folders, root]))


def find_shards(root: Path) -> dict[str, list[Path]]:
    """The shards of each split, in the order of their names.

    Raises:
        ValueError: A shard is compressed, it cannot be said to which split one belongs, or none is for training.
    """
    shards: dict[str, list[Path]] = {}
    for name, split in _SPLITS.items():
        shards.setdefault(split, []).extend(_tars(root / name))
    if not any(shards.values()):
        flat = _tars(root)
        splits = {path: _split_of(path) for path in flat}
        if all(split is None for split in splits.values()):
            splits = dict.fromkeys(flat, "train")
        for path, found in splits.items():
            if found is None:
                raise ValueError(
                    f"{path}: its name does not say whether it is for train, val or test, and those of others do; "
                    "rename it, or put the shards into folders train/, val/ and test/."
                )
            shards[found].append(path)
    for path in chain.from_iterable(shards.values()):
        if path.name.endswith(_COMPRESSED):
            raise ValueError(
                f"{path} is compressed, so that no sample in it can be reached without all before it; decompress the "
                "shards first (gunzip, zstd -d, bunzip2, unxz): images hardly get smaller by it."
            )
    if not shards["train"]:
        raise ValueError(
            f"{root} has no shards for training; put them into {root / 'train'}, or say train in their names."
        )
    return {split: paths for split, paths in shards.items() if paths}


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The class names in a file beside the shards, one per line; None where there is no such file.

    Raises:
        OSError: It cannot be read.
        ValueError: A line is empty, or a name stands there twice.
    """
    for path in (folder / name for folder in (root, root / "train") for name in _CLASS_FILES):
        if not path.is_file():
            continue
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
        for line, name in enumerate(names, start=1):
            if not name:
                raise ValueError(f"{path}, line {line} is empty; write one class name on each line.")
            if names.index(name) + 1 != line:
                raise ValueError(
                    f"{path} has {name!r} on lines {names.index(name) + 1} and {line}; give each class its own name."
                )
        return tuple(names)
    return None


def adopt(adopting: Adopting, dest: Path, *, num_workers: int, show_progress: bool) -> Packed:
    """Makes the folder `dest`, which must not exist: links to the shards, and the index of what is in them.

    Args:
        adopting: The shards.
        dest: The folder; it is made under the name `dest`.packing.
        num_workers: Processes that examine samples; 0 = this one.
        show_progress: Whether to draw progress bars.

    Raises:
        OSError: A shard cannot be read, or the folder cannot be written.
        ValueError: `dest` exists, a shard is not whole, no sample of a split can be used, or labels are no classes.
    """
    facts = _facts(adopting)
    with making(dest, facts) as work, telling_of_killed_workers():
        if not (work / DATASET_FILE).exists():
            parts = {
                split: _adopt_split(adopting, split, work, num_workers=num_workers, show_progress=show_progress)
                for split in adopting.shards
            }
            class_names, parts = _number_classes(parts, adopting.class_names)
            settings = {"mode": "keep", "job": hash_job(facts)}
            write_whole(parts, work, class_names=class_names, settings=settings, refused={})
    return sum_up(dest)


def is_adopted(adopting: Adopting, settings: Mapping[str, Any]) -> bool:
    """Whether a data set of those settings, as dataset.json has them, was made of these shards as they are now."""
    return bool(settings.get("job") == hash_job(_facts(adopting)))


def _facts(adopting: Adopting) -> dict[str, Any]:
    stats = {split: [(path, path.stat()) for path in paths] for split, paths in adopting.shards.items()}
    return {
        "version": VERSION,
        "adopt": {
            split: [(str(path.absolute()), stat.st_size, stat.st_mtime_ns) for path, stat in some]
            for split, some in stats.items()
        },
        "class_names": adopting.class_names,
        "decode": adopting.decode,
    }


def _tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith((".tar", *_COMPRESSED)) and path.is_file())


def _split_of(path: Path) -> str | None:
    found = {_SPLITS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def _adopt_split(adopting: Adopting, split: str, work: Path, *, num_workers: int, show_progress: bool) -> list[Part]:
    """All shards of a split; those that were examined already are not examined again."""
    paths, parts = adopting.shards[split], list(load_parts(work, split))
    links = _names_of_links(adopting.shards)
    examine = _Examine(Examiner(adopting.class_names, decode=adopting.decode))
    with tqdm(desc=f"reading {split}", unit="image", disable=not show_progress or None) as bar:
        collected: list[Examined | Refused] = []
        tasks = _tasks(paths, first=len(parts))
        for done in map_in_order(examine, tasks, num_workers=num_workers):
            collected += done.samples
            bar.update(len(done.samples))
            if done.sha256:
                path, number = paths[done.number], done.number
                _link(path, work / links[path])
                part = _part_of(collected, number=number, name=links[path], path=path, sha256=done.sha256)
                save_part(part, work, split, number=number)
                parts.append(part)
                collected = []
    check_not_empty(parts, split)
    return parts


class _Task(NamedTuple):
    """Some samples of a shard; the last task of each shard has its checksum made, too."""

    number: int
    path: str
    samples: list[Found]
    is_last: bool


class _Done(NamedTuple):
    number: int
    samples: list[Examined | Refused]
    sha256: str


def _tasks(paths: Sequence[Path], *, first: int) -> Iterator[_Task]:
    for number in range(first, len(paths)):
        samples = find_samples(paths[number])
        while chunk := list(islice(samples, _CHUNK)):
            yield _Task(number, str(paths[number]), chunk, is_last=False)
        yield _Task(number, str(paths[number]), [], is_last=True)


class _Examine:
    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner

    def __call__(self, task: _Task) -> _Done:
        samples = [self._examine(task.path, found) for found in task.samples]
        return _Done(task.number, samples, _digest(task.path) if task.is_last else "")

    def _examine(self, path: str, found: Found) -> Examined | Refused:
        try:
            return self._examiner.examine(path, found)
        except ValueError as error:
            return Refused(f"{path}: {found.key}", str(error))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part_of(samples: Sequence[Examined | Refused], *, number: int, name: str, path: Path, sha256: str) -> Part:
    """The index of one shard; labels count in the sorted list of those met in it."""
    good = [one for one in samples if isinstance(one, Examined)]
    labels = sorted({one.label for one in good})
    numbers = {label: place for place, label in enumerate(labels)}
    rows = Rows()
    for one in good:
        place = Place(number, one.span.start, one.span.num_bytes)
        rows.add(one.stored, place, label=numbers[one.label], name=os.fsencode(one.name))
    refused = [one for one in samples if isinstance(one, Refused)]
    # the shard is named also where all in it were refused: the numbers of those behind it stay
    return Part(rows.index(None), name, path.stat().st_size, sha256, 0, refused, labels)


def _names_of_links(shards: Mapping[str, Sequence[Path]]) -> dict[Path, str]:
    """File names of shards in one folder: their own, with the split before them where two would be the same."""
    paths = list(chain.from_iterable(shards.values()))
    if len({path.name for path in paths}) == len(paths):
        return {path: path.name for path in paths}
    names = {path: f"{split}-{path.parent.name}-{path.name}" for split, some in shards.items() for path in some}
    assert len(set(names.values())) == len(paths), "one split's shards lie in folders of different names"
    return names


def _link(path: Path, link: Path) -> None:
    """A second name of the same file; a pointer to it where it lies on another disk."""
    link.unlink(missing_ok=True)
    whole = path.resolve()
    try:
        os.link(whole, link)
    except OSError:
        os.symlink(whole, link)


def _number_classes(
    parts: Mapping[str, Sequence[Part]], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, list[Part]]]:
    """Class names, and the parts with labels that count in them.

    Raises:
        ValueError: Numbers are too large to be classes, or val or test has a name that train has not.
    """
    met = {split: {label for part in some for label in part.labels} for split, some in parts.items()}
    every = set().union(*met.values())
    class_names = given or _names_of(every)
    places = {name: place for place, name in enumerate(class_names)}
    if given is not None or all(label.isdecimal() for label in every):
        places = {label: int(label) for label in every}
    else:
        _check_train_has_all(met)
    return class_names, {split: [_renumbered(part, places) for part in some] for split, some in parts.items()}


def _names_of(labels: set[str]) -> tuple[str, ...]:
    """0, 1, ... up to the largest label, where all are numbers; else the labels, sorted."""
    if not all(label.isdecimal() for label in labels):
        return tuple(sorted(labels))
    most = max(map(int, labels))
    if most >= _MOST_CLASSES:
        raise ValueError(
            f"labels are numbers up to {most}, and class numbers are below {_MOST_CLASSES:,}; are they something else?"
        )
    return tuple(map(str, range(most + 1)))


def _check_train_has_all(met: Mapping[str, set[str]]) -> None:
    for split, labels in met.items():
        unknown = sorted(labels - met["train"])
        if unknown:
            raise ValueError(f"{split} has labels that train does not have: {', '.join(unknown[:5])}.")


def _renumbered(part: Part, places: Mapping[str, int]) -> Part:
    numbers = np.array([places[label] for label in part.labels], dtype=np.int64)
    labels_N = numbers[part.rows.labels_N] if len(part.rows.labels_N) else part.rows.labels_N
    return part._replace(rows=replace(part.rows, labels_N=labels_N))
