"""Images as they are stored before training: JPEG files at a size and quality, or files of pixels.

original JPEG files -> long side at most so many pixels -> JPEG (4:2:0) or PPM (a line of text, then uint8 RGB)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

_SUFFIX = {"jpeg": ".JPEG", "raw": ".ppm"}


def store_images(
    paths: Sequence[str], *, folder: Path, stored: Literal["jpeg", "raw"], long_side_px: int | None, quality: int
) -> list[str]:
    """Writes each image once into the folder, unless it is there already; gives the new files in the same order.

    Args:
        paths: Files that Pillow opens; no file twice.
        folder: Made if need be.
        stored: As JPEG, or as pixels.
        long_side_px: Larger images are made smaller (bilinear, antialiased); None: none are.
        quality: Of JPEG, 1..95.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{number:06}{_SUFFIX[stored]}" for number in range(len(paths))]
    for path, target in zip(paths, written, strict=True):
        if target.exists():
            continue
        with Image.open(path) as image:
            smaller = fit_long_side(image.convert("RGB"), long_side_px)
        if stored == "jpeg":
            smaller.save(target, format="JPEG", quality=quality, subsampling="4:2:0")
        else:
            smaller.save(target, format="PPM")
    return [str(path) for path in written]


def fit_long_side(image: Image.Image, long_side_px: int | None) -> Image.Image:
    """The image, made smaller where its long side is longer than that."""
    if long_side_px is None or max(image.size) <= long_side_px:
        return image
    factor = long_side_px / max(image.size)
    width, height = (max(1, round(factor * side_px)) for side_px in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)
