"""Is a packed data set still what was packed? Every shard's SHA-256, every sample's CRC-32 and pixels.

dataset.json -> samples: CRC-32, decoded whole, size as in the index | shards: size, SHA-256 -> what is wrong, in words
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipelines.packing.stored import describe_encoded, describe_raw
from pipelines.parallel import map_in_threads
from pipelines.sources.folder import explain
from pipelines.sources.packed import PackedSource, ShardFacts, load_dataset, open_split
from pipelines.sources.packed_index import RAW


def verify_packed(root: Path, *, show_progress: bool) -> Iterator[str]:
    """A line for each thing that is not as it was packed; none of a data set that is whole.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: dataset.json or an index cannot be read.
    """
    dataset = load_dataset(root)
    sources = {split: open_split(root, split, dataset) for split in dataset.splits}
    for split, shards in dataset.splits.items():
        source, paths = sources[split], [root / shard.name for shard in shards]
        damaged = _faults_of_shards(paths, shards, split, show_progress=show_progress)
        there = np.isin(source.index.shards_N, [number for number, path in enumerate(paths) if path.is_file()])
        ids = np.flatnonzero(there).tolist()
        faults = list(_faults_of_samples(source, ids, split, show_progress=show_progress))
        touched = {int(source.index.shards_N[sample_id]) for sample_id, _ in faults}
        for number, fault in damaged.items():
            yield f"{paths[number]}: {fault}" + _where(paths[number], is_touched=number in touched)
        for sample_id, fault in faults:
            yield f"{source.describe(sample_id)}: {fault}"


def _where(path: Path, *, is_touched: bool) -> str:
    """Which part of a damaged shard it is."""
    if not path.is_file():
        return "; copy it again"
    if is_touched:
        return "; the images that are hit:"
    return "; no image is hit: what differs are the tar's own headers, or labels (.cls), which only other programs read"


def _faults_of_shards(
    paths: Sequence[Path], shards: Sequence[ShardFacts], split: str, *, show_progress: bool
) -> dict[int, str]:
    """What is wrong with the shards of a split, by their numbers."""

    def examine(number: int) -> str | None:
        try:
            return _fault_of_shard(paths[number], shards[number])
        except OSError as error:
            return f"cannot be read: {explain(error)}"

    numbers = range(len(shards))
    found = map_in_threads(examine, numbers, title=f"{split}: shards", unit="shard", show_progress=show_progress)
    return {number: fault for number, fault in zip(numbers, found, strict=True) if fault is not None}


def _fault_of_shard(path: Path, shard: ShardFacts) -> str | None:
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        return f"it has {num_bytes:,} bytes, but {shard.num_bytes:,} were packed"
    with open(path, "rb") as file:
        is_same = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    return None if is_same else "its bytes are not those that were packed"


def _faults_of_samples(
    source: PackedSource, ids: Sequence[int], split: str, *, show_progress: bool
) -> Iterator[tuple[int, str]]:
    def examine(sample_id: int) -> str | None:
        try:
            return _fault_of_sample(source, sample_id)
        except (OSError, ValueError) as error:
            return explain(error)

    faults = map_in_threads(examine, ids, title=f"{split}: images", unit="image", show_progress=show_progress)
    for sample_id, fault in zip(ids, faults, strict=True):
        if fault is not None:
            yield sample_id, fault


def _fault_of_sample(source: PackedSource, sample_id: int) -> str | None:
    """What is wrong with the bytes of a sample."""
    index = source.index
    room = memoryview(bytearray(int(index.num_bytes_N[sample_id])))
    source.shards.read(int(index.shards_N[sample_id]), start=int(index.offsets_N[sample_id]), room=room)
    content = bytes(room)
    if zlib.crc32(content) != index.crcs_N[sample_id]:
        return "its bytes are not those that were packed"
    is_raw = index.kinds_N[sample_id] == RAW
    stored = describe_raw(content) if is_raw else describe_encoded(content, decode=True)
    said = tuple(index.sizes_N2[sample_id].tolist())
    if (stored.height, stored.width) != said:
        return f"it is {stored.height} x {stored.width} pixels, and the index says {said[0]} x {said[1]}"
    return None
