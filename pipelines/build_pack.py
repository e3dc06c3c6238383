"""Configuration -> a packed data set, and its examination: what tools.pack does.

DataConfig -> build_data.read_splits -> pipelines/packing/pack.py; a folder of WebDataset shards -> packing/adopt.py
"""

from pathlib import Path
from typing import NamedTuple

from configs.schema import Config
from pipelines.build_data import check_dataset, read_splits
from pipelines.packing.pack import Packed, Packing, check_dest, pack
from pipelines.packing.stored import Mode, Settings, Subsampling
from pipelines.packing.verify import verify_packed

__all__ = ["Mode", "Packed", "Storing", "Subsampling", "check_dest", "pack_data", "verify_packed"]

_MIB = 2**20


class Storing(NamedTuple):
    """How images are stored; see `pipelines.packing.stored.Settings`. shard_mib: the longest shard, in MiB."""

    mode: Mode
    long_side_px: int | None
    short_side_px: int | None
    quality: int
    subsampling: Subsampling
    restart: bool
    shard_mib: float


def pack_data(config: Config, dest: Path, storing: Storing, *, num_workers: int, show_progress: bool) -> Packed:
    """Packs the data set of a configuration into the folder `dest`.

    Raises:
        FileNotFoundError: A folder or a table is not there.
        OSError: `dest` cannot be written.
        ValueError: `dest` exists, or what the data holds cannot be trained on.
    """
    check_dest(dest)
    check_dataset(config.data)
    settings = Settings(
        mode=storing.mode,
        long_side_px=storing.long_side_px,
        short_side_px=storing.short_side_px,
        quality=storing.quality,
        subsampling=storing.subsampling,
        restart=storing.restart,
    )
    packing = Packing(
        splits=read_splits(config, show_progress=show_progress),
        root=config.data.root,
        settings=settings,
        shard_bytes=round(storing.shard_mib * _MIB),
    )
    return pack(packing, dest, num_workers=num_workers, show_progress=show_progress)
