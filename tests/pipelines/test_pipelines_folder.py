"""Image folders: what is found, what is refused with which advice, and what the fingerprint depends on."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from pipelines.folder import IMAGE_SUFFIXES, FolderSource, scan_folder

WriteFolder = Callable[..., Path]
TWO = {"cat": 3, "dog": 2}


def scan(root: Path) -> dict[str, FolderSource]:
    return cast(dict[str, FolderSource], scan_folder(str(root), show_progress=False))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_splits_classes_labels_sizes_and_pixels_are_those_on_disk(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "val": {"cat": 1, "dog": 1}, "test": TWO}, sizes=[(8, 12), (10, 9)])
    splits = scan(root)
    assert list(splits) == ["train", "val", "test"]
    for split, source in splits.items():
        files = sorted((root / split).rglob("*.png"))
        assert [Path(source.path(index)) for index in range(len(source.labels_N))] == files
        assert source.class_names == ("cat", "dog")
        assert source.labels_N.tolist() == [("cat", "dog").index(file.parent.name) for file in files]
        for index, file in enumerate(files):
            with Image.open(file) as image:
                assert source.read_image(index, channels=3).tolist() == np.asarray(image).tolist()
                assert source.sizes_N2[index].tolist() == [image.height, image.width]
        assert (source.labels_N.dtype, source.sizes_N2.dtype) == (np.int64, np.int32)


def test_only_train_is_needed(write_folder: WriteFolder) -> None:
    assert list(scan(write_folder({"train": TWO}))) == ["train"]


def test_images_in_nested_folders_belong_to_the_class_above_and_hidden_ones_to_none(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    for place in ("cat/b/deeper", "cat/a", "cat/.cache", ".git"):
        (root / "train" / place).mkdir(parents=True)
        shutil.copy(root / "train/dog/000.png", root / "train" / place / "x.png")
    shutil.copy(root / "train/dog/000.png", root / "train/cat/._thumb.png")
    source = scan(root)["train"]
    names = [name.decode() for name in source.names_N]
    cats = ["cat/000.png", "cat/001.png", "cat/002.png", "cat/a/x.png", "cat/b/deeper/x.png"]
    assert names == [*cats, "dog/000.png", "dog/001.png"]
    assert source.labels_N.tolist() == [0] * 5 + [1] * 2


def test_linked_folders_are_followed_but_not_around_in_a_circle(write_folder: WriteFolder, tmp_path: Path) -> None:
    root = write_folder({"train": TWO})
    elsewhere = tmp_path / "elsewhere"
    (root / "train/dog").rename(elsewhere)
    (root / "train/dog").symlink_to(elsewhere)
    (root / "train/cat/loop").symlink_to(root / "train/cat")
    (elsewhere / "deeper").mkdir()
    (elsewhere / "deeper/loop").symlink_to(elsewhere)
    source = scan(root)["train"]
    assert [name.decode() for name in source.names_N] == [
        *(f"cat/{index:03}.png" for index in range(3)),
        *(f"dog/{index:03}.png" for index in range(2)),
    ]
    assert source.read_image(4, channels=3).shape == (16, 16, 3)


def test_every_listed_suffix_is_taken_in_upper_case_too_and_pillow_knows_it(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    for suffix in IMAGE_SUFFIXES:
        shutil.copy(root / "train/dog/000.png", root / "train/dog" / f"copy{suffix}")
        shutil.copy(root / "train/dog/000.png", root / "train/dog" / f"loud{suffix.upper()}")
    assert len(scan(root)["train"].labels_N) == 5 + 2 * len(IMAGE_SUFFIXES)
    assert set(IMAGE_SUFFIXES) <= set(Image.registered_extensions())


def test_names_that_are_not_ascii_are_found_and_read(write_folder: WriteFolder) -> None:
    root = write_folder({"train": {"Käse": 2, "猫": 1}})
    source = scan(root)["train"]
    assert source.class_names == ("Käse", "猫")
    assert source.read_image(2, channels=3).shape == (16, 16, 3)


def test_grey_is_recognised_only_if_every_image_is_grey(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO}, channels=1)
    assert scan(root)["train"].is_grey
    shutil.copy(write_folder({"train": TWO}, name="colour") / "train/cat/000.png", root / "train/dog/colour.png")
    assert not scan(root)["train"].is_grey


def test_take_keeps_the_rows_asked_for_and_numbers_them_from_zero(write_folder: WriteFolder) -> None:
    whole = scan(write_folder({"train": TWO}, sizes=[(8, 9), (10, 11), (12, 13), (14, 15), (16, 17)]))["train"]
    part = whole.take(np.array([4, 1]))
    assert [part.path(0), part.path(1)] == [whole.path(4), whole.path(1)]
    assert part.labels_N.tolist() == [1, 0]
    assert part.sizes_N2.tolist() == [[16, 17], [10, 11]]
    assert part.read_image(0, channels=3).tolist() == whole.read_image(4, channels=3).tolist()
    assert (part.class_names, part.is_grey) == (whole.class_names, whole.is_grey)


def test_the_fingerprint_stays_when_the_folder_moves(write_folder: WriteFolder, tmp_path: Path) -> None:
    root = write_folder({"train": TWO, "val": TWO})
    before = {split: source.fingerprint() for split, source in scan(root).items()}
    shutil.move(root, tmp_path / "elsewhere")
    after = {split: source.fingerprint() for split, source in scan(tmp_path / "elsewhere").items()}
    assert before == after


def add_file(root: Path) -> None:
    shutil.copy(root / "train/cat/000.png", root / "train/cat/more.png")


def rename_file(root: Path) -> None:
    (root / "train/cat/002.png").rename(root / "train/cat/00x.png")


def rename_class(root: Path) -> None:
    (root / "train/cat").rename(root / "train/bat")


def move_to_other_class(root: Path) -> None:
    (root / "train/cat/002.png").rename(root / "train/dog/002.png")


def resize_image(root: Path) -> None:
    Image.new("RGB", (17, 16)).save(root / "train/cat/000.png")


@pytest.mark.parametrize("change", [add_file, rename_file, rename_class, move_to_other_class, resize_image])
def test_the_fingerprint_changes_with_the_samples(write_folder: WriteFolder, change: Callable[[Path], None]) -> None:
    root = write_folder({"train": TWO})
    before = scan(root)["train"].fingerprint()
    change(root)
    assert scan(root)["train"].fingerprint() != before


def test_a_missing_root_is_refused_with_the_place_it_was_looked_for_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = f"data.root=nowhere does not exist (looked from {tmp_path}); give the folder that holds train/<class>/."
    with pytest.raises(FileNotFoundError, match=re.escape(wanted)):
        scan(Path("nowhere"))


def test_a_root_that_is_a_file_is_refused_with_the_advice_to_unpack(tmp_path: Path) -> None:
    archive = tmp_path / "data.tar"
    archive.write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=rf"{archive} is a file; give the folder .* \(unpack an archive first\)"
    ):
        scan(archive)


def test_a_root_without_train_is_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder train/, but nothing; put the class folders into train/"):
        scan(tmp_path)
    for name in "gfedcb":
        (tmp_path / name).mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no folder train/, but a\.txt, b/, c/, d/, e/, \.\.\.; put the class"):
        scan(tmp_path)


def test_a_train_one_level_deeper_is_suggested_and_the_suggestion_works(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO}, name="outer/inner")
    with pytest.raises(FileNotFoundError, match=r"but inner/; use --data\.root") as caught:
        scan(root.parent)
    suggested = re.search(r"use --data\.root (.*)\.$", str(caught.value))
    assert suggested is not None
    assert len(scan(Path(suggested[1]))["train"].labels_N) == 5


@pytest.mark.parametrize(("classes", "shown"), [({}, "0 class folders (none)"), ({"cat": 1}, "1 class folders (cat)")])
def test_fewer_than_two_classes_are_refused_with_the_layout(
    write_folder: WriteFolder, tmp_path: Path, classes: dict[str, int], shown: str
) -> None:
    root = write_folder({"train": classes})
    (root / "train").mkdir(parents=True, exist_ok=True)
    wanted = f"train has {shown}; a classifier needs at least two: train/<class>/<image>."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        scan(root)


def test_empty_classes_are_named_with_the_suffixes_that_count(write_folder: WriteFolder) -> None:
    root = write_folder({"train": {**TWO, "emu": 0, "fox": 0}})
    (root / "train/emu/notes.txt").write_text("")
    wanted = "train has 2 class folders without images: emu, fox; add images (.jpg, .jpeg, .png, "
    with pytest.raises(ValueError, match=re.escape(wanted) + r".*\) or remove the folders"):
        scan(root)


def test_classes_that_differ_between_splits_are_listed_with_minus_and_plus(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "val": {"cat": 1, "dog": 1, "Dog": 1}, "test": {"cat": 1, "cow": 1}})
    with pytest.raises(ValueError, match=r"the classes of .*/val are not those of train/") as caught:
        scan(root)
    assert "\n  + Dog (in val/, not in train/)\n" in str(caught.value)
    assert "  - " not in str(caught.value)
    assert "rename, add or remove these" in str(caught.value)
    (root / "val/Dog/000.png").unlink()
    (root / "val/Dog").rmdir()
    with pytest.raises(ValueError, match=r"the classes of .*/test are not those of train/") as caught:
        scan(root)
    assert "\n  - dog (in train/, not in test/)\n  + cow (in test/, not in train/)\n" in str(caught.value)


def test_many_differing_classes_are_cut_short_with_their_number(write_folder: WriteFolder) -> None:
    classes = {f"class{index:02}": 1 for index in range(20)}
    root = write_folder({"train": classes, "val": {"class00": 1, "class01": 1}})
    with pytest.raises(ValueError, match=r"- class11 .*\n  \.\.\. 18 in all\n") as caught:
        scan(root)
    assert "class12" not in str(caught.value)


def test_files_that_are_no_images_are_all_counted_and_named(write_folder: WriteFolder) -> None:
    root = write_folder({"train": {"cat": 8, "dog": 2}})
    bad = sorted((root / "train/cat").iterdir())[:7]
    for path in bad:
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"^7 of 10 files cannot be read as images:") as caught:
        scan(root)
    message = str(caught.value)
    for path in bad[:5]:
        assert f"\n  {path}: not an image in any format that Pillow reads" in message
    assert str(bad[5]) not in message
    assert message.endswith("\n  ...\nRemove or replace them.")


def test_a_truncated_image_is_named_when_it_is_read(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    source = scan(root)["train"]
    truncate(root / "train/dog/001.png")
    with pytest.raises(ValueError, match=rf"^{root}/train/dog/001\.png: .*truncated"):
        source.read_image(4, channels=3)


def test_a_file_that_is_gone_is_named_when_it_is_read(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    source = scan(root)["train"]
    (root / "train/cat/001.png").unlink()
    with pytest.raises(ValueError, match=rf"^{root}/train/cat/001\.png: .*No such file"):
        source.read_image(1, channels=3)


def test_ignored_files_are_mentioned_on_the_screen(
    write_folder: WriteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder({"train": TWO})
    for index in range(7):
        (root / f"train/cat/note{index}.txt").write_text("")
    scan_folder(str(root), show_progress=False)
    assert capsys.readouterr().out == "", "only the main process says it"
    scan_folder(str(root), show_progress=True)
    wanted = (
        f"{root}/train: 7 files are not used, being no images or in no class folder: "
        "cat/note0.txt, cat/note1.txt, cat/note2.txt, cat/note3.txt, cat/note4.txt, ...\n"
    )
    assert capsys.readouterr().out == wanted


def test_a_link_up_to_the_split_mixes_no_classes(make_folder: Callable[..., Path]) -> None:
    root = make_folder({"train": {"cat": 2, "dog": 3}})
    (root / "train" / "cat" / "up").symlink_to(root / "train")
    source = scan_folder(str(root), show_progress=False)["train"]
    assert np.bincount(source.labels_N).tolist() == [2, 3]


@pytest.mark.parametrize(("name", "meant"), [("validation", "val"), ("valid", "val"), ("testing", "test")])
def test_a_split_under_another_name_is_not_passed_over(make_folder: Callable[..., Path], name: str, meant: str) -> None:
    root = make_folder({"train": {"cat": 2, "dog": 2}, name: {"cat": 1, "dog": 1}})
    with pytest.raises(ValueError, match=rf"has a folder {name}/ but no {meant}/; rename it to {meant}/"):
        scan_folder(str(root), show_progress=False)


def test_an_edit_that_keeps_name_and_size_in_pixels_changes_the_fingerprint(make_folder: Callable[..., Path]) -> None:
    root = make_folder({"train": {"cat": 2, "dog": 2}})
    before = scan_folder(str(root), show_progress=False)["train"].fingerprint()
    Image.new("RGB", (16, 16)).save(root / "train" / "cat" / "000.png")
    assert scan_folder(str(root), show_progress=False)["train"].fingerprint() != before
