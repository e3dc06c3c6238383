"""Tiles of training images: the pixels, and the words above them."""

import io

import numpy as np
import pytest
from PIL import Image
from run_folders import make_samples

from report.samples import build_tiles, describe_mix


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_keep_their_pixels(channels):
    samples = make_samples(5, num_classes=2, size_px=9, channels=channels)
    tiles = build_tiles(samples, class_names=["cat", "dog"], limit=4)
    assert len(tiles) == 4
    for tile, image_HWC in zip(tiles, samples.images_NHWC, strict=False):
        with Image.open(io.BytesIO(tile.content)) as image:
            pixels = np.asarray(image).reshape(9, 9, channels)
        np.testing.assert_array_equal(pixels, image_HWC)
        assert (tile.media_type, tile.width_px, tile.height_px, tile.is_small) == ("image/png", 9, 9, True)


def test_large_images_are_jpegs_that_look_the_same():
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    samples = make_samples(1, num_classes=1)._replace(
        images_NHWC=np.broadcast_to(ramp[:, None], (1, 128, 128, 3)).copy()
    )
    (tile,) = build_tiles(samples, class_names=["cat"], limit=9)
    with Image.open(io.BytesIO(tile.content)) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - samples.images_NHWC[0]).mean() < 2
    assert not tile.is_small


def test_labels_say_what_is_mixed_in():
    tiles = build_tiles(make_samples(2, num_classes=2), class_names=["cat", "<b>"], limit=2)
    assert [tile.label for tile in tiles] == ["cat", "0.7 <b> + 0.3 cat"]
    assert describe_mix("cat", partner="dog", weight=1.0) == "cat"
    assert describe_mix("cat", partner="dog", weight=0.0) == "dog"
    assert describe_mix("cat", partner="dog", weight=0.25) == "0.25 cat + 0.75 dog"
