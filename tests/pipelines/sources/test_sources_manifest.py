"""Manifests: what is read, in which order, as which classes; and each fault with its file and line."""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from pipelines.sources import inspection
from pipelines.sources.folder import FolderSource
from pipelines.sources.manifest import Columns, read_manifest

Pixels = np.ndarray
HEAD = "path,label\n"
WEIGHTED = Columns(weight="weight")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """img/0.png to img/5.png, and img/bad.jpg, a text."""
    (tmp_path / "r/img").mkdir(parents=True)
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"r/img/{number}.png")
    (tmp_path / "r/img/bad.jpg").write_text("this is text")
    return tmp_path / "r"


def read(
    root: Path,
    text: str | bytes | None = None,
    *,
    name: str = "train.csv",
    columns: Columns = Columns(),  # noqa: B008
    image_root: Path | None = None,
    keep_bad: Collection[str] = (),
    cache: Path | None = None,
    rescan: bool = False,
    verify: bool = False,
) -> dict[str, FolderSource]:
    if text is not None:
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    sources = read_manifest(
        str(root / name),
        columns=columns,
        image_root=None if image_root is None else str(image_root),
        show_progress=True,
        keep_bad=keep_bad,
        cache=cache,
        rescan=rescan,
        verify=verify,
    )
    return cast(dict[str, FolderSource], sources)


def refused(root: Path, text: str | bytes, wanted: str, **options: object) -> None:
    """The message, with {r} for the folder."""
    with pytest.raises((ValueError, OSError)) as caught:
        read(root, text, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(wanted.replace("{r}", str(root))), str(caught.value)


def named(source: FolderSource) -> list[tuple[str, str]]:
    names = [os.path.basename(os.fsdecode(name)) for name in source.names_N.tolist()]
    return list(zip(names, [source.class_names[label] for label in source.labels_N], strict=True))


# --- what is read

ROWS = [("img/3.png", "dog"), ("img/0.png", "cat"), ("img/5.png", "dog")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\n" + "".join(f"{p},{c}\n" for p, c in ROWS)),
        ("a.csv", "\ufeffid,label,path\r\n" + "\r\n".join(f'7,"{c}","{p}"\r\n' for p, c in ROWS)),
        ("a.csv", "path;label\n" + "".join(f"{p};{c}\n" for p, c in ROWS)),
        ("a.csv", "path\tlabel\n" + "".join(f"{p}\t{c}\n" for p, c in ROWS)),
        ("a.csv", "note, label, path\n" + "".join(f'"one\ntwo, ""three""", {c} , {p}\n' for p, c in ROWS)),
        ("a.csv", 'path, "label", "a, b"\n' + "".join(f'{p}, "{c}", "1, 2"\n  \n' for p, c in ROWS)),
        ("a.tsv", "label\tpath\n" + "".join(f"{c}\t{p}\n" for p, c in ROWS)),
        ("a.jsonl", "".join(json.dumps({"path": p, "label": c, "more": [1]}) + "\n\n" for p, c in ROWS)),
    ],
    ids=[
        "csv",
        "bom_quotes_crlf_blank",
        "semicolons",
        "tabs",
        "spaces_and_newlines",
        "spaces_before_quotes",
        "tsv",
        "jsonl",
    ],
)
def test_every_format_gives_the_same_samples_in_the_order_of_the_rows(root: Path, name: str, text: str) -> None:
    source = read(root, text, name=name)["train"]
    assert named(source) == [("3.png", "dog"), ("0.png", "cat"), ("5.png", "dog")]
    assert source.class_names == ("cat", "dog")
    assert source.sizes_N2.tolist() == [[8, 11], [8, 8], [8, 13]]
    for row, (path, _) in enumerate(ROWS):
        with Image.open(root / path) as image:
            assert np.array_equal(source.read_image(row, channels=3), np.asarray(image))


def test_a_folder_holds_a_table_per_split_of_any_format(root: Path) -> None:
    (root / "train.csv").write_text(HEAD + "img/0.png,cat\nimg/1.png,dog\n")
    (root / "validation.tsv").write_text("path\tlabel\nimg/2.png\tdog\n")
    (root / "test.jsonl").write_text('{"path": "img/3.png", "label": "cat"}\n')
    sources = read_manifest(str(root), show_progress=False)
    assert list(sources) == ["train", "val", "test"]
    assert {source.class_names for source in sources.values()} == {("cat", "dog")}
    assert [source.labels_N.tolist() for source in sources.values()] == [[0, 1], [1], [0]]


def test_a_column_split_makes_the_splits_of_a_single_file(root: Path) -> None:
    text = "split,path,label\ntest,img/4.png,b\ntrain,img/0.png,a\nvalid,img/2.png,a\nTrain,img/1.png,b\n"
    sources = read(root, text + "validation,img/3.png,b\n")
    assert {split: named(source) for split, source in sources.items()} == {
        "train": [("0.png", "a"), ("1.png", "b")],
        "val": [("2.png", "a"), ("3.png", "b")],
        "test": [("4.png", "b")],
    }


@pytest.mark.parametrize("labels", [["10", "9", "0"], ["3", "1", "2"], ["-1", "0", "7"]])
def test_whole_numbers_are_sorted_as_numbers_and_said_where_they_are_no_class_numbers(
    root: Path, labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"img/{number}.png,{label}\n" for number, label in enumerate(labels))
    source = read(root, HEAD + rows)["train"]
    wanted = sorted(labels, key=int)
    assert source.class_names == tuple(wanted)
    assert [source.class_names[label] for label in source.labels_N] == labels
    said = capsys.readouterr().out
    assert f"labels are the integers {wanted[0]} to {wanted[-1]}" in said
    assert ("with gaps (3 of them)" in said) == (labels != ["3", "1", "2"])


def test_labels_from_1_are_said_in_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(root, HEAD + "img/0.png,1\nimg/1.png,2\nimg/2.png,3\n")
    wanted = f"{root}/train.csv: labels are the integers 1 to 3, taken as names: the network's class 0 is '1'\n"
    assert capsys.readouterr().out == wanted


def test_labels_from_0_and_names_are_not_talked_about(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(root, HEAD + "img/0.png,1\nimg/1.png,0\n")
    read(root, HEAD + "img/0.png,1\nimg/1.png,a\n")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("one", "other"), [("01", "1"), ("1", "1.0"), ("+1", "1"), ("Cat", "cat"), ("a  b", "a b")])
def test_labels_that_look_alike_are_warned_of(
    root: Path, one: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read(root, HEAD + f"img/0.png,{one}\nimg/1.png,{other}\nimg/2.png,-1\nimg/3.png,10\n")["train"]
    assert {one, other} <= set(source.class_names), "they stay names of their own"
    wanted = f"warning: {root}/train.csv: the labels {one!r} and {other!r} are two classes; if they are one, write it"
    assert capsys.readouterr().out.count(wanted) == 1
    read(root, HEAD + f"img/0.png,{'9' * 5000}\nimg/1.png,b\n")
    assert "warning" not in capsys.readouterr().out


def test_a_label_column_may_be_called_split(root: Path) -> None:
    source = read(root, "path,split\nimg/0.png,a\nimg/1.png,b\n", columns=Columns("path", "split"))["train"]
    assert source.class_names == ("a", "b")


def test_paths_start_from_image_root_or_are_absolute(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    relative = read(elsewhere, HEAD + "0.png,a\n1.png,b\n", image_root=root / "img")["train"]
    absolute = read(elsewhere, HEAD + f"/{root}//img/0.png,a\n../r/img/1.png,b\n{tmp_path}/r/img/./2.png,a\n")["train"]
    for source in (relative, absolute):
        with Image.open(root / "img/1.png") as image:
            assert np.array_equal(source.read_image(1, channels=3), np.asarray(image))


def test_a_table_in_the_present_folder_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    Image.new("RGB", (16, 16)).save("0.jpg")
    Path("a.csv").write_text(HEAD + "0.jpg,a\nimg/1.png,b\n")
    source = read_manifest("a.csv", show_progress=False)["train"]
    assert source.read_image(0, channels=3).shape == (16, 16, 3)
    assert source.read_image(1, channels=3).shape == (8, 9, 3)


def test_jpegs_with_absolute_paths_are_read_by_the_fast_way_too(root: Path) -> None:
    for number in range(2):
        Image.new("RGB", (16, 16), (number, 50, 60)).save(root / f"{number}.jpg")
    source = read(root, HEAD + f"{root}/0.jpg,a\n{root}/1.jpg,b\n")["train"]
    assert bytes(source.read_jpeg(1) or b"") == (root / "1.jpg").read_bytes()
    assert source.describe(1) == str(root / "1.jpg")


def test_the_fingerprint_is_that_of_names_and_labels_wherever_the_data_lies(root: Path, tmp_path: Path) -> None:
    text = HEAD + "img/0.png,a\nimg/1.png,b\n"
    first = read(root, text)["train"].fingerprint()
    shutil.copytree(root, tmp_path / "copy")
    assert read(tmp_path / "copy")["train"].fingerprint() == first
    assert read(root, HEAD + "img/1.png,b\nimg/0.png,a\n")["train"].fingerprint() != first


# --- weights


def test_weights_are_read_only_where_they_are_wanted_and_said_where_not(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "path,label,weight\nimg/0.png,a,0.5\nimg/1.png,b,3\n"
    source = read(root, text, columns=WEIGHTED)["train"]
    assert source.weights_N is not None
    assert source.weights_N.tolist() == [0.5, 3]
    assert source.take(np.array([1])).weights_N == [3]
    assert capsys.readouterr().out == ""
    plain = read(root, text)["train"]
    assert plain.weights_N is None
    wanted = f"{root}/train.csv: the column 'weight' is not read; --data.sampling weighted would read it\n"
    assert capsys.readouterr().out == wanted
    assert plain.fingerprint() != source.fingerprint()
    assert read(root, text.replace("0.5", "0.6"), columns=WEIGHTED)["train"].fingerprint() != source.fingerprint()


def test_weights_of_val_and_test_may_be_empty(root: Path) -> None:
    text = "path,label,weight,split\nimg/0.png,a,1,train\nimg/1.png,b,2,train\nimg/2.png,b,,test\n"
    sources = read(root, text, columns=WEIGHTED)
    assert sources["test"].weights_N is None


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("img/0.png,a,-1\nimg/1.png,b,x\n", "weight '-1' in line 2; weight 'x' in line 3; a weight is a number"),
        ("img/0.png,a,nan\nimg/1.png,b,inf\n", "weight 'nan' in line 2; weight 'inf' in line 3"),
        ("img/0.png,a,\nimg/1.png,b,1\n", "weight '' in line 2; a weight is a number of at least 0."),
        ("img/0.png,a,0\nimg/1.png,b,0\n", "all weights of train are 0; give at least one image a weight above 0."),
    ],
)
def test_weights_that_are_none_are_refused(root: Path, rows: str, wanted: str) -> None:
    refused(root, "path,label,weight\n" + rows, "{r}/train.csv: " + wanted, columns=WEIGHTED)


# --- faults


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "line 1: it is empty; the first line names the columns, for example path,label."),
        (HEAD, " has no rows; write one per image, or move the file away."),
        (
            "file,label\nimg/0.png,a\n",
            "line 1: there is no column 'path'; there are file, label; name the right one, for example "
            "--data.path_column file.",
        ),
        (
            "path,class,x\nimg/0.png,a,1\n",
            "line 1: there is no column 'label'; there are path, class, x; name the right one, for example "
            "--data.label_column class.",
        ),
        ("path,label,label\nimg/0.png,a,1\n", "line 1: two columns are called 'label'; rename one."),
        (
            HEAD + "img/0.png,a\n\nimg,1.png,b\n",
            "line 4: 3 fields, but line 1 names 2 columns (path, label); put a field that contains ',' into double",
        ),
        (
            "path\nimg/0.png\n",
            "line 1: there is no column 'label'; there are path; add it, or move the table away: without it, images",
        ),
        ("path,label,Split\n", "line 1: only a column 'split' makes splits, and there is 'Split'; rename it."),
        (HEAD + 'img/0.png,"a\n', "line 2: unexpected end of data; a double quote that is opened must be closed"),
        (HEAD.encode() + b"img/0.png,\xe4\n", "line 1 or soon after: it is not UTF-8 text (invalid continuation"),
        (
            HEAD + "img/0.png,a\nimg/1.png,\n,b\n ,b\n",
            ": no label in line 3; no path in lines 4, 5; write one into each, or remove the rows.",
        ),
        (HEAD + "img/0.png,a\nimg/1.png,a\n", ": all 2 rows of train have the label 'a'; a classifier needs at least"),
        (
            HEAD + "img/0.png,a\nimg/1.png,b\nimg/0.png,b\n",
            "lines 2 and 4: img/0.png is listed twice, with the labels 'a' and 'b'; remove one",
        ),
        (
            HEAD + "img/0.png,a\nimg/1.png,b\nimg/./0.png,a\n",
            "lines 2 and 4: img/./0.png is listed twice, both with the label 'a'; remove one",
        ),
        (
            "path,label,split\nimg/0.png,a,train\nimg/1.png,b,trian\n",
            "line 3: split is 'trian'; nearest: train; valid: train, val, validation, valid, test (validation and "
            "valid are val).",
        ),
    ],
)
def test_a_fault_is_told_with_its_line(root: Path, text: str | bytes, wanted: str) -> None:
    refused(root, text, "{r}/train.csv" + (", " if wanted[0].isalpha() else "") + wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"path": "a"\n', "line 1: no JSON (Expecting ',' delimiter"),
        ('\n["a", "b"]\n', 'line 2: ["a", "b"] is no JSON object; write {...} per line.'),
        ('{"path": "a"}\n', "line 1: there is no key 'label', but path; add it, or name the right one by --data.label"),
        ('{"path": "a", "label": [3]}\n', "line 1: label is [3]; write a text or a number."),
        ('{"path": "a", "label": true}\n', "line 1: label is true; write a text or a number."),
        (
            '{"path": "a", "label": "b"}\n{"path": "c", "label": "d", "split": "test"}\n',
            "line 1: there is no key 'split', but path, label; add it.",
        ),
        (
            '{"path": "\\ud800", "label": "b"}\n',
            'line 1: path is "\\ud800", which is no text (surrogates not allowed); c',
        ),
        ("[" * 100_000 + "\n", "line 1: no JSON (maximum recursion depth exceeded"),
        ('{"path": "a", "label": null}\n', ": no label in line 1; write one"),
    ],
)
def test_a_fault_in_json_is_told_with_its_line(root: Path, text: str, wanted: str) -> None:
    refused(root, text, "{r}/train.jsonl" + (", " if wanted[0] == "l" else "") + wanted, name="train.jsonl")


def test_labels_that_train_does_not_have_are_listed(root: Path) -> None:
    text = "path,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,cow,val\nimg/3.png,bat,val\n"
    wanted = (
        "val has labels that train ({r}/train.csv) does not have:\n  + bat ({r}/train.csv, line 5)\n"
        "  + cow ({r}/train.csv, line 4)\nThe network knows the labels of train alone; correct or remove these rows, "
        "or add such to train."
    )
    refused(root, text, wanted)


@pytest.mark.parametrize("again", ["./img/0.png", "img/../img/0.png", "img//0.png", "{r}/img/0.png"])
def test_a_file_is_the_same_however_its_path_is_written(
    root: Path, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (root / "a.csv").write_text(HEAD + "img/0.png,a\nimg/1.png,b\n" + again.replace("{r}", str(root)) + ",a\n")
    with pytest.raises(ValueError, match=r"^a\.csv, lines 2 and 4: .*img/+0\.png is listed twice"):
        read_manifest("a.csv", show_progress=False)


def test_an_image_of_train_that_is_in_test_too_is_warned_of(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "path,label,split\nimg/0.png,a,train\nimg/1.png,b,train\n./img/1.png,b,test\nimg/2.png,b,test\n"
    read(root, text)
    wanted = "warning: 1 of the 2 images of test are in train too, so its score says less than it seems; for example "
    assert wanted + f"{root}/img/1.png" in capsys.readouterr().out


def test_images_that_are_not_there_are_counted_and_five_named_before_any_is_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_nothing(path: str) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(inspection, "read_header", open_nothing)
    rows = "".join(f"img/{number}.png,{number % 2}\n" for number in range(4, 13))
    wanted = "7 of the 9 images of {r}/train.csv are not there:\n  {r}/train.csv, line 4: {r}/img/6.png\n"
    refused(root, HEAD + rows, wanted)
    with pytest.raises(ValueError, match=r"line 8: .*/img/10\.png\n  \.\.\.\nPaths start from .*--data\.image_root"):
        read(root)


def test_what_lies_near_is_offered_and_works(root: Path) -> None:
    text = HEAD + "0.png,a\n1.png,b\n"
    with pytest.raises(ValueError, match=r"There is img/0\.png: use --data\.image_root (.*)\.$") as caught:
        read(root, text)
    offered = re.search(r"--data\.image_root (.*)\.$", str(caught.value))
    assert offered is not None
    assert len(read(root, text, image_root=Path(offered[1]))["train"].labels_N) == 2
    with pytest.raises(ValueError, match=r"There is img/0\.png: write the ending into the column path\."):
        read(root, HEAD + "img/0,a\nimg/1,b\n")


def test_paths_with_backslashes_and_folders_are_told(root: Path) -> None:
    with pytest.raises(ValueError, match=r"There is img/0\.png: write / instead of \\ into the column path\.$"):
        read(root, HEAD + "img\\0.png,a\r\nimg\\1.png,b\r\n")
    refused(
        root,
        HEAD + "img,a\nimg/1.png,b\n",
        "1 of the 2 images of {r}/train.csv are not there:\n  {r}/train.csv, line 2: {r}/img (a folder)\n",
    )


def test_a_text_named_jpg_is_told_with_its_line_unless_bad_ones_are_kept(root: Path) -> None:
    text = HEAD + "img/0.png,a\nimg/bad.jpg,b\nimg/1.png,b\nimg/77.png,a\n"
    (root / "img/77.png").write_bytes(b"")
    wanted = (
        "2 of the 4 images of {r}/train.csv cannot be read:\n  {r}/train.csv, line 3: {r}/img/bad.jpg: not an image in "
        "any format that Pillow reads\n  {r}/train.csv, line 5: {r}/img/77.png: "
    )
    refused(root, text, wanted)
    (root / "img/77.png").unlink()
    source = read(root, keep_bad=["train"])["train"]
    assert sorted(source.bad) == [1, 3]
    assert source.bad[3] == "FileNotFoundError: No such file or directory"


def test_a_label_without_a_readable_image_is_refused_even_where_bad_ones_are_kept(root: Path) -> None:
    wanted = "{r}/train.csv: 1 labels have no image that can be read: b; repair the images, or remove these rows."
    refused(root, HEAD + "img/0.png,a\nimg/bad.jpg,b\n", wanted, keep_bad=["train"])


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ([], "data.root={r} has no train.csv, train.tsv or train.jsonl, but img/; write a table of paths and labels."),
        (["labels.csv"], "data.root={r} has no train.csv, train.tsv or train.jsonl, but img/, labels.csv; use --data"),
        (["train.csv", "train.tsv"], "{r} has both train.csv and train.tsv for train; move one away."),
        (["train.csv", "val.csv", "valid.csv"], "{r} has both val.csv and valid.csv for val; move one away."),
        (["train.csv", "testing.csv"], "{r}/testing.csv is called testing; rename it to test.csv, or move it away."),
    ],
)
def test_a_folder_without_the_tables_it_needs_is_refused(root: Path, names: list[str], wanted: str) -> None:
    for name in names:
        (root / name).write_text(HEAD + "img/0.png,a\nimg/1.png,b\n")
    with pytest.raises((ValueError, OSError)) as caught:
        read_manifest(str(root), show_progress=False)
    assert str(caught.value).startswith(wanted.replace("{r}", str(root)))


def test_what_is_no_manifest_or_not_there_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=/dev/null is neither a folder nor a regular file"):
        read_manifest("/dev/null", show_progress=False)
    wanted = "data.path_column and data.label_column are both 'path'; name two of the columns of {r}/train.csv: path,"
    refused(root, HEAD + "img/0.png,a\n", wanted, columns=Columns("path", "path"))
    refused(root, "x", "data.root={r}/labels.txt ends in .txt; a manifest ends in .csv, .tsv or", name="labels.txt")
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*/none does not exist \(looked from"):
        read_manifest(str(root / "none"), show_progress=False)
    with pytest.raises(FileNotFoundError, match=r"data\.image_root=.*/none is no folder"):
        read(root, HEAD + "0.png,a\n1.png,b\n", image_root=root / "none")


def test_a_column_split_in_a_file_of_test_is_refused_if_it_says_otherwise(root: Path) -> None:
    (root / "train.csv").write_text(HEAD + "img/0.png,a\nimg/1.png,b\n")
    (root / "test.csv").write_text("path,label,split\nimg/2.png,a,test\nimg/3.png,a,val\n")
    with pytest.raises(ValueError, match=r"test\.csv, line 3: split is 'val' in a file of test; .*use --data\.root"):
        read_manifest(str(root), show_progress=False)


def test_without_a_row_of_train_there_is_nothing_to_learn(root: Path) -> None:
    refused(root, "path,label,split\nimg/0.png,a,test\n", "{r}/train.csv has no row of train, but of test")


# --- the index


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    inner: Callable[..., object] = inspection.read_header
    opened: list[str] = []

    def watch(path: str) -> object:
        opened.append(os.path.basename(path))
        return inner(path)

    monkeypatch.setattr(inspection, "read_header", watch)
    return opened


def settle(folder: Path) -> None:
    """As if nothing had changed for a while."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (10**9, 10**9))


def test_headers_are_read_once_and_again_only_of_files_that_changed(
    root: Path, tmp_path: Path, headers_read: list[str]
) -> None:
    text, cache = HEAD + "".join(f"img/{number}.png,{number % 2}\n" for number in range(4)), tmp_path / "cache"
    settle(root / "img")
    first = read(root, text, cache=cache)["train"]
    assert sorted(headers_read) == ["0.png", "1.png", "2.png", "3.png"]
    headers_read.clear()
    again = read(root, cache=cache)["train"]
    assert headers_read == []
    assert (again.fingerprint(), again.sizes_N2.tolist()) == (first.fingerprint(), first.sizes_N2.tolist())
    more = read(root, text.replace("img/1.png,1", "img/1.png,0") + "img/4.png,1\n", cache=cache)["train"]
    assert headers_read == ["4.png"]
    assert more.labels_N.tolist() == [0, 0, 0, 1, 1]
    headers_read.clear()
    Image.new("RGB", (9, 9)).save(root / "img/2.png")
    assert read(root, cache=cache, rescan=True)["train"].sizes_N2[2].tolist() == [9, 9]
    assert headers_read == ["2.png"]


def test_a_file_that_went_is_noticed_at_the_next_start(root: Path, tmp_path: Path) -> None:
    settle(root / "img")
    read(root, HEAD + "img/0.png,a\nimg/1.png,b\n", cache=tmp_path / "cache")
    (root / "img/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 2 images of .* are not there"):
        read(root, cache=tmp_path / "cache")


def test_verify_finds_damage_behind_the_header(root: Path, tmp_path: Path) -> None:
    whole = (root / "img/1.png").read_bytes()
    (root / "img/1.png").write_bytes(whole[: len(whole) // 2])
    text = HEAD + "img/0.png,a\nimg/1.png,b\nimg/2.png,b\n"
    assert read(root, text)["train"].bad == {}
    with pytest.raises(ValueError, match=r"1 of the 3 images of .*train.csv cannot be read:\n  .*, line 3: "):
        read(root, verify=True)
    assert list(read(root, verify=True, keep_bad=["train"])["train"].bad) == [1]
