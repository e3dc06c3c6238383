"""Images in memory as a source."""

import dataclasses

import numpy as np
import pytest

from pipelines.source import ArraySource


def make_source(*, channels: int = 1, count: int = 6) -> ArraySource:
    images = np.arange(count * 4 * 5 * channels, dtype=np.uint8).reshape(count, 4, 5, channels)
    return ArraySource(class_names=("a", "b"), labels_N=np.arange(count) % 2, images_NHWC=images)


def test_sizes_are_height_and_width_of_every_image() -> None:
    assert make_source().sizes_N2.tolist() == [[4, 5]] * 6
    assert make_source().sizes_N2.dtype == np.int32


def test_grey_is_repeated_for_three_channels_and_colour_is_not_thrown_away() -> None:
    grey, colour = make_source(), make_source(channels=3)
    assert (grey.is_grey, colour.is_grey) == (True, False)
    assert grey.read_image(2, channels=1).tolist() == grey.images_NHWC[2].tolist()
    assert grey.read_image(2, channels=3).tolist() == [[[int(v)] * 3 for (v,) in row] for row in grey.images_NHWC[2]]
    assert colour.read_image(2, channels=3).tolist() == colour.images_NHWC[2].tolist()
    with pytest.raises(ValueError, match=r"input\.channels=1, but these images have 3; use 3"):
        colour.read_image(0, channels=1)


def test_take_keeps_the_rows_asked_for() -> None:
    part = make_source().take(np.array([5, 2]))
    assert part.labels_N.tolist() == [1, 0]
    assert part.images_NHWC.tolist() == make_source().images_NHWC[[5, 2]].tolist()


def test_take_numbers_bad_samples_anew_and_forgets_those_that_are_left_out() -> None:
    source = dataclasses.replace(make_source(), bad={5: "burnt", 3: "torn"})
    assert source.take(np.array([0, 5, 2])).bad == {1: "burnt"}
    assert source.take(np.array([1, 2])).bad == {}


def test_images_in_memory_are_called_by_their_number_are_no_jpegs_and_readable_unless_said() -> None:
    source = make_source()
    assert source.describe(4) == "image 4"
    assert source.read_jpeg(4) is None
    assert source.bad == {}


def test_the_fingerprint_depends_on_names_labels_and_pixels() -> None:
    source = make_source()
    pixels, labels = source.images_NHWC.copy(), source.labels_N.copy()
    pixels[3, 1, 1, 0] += 1
    labels[0] = 1
    others = [
        ArraySource(class_names=("a", "c"), labels_N=source.labels_N, images_NHWC=source.images_NHWC),
        ArraySource(class_names=("a", "b"), labels_N=labels, images_NHWC=source.images_NHWC),
        ArraySource(class_names=("a", "b"), labels_N=source.labels_N, images_NHWC=pixels),
        ArraySource(
            class_names=("a", "b"), labels_N=source.labels_N, images_NHWC=source.images_NHWC.reshape(6, 5, 4, 1)
        ),
    ]
    assert make_source().fingerprint() == source.fingerprint()
    assert len({source.fingerprint(), *(other.fingerprint() for other in others)}) == 5
