"""Generated images and image folders for the tests of this room."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def draw_pixels(height: int, width: int, *, channels: int = 3, seed: int = 0) -> Pixels:
    """Something like a photograph, uint8 (H, W, C): soft shapes with some noise."""
    rng = np.random.default_rng([seed, height, width, channels])
    coarse = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    noise = rng.integers(-20, 21, (height, width, channels))
    return np.clip(np.stack([np.asarray(plane) for plane in planes], axis=2) + noise, 0, 255).astype(np.uint8)


def write_png(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads only wait for each other, long where other programs run too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pixels_of() -> Callable[..., Pixels]:
    return draw_pixels


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """write_folder({"train": {"cat": 3, "dog": 2}}, sizes=[(H, W), ...]): a root with so many images per class."""

    def make(
        splits: dict[str, dict[str, int]],
        *,
        sizes: list[tuple[int, int]] | None = None,
        channels: int = 3,
        name: str = "root",
    ) -> Path:
        root, number = tmp_path / name, 0
        for split, classes in splits.items():
            for class_name, count in classes.items():
                (root / split / class_name).mkdir(parents=True)
                for index in range(count):
                    height, width = (sizes or [(16, 16)])[number % len(sizes or [0])]
                    pixels = draw_pixels(height, width, channels=channels, seed=number)
                    write_png(root / split / class_name / f"{index:03}.png", pixels)
                    number += 1
        return root

    return make
