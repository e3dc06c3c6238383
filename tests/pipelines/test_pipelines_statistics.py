"""Mean and standard deviation, against numpy over all pixels in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines import statistics
from pipelines.source import ArraySource, Source
from pipelines.sources.scan import scan_folder
from pipelines.statistics import measure_statistics

ROUNDED = 5.1e-7  # half of the sixth decimal, to which the values are rounded


def assert_measured(source: Source, pixels_PC: npt.NDArray[np.uint8]) -> None:
    measured = measure_statistics(source, channels=pixels_PC.shape[1], show_progress=False)
    values = pixels_PC.astype(np.float64) / 255
    assert measured.mean == pytest.approx(values.mean(axis=0), abs=ROUNDED)
    assert measured.std == pytest.approx(values.std(axis=0), abs=ROUNDED)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_measured_over_all_pixels(channels: int) -> None:
    images = np.random.default_rng(0).integers(20, 200, (50, 6, 7, channels), dtype=np.uint8)
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(50) % 2, images_NHWC=images)
    assert_measured(source, images.reshape(-1, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_several_sizes_are_measured_over_all_pixels(write_folder: Callable[..., Path], channels: int) -> None:
    root = write_folder({"train": {"a": 70, "b": 10}}, sizes=[(6, 9), (20, 5), (11, 11)], channels=channels)
    source = scan_folder(str(root), show_progress=False)["train"]
    images = [source.read_image(index, channels=channels).reshape(-1, channels) for index in range(80)]
    assert_measured(source, np.concatenate(images))


def test_grey_images_read_as_colour_have_the_same_value_three_times() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(5) % 2, images_NHWC=images)
    assert_measured(source, np.repeat(images.reshape(-1, 1), 3, axis=1))


def test_of_many_images_a_part_is_measured_that_depends_on_their_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "NUM_MEASURED", 30)
    images = np.random.default_rng(0).integers(0, 256, (200, 2, 2, 1), dtype=np.uint8)
    read: list[list[int]] = []

    class Counting(ArraySource):
        def read_image(self, sample_id: int, **options: Any) -> npt.NDArray[np.uint8]:
            read[-1].append(sample_id)
            return super().read_image(sample_id, **options)

    for pixels in (images, 255 - images):
        read.append([])
        source = Counting(class_names=("a", "b"), labels_N=np.arange(200) % 2, images_NHWC=pixels)
        measured = measure_statistics(source, channels=1, show_progress=False)
        assert measured.mean == pytest.approx([pixels[read[-1]].mean() / 255], abs=ROUNDED)
    assert sorted(read[0]) == sorted(read[1])
    assert len(set(read[0])) == 30
    assert max(read[0]) > 100, "not simply the first ones"


def test_a_channel_of_one_value_cannot_be_measured_and_the_message_says_what_to_give() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    images[..., 1] = 77
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(5) % 2, images_NHWC=images)
    with pytest.raises(ValueError, match=r"all pixels of a channel are equal.*give input\.mean and input\.std"):
        measure_statistics(source, channels=3, show_progress=False)


def test_an_image_that_cannot_be_read_is_named(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"train": {"a": 2, "b": 2}})
    source = scan_folder(str(root), show_progress=False)["train"]
    (root / "train/b/001.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"train/b/001\.png: not an image"):
        measure_statistics(source, channels=3, show_progress=False)


@pytest.fixture
def partly_bad(write_folder: Callable[..., Path]) -> Source:
    """Ten images, of which one was bad when the folder was scanned and another has become so since."""
    root = write_folder({"train": {"a": 5, "b": 5}})
    (root / "train/a/003.png").write_bytes(b"nonsense")
    source = scan_folder(str(root), show_progress=False, keep_bad=True)["train"]
    (root / "train/b/001.png").write_bytes(b"nonsense")
    return source


def test_images_that_cannot_be_read_are_left_out_if_asked_for(partly_bad: Source) -> None:
    measured = measure_statistics(partly_bad, channels=3, show_progress=False, skip_bad=True)
    good = partly_bad.take(np.array([0, 1, 2, 4, 5, 7, 8, 9]))
    assert measured == measure_statistics(good, channels=3, show_progress=False)


@pytest.mark.parametrize(("bad", "name"), [(3, "a/003"), (6, "b/001")])
def test_an_image_that_cannot_be_read_is_an_error_if_not(partly_bad: Source, bad: int, name: str) -> None:
    part = partly_bad.take(np.array([0, 1, bad]))
    with pytest.raises(ValueError, match=rf"train/{name}\.png: not an image in any format that Pillow reads\. Repair "):
        measure_statistics(part, channels=3, show_progress=False)


def test_a_sample_that_is_known_to_be_bad_is_not_read(pixels_of: Callable[..., npt.NDArray[np.uint8]]) -> None:
    images = np.stack([pixels_of(8, 8, seed=seed) for seed in range(4)])
    source = ArraySource(class_names=("a", "b"), labels_N=np.arange(4) % 2, images_NHWC=images, bad={2: "it is torn"})
    measured = measure_statistics(source, channels=3, show_progress=False, skip_bad=True)
    wanted = images[[0, 1, 3]].reshape(-1, 3).astype(np.float64) / 255
    assert measured.mean == pytest.approx(wanted.mean(axis=0), abs=ROUNDED)
    with pytest.raises(ValueError, match=r"^image 2: it is torn\. Repair "):
        measure_statistics(source, channels=3, show_progress=False)


def test_where_no_image_can_be_read_nothing_is_measured(partly_bad: Source) -> None:
    wanted = r"none of 2 images can be read, for example .*\.png: .*; give input\.mean and input\.std, or repair"
    with pytest.raises(ValueError, match=wanted):
        measure_statistics(partly_bad.take(np.array([3, 6])), channels=3, show_progress=False, skip_bad=True)
