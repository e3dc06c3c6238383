"""Finished shards, and a whole data set of them.

a shard on disk -> Part -> SPLIT-NUMBER.part: it need not be made again
all parts of all splits -> SPLIT.index, refused.jsonl, at last dataset.json
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.packing.job import PART_SUFFIX, REFUSED_FILE, sync_folder
from pipelines.sources.blocks import load_blocks, save_blocks
from pipelines.sources.packed import PackedSet, ShardFacts, load_dataset, write_dataset
from pipelines.sources.packed_index import (
    PACKED_ARRAYS,
    PackedIndex,
    join_indexes,
    load_packed_index,
    save_packed_index,
)

_NUM_NAMED = 3


class Packed(NamedTuple):
    """What was packed: samples, and bytes of all shards, by split; how many samples were refused."""

    num_samples: dict[str, int]
    num_bytes: dict[str, int]
    num_refused: int


class Refused(NamedTuple):
    """A sample that is left out, by its name, and why."""

    name: str
    reason: str


class Part(NamedTuple):
    """A finished shard: its rows of the index, and which samples came next and which were refused.

    name: of the shard; empty where it holds no sample. labels: what the rows' labels count in, where that is not yet
    the classes of the data set.
    """

    rows: PackedIndex
    name: str
    num_bytes: int
    sha256: str
    next_id: int
    refused: Sequence[Refused]
    labels: Sequence[str] = ()


def save_part(part: Part, work: Path, split: str, *, number: int) -> None:
    """Says that a shard, which must be on disk, is finished.

    Raises:
        OSError: It cannot be written.
    """
    meta = dict(zip(Part._fields[1:], part[1:], strict=True))
    arrays = [getattr(part.rows, field) for field in PACKED_ARRAYS]
    save_blocks(_path(work, split, number), meta=meta, arrays=arrays)


def load_parts(work: Path, split: str) -> Iterator[Part]:
    """The shards that an earlier call has finished; the one that it was at is begun again."""
    for number in itertools.count():
        try:
            meta, arrays = load_blocks(_path(work, split, number))
            if meta["name"] and (work / meta["name"]).stat().st_size != meta["num_bytes"]:
                return
        except (OSError, ValueError):
            return
        rows = PackedIndex(fingerprint="", **dict(zip(PACKED_ARRAYS, arrays, strict=True)))
        yield Part(rows, **{**meta, "refused": [Refused(*pair) for pair in meta["refused"]]})


def check_not_empty(parts: Sequence[Part], split: str) -> None:
    """Checks that a split has a sample.

    Raises:
        ValueError: All of them were refused; the first reasons are given.
    """
    if any(len(part.rows.labels_N) for part in parts):
        return
    refused = [one for part in parts for one in part.refused]
    if not refused:
        raise ValueError(f"{split} has no images; leave it out, or put some in.")
    reasons = "".join(f"\n  {one.name}: {one.reason}" for one in refused[:_NUM_NAMED])
    raise ValueError(f"none of the {len(refused)} images of {split} could be packed:{reasons}")


def write_whole(
    parts: Mapping[str, Sequence[Part]],
    work: Path,
    *,
    class_names: tuple[str, ...],
    settings: Mapping[str, Any],
    refused: Mapping[str, Sequence[Refused]],
) -> None:
    """The indexes, the list of what was refused, and at last dataset.json.

    Args:
        parts: All shards of each split.
        work: The folder that they lie in.
        class_names: One per label.
        settings: How they were made.
        refused: By split, what was left out before.

    Raises:
        OSError: They cannot be written.
    """
    for split, some in parts.items():
        save_packed_index(join_indexes([part.rows for part in some], class_names), work / f"{split}.index")
    lines = [
        json.dumps({"split": split, "name": one.name, "reason": one.reason}) + "\n"
        for split, some in parts.items()
        for one in (*refused.get(split, ()), *(one for part in some for one in part.refused))
    ]
    with open(work / REFUSED_FILE, "w") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())
    shards = {
        split: tuple(ShardFacts(part.name, part.num_bytes, part.sha256) for part in some if part.name)
        for split, some in parts.items()
    }
    sync_folder(work)
    write_dataset(PackedSet(class_names, shards, dict(settings)), work)


def load_refused(root: Path) -> dict[str, list[Refused]]:
    """By split, what was left out of a data set."""
    refused: dict[str, list[Refused]] = {}
    for line in (root / REFUSED_FILE).read_text().splitlines():
        said = json.loads(line)
        refused.setdefault(said["split"], []).append(Refused(said["name"], said["reason"]))
    return refused


def sum_up(dest: Path) -> Packed:
    """What a data set holds."""
    dataset = load_dataset(dest)
    return Packed(
        {split: len(load_packed_index(dest / f"{split}.index").labels_N) for split in dataset.splits},
        {split: sum(shard.num_bytes for shard in shards) for split, shards in dataset.splits.items()},
        sum(map(len, load_refused(dest).values())),
    )


def _path(work: Path, split: str, number: int) -> Path:
    return work / f"{split}-{number:05}{PART_SUFFIX}"
