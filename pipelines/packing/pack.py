"""Splits of any source -> a packed data set (pipelines/sources/packed.py), the same to the byte however it is made.

ids in order -> workers: store (stored.py) -> in order -> a shard, SPLIT-00000.tar -> on disk -> its part of the index
all shards of all splits -> SPLIT.index, refused.jsonl, dataset.json -> DEST.packing becomes DEST

Killed and called again, it goes on behind the last shard whose part of the index is on disk. DEST is there when, and
only when, all of it is.

Legend of shape letters: N samples of a split, M samples of a shard.
"""

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipelines.packing.stored import Settings, Stored, name_of, store
from pipelines.packing.tar import finish, num_bytes_of_member, write_member
from pipelines.source import Source
from pipelines.sources.blocks import load_blocks, save_blocks
from pipelines.sources.packed import DATASET_FILE, VERSION, PackedSet, ShardFacts, load_dataset, write_dataset
from pipelines.sources.packed_index import (
    PACKED_ARRAYS,
    PackedIndex,
    index_of_rows,
    join_indexes,
    load_packed_index,
    save_packed_index,
)

REFUSED_FILE = "refused.jsonl"
_JOB_FILE = "job.json"
_CHUNK = 8  # samples per task of a worker


class Packing(NamedTuple):
    """What is to be packed, and how.

    splits: the samples. root: what their names start with, and what is left out of them. shard_bytes: a shard is full
    before it would be longer.
    """

    splits: Mapping[str, Source]
    root: str | None
    settings: Settings
    shard_bytes: int


class Packed(NamedTuple):
    """What was packed: samples, and bytes of all shards, by split; how many samples were refused."""

    num_samples: dict[str, int]
    num_bytes: dict[str, int]
    num_refused: int


class _Refused(NamedTuple):
    reason: str


class _Part(NamedTuple):
    """A finished shard: its rows of the index, and which samples came next and which were refused.

    name: of the shard; empty where all samples were refused.
    """

    rows: PackedIndex
    name: str
    num_bytes: int
    sha256: str
    next_id: int
    refused: list[tuple[str, str]]


def pack(packing: Packing, dest: Path, *, num_workers: int, show_progress: bool) -> Packed:
    """Packs all splits into the folder `dest`, which must not exist; goes on where an earlier call was stopped.

    Args:
        packing: What, and how.
        dest: The folder; it is made under the name `dest`.packing.
        num_workers: Processes that decode and encode; 0 = this one.
        show_progress: Whether to draw progress bars.

    Raises:
        OSError: The folder cannot be written.
        ValueError: `dest` exists, another call is at work, or an earlier one was about something else.
    """
    check_dest(dest)
    work = dest.with_name(f"{dest.name}.packing")
    work.mkdir(parents=True, exist_ok=True)
    with open(work / _JOB_FILE, "a+") as job:
        _claim(job, packing, work)
        if not (work / DATASET_FILE).exists():
            parts = {
                split: _pack_split(packing, split, work, num_workers=num_workers, show_progress=show_progress)
                for split in packing.splits
            }
            _write_whole(packing, parts, work)
        for path in [*work.glob("*.part"), work / _JOB_FILE]:
            path.unlink()
        _sync_folder(work)
        os.rename(work, dest)
        _sync_folder(dest.parent)
    return _sum_up(dest)


def check_dest(dest: Path) -> None:
    """Checks that there is nothing yet where a data set is to be made.

    Raises:
        ValueError: There is.
    """
    if (dest / DATASET_FILE).exists():
        raise ValueError(f"{dest} is a packed data set already; name another folder, or remove it.")
    if dest.exists() or dest.is_symlink():
        raise ValueError(f"{dest} exists; name a folder that does not.")


def _claim(job: Any, packing: Packing, work: Path) -> None:
    """Makes sure that nobody else works here, and that what an earlier call left is about the same."""
    try:
        fcntl.flock(job, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"{work} is being written by another program; wait for it, or stop it.") from error
    wanted = json.dumps(
        {
            "version": VERSION,
            "settings": asdict(packing.settings),
            "shard_bytes": packing.shard_bytes,
            "splits": {split: source.fingerprint() for split, source in packing.splits.items()},
        }
    )
    job.seek(0)
    found = job.read()
    if not found:
        job.write(wanted)
        job.flush()
        os.fsync(job.fileno())
    elif found != wanted:
        raise ValueError(
            f"{work} was begun with other settings, or from data that was different then; give the same again, or "
            "remove that folder."
        )


def _pack_split(packing: Packing, split: str, work: Path, *, num_workers: int, show_progress: bool) -> list[_Part]:
    """All shards of a split; those that are there already are not made again."""
    source, parts = packing.splits[split], list(_finished_parts(work, split))
    first_id, num_samples = parts[-1].next_id if parts else 0, len(source.labels_N)
    if first_id < num_samples:
        shard = _Shard(work, split, number=len(parts), source=source)
        with tqdm(
            total=num_samples,
            initial=first_id,
            desc=f"packing {split}",
            unit="image",
            disable=not show_progress or None,
        ) as bar:
            stored = _store_all(source, packing.settings, range(first_id, num_samples), num_workers=num_workers)
            for sample_id, one in enumerate(stored, start=first_id):
                name = name_of(source, sample_id, packing.root)
                if isinstance(one, _Refused):
                    shard.refused.append((os.fsdecode(name), one.reason))
                else:
                    if shard.num_bytes_with(one) > packing.shard_bytes and shard.num_samples:
                        parts.append(shard.close(next_id=sample_id))
                        shard = _Shard(work, split, number=len(parts), source=source)
                    shard.add(sample_id, one, name)
                bar.update()
        parts.append(shard.close(next_id=num_samples))
    if not any(len(part.rows.labels_N) for part in parts):
        reasons = "".join(f"\n  {name}: {reason}" for part in parts for name, reason in part.refused[:3])
        raise ValueError(f"none of the {num_samples} images of {split} could be packed:{reasons}")
    return parts


class _Stores(Dataset[list[Stored | _Refused]]):
    def __init__(self, source: Source, settings: Settings) -> None:
        self._source, self._settings = source, settings

    def __getitem__(self, ids: Sequence[int]) -> list[Stored | _Refused]:
        return [self._store(sample_id) for sample_id in ids]

    def _store(self, sample_id: int) -> Stored | _Refused:
        try:
            return store(self._source, sample_id, self._settings)
        except ValueError as error:
            return _Refused(str(error))


def _store_all(source: Source, settings: Settings, ids: range, *, num_workers: int) -> Iterator[Stored | _Refused]:
    """Every sample, in order, by worker processes."""
    chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
    loader = DataLoader(
        _Stores(source, settings),
        batch_size=None,
        sampler=chunks,
        num_workers=num_workers,
        collate_fn=_identity,
        generator=torch.Generator(),
    )
    for chunk in loader:
        yield from chunk


def _identity(stored: Any) -> Any:
    return stored


class _Shard:
    """A shard while it is written, and its part of the index."""

    def __init__(self, work: Path, split: str, *, number: int, source: Source) -> None:
        self.refused: list[tuple[str, str]] = []
        self._path = work / f"{split}-{number:05}.tar"
        self._number, self._source = number, source
        self._file: BinaryIO | None = None
        self._num_bytes = 0
        self._ids: list[int] = []
        self._rows: list[dict[str, Any]] = []
        self._lengths: list[npt.NDArray[np.uint16]] = []

    @property
    def num_samples(self) -> int:
        return len(self._ids)

    def num_bytes_with(self, stored: Stored) -> int:
        return self._num_bytes + num_bytes_of_member(stored.content) + num_bytes_of_member(b"0")

    def add(self, sample_id: int, stored: Stored, name: bytes) -> None:
        if self._file is None:
            self._file = open(f"{self._path}.tmp", "w+b")  # noqa: SIM115  # close() closes it
        label, segments = int(self._source.labels_N[sample_id]), stored.segments
        start = write_member(self._file, f"{sample_id:09}.{stored.suffix}", stored.content)
        write_member(self._file, f"{sample_id:09}.cls", str(label).encode())
        self._num_bytes = self._file.tell()
        self._ids.append(sample_id)
        self._rows.append(
            {
                "labels_N": label,
                "shards_N": self._number,
                "offsets_N": start,
                "num_bytes_N": len(stored.content),
                "sizes_N2": (stored.height, stored.width),
                "crcs_N": stored.crc,
                "kinds_N": stored.kind,
                "grey_N": stored.is_grey,
                "names_N": name,
                "segment_starts_N": sum(map(len, self._lengths)),
                "cuts_N5": (0,) * 5 if segments is None else segments[:5],
            }
        )
        if segments is not None:
            self._lengths.append(segments.lengths_L)

    def close(self, *, next_id: int) -> _Part:
        """Everything on disk: the shard first, then its part of the index, which says that it is whole."""
        sha256 = ""
        if self._file is not None:
            finish(self._file)
            self._num_bytes = self._file.tell()
            self._file.seek(0)
            sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]
            self._file.close()
            os.replace(f"{self._path}.tmp", self._path)
            _sync_folder(self._path.parent)
        weights_N = self._source.weights_N
        index = index_of_rows(
            self._rows,
            self._lengths,
            weights_N=None if weights_N is None else weights_N[np.array(self._ids, dtype=int)],
        )
        name = self._path.name if self._ids else ""
        part = _Part(index, name, self._num_bytes, sha256, next_id, self.refused)
        meta = dict(zip(_Part._fields[1:], part[1:], strict=True))
        save_blocks(
            self._path.with_suffix(".part"), meta=meta, arrays=[getattr(index, field) for field in PACKED_ARRAYS]
        )
        return part


def _finished_parts(work: Path, split: str) -> Iterator[_Part]:
    """The shards that an earlier call has finished; the one that it was at is begun again."""
    for number in itertools.count():
        try:
            meta, arrays = load_blocks(work / f"{split}-{number:05}.part")
            if meta["name"] and (work / meta["name"]).stat().st_size != meta["num_bytes"]:
                return
        except (OSError, ValueError):
            return
        index = PackedIndex(fingerprint="", **dict(zip(PACKED_ARRAYS, arrays, strict=True)))
        yield _Part(index, **{**meta, "refused": [tuple(pair) for pair in meta["refused"]]})


def _write_whole(packing: Packing, parts: Mapping[str, Sequence[_Part]], work: Path) -> None:
    """The indexes, the list of what was refused, and at last dataset.json."""
    class_names = next(iter(packing.splits.values())).class_names
    for split, some in parts.items():
        save_packed_index(join_indexes([part.rows for part in some], class_names), work / f"{split}.index")
    lines = [
        json.dumps({"split": split, "name": name, "reason": reason}) + "\n"
        for split, some in parts.items()
        for part in some
        for name, reason in part.refused
    ]
    _write_text(work / REFUSED_FILE, "".join(lines))
    shards = {
        split: tuple(ShardFacts(part.name, part.num_bytes, part.sha256) for part in some if part.name)
        for split, some in parts.items()
    }
    _sync_folder(work)
    write_dataset(PackedSet(class_names, shards, asdict(packing.settings)), work)


def _sum_up(dest: Path) -> Packed:
    dataset = load_dataset(dest)
    return Packed(
        {split: len(load_packed_index(dest / f"{split}.index").labels_N) for split in dataset.splits},
        {split: sum(shard.num_bytes for shard in shards) for split, shards in dataset.splits.items()},
        len((dest / REFUSED_FILE).read_text().splitlines()),
    )


def _write_text(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Names of files are on disk only then."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
