"""WebDataset shards that are there already: what is taken over, how labels become classes, what is refused."""

import gzip
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_cases import draw, files_of, opened, pack_folder, pack_into, reference, write_many, write_varied
from PIL import Image

from pipelines.build import has_shards, verify_packed
from pipelines.packing import adopt as adopting
from pipelines.packing.adopt import find_shards, read_class_names
from pipelines.packing.job import work_folder


def encoded(number: int, suffix: str = "jpg") -> bytes:
    file = io.BytesIO()
    image = draw(40, 50, seed=number)
    if suffix == "npy":
        np.save(file, np.asarray(image))
    else:
        image.save(file, {"jpg": "JPEG", "jpeg": "JPEG"}.get(suffix, suffix.upper()))
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(labels: list[str], *, first: int = 0) -> dict[str, bytes]:
    """Members of a sample for each label."""
    members = {}
    for number, label in enumerate(labels, start=first):
        members |= {f"{number:04}.jpg": encoded(number), f"{number:04}.cls": label.encode()}
    return members


def adopt(root: Path, dest: Path, mode: str = "keep", **options: Any) -> Any:
    return pack_into(dest, mode, data={"dataset": "packed", "root": str(root)}, **options)


def refused_in(dest: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (dest / "refused.jsonl").read_text().splitlines()]
    return [(row["name"].rpartition(": ")[2], row["reason"]) for row in rows]


# --- round trip


@pytest.mark.parametrize("first", ["keep", "jpeg", "raw"])
@pytest.mark.parametrize("mode", ["keep", "raw"])
def test_bare_shards_of_our_own_come_back_with_labels_and_pixels(tmp_path: Path, first: str, mode: str) -> None:
    root = write_varied(tmp_path / "r")
    if first == "keep":  # formats that only Pillow's names tell are no WebDataset images
        for path in root.rglob("*.tif"):
            path.unlink()
    pack_folder(root, tmp_path / "one", first)
    wanted = opened(tmp_path / "one")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (tmp_path / "one").glob("*.tar"):
        os.link(path, bare / path.name)
    (bare / "classnames.txt").write_text("cat\ndog\n")
    adopt(bare, tmp_path / "two", mode)
    found = opened(tmp_path / "two")
    assert list(found) == list(wanted) == ["train", "val"]
    for split, source in wanted.items():
        assert found[split].class_names == ("cat", "dog")
        np.testing.assert_array_equal(found[split].labels_N, source.labels_N)
        np.testing.assert_array_equal(found[split].sizes_N2, source.sizes_N2)
        for i in range(len(source.labels_N)):
            pixels = source.read_image(i, channels=3)
            np.testing.assert_array_equal(found[split].read_image(i, channels=3), pixels)
            if mode == "keep":
                assert found[split].read_bytes(i) == source.read_bytes(i)
                a, b = found[split].index.segments(i), source.index.segments(i)
                assert (a is None) == (b is None)
                assert a is None or (a[:5] == b[:5] and np.array_equal(a[5], b[5]))
    assert list(verify_packed(tmp_path / "two", show_progress=False)) == []
    if mode == "keep":
        for path in bare.glob("*.tar"):
            assert (tmp_path / "two" / path.name).samefile(path), "the shards are linked, not copied"
    assert not work_folder(tmp_path / "two").exists()


def test_jpeg_packs_them_anew(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 12)
    pack_folder(root, tmp_path / "one")
    (tmp_path / "bare").mkdir()
    for path in (tmp_path / "one").glob("*.tar"):
        os.link(path, tmp_path / "bare" / path.name)
    adopt(tmp_path / "bare", tmp_path / "two", "jpeg", long_side_px=30)
    pack_folder(root, tmp_path / "three", "jpeg", long_side_px=30)
    two, three = opened(tmp_path / "two")["train"], opened(tmp_path / "three")["train"]
    assert [two.read_bytes(i) for i in range(12)] == [three.read_bytes(i) for i in range(12)]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "three").iterdir()
    )


@pytest.mark.parametrize("mode", ["keep", "raw"])
def test_any_number_of_workers_and_a_stop_make_the_same(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        write_tar(tmp_path / f"s/x-{number}.tar", pairs(["cat", "dog", "7"] * 4, first=12 * number))
    for workers in (0, 2):
        adopt(tmp_path / "s", tmp_path / str(workers), mode, num_workers=workers)
    wanted = files_of(tmp_path / "0")
    assert wanted == files_of(tmp_path / "2")
    calls, digest = [], adopting._digest

    def stop_at_the_third(path: str) -> str:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return digest(path)

    monkeypatch.setattr(adopting, "_digest", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        adopt(tmp_path / "s", tmp_path / "d", mode)
    assert not (tmp_path / "d").exists()
    adopt(tmp_path / "s", tmp_path / "d", mode)
    assert [Path(path).name for path in calls] == ["x-0.tar", "x-1.tar", "x-2.tar", "x-2.tar", "x-3.tar"]
    assert files_of(tmp_path / "d") == wanted


def test_shards_that_change_between_two_calls_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "s/x-0.tar", pairs(["a", "b"]))
    with monkeypatch.context() as patch:
        patch.setattr(adopting, "write_whole", lambda *words, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adopt(tmp_path / "s", tmp_path / "d")
    write_tar(path, pairs(["a", "b", "b"]))
    with pytest.raises(ValueError, match="or from data that was different then"):
        adopt(tmp_path / "s", tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.packing.pack.write_whole", lambda *words, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adopt(tmp_path / "s", tmp_path / "e", "raw")
    write_tar(path, pairs(["a", "b"]))
    with pytest.raises(ValueError, match="was begun from shards that were different then; remove that folder"):
        adopt(tmp_path / "s", tmp_path / "e", "raw")


def test_on_another_disk_they_are_pointed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(*words: object, **named: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    path = write_tar(tmp_path / "s/x-0.tar", pairs(["a", "b"]))
    monkeypatch.setattr(os, "link", other_disk)
    monkeypatch.chdir(tmp_path)
    adopt(Path("s"), Path("d"))
    assert (tmp_path / "d/x-0.tar").readlink() == path
    assert opened(tmp_path / "d")["train"].read_bytes(1) == encoded(1)


# --- where they lie


def test_splits_are_folders_or_words_of_names_or_all_is_train(tmp_path: Path) -> None:
    for name in ("a/train/0.tar", "a/validation/0.tar", "a/test/1.tar", "b/imagenet1k-train-0000.tar"):
        write_tar(tmp_path / name, pairs(["x", "y"]))
    for name in ("b/imagenet1k-validation-00.tar", "b/imagenet1k_TEST_1.tar", "c/part-0.tar", "c/trainval-1.tar"):
        write_tar(tmp_path / name, pairs(["x", "y"]))
    names = {
        folder: {split: [path.name for path in paths] for split, paths in find_shards(tmp_path / folder).items()}
        for folder in "abc"
    }
    assert names == {
        "a": {"train": ["0.tar"], "val": ["0.tar"], "test": ["1.tar"]},
        "b": {
            "train": ["imagenet1k-train-0000.tar"],
            "val": ["imagenet1k-validation-00.tar"],
            "test": ["imagenet1k_TEST_1.tar"],
        },
        "c": {"train": ["part-0.tar", "trainval-1.tar"]},
    }
    adopt(tmp_path / "a", tmp_path / "d")
    assert sorted(path.name for path in (tmp_path / "d").glob("*.tar")) == [
        "test-test-1.tar",
        "train-train-0.tar",
        "val-validation-0.tar",
    ]
    assert {split: len(source.labels_N) for split, source in opened(tmp_path / "d").items()} == {
        "train": 2,
        "val": 2,
        "test": 2,
    }


def test_a_name_without_a_split_among_names_with_one_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-train-0.tar", {})
    path = write_tar(tmp_path / "x-0.tar", {})
    with pytest.raises(ValueError, match=re.escape(f"{path}: its name does not say whether it is for train, val or")):
        find_shards(tmp_path)
    path.rename(tmp_path / "x-train-test.tar")
    with pytest.raises(ValueError, match="its name does not say"):
        find_shards(tmp_path)
    (tmp_path / "x-train-test.tar").unlink()
    (tmp_path / "x-train-0.tar").rename(tmp_path / "x-val-0.tar")
    with pytest.raises(ValueError, match="has no shards for training"):
        find_shards(tmp_path)


def test_an_image_folder_beside_the_tar_it_came_in_is_an_image_folder(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 2)
    write_tar(root / "download.tar", {})
    assert not has_shards(root)
    assert not has_shards(root / "nowhere")
    (root / "download.tar").rename(root / "train/a.tar")
    assert not has_shards(root)
    write_tar(tmp_path / "s/a.tar", {})
    assert has_shards(tmp_path / "s")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_shards_are_refused_with_what_to_do(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x-0{suffix}"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "w/x.tar", pairs(["a", "b"])).read_bytes()))
    with pytest.raises(
        ValueError, match=re.escape(f"{path} is compressed") + r".*decompress the shards first \(gunzip"
    ):
        adopt(tmp_path, tmp_path / "d")
    path.rename(tmp_path / "x-0.tar")
    with pytest.raises(ValueError, match=r"x-0.tar cannot be read as a tar file.*decompress it first"):
        adopt(tmp_path, tmp_path / "d")


# --- labels


@pytest.mark.parametrize(
    ("labels", "names", "class_names", "wanted"),
    [
        (["3", "1", "0\n", "003"], None, ("0", "1", "2", "3"), [3, 1, 0, 3]),
        (["dog", "cat ", "dog"], None, ("cat", "dog"), [1, 0, 1]),
        (["dog", "7", "10"], None, ("10", "7", "dog"), [2, 1, 0]),
        (["dog", "1", "cat"], "cat\ndog\nemu\n", ("cat", "dog", "emu"), [1, 1, 0]),
    ],
)
def test_labels_are_class_numbers_or_names(
    tmp_path: Path, labels: list[str], names: str | None, class_names: tuple[str, ...], wanted: list[int]
) -> None:
    write_tar(tmp_path / "s/0.tar", pairs(labels[:1]))
    write_tar(tmp_path / "s/1.tar", pairs(labels[1:], first=1))
    if names is not None:
        (tmp_path / "s/classes.txt").write_text(names)
    adopt(tmp_path / "s", tmp_path / "d")
    source = opened(tmp_path / "d")["train"]
    assert source.class_names == class_names
    assert source.labels_N.tolist() == wanted


def test_labels_may_stand_in_json(tmp_path: Path) -> None:
    members = {}
    for number, said in enumerate([{"label": 2}, {"cls": "1", "more": [1]}, {"label": None, "cls": 0}]):
        members |= {f"{number}.json": json.dumps(said).encode(), f"{number}.png": encoded(number, "png")}
    write_tar(tmp_path / "s/0.tar", members)
    adopt(tmp_path / "s", tmp_path / "d")
    assert opened(tmp_path / "d")["train"].labels_N.tolist() == [2, 1, 0]


def test_val_must_not_have_a_name_that_train_lacks(tmp_path: Path) -> None:
    write_tar(tmp_path / "s/train/0.tar", pairs(["a", "b"]))
    write_tar(tmp_path / "s/val/0.tar", pairs(["a", "c"]))
    with pytest.raises(ValueError, match=r"val has labels that train does not have: c\."):
        adopt(tmp_path / "s", tmp_path / "d")


def test_numbers_that_are_no_classes_are_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "s/0.tar", pairs(["0", "123456789"]))
    with pytest.raises(ValueError, match="labels are numbers up to 123456789, and class numbers are below 100,000"):
        adopt(tmp_path / "s", tmp_path / "d")


def test_class_names_stand_once_each(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert read_class_names(tmp_path) is None
    (tmp_path / "train/labels.txt").write_text("\ufeffcrane\nmaillot\n\n")
    assert read_class_names(tmp_path) == ("crane", "maillot")
    (tmp_path / "classnames.txt").write_text("crane\nemu\ncrane\n")
    with pytest.raises(ValueError, match=r"classnames.txt has 'crane' on lines 1 and 3; give each class its own name"):
        read_class_names(tmp_path)
    (tmp_path / "classnames.txt").write_text("crane\n\nemu\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        read_class_names(tmp_path)


# --- samples


@pytest.mark.parametrize("mode", ["keep", "raw"])
def test_samples_that_cannot_be_used_are_listed_with_the_reason(tmp_path: Path, mode: str) -> None:
    good, cut = encoded(0), encoded(0)[:-200]
    fortran, floats = io.BytesIO(), io.BytesIO()
    np.save(fortran, np.asfortranarray(np.zeros((4, 5, 3), np.uint8)))
    np.save(floats, np.zeros((4, 5, 3), np.float32))
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    label = b"1"
    members = {
        **pairs(["0", "1"]),
        "no_image.txt": b"",
        "no_image.cls": label,
        "no_label.jpg": good,
        "bad_cut.jpg": cut,
        "bad_cut.cls": label,
        "bad_label.jpg": good,
        "bad_label.cls": b"\xff\xfe",
        "list.jpg": good,
        "list.json": b'{"label": [1, 2]}',
        "minus.jpg": good,
        "minus.cls": b"-1",
        "deep.jpg": good,
        "deep.json": b"[" * 100_000,
        "empty.jpg": good,
        "empty.cls": b" \n",
        "float.npy": floats.getvalue(),
        "float.cls": label,
        "fortran.npy": fortran.getvalue(),
        "fortran.cls": label,
        "object.npy": objects.getvalue(),
        "object.cls": label,
        "a.seg.png": good,
        "a.cls": label,
    }
    write_tar(tmp_path / "s/0.tar", members)
    packed = adopt(tmp_path / "s", tmp_path / "d", mode)
    reasons = dict(refused_in(tmp_path / "d"))
    wanted = {
        "no_image": "it has no image (.jpg, .jpeg, .png, .webp, .ppm, .bmp, .npy), only .txt, .cls",
        "no_label": 'it has no label (.cls, or "label" or "cls" in its .json), only .jpg',
        "bad_cut" if mode == "keep" else "bad_cut.jpg": "Premature end of JPEG file",
        "bad_label": "its .cls cannot be read (UnicodeDecodeError)",
        "list": "its label is [1, 2], which is neither a number nor a name",
        "minus": "its label is -1, and class numbers start at 0",
        "deep": "its .json cannot be read (RecursionError)",
        "empty": "its label is empty",
        "float": "it holds float32 (4, 5, 3), and pixels are uint8 (H, W, 1) or (H, W, 3), row by row",
        "fortran": "it holds uint8 (4, 5, 3), and pixels are uint8 (H, W, 1) or (H, W, 3), row by row",
        "object": "it holds object (1,), and pixels are uint8 (H, W, 1) or (H, W, 3), row by row",
        "a": "it has no image (.jpg, .jpeg, .png, .webp, .ppm, .bmp, .npy), only .seg.png, .cls",
    }
    assert reasons == wanted
    assert packed.num_refused == len(wanted)
    assert opened(tmp_path / "d")["train"].labels_N.tolist() == [0, 1]


def test_a_split_without_a_good_sample_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "s/train/0.tar", pairs(["0", "1"]))
    write_tar(tmp_path / "s/val/0.tar", {"a.jpg": encoded(0), "b.jpg": encoded(1)})
    with pytest.raises(ValueError, match=r"none of the 2 images of val could be packed:\n .*: a: it has no label"):
        adopt(tmp_path / "s", tmp_path / "d")
    write_tar(tmp_path / "s/val/0.tar", {})
    with pytest.raises(ValueError, match="val has no images; leave it out, or put some in"):
        adopt(tmp_path / "s", tmp_path / "e")
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "e").exists()


# webdataset leaves closing its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_samples_are_grouped_as_webdataset_groups_them(tmp_path: Path) -> None:
    members = {
        "./a.b/0.JPG": encoded(0),
        "./a.b/0.cls": b"0",
        "./a.b/0.extra.txt": b"",
        "README": b"no suffix",
        "c/0.jpeg": encoded(1),
        "c/._0.jpg": b"of a Mac",
        "c/0.cls": b"1",
        "d.webp": encoded(2, "webp"),
        "d.npy": encoded(2, "npy"),
        "d.cls": b"1",
    }
    path = write_tar(tmp_path / "s/0.tar", members)
    write_tar(tmp_path / "s/1.tar", {})
    write_tar(tmp_path / "s/2.tar", {"e.npy": encoded(3, "npy"), "e.cls": b"0"})
    with tarfile.open(tmp_path / "s/2.tar", "a") as tar:
        for name, kind in (("f.jpg", tarfile.SYMTYPE), ("g.jpg", tarfile.LNKTYPE), ("h.jpg", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    adopt(tmp_path / "s", tmp_path / "d")
    source = opened(tmp_path / "d")["train"]
    names = [os.fsdecode(bytes(name)) for name in source.index.names_N]
    assert names == ["./a.b/0.jpg", "c/0.jpeg", "d.webp", "e.npy"]
    assert source.labels_N.tolist() == [0, 1, 1, 0]
    assert source.index.shards_N.tolist() == [0, 0, 0, 2]
    np.testing.assert_array_equal(source.read_image(3, channels=3), np.asarray(draw(40, 50, seed=3)))
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False) if "cls" in sample]
    assert theirs == ["./a.b/0", "c/0", "d"]


def test_two_members_of_one_suffix_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s/0.tar", pairs(["0", "1"]))
    with tarfile.open(path, "a") as tar:
        for name in ("x.jpg", "x.jpg", "x.cls"):
            tar.addfile(tarfile.TarInfo(name))
    adopt(tmp_path / "s", tmp_path / "d")
    assert refused_in(tmp_path / "d") == [("x", "it has two members .jpg")]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped_from_a_tar", "x" * 300, "sp äce/\udcff\n\x1b[31m"])
def test_names_in_archives_are_never_paths(tmp_path: Path, name: str) -> None:
    members = {f"{name}.jpg": encoded(0), f"{name}.cls": b"0", "1.jpg": encoded(1), "1.cls": b"1"}
    write_tar(tmp_path / "s/0.tar", members)
    before = sorted(path for path in tmp_path.iterdir())
    for mode in ("keep", "jpeg"):
        adopt(tmp_path / "s", tmp_path / "d" / mode, mode)
        source = opened(tmp_path / "d" / mode)["train"]
        assert os.fsdecode(bytes(source.index.names_N[0])) == f"{name}.jpg"
        assert len(list((tmp_path / "d" / mode).iterdir())) == 4
    assert sorted(path for path in tmp_path.iterdir()) == sorted([*before, tmp_path / "d"])
    assert not Path("/tmp/escaped_from_a_tar.jpg").exists()


# --- shards that are not whole


def test_a_shard_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s/0.tar", pairs(["0", "1", "1"]))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    for length in [0, 100, 512, 700, 1024, *range(2048, end, 1700), end - 512, end]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            adopt(tmp_path / "s", tmp_path / "d")
    path.write_bytes(whole[: end + 1024])
    assert adopt(tmp_path / "s", tmp_path / "d").num_samples == {"train": 3}


def test_a_broken_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s/0.tar", pairs(["0", "1", "1"]))
    content = bytearray(path.read_bytes())
    content[content.find(b"0001.jpg") + 150] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not whole, or several tar files in one: behind byte .* no header"):
        adopt(tmp_path / "s", tmp_path / "d")


def test_what_gnu_tar_makes_is_read(tmp_path: Path) -> None:
    root = tmp_path / ("deep" * 20) / ("er" * 60)
    root.mkdir(parents=True)
    for number in range(3):
        (root / f"{number}.jpg").write_bytes(encoded(number))
        (root / f"{number}.cls").write_text(str(number % 2))
    (tmp_path / "s").mkdir()
    for kind in ("gnu", "pax"):
        shard = tmp_path / "s" / f"{kind}.tar"
        subprocess.run(
            ["tar", "--sort=name", f"--format={kind}", "-cf", shard, "-C", tmp_path, "deep" * 20], check=True
        )
    adopt(tmp_path / "s", tmp_path / "d")
    source = opened(tmp_path / "d")["train"]
    assert source.labels_N.tolist() == [0, 1, 0] * 2
    for i in range(6):
        with Image.open(io.BytesIO(encoded(i % 3))) as image:
            np.testing.assert_array_equal(source.read_image(i, channels=3), np.asarray(image))
    assert reference(root / "0.jpg").size == (50, 40)


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "0.npy", "wb") as file:
        file.write(b"x" * 4096)
        file.truncate(2**21)
    (tmp_path / "s").mkdir()
    subprocess.run(["tar", "-S", "-cf", tmp_path / "s/0.tar", "-C", tmp_path, "0.npy"], check=True)
    with pytest.raises(ValueError, match=r"0\.tar has a sparse member, '0\.npy'; write it anew without --sparse"):
        adopt(tmp_path / "s", tmp_path / "d")
