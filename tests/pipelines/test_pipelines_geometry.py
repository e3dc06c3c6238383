"""Images through their rows of the plan, against Pillow and numpy."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from broken_source import BrokenSource
from PIL import Image

from pipelines.geometry import carry_out, carry_out_plan, shift_and_flip
from pipelines.plan import Augmentation, Fit, Letterbox, Plan, plan_training

Pixels = npt.NDArray[np.uint8]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def one_row(
    window: tuple[int, int, int, int],
    *,
    size_px: int,
    shift: tuple[int, int] = (0, 0),
    flip: bool = False,
    vertical_flip: bool = False,
) -> Plan:
    flips = np.array([flip]), np.array([vertical_flip])
    return Plan(np.array([0]), np.array([window]), np.array([shift]), *flips, size_px)


def numbered(height: int, width: int, channels: int = 3) -> Pixels:
    """Every pixel differs from its neighbours."""
    return (
        np.random.default_rng(0)
        .permutation(height * width * channels)
        .astype(np.uint8)
        .reshape(height, width, channels)
    )


def carried_out(pixels: Pixels, plan: Plan, *, interpolation: str = "bilinear") -> Pixels:
    image = carry_out(pixels, plan=plan, row=0, interpolation=interpolation)
    assert image.shape == (plan.size_px, plan.size_px, pixels.shape[2])
    assert image.is_contiguous()
    made: Pixels = image.numpy()
    return made


@pytest.mark.parametrize("window", [(0, 0, 5, 5), (3, 2, 5, 5), (4, 7, 5, 5)])
def test_a_window_of_the_output_size_is_a_plain_crop(window: tuple[int, int, int, int]) -> None:
    pixels = numbered(9, 12)
    top, left, height, width = window
    wanted = pixels[top : top + height, left : left + width]
    assert carried_out(pixels, one_row(window, size_px=5)).tolist() == wanted.tolist()


@pytest.mark.parametrize("down", range(-4, 5))
@pytest.mark.parametrize("right", [-4, -1, 0, 3, 4])
def test_a_shift_fills_the_border_by_reflection_without_repeating_the_edge(down: int, right: int) -> None:
    pixels = numbered(5, 5)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    wanted = padded[4 + down : 9 + down, 4 + right : 9 + right]
    assert carried_out(pixels, one_row((0, 0, 5, 5), size_px=5, shift=(down, right))).tolist() == wanted.tolist()


def test_a_flip_comes_after_the_shift_and_swaps_left_and_right() -> None:
    pixels = numbered(6, 6)
    flipped = carried_out(pixels, one_row((0, 0, 6, 6), size_px=6, flip=True))
    assert flipped.tolist() == pixels[:, ::-1].tolist()
    shifted = carried_out(pixels, one_row((0, 0, 6, 6), size_px=6, shift=(1, 2)))
    both = carried_out(pixels, one_row((0, 0, 6, 6), size_px=6, shift=(1, 2), flip=True))
    assert both.tolist() == shifted[:, ::-1].tolist()


def test_a_vertical_flip_comes_after_the_shift_too_and_swaps_top_and_bottom() -> None:
    pixels = numbered(6, 6)
    flipped = carried_out(pixels, one_row((0, 0, 6, 6), size_px=6, vertical_flip=True))
    assert flipped.tolist() == pixels[::-1].tolist()
    shifted = carried_out(pixels, one_row((0, 0, 6, 6), size_px=6, shift=(1, 2)))
    all_three = carried_out(pixels, one_row((0, 0, 6, 6), size_px=6, shift=(1, 2), flip=True, vertical_flip=True))
    assert all_three.tolist() == shifted[::-1, ::-1].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_letterboxed_window_lies_in_its_box_within_the_border(channels: int) -> None:
    pixels, border = numbered(4, 7, channels), (200, 3, 45)[:channels]
    plan = one_row((0, 0, 4, 7), size_px=7)._replace(letterbox=Letterbox(np.array([[1, 0, 4, 7]]), border))
    wanted = np.empty((7, 7, channels), dtype=np.uint8)
    wanted[:] = border
    wanted[1:5] = pixels
    assert carried_out(pixels, plan).tolist() == wanted.tolist()


def test_a_shift_of_a_letterboxed_image_reflects_the_border_with_the_image_and_a_flip_turns_all_of_it() -> None:
    pixels = numbered(6, 4)
    plan = one_row((0, 0, 6, 4), size_px=6)._replace(letterbox=Letterbox(np.array([[0, 1, 6, 4]]), (9, 9, 9)))
    boxed = np.pad(pixels, ((0, 0), (1, 1), (0, 0)), constant_values=9)
    shifted = carried_out(pixels, plan._replace(shifts_N2=np.array([[2, 3]])))
    wanted = np.pad(boxed, ((0, 2), (0, 3), (0, 0)), mode="reflect")[2:, 3:]
    assert shifted.tolist() == wanted.tolist()
    flipped = carried_out(pixels, plan._replace(vertical_flips_N=np.array([True])))
    assert flipped.tolist() == boxed[::-1].tolist()


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("window", [(0, 0, 50, 70), (7, 11, 20, 31), (3, 4, 16, 40), (10, 10, 3, 2), (0, 0, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_equals_pillow_within_one_of_255(
    interpolation: str, window: tuple[int, int, int, int], channels: int
) -> None:
    pixels = numbered(50, 70, channels)
    top, left, height, width = window
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    cropped = image.crop((left, top, left + width, top + height))
    wanted = np.asarray(cropped.resize((16, 16), PILLOW[interpolation])).reshape(16, 16, channels)
    made = carried_out(pixels, one_row(window, size_px=16), interpolation=interpolation)
    assert np.abs(made.astype(int) - wanted).max() <= 1


def test_the_right_row_of_the_plan_is_taken_and_the_stored_pixels_stay_as_they_are() -> None:
    pixels = numbered(8, 8)
    before = pixels.copy()
    pixels.flags.writeable = False  # as decoded images are
    windows, flips = np.array([[0, 0, 8, 8]] * 2), np.array([True, False])
    plan = Plan(np.arange(2), windows, np.array([[0, 0], [1, 0]]), flips, flips, 8)
    second = carry_out(pixels, plan=plan, row=1, interpolation="bilinear")
    second += 1
    assert pixels.tolist() == before.tolist()
    assert (second.numpy() - 1)[:7].tolist() == before[1:].tolist()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_shift_and_flip_gathers_rows_as_numpy_pads_them_for_every_shift(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, channels), dtype=np.uint8)
    cases = list(itertools.product(range(-4, 5), range(-4, 5), (False, True), (False, True)))
    rows = np.arange(len(cases)) % 3
    made = shift_and_flip(
        torch.from_numpy(images),
        rows_N=torch.from_numpy(rows),
        shifts_N2=torch.tensor([case[:2] for case in cases]),
        flips_N=torch.tensor([case[2] for case in cases]),
        vertical_flips_N=torch.tensor([case[3] for case in cases]),
    ).numpy()
    assert len(made) == 324
    for index, (down, right, flip, vertical_flip) in enumerate(cases):
        padded = np.pad(images[rows[index]], ((4, 4), (4, 4), (0, 0)), mode="reflect")
        wanted = padded[4 + down : 9 + down, 4 + right : 9 + right]
        wanted = wanted[::-1] if vertical_flip else wanted
        assert made[index].tolist() == (wanted[:, ::-1] if flip else wanted).tolist()


def test_a_plan_is_carried_out_row_by_row_and_unreadable_rows_are_named_with_the_reason_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)
    labels_N = np.zeros(6, dtype=np.int64)
    source = BrokenSource(class_names=("a",), labels_N=labels_N, images_NHWC=images, broken={1: "it is sample 1"})
    ids = np.array([5, 1, 4, 0])
    plan = plan_training(
        ids,
        copies_N=np.zeros_like(ids),
        sizes_N2=source.sizes_N2[ids],
        fit=Fit("crop", 1.0),
        augmentation=Augmentation(crop="pad", pad_px=3, flip="random", vertical_flip_prob=0.5),
        seed=0,
        epoch=0,
        size_px=9,
        num_views=2,
    )
    carried = carry_out_plan(plan, source=source, channels=3, interpolation="bilinear")
    assert carried.images_NHWC.shape == (8, 9, 9, 3)
    assert carried.images_NHWC.dtype == torch.uint8
    assert carried.bad == {1: "it is sample 1", 5: "it is sample 1"}, "both views"
    for row in (0, 2, 3, 4, 6, 7):
        wanted = carry_out(images[plan.ids_N[row]], plan=plan, row=row, interpolation="bilinear")
        assert torch.equal(carried.images_NHWC[row], wanted)
