"""The compiled loops against their references in torch and numpy."""

import itertools
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipelines import kernels
from pipelines.geometry import shift_and_flip
from pipelines.kernels import flip_image, normalise_rows, shift_and_flip_image, shift_and_flip_rows

Pixels = npt.NDArray[np.uint8]


def random_pixels(*shape: int) -> Pixels:
    return np.random.default_rng(list(shape)).integers(0, 256, shape, dtype=np.uint8)


class Case(NamedTuple):
    down: int
    right: int
    flip: bool
    vertical_flip: bool


def reference(images: Pixels, rows: list[int], cases: list[Case]) -> Pixels:
    made: Pixels = shift_and_flip(
        torch.from_numpy(np.ascontiguousarray(images)),
        rows_N=torch.tensor(rows),
        shifts_N2=torch.tensor([case[:2] for case in cases]),
        flips_N=torch.tensor([case.flip for case in cases]),
        vertical_flips_N=torch.tensor([case.vertical_flip for case in cases]),
    ).numpy()
    return made


def carry_out(images: Pixels, rows: list[int], cases: list[Case], out: Pixels) -> None:
    shift_and_flip_rows(
        images,
        np.array(rows),
        np.array([case[:2] for case in cases]),
        np.array([case.flip for case in cases]),
        np.array([case.vertical_flip for case in cases]),
        out,
    )


def every_case(size: int) -> list[Case]:
    line = range(-(size - 1), size)
    return [Case(*values) for values in itertools.product(line, line, (False, True), (False, True))]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_rows_are_shifted_and_flipped_as_torch_does_up_to_the_whole_image(size: int, channels: int) -> None:
    images, cases = random_pixels(3, size, size, channels), every_case(size)
    rows = [index % 3 for index in range(len(cases))]
    out = np.full((len(cases), size, size, channels), 77, dtype=np.uint8)
    carry_out(images, rows, cases, out)
    assert np.array_equal(out, reference(images, rows, cases))


def test_the_reference_flips_as_numpy_does() -> None:
    image = random_pixels(1, 5, 5, 3)
    for flip, vertical_flip in itertools.product((False, True), repeat=2):
        wanted = image[0, ::-1] if vertical_flip else image[0]
        wanted = wanted[:, ::-1] if flip else wanted
        assert np.array_equal(reference(image, [0], [Case(0, 0, flip, vertical_flip)])[0], wanted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [31, 64, 224])
def test_rows_long_enough_for_vectors_too(size: int, channels: int) -> None:
    images = random_pixels(2, size, size, channels)
    shifts = [(0, 0), (3, -2), (-size + 1, size - 1), (1, size // 2)]
    cases = [Case(*shift, *flips) for shift in shifts for flips in itertools.product((False, True), repeat=2)]
    rows = [index % 2 for index in range(len(cases))]
    out = np.full((len(cases) + 2, size, size, channels), 77, dtype=np.uint8)
    carry_out(images, rows, cases, out[1:-1])
    assert np.array_equal(out[1:-1], reference(images, rows, cases))
    assert (out[[0, -1]] == 77).all(), "nothing beside the rows is touched"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_of_any_strides_is_shifted_and_flipped_alike(channels: int) -> None:
    size = 6
    large = random_pixels(17, 19, channels + 1)
    views = {
        "window": large[4 : 4 + size, 5 : 5 + size, :channels],
        "turned": large[4 : 4 + size, 5 : 5 + size, :channels].transpose(1, 0, 2),
        "upside down": large[4 : 4 + size, 5 : 5 + size, :channels][::-1, ::-1],
        "every other": large[: 2 * size : 2, : 3 * size : 3, :channels],
    }
    for name, image in views.items():
        assert not image.flags.c_contiguous
        for case in every_case(size)[::5]:
            out = np.full((size, size, channels), 77, dtype=np.uint8)
            shift_and_flip_image(image, *case, out)
            assert np.array_equal(out[None], reference(image[None], [0], [case])), name


def test_a_result_may_lie_in_a_slot_of_a_batch_and_the_others_stay() -> None:
    image = random_pixels(4, 4, 3)
    batch = np.full((3, 4, 4, 3), 9, dtype=np.uint8)
    shift_and_flip_image(image, 0, 0, True, False, batch[1])
    assert np.array_equal(batch[1], image[:, ::-1])
    assert (batch[[0, 2]] == 9).all()


def test_normalising_is_one_multiplication_and_one_addition_in_float32() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(6).reshape(-1, 6)
    scale, offset = np.linspace(0.01, 0.02, 6, dtype=np.float32), np.linspace(-2, 1, 6, dtype=np.float32)
    out = np.empty(values.shape, dtype=np.float32)
    normalise_rows(values, scale, offset, out)
    wanted = values.astype(np.float64) * scale.astype(np.float64) + offset.astype(np.float64)
    assert np.abs(out - wanted).max() <= 2.0**-21  # results below 4 lie on a grid of 2^-22; the product is rounded too


@pytest.mark.parametrize("keeps", [True, False], ids=["with_a_cache", "without"])
def test_where_no_folder_can_keep_machine_code_it_is_compiled_at_each_start(
    monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    njit, asked = numba.njit, []

    def without_a_cache(**options: bool) -> object:
        asked.append(options)
        if options.get("cache") and not keeps:
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x.py'")
        return njit(**{name: value for name, value in options.items() if name != "cache"})

    monkeypatch.setattr(kernels.numba, "njit", without_a_cache)

    def double(value: int) -> int:
        return 2 * value

    compiled = kernels.compiled(double)
    assert compiled(21) == 42
    assert asked == [{"nogil": True, "cache": True}] + [{"nogil": True}] * (not keeps)


def test_shapes_that_do_not_fit_are_refused_before_the_loops_read_beside_the_image() -> None:
    image, out = random_pixels(4, 4, 3), np.zeros((12, 12, 3), dtype=np.uint8)
    with pytest.raises(AssertionError):
        shift_and_flip_image(image, 0, 0, False, False, out)
    rows, shifts, flips = np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.int64), np.zeros(1, dtype=np.bool_)
    with pytest.raises(AssertionError):
        shift_and_flip_rows(image[None], rows, shifts, flips, flips, out[None])
    with pytest.raises(AssertionError):
        shift_and_flip_rows(out[None, ::-1], rows, shifts, flips, flips, out[None].copy())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_an_image_is_flipped_in_place(size: int, channels: int) -> None:
    image = np.random.default_rng(size).integers(0, 256, (size, size, channels), dtype=np.uint8)
    for flip, vertical_flip in itertools.product([False, True], repeat=2):
        found = image.copy()
        flip_image(found, flip, vertical_flip)
        assert np.array_equal(found, image[:: -1 if vertical_flip else 1, :: -1 if flip else 1])
