"""Configuration -> a packed data set, and its examination: what tools.pack does.

DataConfig -> build_data.read_splits -> pipelines/packing/pack.py
a folder of WebDataset shards -> pipelines/packing/adopt.py -> that is all (mode keep), or -> packing/pack.py
"""

from pathlib import Path
from typing import NamedTuple

from configs.schema import Config, DataConfig
from pipelines.build_data import check_dataset, given, read_splits
from pipelines.packing.adopt import Adopting, adopt, find_shards, has_shards, is_adopted, read_class_names
from pipelines.packing.job import check_dest, work_folder
from pipelines.packing.pack import Packing, pack
from pipelines.packing.parts import Packed, load_refused
from pipelines.packing.stored import Mode, Settings, Subsampling
from pipelines.packing.verify import verify_packed
from pipelines.sources.packed import DATASET_FILE, load_dataset, open_packed

__all__ = ["Mode", "Packed", "Storing", "Subsampling", "check_dest", "has_shards", "pack_data", "verify_packed"]

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

    A `data.root` of dataset `packed` may also be a folder of WebDataset shards.

    Raises:
        FileNotFoundError: A folder or a table is not there.
        OSError: `dest` cannot be written.
        ValueError: `dest` exists, or what the data holds cannot be trained on.
    """
    check_dest(dest)
    check_dataset(config.data)
    if _is_of_shards(config.data):
        root = Path(given(config.data.root))
        return _pack_shards(root, dest, storing, num_workers=num_workers, show_progress=show_progress)
    packing = Packing(
        splits=read_splits(config, show_progress=show_progress),
        root=_root_of_names(config.data),
        settings=_settings(storing),
        shard_bytes=round(storing.shard_mib * _MIB),
    )
    return pack(packing, dest, num_workers=num_workers, show_progress=show_progress)


def _is_of_shards(data: DataConfig) -> bool:
    if data.dataset != "packed":
        return False
    root = Path(given(data.root))
    return not (root / DATASET_FILE).exists() and has_shards(root)


def _root_of_names(data: DataConfig) -> str | None:
    """What the names of files start with that need not be kept."""
    if data.dataset == "manifest":
        root = Path(given(data.root))
        return data.image_root or str(root if root.is_dir() else root.parent)
    return data.root


def _pack_shards(root: Path, dest: Path, storing: Storing, *, num_workers: int, show_progress: bool) -> Packed:
    shards, class_names = find_shards(root), read_class_names(root)
    if storing.mode == "keep":
        adopting = Adopting(shards, class_names, decode=True)
        return adopt(adopting, dest, num_workers=num_workers, show_progress=show_progress)
    adopting = Adopting(shards, class_names, decode=False)
    adopted = work_folder(dest) / "adopted"  # it goes when the rest is done
    if not (adopted / DATASET_FILE).exists():
        adopt(adopting, adopted, num_workers=num_workers, show_progress=show_progress)
    elif not is_adopted(adopting, load_dataset(adopted).settings):
        raise ValueError(f"{work_folder(dest)} was begun from shards that were different then; remove that folder.")
    packing = Packing(
        splits=open_packed(str(adopted)),
        root=None,
        settings=_settings(storing),
        shard_bytes=round(storing.shard_mib * _MIB),
        refused=load_refused(adopted),
    )
    return pack(packing, dest, num_workers=num_workers, show_progress=show_progress)


def _settings(storing: Storing) -> Settings:
    return Settings(
        mode=storing.mode,
        long_side_px=storing.long_side_px,
        short_side_px=storing.short_side_px,
        quality=storing.quality,
        subsampling=storing.subsampling,
        restart=storing.restart,
    )
