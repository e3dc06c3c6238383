"""Image folders: what is found and read, what is refused with which advice, what the fingerprint depends on."""

import itertools
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from pipelines import jpeg_window
from pipelines.decode import decode_image
from pipelines.jpeg_window import JpegWindowDecoder, Window
from pipelines.scratch import Scratch
from pipelines.source import cut
from pipelines.sources import folder
from pipelines.sources.folder import FolderSource
from pipelines.sources.listing import IMAGE_SUFFIXES
from pipelines.sources.scan import scan_folder

Pixels = npt.NDArray[np.uint8]
WriteFolder = Callable[..., Path]
TWO = {"cat": 3, "dog": 2}


def scan(root: Path, **options: Any) -> dict[str, FolderSource]:
    return cast(dict[str, FolderSource], scan_folder(str(root), show_progress=False, **options))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_splits_classes_labels_sizes_and_pixels_are_those_on_disk(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO, "val": {"cat": 1, "dog": 1}, "test": TWO}, sizes=[(8, 12), (10, 9)])
    splits = scan(root)
    assert list(splits) == ["train", "val", "test"]
    for split, source in splits.items():
        files = sorted((root / split).rglob("*.png"))
        assert [Path(source.describe(index)) for index in range(len(source.labels_N))] == files
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
    assert [part.describe(0), part.describe(1)] == [whole.describe(4), whole.describe(1)]
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


def test_a_file_that_is_truncated_after_the_scan_is_a_value_error_with_the_reason_alone(
    write_folder: WriteFolder,
) -> None:
    root = write_folder({"train": TWO})
    source = scan(root)["train"]
    truncate(root / "train/dog/001.png")
    with pytest.raises(ValueError, match=r"^OSError: image file is truncated"):
        source.read_image(4, channels=3)
    assert source.describe(4) == f"{root}/train/dog/001.png"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_that_is_gone_is_a_value_error_with_the_reason_alone(
    make_folder: Callable[..., Path], suffix: str
) -> None:
    root = make_folder({"train": TWO}, suffix=suffix)
    source = scan(root)["train"]
    Path(source.describe(1)).unlink()
    with pytest.raises(ValueError, match=r"^FileNotFoundError: No such file or directory$"):
        source.read_image(1, channels=3)
    if suffix == ".jpg":
        with pytest.raises(ValueError, match=r"^FileNotFoundError: No such file or directory$"):
            source.read_jpeg(1)


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


def save_all_kinds(folder: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """An image of every format and of the pixel types that need a conversion."""
    rgb = Image.fromarray(pixels)
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        rgb.save(folder / f"orientation{number}.jpg", exif=exif, quality=92)
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    rgb.quantize(16).save(folder / "palette.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    for suffix in ("gif", "webp", "tif", "bmp", "ppm"):
        rgb.save(folder / f"rgb.{suffix}")


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_is_read_as_pillow_reads_it_and_has_the_size_that_the_scan_found(
    write_folder: WriteFolder, pixels_of: Callable[..., npt.NDArray[np.uint8]], channels: int
) -> None:
    root = write_folder({"train": TWO})
    save_all_kinds(root / "train/dog", pixels_of(37, 53))
    source, scratch = scan(root, verify=True)["train"], Scratch()
    assert len(source.labels_N) == 5 + 18
    for sample_id in range(len(source.labels_N)):
        wanted = decode_image(Path(source.describe(sample_id)).read_bytes(), channels=channels)
        for read in (source.read_image(sample_id, channels=channels, scratch=use) for use in (scratch, None)):
            assert read.shape == (*source.sizes_N2[sample_id].tolist(), channels)
            np.testing.assert_array_equal(read, wanted)


def test_the_bytes_of_upright_grey_and_rgb_jpegs_are_handed_out_and_of_nothing_else(
    write_folder: WriteFolder, pixels_of: Callable[..., npt.NDArray[np.uint8]]
) -> None:
    root = write_folder({"train": TWO})
    save_all_kinds(root / "train/dog", pixels_of(37, 53))
    source, scratch, handed_out = scan(root)["train"], Scratch(), []
    for sample_id in range(len(source.labels_N)):
        encoded = source.read_jpeg(sample_id, scratch=scratch)
        if encoded is not None:
            handed_out.append(Path(source.describe(sample_id)).name)
            assert bytes(encoded) == Path(source.describe(sample_id)).read_bytes()
    assert handed_out == ["grey.jpg", "orientation1.jpg"]


def test_pixels_read_without_scratch_stay_as_they_are(make_folder: Callable[..., Path]) -> None:
    source = scan(make_folder({"train": TWO}, suffix=".jpg"))["train"]
    first = source.read_image(0, channels=3)
    copy = first.copy()
    for sample_id in range(1, 5):
        assert not np.shares_memory(source.read_image(sample_id, channels=3), first)
    np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_of_another_size_than_indexed_is_refused_with_both_sizes(
    make_folder: Callable[..., Path], suffix: str
) -> None:
    root = make_folder({"train": TWO}, suffix=suffix)
    source = scan(root)["train"]
    Image.new("RGB", (18, 17)).save(source.describe(2))
    wanted = "it is 17 x 18 pixels (height x width), but was 16 x 16 when it was indexed; use --data.rescan true"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        source.read_image(2, channels=3)
    if suffix == ".jpg":
        with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
            source.read_jpeg(2)


def test_a_jpeg_that_became_something_else_is_refused_with_the_advice_to_rescan(
    make_folder: Callable[..., Path],
) -> None:
    source = scan(make_folder({"train": TWO}, suffix=".jpg"))["train"]
    Image.new("RGB", (16, 16)).save(source.describe(2), "PNG")
    for read in (lambda: source.read_image(2, channels=3), lambda: source.read_jpeg(2)):
        with pytest.raises(
            ValueError, match=r"^it was a JPEG when it was indexed, and is none now; use --data\.rescan"
        ):
            read()


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("odd"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_whatever_reading_raises_comes_out_as_a_value_error(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception, suffix: str
) -> None:
    source = scan(make_folder({"train": TWO}, suffix=suffix))["train"]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    for name in ("decode_image", "decode_jpeg"):
        monkeypatch.setattr(folder, name, fail)
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", fail)
    reads = [lambda: source.read_image(0, channels=3)]
    if suffix == ".jpg":
        reads.append(lambda: source.read_jpeg(0))
    for read in reads:
        with pytest.raises(ValueError, match=rf"^{type(error).__name__}: {error.args[-1]}$"):
            read()


@pytest.fixture
def folder_with_bad(write_folder: WriteFolder) -> Path:
    """Three good cats; five dogs, of which the last is good. Everything in it opens without waiting, but the pipe."""
    root = write_folder({"train": {"cat": 3, "dog": 1}})
    dogs = root / "train/dog"
    (dogs / "000.png").rename(dogs / "good.png")
    (dogs / "bomb.ppm").write_bytes(b"P6 50000 50000 255 ")
    (dogs / "dangling.jpg").symlink_to(root / "nowhere.jpg")
    (dogs / "fake.jpg").write_bytes(b"nonsense")
    os.mkfifo(dogs / "fifo.jpg")
    return root


REASONS = {
    "bomb.ppm": "DecompressionBombError: Image size (2500000000 pixels) exceeds limit",
    "dangling.jpg": "a link to a file that is not there",
    "fake.jpg": "not an image in any format that Pillow reads",
    "fifo.jpg": "not a regular file",
}


def test_bad_files_are_kept_as_samples_with_their_reasons_if_asked_for(folder_with_bad: Path) -> None:
    source = scan(folder_with_bad, keep_bad=True)["train"]
    assert [Path(source.describe(sample_id)).name for sample_id in source.bad] == list(REASONS)
    assert len(source.labels_N) == 3 + 5
    for (sample_id, reason), wanted in zip(source.bad.items(), REASONS.values(), strict=True):
        assert reason.startswith(wanted)
        assert source.sizes_N2[sample_id].tolist() == [0, 0]
        for read in (lambda i=sample_id: source.read_image(i, channels=3), lambda i=sample_id: source.read_jpeg(i)):
            with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
                read()
    assert source.read_image(7, channels=3).shape == (16, 16, 3)


def test_bad_files_are_an_error_that_names_them_if_not(folder_with_bad: Path) -> None:
    with pytest.raises(ValueError, match=r"^4 of 8 files cannot be read as images:") as caught:
        scan(folder_with_bad)
    for name, reason in REASONS.items():
        assert f"\n  {folder_with_bad}/train/dog/{name}: {reason}" in str(caught.value)


def test_sockets_and_folders_under_image_names_do_no_harm(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder({"train": TWO})
    monkeypatch.chdir(root / "train/dog")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        (root / "train/cat/folder.jpg").mkdir()
        shutil.copy(root / "train/dog/000.png", root / "train/cat/folder.jpg/inner.png")
        (root / "train/cat/circle.jpg").symlink_to("circle.jpg")
        source = scan(root, keep_bad=True)["train"]
    bad = {Path(source.describe(sample_id)).name: reason for sample_id, reason in source.bad.items()}
    assert bad == {
        "circle.jpg": "OSError: Too many levels of symbolic links",
        "socket.jpg": "not a regular file",
    }
    assert "cat/folder.jpg/inner.png" in [name.decode() for name in source.names_N]


def test_a_folder_that_cannot_be_listed_is_an_error_not_an_empty_one(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = write_folder({"train": TWO}), os.scandir

    def fail(path: str) -> Any:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(ValueError, match=r"train/dog cannot be listed \(PermissionError: Permission denied\); make it"):
        scan(root)


def test_a_class_without_any_readable_image_is_refused_even_if_bad_ones_are_kept(write_folder: WriteFolder) -> None:
    root = write_folder({"train": TWO})
    for path in (root / "train/dog").iterdir():
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"train has 1 class folders without readable images: dog; add images \("):
        scan(root, keep_bad=True)


def test_take_renumbers_what_is_bad(folder_with_bad: Path) -> None:
    whole = scan(folder_with_bad, keep_bad=True)["train"]
    part = whole.take(np.array([7, 3, 0, 6, 3]))
    assert part.bad == {1: whole.bad[3], 3: whole.bad[6], 4: whole.bad[3]}
    assert [part.describe(sample_id) for sample_id in (0, 1)] == [whole.describe(7), whole.describe(3)]
    with pytest.raises(ValueError, match="DecompressionBomb"):
        part.read_image(1, channels=3)
    assert part.read_image(0, channels=3).tolist() == whole.read_image(7, channels=3).tolist()
    assert whole.take(np.array([0, 1])).bad == {}


def test_part_of_a_source_has_a_fingerprint_of_its_own(write_folder: WriteFolder) -> None:
    whole = scan(write_folder({"train": TWO}))["train"]
    everything = np.arange(5)
    assert whole.take(everything).fingerprint() == whole.fingerprint()
    assert whole.take(everything[:4]).fingerprint() != whole.fingerprint()


def break_jpeg(path: Path) -> None:
    """Sets all bits of the second half of the pixels' code; the end mark stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : -2] = b"\xff" * (len(content) - len(content) // 2 - 2)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, break_jpeg])
def test_damage_behind_the_header_is_found_by_verification_alone(
    make_folder: Callable[..., Path], damage: Callable[[Path], None]
) -> None:
    root = make_folder({"train": {"cat": 3, "dog": 3}}, suffix=".jpg")
    damage(root / "train/dog/001.jpg")
    assert scan(root)["train"].bad == {}
    with pytest.raises(ValueError, match=r"^1 of 6 files cannot be read as images:\n  .*dog/001\.jpg: \w+"):
        scan(root, verify=True)
    source = scan(root, verify=True, keep_bad=True)["train"]
    assert list(source.bad) == [4]
    assert source.sizes_N2[4].tolist() == [16, 16], "the header is good"


def write_noise(root: Path, *names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (160, 120, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """The windows that were decoded without the rest of their images."""
    decoded: list[Window] = []
    decode = JpegWindowDecoder.decode

    def watch(self: JpegWindowDecoder, encoded: memoryview, window: Window, **options: int) -> Pixels | None:
        pixels = decode(self, encoded, window, **options)
        decoded.extend([window] if pixels is not None else [])
        return pixels

    monkeypatch.setattr(JpegWindowDecoder, "decode", watch)
    return decoded


WINDOW = (5, 7, 20, 30)


@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of nvImageCodec for this system")
def test_a_jpeg_is_decoded_whole_once_and_then_its_window_alone(tmp_path: Path, windows: list[Window]) -> None:
    write_noise(tmp_path, "a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg")
    source, scratch = scan(tmp_path)["train"], Scratch()
    expected = cut(source.read_image(3, channels=3), WINDOW).copy()
    first = source.read_image(0, channels=3, scratch=scratch, window=WINDOW).copy()
    assert windows == [], "nobody has looked at the rest of it yet"
    np.testing.assert_array_equal(source.read_image(0, channels=3, scratch=scratch, window=WINDOW), first)
    np.testing.assert_array_equal(source.read_image(3, channels=3, scratch=scratch, window=WINDOW), expected)
    assert windows == [WINDOW, WINDOW]
    torn = Path(source.describe(1))
    torn.write_bytes(torn.read_bytes()[:-2000])  # far below the window
    with pytest.raises(ValueError, match=r"[Pp]remature end"):
        source.read_image(1, channels=3, scratch=scratch, window=WINDOW)
    kept = Path(source.describe(0))
    kept.write_bytes(kept.read_bytes()[:-2000])  # torn after it was found whole: the size of the file tells
    with pytest.raises(ValueError, match=r"[Pp]remature end"):
        source.read_image(0, channels=3, scratch=scratch, window=WINDOW)
    verified = scan(tmp_path, keep_bad=True, verify=True)["train"]
    assert sorted(verified.bad) == [0, 1]
    verified.read_image(2, channels=3, scratch=scratch, window=WINDOW)
    assert len(windows) == 3, "verified before"


def test_a_jpeg_that_was_replaced_by_one_of_another_size_is_told(tmp_path: Path) -> None:
    write_noise(tmp_path, "a/0.jpg", "b/0.jpg")
    source, scratch = scan(tmp_path)["train"], Scratch()
    source.read_image(0, channels=3, scratch=scratch)
    path = Path(source.describe(0))
    num_bytes = path.stat().st_size
    Image.new("RGB", (120, 150)).save(path)
    path.write_bytes(path.read_bytes().ljust(num_bytes, b"\0"))  # as long as before
    with pytest.raises(ValueError, match=r"it is 150 x 120 pixels .* was 160 x 120 .* use --data\.rescan true"):
        source.read_image(0, channels=3, scratch=scratch, window=WINDOW)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_the_same_wherever_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, installed: bool
) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/b").mkdir()
    noise.save(tmp_path / "train/a/0.jpg")
    noise.convert("L").save(tmp_path / "train/a/1.jpg")
    noise.save(tmp_path / "train/a/2.jpg", exif=turned)
    noise.save(tmp_path / "train/a/3.png")
    noise.convert("CMYK").save(tmp_path / "train/b/4.jpg")
    if not installed:
        monkeypatch.setattr(jpeg_window, "nvimgcodec", None)
    source, scratch = scan(tmp_path)["train"], Scratch()
    for sample_id in range(5):
        whole = source.read_image(sample_id, channels=channels).copy()
        assert whole.shape == ((48, 64, channels) if sample_id == 2 else (64, 48, channels))
        for read_again in (None, scratch, scratch):
            part = source.read_image(sample_id, channels=channels, scratch=read_again, window=WINDOW)
            np.testing.assert_array_equal(part, cut(whole, WINDOW))


def test_a_progressive_jpeg_without_its_last_scans_is_the_same_each_time(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 120, 3), dtype=np.uint8)
    for name in ("a/0.jpg", "b/0.jpg"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(noise).save(path, quality=90, progressive=True)
        scans = path.read_bytes().split(b"\xff\xda")
        path.write_bytes(b"\xff\xda".join(scans[:3]) + b"\xff\xd9")
    source, scratch = scan(tmp_path)["train"], Scratch()
    whole = source.read_image(0, channels=3).copy()
    for top, left in itertools.product(range(0, 120, 9), range(0, 80, 7)):
        window = (top, left, 40, 40)
        part = source.read_image(0, channels=3, scratch=scratch, window=window)
        np.testing.assert_array_equal(part, cut(whole, window))


def test_a_jpeg_of_another_length_than_was_indexed_is_not_handed_on_as_it_is(tmp_path: Path) -> None:
    """DALI decodes what a file cut short still holds, and says nothing."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    for name in ("a/0.jpg", "b/0.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True)
        noise.save(tmp_path / "train" / name)
    source = scan(tmp_path)["train"]
    whole = Path(source.describe(0)).read_bytes()
    assert bytes(source.read_jpeg(0) or b"") == whole
    Path(source.describe(0)).write_bytes(whole[:-80])
    assert source.read_jpeg(0) is None
    with pytest.raises(ValueError, match="Premature end"):
        source.read_image(0, channels=3)
    Path(source.describe(0)).write_bytes(whole + b"a comment behind the image")
    assert source.read_jpeg(0) is None
    assert source.read_image(0, channels=3).shape == (40, 30, 3)
