"""Images of many kinds, packed in this process, for the tests of packed data sets."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from configs.load import load_config
from configs.schema import Config, DataConfig
from pipelines.build import Packed, Storing, pack_data
from pipelines.sources.folder import FolderSource
from pipelines.sources.packed import PackedSource, open_packed
from pipelines.sources.scan import scan_folder

SIZES = [(150, 200), (140, 131), (60, 90), (1, 1), (17, 300), (131, 129)]
BAD = {"train/cat/z_text.jpg": b"this is text", "val/dog/z_empty.png": b""}


def draw(height: int, width: int, *, seed: int) -> Image.Image:
    """A smooth picture with some noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    return Image.fromarray(
        np.clip(np.asarray(coarse) + rng.integers(-9, 10, (height, width, 3)), 0, 255).astype(np.uint8)
    )


def write_varied(root: Path, *, with_bad: bool = False) -> Path:
    """Train and val of two classes: JPEGs of all sorts, PNGs of all sorts, WebP."""
    number = 0

    def save(name: str, image: Image.Image, **options: Any) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)

    def next_image() -> Image.Image:
        nonlocal number
        number += 1
        return draw(*SIZES[number % len(SIZES)], seed=number)

    exif = Image.Exif()
    exif[0x0112] = 6
    for subsampling in (0, 1, 2):
        save(f"train/cat/s{subsampling}.jpg", draw(150, 200, seed=subsampling), subsampling=subsampling, quality=90)
    save("train/cat/restart.jpg", draw(144, 160, seed=7), restart_marker_rows=1)
    save("train/cat/progressive.jpg", next_image(), progressive=True)
    save("train/cat/grey.jpg", draw(140, 150, seed=8).convert("L"))
    save("train/cat/cmyk.jpg", next_image().convert("CMYK"))
    save("train/cat/on_side.jpg", draw(150, 180, seed=9), exif=exif)
    save("train/dog/a.png", next_image())
    save("train/dog/grey.png", next_image().convert("L"))
    save("train/dog/palette.png", next_image().convert("P", palette=Image.Palette.ADAPTIVE), transparency=0)
    save("train/dog/bits16.png", Image.fromarray((np.arange(40 * 50).reshape(40, 50) * 32).astype(np.uint16)))
    save("train/dog/alpha.png", next_image().convert("RGBA"))
    save("train/dog/a.webp", next_image(), lossless=True)
    for place in range(6):
        save(f"{'train' if place < 2 else 'val'}/{'cat' if place % 2 else 'dog'}/v{place}.jpg", next_image())
    if with_bad:
        for name, content in BAD.items():
            (root / name).write_bytes(content)
    return root


def write_many(root: Path, count: int) -> Path:
    """`count` small JPEGs of two classes."""
    for place in range(count):
        path = root / "train" / "ab"[place % 2] / f"{place:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(40 + place % 7, 50, seed=place).save(path)
    return root


@functools.cache
def _recipe() -> Config:
    return load_config([], prog="", description="")


def config_of(**data: Any) -> Config:
    """A configuration with this data section."""
    return dataclasses.replace(_recipe(), data=DataConfig(**data))


def pack_into(dest: Path, mode: str = "keep", *, data: dict[str, Any], num_workers: int = 0, **storing: Any) -> Packed:
    """Packs what `data` says."""
    options: dict[str, Any] = {
        "long_side_px": None,
        "short_side_px": None,
        "quality": 90,
        "subsampling": "4:2:0",
        "restart": True,
        "shard_mib": 0.05,
    }
    how = Storing(mode=mode, **(options | storing))  # type: ignore[arg-type]
    return pack_data(config_of(**data), dest, how, num_workers=num_workers, show_progress=False)


def pack_folder(root: Path, dest: Path, mode: str = "keep", **options: Any) -> Packed:
    """Packs an image folder."""
    return pack_into(dest, mode, data={"dataset": "folder", "root": str(root)}, **options)


def open_folder(root: Path) -> dict[str, FolderSource]:
    """The image folder itself."""
    return scan_folder(str(root), show_progress=False, keep_bad=True)  # type: ignore[return-value]


def opened(dest: Path) -> dict[str, PackedSource]:
    """A packed data set."""
    return open_packed(str(dest))  # type: ignore[return-value]


def reference(path: Path) -> Image.Image:
    """What the pixels of a file are, by Pillow alone: upright, 8 bits, L or RGB."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            return Image.fromarray(((np.asarray(upright).astype(int) + 128) // 257).astype(np.uint8))
        if upright.mode == "P":
            upright = upright.convert("RGBA")
        return upright.convert("L" if upright.mode == "L" else "RGB")


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder, and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_byte(path: Path, place: int) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
