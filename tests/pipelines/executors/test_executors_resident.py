"""What the resident executor does in batches, against one image at a time by numpy, Pillow and torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pipelines.executors.resident import ResidentExecutor, Store, load_store, resize_windows
from pipelines.geometry import carry_out
from pipelines.parallel import RowPool
from pipelines.plan import Augmentation, Fit, plan_evaluation, plan_training
from pipelines.source import ArraySource, Source
from pipelines.sources.scan import scan_folder

Pixels = npt.NDArray[np.uint8]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize(("height_px", "width_px"), [(1, 1), (7, 7), (32, 32), (64, 64), (9, 32), (40, 1)])
def test_resized_windows_equal_pillow_within_rounding(
    height_px: int, width_px: int, interpolation: str, pixels_of: Callable[..., Pixels]
) -> None:
    rng = np.random.default_rng(height_px)
    count, height, width = 24, 33, 47
    images = np.stack([pixels_of(height, width, seed=index) for index in range(count)])
    spans = np.stack([rng.integers(1, height + 1, count), rng.integers(1, width + 1, count)], axis=1)
    starts = np.stack([rng.integers(0, height - spans[:, 0] + 1), rng.integers(0, width - spans[:, 1] + 1)], axis=1)
    windows = np.concatenate([starts, spans], axis=1)
    made = resize_windows(
        torch.from_numpy(images), torch.from_numpy(windows), sides_px=(height_px, width_px), interpolation=interpolation
    )
    assert made.dtype == torch.uint8
    crops = [(left, top, left + w, top + h) for top, left, h, w in windows.tolist()]
    wanted = [
        np.asarray(Image.fromarray(image).crop(crop).resize((width_px, height_px), PILLOW[interpolation]))
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
    made = resize_windows(torch.from_numpy(images), windows, sides_px=(32, 32), interpolation="bilinear")
    wanted = [np.asarray(Image.fromarray(image).resize((32, 32), PILLOW["bilinear"])) for image in images]
    difference = np.abs(made.numpy().astype(int) - np.stack(wanted))
    assert difference.max() <= 1
    assert difference.mean() <= 0.001


def test_a_window_of_the_output_size_is_copied_exactly() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    windows = torch.tensor([[0, 0, 9, 9], [11, 11, 9, 9], [3, 5, 9, 9], [5, 3, 9, 9]])
    for interpolation in PILLOW:
        made = resize_windows(torch.from_numpy(images), windows, sides_px=(9, 9), interpolation=interpolation)
        for index, (top, left, _, _) in enumerate(windows.tolist()):
            assert made[index].tolist() == images[index, top : top + 9, left : left + 9].tolist()


def test_the_store_holds_images_as_they_are_without_windows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (130, 6, 9, 1), dtype=np.uint8)
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(130) % 2, images_NHWC=images)
    for channels in (1, 3):
        store = load_store(source, channels=channels, windows=None, interpolation="bilinear", show_progress=False)
        assert store.images_NHWC.dtype == torch.uint8
        assert store.images_NHWC.tolist() == np.repeat(images, channels, axis=3).tolist()
        assert store.bad == {}


def windows_of(source: Source, *, size_px: int):
    ids = np.arange(len(source.labels_N))
    return plan_evaluation(ids, sizes_N2=source.sizes_N2, fit=Fit("crop", 0.9), size_px=size_px)


def test_the_store_holds_windows_resized_where_these_never_change() -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 11, 9, 3), dtype=np.uint8)
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(70) % 2, images_NHWC=images)
    windows = windows_of(source, size_px=5)
    store = load_store(source, channels=3, windows=windows, interpolation="bicubic", show_progress=False)
    wanted = [carry_out(images[row], plan=windows, row=row, interpolation="bicubic") for row in range(70)]
    assert torch.equal(store.images_NHWC, torch.stack(wanted))


def test_images_that_cannot_be_read_are_zeros_in_the_store_and_listed_with_the_reason(
    write_folder: Callable[..., Path],
) -> None:
    source = scan_folder(str(write_folder({"train": {"a": 8, "b": 2}})), show_progress=False)["train"]
    for sample_id in (3, 9):
        Path(source.describe(sample_id)).write_bytes(b"nonsense")
    for windows in (None, windows_of(source, size_px=16)):
        store = load_store(source, channels=3, windows=windows, interpolation="bilinear", show_progress=False)
        assert store.bad == dict.fromkeys((3, 9), "not an image in any format that Pillow reads")
        assert not store.images_NHWC[[3, 9]].any()
        assert store.images_NHWC[[0, 1, 2, 4, 5, 6, 7, 8]].flatten(1).any(dim=1).all()


def test_every_row_of_a_bad_sample_is_reported_in_each_view_and_each_time() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    executor = ResidentExecutor(
        Store(images, {4: "burnt"}), interpolation="bilinear", windows="stored", pool=RowPool(1)
    )
    ids = np.array([4, 0, 4, 5])
    plan = plan_training(
        ids,
        copies_N=np.array([0, 0, 1, 0]),
        sizes_N2=np.full((4, 2), 8, dtype=np.int32),
        fit=Fit("crop", 1.0),
        augmentation=Augmentation(crop="pad", pad_px=2, flip="random"),
        seed=0,
        epoch=0,
        size_px=8,
        num_views=2,
    )
    for carried in executor.run([plan, plan]):
        assert carried.bad == dict.fromkeys((0, 2, 4, 6), "burnt")
        for row in (1, 3, 5, 7):
            wanted = carry_out(images[plan.ids_N[row]].numpy(), plan=plan, row=row, interpolation="bilinear")
            assert torch.equal(carried.images_NHWC[row], wanted)


@pytest.mark.parametrize("fit", [Fit("crop", 1.0), Fit("letterbox", 1.0, border=(1, 200, 77))], ids=lambda f: f.fit)
@pytest.mark.parametrize("size_px", [7, 12, 20])
def test_drawn_windows_take_the_size_of_each_plan(size_px: int, fit: Fit, pixels_of: Callable[..., Pixels]) -> None:
    images = np.stack([pixels_of(20, 26, seed=index) for index in range(6)])
    executor = ResidentExecutor(
        Store(torch.from_numpy(images), {}), interpolation="bilinear", windows="drawn", pool=RowPool(2)
    )
    ids = np.array([5, 0, 3])
    plan = plan_training(
        ids,
        copies_N=np.zeros_like(ids),
        sizes_N2=np.array([[20, 26]] * 3, dtype=np.int32),
        fit=fit,
        augmentation=Augmentation(crop="pad", pad_px=3, flip="random", vertical_flip_prob=0.5),
        seed=0,
        epoch=0,
        size_px=size_px,
    )
    (carried,) = executor.run([plan])
    wanted = torch.stack(
        [carry_out(images[ids[row]], plan=plan, row=row, interpolation="bilinear") for row in range(3)]
    )
    difference = (carried.images_NHWC.int() - wanted.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 0.1


def test_a_letterboxed_batch_with_an_image_of_unknown_size_is_right_in_all_other_rows(
    pixels_of: Callable[..., Pixels],
) -> None:
    images = np.stack([pixels_of(20, 26, seed=index) for index in range(4)])
    images[1] = 0
    executor = ResidentExecutor(
        Store(torch.from_numpy(images), {1: "burnt"}), interpolation="bilinear", windows="drawn", pool=RowPool(1)
    )
    sizes_N2 = np.array([[20, 26], [0, 0], [20, 26], [20, 26]], dtype=np.int32)
    fit = Fit("letterbox", 1.0, border=(1, 200, 77))
    plan = plan_evaluation(np.arange(4), sizes_N2=sizes_N2, fit=fit, size_px=13)
    (carried,) = executor.run([plan])
    assert carried.bad == {1: "burnt"}
    for row in (0, 2, 3):
        wanted = carry_out(images[row], plan=plan, row=row, interpolation="bilinear")
        difference = (carried.images_NHWC[row].int() - wanted.int()).abs()
        assert difference.max() <= 1
        assert not difference[[0, -1]].any(), "the border is exact"
