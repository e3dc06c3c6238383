"""What the resident executor does in batches, against one image at a time by numpy, Pillow and torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pipelines.executors.resident import load_store, resize_windows, shift_and_flip
from pipelines.folder import scan_folder
from pipelines.source import ArraySource

Pixels = npt.NDArray[np.uint8]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def test_shift_and_flip_gathers_rows_as_numpy_pads_them_for_every_shift() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 2), dtype=np.uint8)
    shifts = [(down, right) for down in range(-4, 5) for right in range(-4, 5)]
    rows = [index % 3 for index in range(2 * len(shifts))]
    flips = [index >= len(shifts) for index in range(2 * len(shifts))]
    made = shift_and_flip(
        torch.from_numpy(images),
        rows_N=torch.tensor(rows),
        shifts_N2=torch.tensor(shifts * 2),
        flips_N=torch.tensor(flips),
    ).numpy()
    assert len(made) == 162
    for index, (down, right) in enumerate(shifts * 2):
        padded = np.pad(images[rows[index]], ((4, 4), (4, 4), (0, 0)), mode="reflect")
        wanted = padded[4 + down : 9 + down, 4 + right : 9 + right]
        assert made[index].tolist() == (wanted[:, ::-1] if flips[index] else wanted).tolist()


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("size_px", [1, 7, 32, 64])
def test_resized_windows_equal_pillow_within_rounding(
    size_px: int, interpolation: str, pixels_of: Callable[..., Pixels]
) -> None:
    rng = np.random.default_rng(size_px)
    count, height, width = 24, 33, 47
    images = np.stack([pixels_of(height, width, seed=index) for index in range(count)])
    spans = np.stack([rng.integers(1, height + 1, count), rng.integers(1, width + 1, count)], axis=1)
    starts = np.stack([rng.integers(0, height - spans[:, 0] + 1), rng.integers(0, width - spans[:, 1] + 1)], axis=1)
    windows = np.concatenate([starts, spans], axis=1)
    made = resize_windows(
        torch.from_numpy(images), torch.from_numpy(windows), size_px=size_px, interpolation=interpolation
    )
    assert made.dtype == torch.uint8
    crops = [(left, top, left + w, top + h) for top, left, h, w in windows.tolist()]
    wanted = [
        np.asarray(Image.fromarray(image).crop(crop).resize((size_px, size_px), PILLOW[interpolation]))
        for image, crop in zip(images, crops, strict=True)
    ]
    difference = np.abs(made.numpy().astype(int) - np.stack(wanted))
    # Pillow 13 resizes rows first where that is cheaper, torch and we columns: where bicubic overshoots, and is cut to
    # 0..255 in between, that shows
    assert difference.max() <= (1 if interpolation == "bilinear" else 2)
    assert difference.mean() <= 0.1


def test_halves_are_rounded_up_as_pillow_rounds_them() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 16, 3), dtype=np.uint8)
    windows = torch.tensor([[0, 0, 20, 16]] * 8)
    # twice as large: weights of 1/4 and 3/4, so that one sum in four ends in exactly a half
    made = resize_windows(torch.from_numpy(images), windows, size_px=32, interpolation="bilinear")
    wanted = [np.asarray(Image.fromarray(image).resize((32, 32), PILLOW["bilinear"])) for image in images]
    difference = np.abs(made.numpy().astype(int) - np.stack(wanted))
    assert difference.max() <= 1
    assert difference.mean() <= 0.001


def test_a_window_of_the_output_size_is_copied_exactly() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    windows = torch.tensor([[0, 0, 9, 9], [11, 11, 9, 9], [3, 5, 9, 9], [5, 3, 9, 9]])
    for interpolation in PILLOW:
        made = resize_windows(torch.from_numpy(images), windows, size_px=9, interpolation=interpolation)
        for index, (top, left, _, _) in enumerate(windows.tolist()):
            assert made[index].tolist() == images[index, top : top + 9, left : left + 9].tolist()


def test_the_store_holds_images_as_they_are_without_windows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (130, 6, 9, 1), dtype=np.uint8)
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(130) % 2, images_NHWC=images)
    for channels in (1, 3):
        store = load_store(
            source, channels=channels, windows=None, size_px=4, interpolation="bilinear", show_progress=False
        )
        assert store.dtype == torch.uint8
        assert store.tolist() == np.repeat(images, channels, axis=3).tolist()


def test_all_unreadable_images_are_counted_and_the_first_five_named(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"train": {"a": 8, "b": 2}})
    source = scan_folder(str(root), show_progress=False)["train"]
    bad = sorted((root / "train/a").iterdir())[:7]
    for path in bad:
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"^7 of 10 images cannot be read:") as caught:
        load_store(source, channels=3, windows=None, size_px=16, interpolation="bilinear", show_progress=False)
    message = str(caught.value)
    assert all(f"\n  {path}: not an image" in message for path in bad[:5])
    assert str(bad[5]) not in message
    assert message.endswith("\n  ...\nRemove or replace them.")
