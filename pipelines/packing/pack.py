"""Splits of any source -> a packed data set (pipelines/sources/packed.py), the same to the byte however it is made.

ids in order -> workers: store (stored.py) -> in order -> a shard, SPLIT-00000.tar -> on disk -> its part of the index
all shards of all splits -> SPLIT.index, refused.jsonl, dataset.json -> DEST.packing becomes DEST (job.py)

Killed and called again, it goes on behind the last shard whose part of the index is on disk. DEST is there when, and
only when, all of it is.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.packing.in_order import map_in_order, telling_of_killed_workers
from pipelines.packing.job import hash_job, making
from pipelines.packing.parts import Packed, Part, Refused, check_not_empty, load_parts, sum_up, write_whole
from pipelines.packing.shard import ShardWriter
from pipelines.packing.stored import Settings, Stored, check_can_be_stored, name_of, store
from pipelines.source import Source
from pipelines.sources.packed import DATASET_FILE, VERSION

_MOST_PER_TASK, _MOST_PIXELS_PER_TASK = 8, 2**23  # so that a worker's results of giant images do not fill the memory


class Packing(NamedTuple):
    """What is to be packed, and how.

    splits: the samples. root: what their names start with, and what is left out of them. shard_bytes: a shard is full
    before it would be longer. refused: by split, what was left out before.
    """

    splits: Mapping[str, Source]
    root: str | None
    settings: Settings
    shard_bytes: int
    refused: Mapping[str, Sequence[Refused]] = MappingProxyType({})


def pack(packing: Packing, dest: Path, *, num_workers: int, show_progress: bool) -> Packed:
    """Packs all splits into the folder `dest`, which must not exist; goes on where an earlier call was stopped.

    Args:
        packing: What, and how.
        dest: The folder; it is made under the name `dest`.packing.
        num_workers: Processes that decode and encode; 0 = this one.
        show_progress: Whether to draw progress bars.

    Raises:
        OSError: The folder cannot be written, or a worker process was ended.
        ValueError: `dest` exists, another call is at work, an earlier one was about something else, the images cannot
            be stored that way, or none of a split can be read.
    """
    for source in packing.splits.values():
        check_can_be_stored(source, packing.settings)
    _check_same_classes(packing.splits)
    facts = _facts(packing)
    with making(dest, facts) as work, telling_of_killed_workers():
        if not (work / DATASET_FILE).exists():
            parts = {
                split: _pack_split(packing, split, work, num_workers=num_workers, show_progress=show_progress)
                for split in packing.splits
            }
            write_whole(
                parts,
                work,
                class_names=next(iter(packing.splits.values())).class_names,
                settings=asdict(packing.settings) | {"job": hash_job(facts)},
                refused=packing.refused,
            )
    return sum_up(dest)


def _check_same_classes(splits: Mapping[str, Source]) -> None:
    if len({source.class_names for source in splits.values()}) > 1:
        raise ValueError("the splits have different classes; give them the same, or pack each on its own.")


def _facts(packing: Packing) -> dict[str, Any]:
    return {
        "version": VERSION,
        "settings": asdict(packing.settings),
        "shard_bytes": packing.shard_bytes,
        "splits": {split: source.fingerprint() for split, source in packing.splits.items()},
    }


def _pack_split(packing: Packing, split: str, work: Path, *, num_workers: int, show_progress: bool) -> list[Part]:
    """All shards of a split; those that are there already are not made again."""
    source, parts = packing.splits[split], list(load_parts(work, split))
    first_id, num_samples = parts[-1].next_id if parts else 0, len(source.labels_N)
    if first_id < num_samples:
        ids = range(first_id, num_samples)
        title = f"packing {split}"
        with tqdm(
            total=num_samples, initial=first_id, desc=title, unit="image", disable=not show_progress or None
        ) as bar:
            for part in _write_shards(packing, split, work, ids, bar=bar, first=len(parts), num_workers=num_workers):
                parts.append(part)
    check_not_empty(parts, split)
    return parts


def _write_shards(
    packing: Packing, split: str, work: Path, ids: range, *, bar: Any, first: int, num_workers: int
) -> Iterator[Part]:
    """The shards of the samples `ids`, of which there is one at least, numbered from `first` on."""
    source, number = packing.splits[split], first
    shard = ShardWriter(work, split, number=number, weights_N=source.weights_N)
    stores = _Stores(source, packing.settings)
    try:
        stored = map_in_order(stores, _tasks(ids, source.sizes_N2), num_workers=num_workers)
        for sample_id, one in zip(ids, (one for some in stored for one in some), strict=True):
            name = name_of(source, sample_id, packing.root)
            if isinstance(one, str):
                shard.refuse(Refused(os.fsdecode(name), one))
            else:
                if not shard.has_room(one, most_bytes=packing.shard_bytes):
                    yield shard.close(next_id=sample_id)
                    number += 1
                    shard = ShardWriter(work, split, number=number, weights_N=source.weights_N)
                shard.add(sample_id, one, label=int(source.labels_N[sample_id]), name=name)
            bar.update()
        yield shard.close(next_id=ids.stop)
    finally:
        shard.abandon()


class _Stores:
    """Samples as they are to be stored, or why one cannot be."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self._source, self._settings = source, settings

    def __call__(self, ids: range) -> list[Stored | str]:
        return [self._store(sample_id) for sample_id in ids]

    def _store(self, sample_id: int) -> Stored | str:
        try:
            return store(self._source, sample_id, self._settings)
        except ValueError as error:
            return str(error)


def _tasks(ids: range, sizes_N2: npt.NDArray[np.int32]) -> Iterator[range]:
    """Some samples at a time: fewer where they are large."""
    start, num_pixels = ids.start, 0
    for sample_id in ids:
        pixels = int(sizes_N2[sample_id, 0]) * int(sizes_N2[sample_id, 1])
        if sample_id > start and (sample_id - start == _MOST_PER_TASK or num_pixels + pixels > _MOST_PIXELS_PER_TASK):
            yield range(start, sample_id)
            start, num_pixels = sample_id, 0
        num_pixels += pixels
    yield range(start, ids.stop)
