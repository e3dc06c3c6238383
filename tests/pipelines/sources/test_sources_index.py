"""The cached index: it is used, it is never believed when something has changed, and it is never in the way."""

import dataclasses
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.sources import folder, inspection
from pipelines.sources import scan as scan_module
from pipelines.sources.folder import FolderSource
from pipelines.sources.index import default_cache, index_path, load_index, save_index
from pipelines.sources.scan import scan_folder

ARRAYS = ("names_N", "labels_N", "sizes_N2", "num_bytes_N", "jpeg_orientation_N", "edits_N")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(make_folder: Callable[..., Path]) -> Path:
    """Two classes of BMPs, whose size in bytes does not depend on what they show; dog/ has a folder inside."""
    root = make_folder({"train": {"cat": 4, "dog": 3}}, suffix=".bmp")
    (root / "train/dog/deep").mkdir()
    shutil.copy(root / "train/dog/000.bmp", root / "train/dog/deep/x.bmp")
    settle(root)
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers have been read."""
    names: list[str] = []
    read_header = inspection.read_header

    def read_and_tell(path: str) -> Any:
        names.append(Path(path).name)
        return read_header(path)

    monkeypatch.setattr(inspection, "read_header", read_and_tell)
    return names


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes whose folders have been listed."""
    names: list[str] = []
    list_class = scan_module.list_class

    def list_and_tell(split: Path, class_name: str) -> Any:
        names.append(class_name)
        return list_class(split, class_name)

    monkeypatch.setattr(scan_module, "list_class", list_and_tell)
    return names


def settle(root: Path) -> None:
    """Dates the last change of every folder back, as if it were long ago; to the second, as some file systems do."""
    for path, _, _ in os.walk(root):
        long_ago = int(os.stat(path).st_mtime) - 100
        os.utime(path, (long_ago, long_ago))


def start(root: Path, cache: Path | None, **options: Any) -> FolderSource:
    return cast(FolderSource, scan_folder(str(root), show_progress=False, cache=cache, **options)["train"])


def assert_same(source: FolderSource, wanted: FolderSource) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(source, name), getattr(wanted, name), err_msg=name)
        assert getattr(source, name).dtype == getattr(wanted, name).dtype
    assert (source.class_names, source.is_grey, source.bad) == (wanted.class_names, wanted.is_grey, wanted.bad)
    assert source.fingerprint() == wanted.fingerprint()
    assert source.fingerprint() == dataclasses.replace(source, known_fingerprint="").fingerprint()


def memory_of(array: npt.NDArray[Any]) -> Any:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def names_of(source: FolderSource) -> list[str]:
    return [name.decode() for name in source.names_N]


# used


def test_a_second_start_lists_no_folder_reads_no_header_and_finds_the_same(
    root: Path, cache: Path, read: list[str], listed: list[str]
) -> None:
    fresh = start(root, cache=None)
    assert_same(start(root, cache), fresh)
    assert (len(read), len(listed)) == (2 * 8, 2 * 2)
    read.clear(), listed.clear()
    assert_same(start(root, cache), fresh)
    assert read == listed == []


def test_without_a_cache_nothing_is_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXACTVISION_CACHE", str(tmp_path / "unused"))
    start(root, cache=None)
    assert not (tmp_path / "unused").exists()


def test_the_arrays_of_a_second_start_are_mapped_aligned_and_cannot_be_written(root: Path, cache: Path) -> None:
    start(root, cache)
    source = start(root, cache)
    for name in ARRAYS:
        array = getattr(source, name)
        assert isinstance(memory_of(array), mmap.mmap), name
        assert type(array) is np.ndarray, "a memmap would be slower to read from"
        assert array.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_the_file_is_a_row_of_npy_blocks_that_numpy_reads_one_after_another(root: Path, cache: Path) -> None:
    source = start(root, cache)
    with open(index_path(cache, root / "train"), "rb") as file:
        meta, *arrays, _ = [np.load(file) for _ in range(11)]
        assert file.read() == b""
    assert json.loads(meta.tobytes())["class_names"] == ["cat", "dog"]
    assert any(np.array_equal(array, source.names_N) for array in arrays)
    assert any(np.array_equal(array, source.sizes_N2) for array in arrays)


def test_all_splits_are_kept(make_folder: Callable[..., Path], cache: Path, read: list[str]) -> None:
    two = {"cat": 2, "dog": 2}
    root = make_folder({"train": two, "val": two, "test": two})
    settle(root)
    before = scan_folder(str(root), show_progress=False, cache=cache)
    read.clear()
    after = scan_folder(str(root), show_progress=False, cache=cache)
    assert read == []
    assert [source.fingerprint() for source in before.values()] == [source.fingerprint() for source in after.values()]
    assert len(list(cache.iterdir())) == 3


def test_a_split_is_known_under_every_link_to_it_and_another_one_in_its_place_is_not(
    root: Path, cache: Path, tmp_path: Path, read: list[str]
) -> None:
    start(root, cache)
    (tmp_path / "link").symlink_to(root)
    read.clear()
    linked = start(tmp_path / "link", cache)
    assert read == []
    assert linked.describe(0) == f"{tmp_path}/link/train/cat/000.bmp", "named as the user names it"
    shutil.copytree(root, tmp_path / "copy")
    start(tmp_path / "copy", cache)
    assert len(read) == 8


def test_names_that_are_not_utf8_are_kept(root: Path, cache: Path, read: list[str]) -> None:
    os.rename(root / "train/dog", os.fsencode(root / "train") + b"/d\xf8g")
    settle(root)
    fresh = start(root, cache)
    read.clear()
    assert_same(start(root, cache), fresh)
    assert read == []
    assert fresh.read_image(7, channels=3).shape == (16, 16, 3)


def test_files_that_are_not_used_are_mentioned_at_every_start(
    root: Path, cache: Path, capsys: pytest.CaptureFixture[str], listed: list[str]
) -> None:
    for number in range(7):
        (root / f"train/cat/{number}.txt").write_text("")
    settle(root)
    said = []
    for _ in range(2):
        scan_folder(str(root), show_progress=True, cache=cache)
        said.append(capsys.readouterr().out)
    assert "train: 7 files are not used" in said[0]
    assert said[0] == said[1]
    assert listed == ["cat", "dog"], "once"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("EXACTVISION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache/exactvision"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/exactvision")
    monkeypatch.setenv("EXACTVISION_CACHE", "/own")
    assert default_cache() == Path("/own")


def test_without_a_home_there_is_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXACTVISION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert not default_cache().exists()


# not believed


def add_file(train: Path) -> set[str]:
    shutil.copy(train / "cat/000.bmp", train / "cat/more.bmp")
    return {"more.bmp"}


def remove_file(train: Path) -> set[str]:
    (train / "cat/001.bmp").unlink()
    return set()


def rename_file(train: Path) -> set[str]:
    (train / "cat/001.bmp").rename(train / "cat/renamed.bmp")
    return {"renamed.bmp"}


def replace_file(train: Path) -> set[str]:
    Image.new("RGB", (20, 30)).save(train / "new.bmp")
    (train / "new.bmp").rename(train / "cat/001.bmp")
    return {"001.bmp"}


def move_file_to_other_class(train: Path) -> set[str]:
    (train / "cat/003.bmp").rename(train / "dog/003.bmp")
    return {"003.bmp"}


def add_class(train: Path) -> set[str]:
    (train / "bat").mkdir()
    shutil.copy(train / "cat/000.bmp", train / "bat/first.bmp")
    return {"first.bmp"}


def rename_class(train: Path) -> set[str]:
    (train / "cat").rename(train / "zebra")
    return {"000.bmp", "001.bmp", "002.bmp", "003.bmp"}


def add_nested_file(train: Path) -> set[str]:
    shutil.copy(train / "cat/000.bmp", train / "dog/deep/y.bmp")
    return {"y.bmp"}


def add_nested_folder(train: Path) -> set[str]:
    (train / "dog/deep/deeper").mkdir()
    shutil.copy(train / "cat/000.bmp", train / "dog/deep/deeper/z.bmp")
    return {"z.bmp"}


def remove_nested_folder(train: Path) -> set[str]:
    shutil.rmtree(train / "dog/deep")
    return set()


CHANGES = [
    add_file,
    remove_file,
    rename_file,
    replace_file,
    move_file_to_other_class,
    add_class,
    rename_class,
    add_nested_file,
    add_nested_folder,
    remove_nested_folder,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_is_seen_and_only_new_files_are_read(
    root: Path, cache: Path, read: list[str], change: Callable[[Path], set[str]]
) -> None:
    before = start(root, cache).fingerprint()
    new = change(root / "train")
    read.clear()
    changed = start(root, cache)
    assert set(read) == new
    assert len(read) == len(new)
    assert changed.fingerprint() != before
    assert_same(changed, start(root, cache=None))


def test_changes_are_told_by_folder_with_their_numbers_of_entries(
    root: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(root, cache)
    add_file(root / "train")
    remove_nested_folder(root / "train")
    scan_folder(str(root), show_progress=True, cache=cache)
    assert capsys.readouterr().out == (
        f"{root}/train: 3 folders have changed since they were indexed: cat (4 entries, now 5), "
        "dog (4 entries, now 3), dog/deep (gone)\n"
    )


def test_a_change_behind_a_link_is_seen(root: Path, cache: Path, tmp_path: Path) -> None:
    (root / "train/dog").rename(tmp_path / "elsewhere")
    (root / "train/dog").symlink_to(tmp_path / "elsewhere")
    settle(root), settle(tmp_path / "elsewhere")
    start(root, cache)
    shutil.copy(root / "train/cat/000.bmp", tmp_path / "elsewhere/deep/new.bmp")
    assert "dog/deep/new.bmp" in names_of(start(root, cache))


def test_a_class_that_appears_behind_a_link_is_seen_though_no_folder_of_the_split_changes(
    root: Path, cache: Path, tmp_path: Path
) -> None:
    (root / "train/bat").symlink_to(tmp_path / "later")
    settle(root)
    assert start(root, cache).class_names == ("cat", "dog")
    shutil.copytree(root / "train/cat", tmp_path / "later")
    assert start(root, cache).class_names == ("bat", "cat", "dog")


def test_a_change_in_the_same_tick_of_the_clock_as_the_scan_is_seen_at_the_next_start(
    root: Path, cache: Path, read: list[str]
) -> None:
    cat = root / "train/cat"
    os.utime(cat)
    status = os.stat(cat)
    start(root, cache)
    (cat / "001.bmp").rename(cat / "other.bmp")
    os.utime(cat, ns=(status.st_atime_ns, status.st_mtime_ns))  # the clock has not moved on
    read.clear()
    assert "cat/other.bmp" in names_of(start(root, cache))
    assert read == ["other.bmp"]


def test_a_folder_that_changed_just_before_the_scan_is_listed_once_more_and_then_believed(
    root: Path, cache: Path, read: list[str], listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(root / "train/cat")
    start(root, cache)
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 10 * 10**9)
    for wanted in (["cat", "dog"], []):
        read.clear(), listed.clear()
        start(root, cache)
        assert (read, listed) == ([], wanted)


# edited in place


def edit(path: Path, colour: int = 0) -> None:
    """Other pixels in the same file, of the same number of bytes; no folder's time changes."""
    folder_ns, num_bytes = os.stat(path.parent).st_mtime_ns, path.stat().st_size
    file_ns = path.stat().st_mtime_ns
    Image.new("RGB", (16, 16), (colour,) * 3).save(path)
    os.utime(path, ns=(file_ns + 10**9, file_ns + 10**9))  # two edits in one tick of the clock are not the matter here
    assert (os.stat(path.parent).st_mtime_ns, path.stat().st_size) == (folder_ns, num_bytes)


def test_an_edit_in_place_is_found_only_by_a_rescan_and_then_changes_the_fingerprint_for_good(
    root: Path, cache: Path, read: list[str]
) -> None:
    before = start(root, cache).fingerprint()
    path = root / "train/cat/002.bmp"
    edit(path)
    read.clear()
    assert start(root, cache).fingerprint() == before
    assert read == []
    source = start(root, cache, rescan=True)
    assert read == ["002.bmp"]
    assert source.edits_N.tolist() == [0, 0, zlib.crc32(path.read_bytes()), 0, 0, 0, 0, 0]
    assert source.fingerprint() != before
    assert_same(start(root, cache), source)
    edit(path, colour=200)
    again = start(root, cache, rescan=True)
    assert again.fingerprint() not in (before, source.fingerprint())
    assert read == ["002.bmp"] * 2


def test_an_edit_stays_known_when_folders_are_listed_again(root: Path, cache: Path) -> None:
    start(root, cache)
    edit(root / "train/dog/002.bmp")
    crc = int(start(root, cache, rescan=True).edits_N[6])
    remove_file(root / "train")
    source = start(root, cache)
    assert source.edits_N.tolist() == [0] * 5 + [crc, 0]


def test_a_rescan_of_an_unchanged_folder_reads_nothing_and_changes_nothing(
    root: Path, cache: Path, read: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fresh, kept = start(root, cache), index_path(cache, root / "train").stat()
    read.clear()
    rescanned = scan_folder(str(root), show_progress=True, cache=cache, rescan=True)["train"]
    assert_same(cast(FolderSource, rescanned), fresh)
    assert read == []
    assert index_path(cache, root / "train").stat() == kept, "others may have mapped it"
    assert capsys.readouterr().out == f"{root}/train: 0 files have been edited since they were indexed\n"


def test_a_rescan_tells_how_many_files_have_been_edited(
    root: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(root, cache)
    edit(root / "train/cat/002.bmp")
    Image.new("RGB", (5, 6)).save(root / "train/dog/000.bmp")
    source = cast(FolderSource, scan_folder(str(root), show_progress=True, cache=cache, rescan=True)["train"])
    assert capsys.readouterr().out == f"{root}/train: 2 files have been edited since they were indexed\n"
    assert source.sizes_N2[4].tolist() == [6, 5]
    assert source.read_image(4, channels=3).shape == (6, 5, 3)


def test_a_touched_file_counts_as_edited_once_for_what_it_was_before_is_not_known(root: Path, cache: Path) -> None:
    before = start(root, cache).fingerprint()
    path = root / "train/cat/002.bmp"
    os.utime(path, (4, 4))
    assert start(root, cache).fingerprint() == before
    touched = start(root, cache, rescan=True).fingerprint()
    assert touched != before
    os.utime(path, (5, 5))
    assert start(root, cache, rescan=True).fingerprint() == touched


def test_a_rescan_without_an_index_is_a_scan(root: Path, cache: Path) -> None:
    assert_same(start(root, cache, rescan=True), start(root, cache=None, rescan=True))


# never in the way


def test_an_index_that_is_cut_off_is_made_anew(root: Path, cache: Path, read: list[str]) -> None:
    fresh = start(root, cache)
    path = index_path(cache, root / "train")
    whole = path.read_bytes()
    cuts = np.unique(np.linspace(0, len(whole) - 1, 20).astype(int)).tolist()
    assert len(cuts) == 20
    for cut in cuts:
        path.write_bytes(whole[:cut])
        read.clear()
        assert_same(start(root, cache), fresh)
        assert len(read) == 8
        assert path.read_bytes() == whole


def test_an_index_with_a_flipped_bit_anywhere_is_made_anew(root: Path, cache: Path, read: list[str]) -> None:
    fresh = start(root, cache)
    path = index_path(cache, root / "train")
    whole = path.read_bytes()
    block = len(whole) - 132  # the last: its header may say what it likes, its four bytes count
    for place in [*np.linspace(0, block - 1, 20).astype(int).tolist(), len(whole) - 1]:
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        read.clear()
        assert_same(start(root, cache), fresh)
        assert len(read) == 8, place


@pytest.mark.parametrize("content", [b"", b"x", b"no index" * 1000, bytes(10_000)])
def test_a_file_that_is_no_index_is_made_one(root: Path, cache: Path, read: list[str], content: bytes) -> None:
    path = index_path(cache, root / "train")
    cache.mkdir()
    path.write_bytes(content)
    start(root, cache)
    assert len(read) == 8
    start(root, cache)
    assert len(read) == 8


def test_a_whole_index_of_another_version_or_split_is_not_used(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(root, cache)
    path, train = index_path(cache, root / "train"), root / "train"
    index = load_index(path, split=train)
    assert index is not None
    save_index(index, path, split=root / "val")
    assert load_index(path, split=train) is None
    monkeypatch.setattr("pipelines.sources.index._VERSION", 999)
    save_index(index, path, split=train)
    assert load_index(path, split=train) is not None
    monkeypatch.undo()
    assert load_index(path, split=train) is None


def test_a_cache_that_cannot_be_written_is_told_once_and_the_scan_goes_on(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {"cat": 2, "dog": 2}
    root = make_folder({"train": two, "val": two})
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "cache"
    assert_same(start(root, nowhere), start(root, cache=None))
    assert capsys.readouterr().out == "", "only the main process says it"
    scan_folder(str(root), show_progress=True, cache=nowhere)
    assert capsys.readouterr().out == (
        f"the index of {root}/train cannot be kept in {nowhere} (NotADirectoryError: Not a directory), so every start "
        "will scan again; set EXACTVISION_CACHE to a folder that can be written.\n"
    )


def test_a_write_that_fails_leaves_nothing_behind(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    start(root, cache)
    assert list(cache.iterdir()) == []


def test_a_current_index_is_not_written_again(root: Path, cache: Path) -> None:
    start(root, cache)
    path = index_path(cache, root / "train")
    before = os.stat(path)
    start(root, cache)
    start(root, cache, rescan=True)  # finds the same, and leaves the file that others may have mapped
    assert (os.stat(path).st_ino, os.stat(path).st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(cache.iterdir()) == [path]


def test_what_is_mapped_stays_as_it_is_when_another_process_writes_a_new_index(root: Path, cache: Path) -> None:
    start(root, cache)
    mapped = start(root, cache)
    names = names_of(mapped)
    add_class(root / "train")
    assert names_of(start(root, cache)) != names
    assert names_of(mapped) == names


SAVE_OFTEN = """
import sys
from pathlib import Path
from pipelines.sources.index import load_index, save_index
path, other, split = (Path(argument) for argument in sys.argv[1:])
index = load_index(other, split=split)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    save_index(index, path, split=split)
"""


def test_processes_that_write_at_once_leave_a_whole_index_at_any_moment(root: Path, cache: Path) -> None:
    start(root, cache)
    train = root / "train"
    path = index_path(cache, train)
    first = load_index(path, split=train)
    assert first is not None
    second = dataclasses.replace(first, bad={0: "x" * 5000})
    writers = []
    for number, index in enumerate((first, second)):
        save_index(index, cache / str(number), split=train)
        command = [sys.executable, "-c", SAVE_OFTEN, str(path), str(cache / str(number)), str(train)]
        writers.append(subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    num_loaded = 0
    while any(writer.poll() is None for writer in writers):
        found = load_index(path, split=train)
        assert found is not None
        assert found.bad in ({}, {0: "x" * 5000})
        num_loaded += 1
    for writer in writers:
        assert writer.wait() == 0
        assert writer.stdout is not None
        writer.stdout.close()
    assert num_loaded > 2
    assert load_index(path, split=train) is not None
    assert {file.name for file in cache.iterdir()} == {"0", "1", path.name}


# bad files


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sample ids whose pixels have been read."""
    ids: list[int] = []
    read_image = FolderSource.read_image

    def read_and_tell(self: FolderSource, sample_id: int, **options: Any) -> Any:
        ids.append(sample_id)
        return read_image(self, sample_id, **options)

    monkeypatch.setattr(FolderSource, "read_image", read_and_tell)
    return ids


@pytest.fixture
def jpegs(make_folder: Callable[..., Path]) -> Path:
    """Two classes of three JPEGs, of which dog/001.jpg lacks its end, which only decoding shows."""
    root = make_folder({"train": {"cat": 3, "dog": 3}}, suffix=".jpg")
    path = root / "train/dog/001.jpg"
    path.write_bytes(path.read_bytes()[:-2])
    settle(root)
    return root


def test_every_image_is_verified_once_and_the_verdict_is_remembered(
    jpegs: Path, cache: Path, decoded: list[int]
) -> None:
    assert start(jpegs, cache).bad == {}
    assert decoded == []
    first = start(jpegs, cache, verify=True, keep_bad=True)
    assert (sorted(decoded), list(first.bad)) == ([0, 1, 2, 3, 4, 5], [4])
    decoded.clear()
    for verify in (True, False):
        assert_same(start(jpegs, cache, verify=verify, keep_bad=True), first)
        with pytest.raises(ValueError, match=r"1 of 6 files cannot be read as images:\n  .*dog/001\.jpg: "):
            start(jpegs, cache, verify=verify)
    assert decoded == []


def test_only_new_images_are_verified_and_what_is_bad_keeps_its_verdict_under_a_new_number(
    jpegs: Path, cache: Path, decoded: list[int]
) -> None:
    reason = start(jpegs, cache, verify=True, keep_bad=True).bad[4]
    shutil.copy(jpegs / "train/cat/000.jpg", jpegs / "train/cat/0000.jpg")
    decoded.clear()
    source = start(jpegs, cache, verify=True, keep_bad=True)
    assert names_of(source)[decoded[0]] == "cat/0000.jpg"
    assert len(decoded) == 1
    assert source.bad == {5: reason}


def test_a_bad_file_that_was_repaired_in_place_counts_from_the_next_start(
    jpegs: Path, cache: Path, decoded: list[int], read: list[str]
) -> None:
    broken = jpegs / "train/cat/001.jpg"
    good = broken.read_bytes()
    broken.write_bytes(b"nonsense")
    bad = start(jpegs, cache, verify=True, keep_bad=True)
    assert list(bad.bad) == [1, 4]
    broken.write_bytes(good)
    shutil.copy(jpegs / "train/dog/000.jpg", jpegs / "train/dog/001.jpg")
    decoded.clear(), read.clear()
    source = start(jpegs, cache)
    assert source.bad == {}
    assert source.sizes_N2[1].tolist() == [16, 16]
    assert decoded == []
    assert set(read) == {"001.jpg"}
    assert start(jpegs, cache, verify=True).bad == {}
    assert sorted(decoded) == [1, 4]


def test_a_bad_file_that_is_replaced_by_a_bad_one_stays_bad(jpegs: Path, cache: Path) -> None:
    start(jpegs, cache, verify=True, keep_bad=True)
    (jpegs / "train/dog/001.jpg").write_bytes(b"nonsense")
    source = start(jpegs, cache, keep_bad=True)
    assert source.bad == {4: "not an image in any format that Pillow reads"}
    assert source.sizes_N2[4].tolist() == [0, 0]
    assert_same(start(jpegs, cache, keep_bad=True), source)


def test_bad_files_do_not_make_every_start_write_or_read_the_good_ones(
    jpegs: Path, cache: Path, read: list[str]
) -> None:
    (jpegs / "train/cat/001.jpg").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="1 of 6 files"):
        start(jpegs, cache)
    assert len(read) == 6
    path = index_path(cache, jpegs / "train")
    before = os.stat(path).st_ino
    read.clear()
    source = start(jpegs, cache, keep_bad=True)
    assert isinstance(memory_of(source.labels_N), mmap.mmap)
    assert read == ["001.jpg"], "for it may have been repaired"
    assert os.stat(path).st_ino == before


def test_lack_of_memory_and_disks_that_fail_are_not_remembered_of_a_file(
    jpegs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (MemoryError("no room"), OSError(5, "Input/output error")):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(folder, "decode_jpeg", fail)
            with pytest.raises(ValueError, match="2 class folders without readable images: cat, dog"):
                start(jpegs, cache, verify=True, keep_bad=True)
    assert list(start(jpegs, cache, verify=True, keep_bad=True).bad) == [4]


# interrupted


def test_a_scan_that_is_interrupted_goes_on_where_it_ended(
    root: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    header_or_reason = inspection._look

    def interrupt(path: str) -> Any:
        if len(read) == 5:
            raise KeyboardInterrupt
        return header_or_reason(path)

    with monkeypatch.context() as patched:
        patched.setattr(inspection, "_look", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start(root, cache)
    assert len(read) == 5
    assert_same(start(root, cache), start(root, cache=None))
    assert len(read) == 8 + 8, "each once, and once without a cache"


def test_an_edit_is_not_lost_when_the_rescan_that_found_it_is_interrupted(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(root, cache)
    path = root / "train/cat/002.bmp"
    edit(path)

    def interrupt(_: str) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inspection, "_look", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start(root, cache, rescan=True)
    assert start(root, cache).edits_N[2] == zlib.crc32(path.read_bytes())


def test_a_verification_that_is_interrupted_goes_on_where_it_ended(
    root: Path, cache: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_image = folder.decode_image

    def interrupt(*arguments: Any, **options: Any) -> Any:
        if len(decoded) == 5:
            raise KeyboardInterrupt
        return decode_image(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(folder, "decode_image", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start(root, cache, verify=True)
    done = set(decoded[:4])
    decoded.clear()
    start(root, cache, verify=True)
    assert set(decoded) == set(range(8)) - done
