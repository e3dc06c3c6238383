"""Is a packed data set still what was packed? Every shard's SHA-256, every sample's CRC-32 and pixels.

dataset.json -> shards: size, SHA-256 -> samples: CRC-32, decoded whole, size as in the index -> what is wrong, in words
"""

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipelines.packing.stored import Stored, describe_encoded
from pipelines.parallel import map_in_threads
from pipelines.sources.folder import explain
from pipelines.sources.packed import PackedSource, load_dataset, open_split
from pipelines.sources.packed_index import RAW


def verify_packed(root: Path, *, show_progress: bool) -> Iterator[str]:
    """A line for each thing that is not as it was packed; none of a data set that is whole.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: dataset.json or an index cannot be read.
    """
    dataset = load_dataset(root)
    for split, shards in dataset.splits.items():
        paths = [root / shard.name for shard in shards]
        found = map_in_threads(_digest, paths, title=f"{split}: shards", unit="shard", show_progress=show_progress)
        for shard, digest in zip(shards, found, strict=True):
            if digest != shard.sha256:
                yield f"{root / shard.name}: {digest if ':' in digest else 'its bytes are not those that were packed'}"
        source = open_split(root, split, dataset)
        yield from _verify_samples(source, split, show_progress=show_progress)


def _digest(path: Path) -> str:
    """The SHA-256 of a file; a sentence with a colon where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {explain(error)}"


def _verify_samples(source: PackedSource, split: str, *, show_progress: bool) -> Iterator[str]:
    def verify(sample_id: int) -> str | None:
        try:
            return _fault(source, sample_id)
        except (OSError, ValueError) as error:
            return explain(error)

    ids = range(len(source.labels_N))
    faults = map_in_threads(verify, ids, title=f"{split}: samples", unit="image", show_progress=show_progress)
    for sample_id, fault in zip(ids, faults, strict=True):
        if fault is not None:
            yield f"{source.describe(sample_id)}: {fault}"


def _fault(source: PackedSource, sample_id: int) -> str | None:
    """What is wrong with the bytes of a sample."""
    index = source.index
    content = source.read_bytes(sample_id)
    if zlib.crc32(content) != index.crcs_N[sample_id]:
        return "its bytes are not those that were packed"
    if index.kinds_N[sample_id] == RAW:
        return None
    stored: Stored = describe_encoded(content)
    said = tuple(index.sizes_N2[sample_id].tolist())
    if (stored.height, stored.width) != said:
        return f"it is {stored.height} x {stored.width} pixels, and the index says {said[0]} x {said[1]}"
    return None
