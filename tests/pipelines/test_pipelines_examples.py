"""A few training images: those that evaluation shows, the same ones each time, bad ones by policy."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.counter import pick_ids
from pipelines.examples import read_examples
from pipelines.plan import Fit
from pipelines.source import ArraySource

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.2)


class Broken(ArraySource):
    """Image 5 turns out to be one that cannot be read."""

    def read_image(self, sample_id: int, **options: Any) -> Any:
        if sample_id == 5:
            raise ValueError("found to be cut short")
        return super().read_image(sample_id, **options)


def make_source(kind: type[ArraySource] = ArraySource, *, num_images: int = 12) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 8, 8, 3), dtype=np.uint8)
    bad = {3: "known to be cut short"} if kind is Broken else {}
    return kind(class_names=("a", "b"), labels_N=np.arange(num_images) % 2, images_NHWC=pixels, bad=bad)


def read(source: ArraySource, **changes: Any) -> torch.Tensor:
    options: dict[str, Any] = {
        "num_images": 12, "size_px": 8, "fit": Fit("crop", 1.0), "interpolation": "bilinear", "mean": MEAN, "std": STD,
        "show_progress": False,
    }  # fmt: skip
    return read_examples(source, **options | changes)


def test_images_are_normalised_and_in_the_order_of_the_draw() -> None:
    source = make_source()
    images = read(source, num_images=5)
    assert images.shape == (5, 3, 8, 8)
    assert images.dtype == torch.float32
    for image, sample_id in zip(images, pick_ids(12, num_wanted=5), strict=True):
        wanted = (source.images_NHWC[sample_id] / 255 - MEAN) / STD
        assert np.allclose(image.permute(1, 2, 0), wanted, atol=1e-6)


def test_an_image_of_another_size_is_cut_and_resized_as_in_evaluation() -> None:
    source = make_source(num_images=1)
    image = read(source, size_px=4, fit=Fit("crop", 0.75), mean=(0.0,) * 3, std=(1.0,) * 3)[0]
    cut = Image.fromarray(source.images_NHWC[0][1:7, 1:7])
    wanted = np.asarray(cut.resize((4, 4), Image.Resampling.BILINEAR)) / 255
    assert np.abs(image.permute(1, 2, 0).numpy() - wanted).max() <= 1.01 / 255


def test_a_letterboxed_image_lies_within_a_border_that_is_zero_after_normalising() -> None:
    wide = ArraySource(
        class_names=("a",),
        labels_N=np.zeros(1, dtype=np.int64),
        images_NHWC=np.random.default_rng(0).integers(0, 256, (1, 4, 8, 3), dtype=np.uint8),
    )
    image = read(wide, fit=Fit("letterbox", 1.0, border=(128, 64, 32)))[0].permute(1, 2, 0).numpy()
    assert np.allclose(image[2:6], (wide.images_NHWC[0] / 255 - MEAN) / STD, atol=1e-6)
    assert (np.abs(image[[0, 1, 6, 7]]) <= 0.5 / 255 / np.array(STD) + 1e-6).all()


def test_fewer_images_than_asked_for_are_all_of_them_once() -> None:
    images = read(make_source(), num_images=500)
    assert len(images) == 12
    assert len(torch.unique(images.flatten(1), dim=0)) == 12


@pytest.mark.parametrize("num_images", [4, 12])
def test_images_that_cannot_be_read_are_left_out_or_stop_it(num_images: int) -> None:
    source = make_source(Broken)
    ids = pick_ids(12, num_wanted=num_images)
    num_bad = int(np.isin(ids, [3, 5]).sum())
    assert len(read(source, num_images=num_images, skip_bad=True)) == num_images - num_bad
    if num_images == 12:
        with pytest.raises(ValueError, match=r"(known|found) to be cut short\. "):
            read(source)


def test_where_none_can_be_read_it_is_an_error_in_any_case() -> None:
    class AllBroken(ArraySource):
        def read_image(self, sample_id: int, **options: Any) -> Any:
            raise ValueError("cut short")

    with pytest.raises(ValueError, match="cut short"):
        read(make_source(AllBroken), skip_bad=True)
