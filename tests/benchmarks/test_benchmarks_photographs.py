"""JPEG files are found wherever they lie, and become an image folder of two classes."""

from pathlib import Path

import pytest

from benchmarks.photographs import link_as_image_folder, list_jpegs


def test_jpegs_are_found_in_order_in_folders_within_folders(tmp_path: Path) -> None:
    for name in ("b/2.JPEG", "a/1.jpg", "a/deep/3.Jpg", "a/4.png", "5.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in list_jpegs(tmp_path)] == ["a/1.jpg", "a/deep/3.Jpg", "b/2.JPEG"]


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_any_is_told(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"there are no files \*\.jpg or \*\.jpeg in .*{folder} or within it"):
        list_jpegs(tmp_path / folder)


def test_links_take_turns_in_two_classes_and_a_file_may_come_twice(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.JPEG" for name in "xyz"]
    for file in files:
        file.write_text(file.stem)
    link_as_image_folder([*files, files[0]], tmp_path / "root")
    made = {str(path.relative_to(tmp_path / "root")): path.read_text() for path in (tmp_path / "root").rglob("*.jpg")}
    assert made == {
        "train/a/0000000.jpg": "x",
        "train/b/0000001.jpg": "y",
        "train/a/0000002.jpg": "z",
        "train/b/0000003.jpg": "x",
    }
