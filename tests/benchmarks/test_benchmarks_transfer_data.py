"""The folders of the study of transfer: links that the scan of image folders takes for the images themselves."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.transfer_data import draw_images, link_folders
from pipelines.sources.scan import scan_folder

CLASSES = [f"class {letter}" for letter in "abcdefghij"]
SIZES = {"train": dict.fromkeys(CLASSES, 4), "test": dict.fromkeys(CLASSES, 2)}


def scan(folder: Path) -> dict[str, Any]:
    return dict(scan_folder(str(folder), show_progress=False))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_first_seven_classes_are_one_data_set_and_some_images_of_the_other_three_another(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, work = make_folder(SIZES), tmp_path / "work"
    link_folders(data, work=work, subsets=[(3, 0), (3, 1)], trials=[(2, 9)], num_val=1)
    assert sorted(path.name for path in work.iterdir()) == ["seven", "three_3_0", "three_3_1", "trial_2_9"]
    trial = {split: np.bincount(one.labels_N).tolist() for split, one in scan(work / "trial_2_9").items()}
    assert trial == {"train": [2] * 3, "val": [1] * 3, "test": [2] * 3}
    parts = [set(files_below(work / "trial_2_9" / split)) for split in ("train", "val")]
    assert not {one for one in parts[0] & parts[1] if "/" in one}, "no image is in both"
    seven, three = (scan(work / name) for name in ("seven", "three_3_1"))
    assert {split: source.class_names for split, source in seven.items()} == dict.fromkeys(SIZES, tuple(CLASSES[:7]))
    assert {split: source.class_names for split, source in three.items()} == dict.fromkeys(SIZES, tuple(CLASSES[7:]))
    assert {split: np.bincount(one.labels_N).tolist() for split, one in seven.items()} == {
        "train": [4] * 7,
        "test": [2] * 7,
    }
    assert {split: np.bincount(one.labels_N).tolist() for split, one in three.items()} == {
        "train": [3] * 3,
        "test": [2] * 3,
    }
    original = scan_folder(str(data), show_progress=False)["test"]
    assert np.array_equal(three["test"].read_image(5, channels=3), original.read_image(19, channels=3))


def test_a_seed_draws_the_same_images_again_and_more_of_them_keep_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "horse"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03d}.jpg").touch()
    few, many = (draw_images(folder, num_images=number, seed=0) for number in (20, 100))
    assert many[:20] == few == draw_images(folder, num_images=20, seed=0)
    assert len(set(many)) == 100
    other = draw_images(folder, num_images=100, seed=1)
    assert 30 < len(set(many) & set(other)) < 70, "half of them, by chance"
    with pytest.raises(ValueError, match=re.escape("holds 200 images, and the study needs 201; give all of CIFAR-10")):
        draw_images(folder, num_images=201, seed=0)


def test_what_is_there_stays_and_what_was_stopped_is_made_again(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, work = make_folder(SIZES), tmp_path / "work"
    link_folders(data, work=work, subsets=[(3, 0)], trials=[])
    first, made_ns = files_below(work), (work / "three_3_0").stat().st_mtime_ns
    (work / "seven").rename(work / "seven.unfinished")
    (work / "seven.unfinished" / "test" / CLASSES[0]).unlink()
    link_folders(data, work=work, subsets=[(3, 0)], trials=[])
    assert files_below(work) == first
    assert (work / "three_3_0").stat().st_mtime_ns == made_ns
    assert all((data / split / name).is_dir() for split in SIZES for name in CLASSES), "nothing of the data is removed"
    assert len(list((data / "train").rglob("*.png"))) == 40


def test_folders_made_of_other_data_are_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    data, work = make_folder(SIZES), tmp_path / "work"
    link_folders(data, work=work, subsets=[], trials=[])
    data = data.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"seven was not made of .*elsewhere; remove it, or give another --work"):
        link_folders(data, work=work, subsets=[], trials=[])


def test_data_of_another_number_of_classes_is_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = make_folder({"train": dict.fromkeys(CLASSES[:9], 1), "test": dict.fromkeys(CLASSES[:9], 1)})
    with pytest.raises(ValueError, match="has 9 classes in train/ and 9 in test/; the study needs CIFAR-10"):
        link_folders(data, work=tmp_path / "work")
