"""Small images that a small network learns within seconds: patterns, shifted, in noise."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bars", "blocks", "columns", "dots")


def save_patterns(root: Path, *, num_train: int, num_test: int, classes=CLASSES, size_px: int = 16, contrast: int = 60):
    """An image folder root/{train,test}/<class>/, colour, PNG; a negative contrast inverts the patterns."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("test", num_test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw_pattern(name, rng, size_px=size_px, contrast=contrast)
                Image.fromarray(pixels).save(root / split / name / f"{number:03d}.png")
    return root


def draw_pattern(name, rng, *, size_px, contrast):
    """One image, uint8 (S, S, 3)."""
    row, column = np.mgrid[:size_px, :size_px] + rng.integers(4)
    shape = {
        "bars": row // 2 % 2,
        "blocks": (row // 4 + column // 4) % 2,
        "columns": column // 2 % 2,
        "dots": (row % 4 < 2) & (column % 4 < 2),
    }[name]
    pixels = 110 + contrast * (shape[..., None] - 0.5) + rng.normal(0, 20, (size_px, size_px, 3))
    return pixels.clip(0, 255).astype(np.uint8)
