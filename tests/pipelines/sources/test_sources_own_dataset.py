"""A user's own Dataset: what becomes of its items, splits, labels and mistakes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import own_sets
import pytest
import torch
from PIL import Image

from pipelines.source import ArraySource, Source
from pipelines.sources import own_items
from pipelines.sources.own_dataset import Making, OwnSource, check_making, read_own
from pipelines.sources.own_items import Reading

READING = Reading(num_workers=0, max_bytes=2**30, leave_out=(), max_bad_frac=0.0)
ON_DEMAND = READING._replace(max_bytes=0)


def read(name: str, *, reading: Reading = READING, **arguments: Any) -> dict[str, Source]:
    return read_own(Making(getattr(own_sets, name), f"own_sets:{name}", arguments), reading, show_progress=True)


def refused(wanted: str, name: str, *, reading: Reading = READING, **arguments: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        read(name, reading=reading, **arguments)


def pixels(source: Source, *, channels: int = 3) -> list[bytes]:
    return [source.read_image(row, channels=channels).tobytes() for row in range(len(source.labels_N))]


# --- items


@pytest.mark.parametrize("name", ["Plain", "Floats"])
@pytest.mark.parametrize("reading", [READING, ON_DEMAND], ids=["held", "on_demand"])
def test_pixels_come_through_to_the_bit(name: str, reading: Reading) -> None:
    source = read(name, reading=reading)["train"]
    assert isinstance(source, ArraySource if reading is READING else OwnSource)
    assert pixels(source) == [own_sets.pixels_of(place).tobytes() for place in range(12)]
    assert source.labels_N.tolist() == [0, 1, 2] * 4
    assert source.class_names == ("0", "1", "2")
    assert not source.is_grey


def test_every_kind_of_image_and_label_is_taken() -> None:
    source = read("Kinds", reading=ON_DEMAND, count=30)["train"]
    for place in range(30):
        is_grey = place % 10 in (1, 4, 5, 8)
        wanted = own_sets.pixels_of(place, channels=1 if is_grey else 3)
        found = source.read_image(place, channels=1 if is_grey else 3)
        assert np.array_equal(found, wanted), place
        three = source.read_image(place, channels=3)
        assert np.array_equal(three, np.repeat(wanted, 3, axis=2) if is_grey else wanted)
    held = read("Kinds", count=30)["train"]
    assert isinstance(held, ArraySource)
    assert pixels(held) == pixels(source)
    assert read("Labels", count=15)["train"].labels_N.tolist() == [0, 1, 2] * 5


def test_every_level_of_a_float_tensor_rounds_to_itself() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    for dtype in (torch.float16, torch.float32, torch.float64):
        found = own_items._to_pixels(levels.to(dtype) / 255)
        assert found.reshape(-1).tolist() == list(range(256))


def test_images_of_several_sizes_are_read_on_demand_with_their_sizes() -> None:
    source = read("Sizes")["train"]
    assert isinstance(source, OwnSource)
    assert source.sizes_N2.tolist() == [[16 + place % 3] * 2 for place in range(12)]
    assert (
        source.read_image(1, channels=3, window=(2, 3, 4, 5)).tolist()
        == own_sets.pixels_of(1, size=17)[2:6, 3:8].tolist()
    )
    grey = np.asarray(Image.fromarray(own_sets.pixels_of(1, size=17)).convert("L"))
    assert np.array_equal(source.read_image(1, channels=1)[..., 0], grey)
    taken = source.take(np.array([5, 1]))
    assert pixels(taken) == [pixels(source)[5], pixels(source)[1]]
    assert (taken.describe(0), taken.labels_N.tolist()) == ("own_sets:Sizes, item 5 of train", [2, 1])


def test_worker_processes_read_what_this_one_reads() -> None:
    alone = read("Sizes", count=300)["train"]
    workers = read("Sizes", reading=READING._replace(num_workers=2), count=300)["train"]
    assert workers.fingerprint() == alone.fingerprint()
    assert read("Sizes", count=301)["train"].fingerprint() != alone.fingerprint()


def test_a_run_may_continue_whether_or_not_the_items_are_held() -> None:
    """loader.resident_max_gib and loader.num_workers may change between two starts of a run."""
    held, on_demand = read("Kinds", count=30)["train"], read("Kinds", reading=ON_DEMAND, count=30)["train"]
    assert (type(held), type(on_demand)) == (ArraySource, OwnSource)
    assert held.fingerprint() == on_demand.fingerprint()
    ids = np.array([4, 2, 17])
    assert held.take(ids).fingerprint() == on_demand.take(ids).fingerprint() != held.fingerprint()


def test_reading_leaves_torchs_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    read("Plain", reading=READING._replace(num_workers=2), count=300)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("one", "item 0 of train: __getitem__ gives a ndarray; give (image, label)."),
        ("three", "item 0 of train: __getitem__ gives 3 values; give (image, label)."),
        ("float_array", "the image is an array of float64; give uint8, 0..255 (or a float tensor within 0..1"),
        ("four_channels", "the image is an array of shape (4, 4, 4); give (H, W) or (H, W, C), C being 1 or 3."),
        ("hwc_tensor", "the image is a tensor of shape (16, 16, 3); give (C, H, W), C being 1 or 3."),
        ("normalised", "not within 0..1; leave normalisation out of the data set, for it is done here (input.mean and"),
        ("to_255", "the image is a float tensor from 0 to 255, not within 0..1; leave normalisation"),
        ("ints", "the image is a tensor of torch.int64; give uint8, or float32 within 0..1."),
        ("text", "the image is a str; give a PIL image, a uint8 array or a tensor."),
        ("float_label", "the label is 1.0 (float); give the number of the class, whole and from 0 on."),
        ("one_hot", "the label is tensor([1., 0., 0.]) (Tensor); give the number of the class"),
        ("name", "the label is 'cat' (str); give the number of the class"),
        ("flag", "the label is True (bool); give the number of the class"),
        ("negative", "the label is -1; give a number from 0 on."),
        ("huge", "the label is 9223372036854775813; give the number of the class, counted from 0."),
        ("identifier", "of 1000000002 classes, 999999998 have no item in train: 3, 4, 5, 6, 7, ...; add items, or"),
        ("gap", "of 3 classes, 1 have no item in train: 1; add items, or number the labels without gaps."),
        ("same", "all items of train have the label 0; a classifier needs at least two classes."),
    ],
)
def test_items_that_cannot_be_used_are_told_with_what_to_do(what: str, wanted: str) -> None:
    refused(wanted, "Given", what=what)


@pytest.mark.parametrize("name", ["OneBuffer", "OneTensor"])
@pytest.mark.parametrize(("count", "num_workers"), [(12, 0), (300, 2)])
def test_a_data_set_may_write_every_image_into_the_same_memory(name: str, count: int, num_workers: int) -> None:
    source = read(name, reading=READING._replace(num_workers=num_workers), count=count)["train"]
    assert isinstance(source, ArraySource)
    for place in range(count):
        assert np.array_equal(source.read_image(place, channels=3), own_sets.pixels_of(place))


def test_items_that_cannot_be_read_a_second_time_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_sets.Fails, "left", 13)  # 12 items, and the first of them to see of which kind it is
    wanted = "own_sets:Fails: item 0 of train was read a moment ago, and now cannot be: OSError: no more ("
    refused(wanted, "Fails")


@pytest.mark.parametrize("kind", ["at_once", "lazily"])
def test_a_file_whose_position_workers_would_share_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "images.bin"
    path.write_bytes(b"".join(own_sets.pixels_of(place).tobytes() for place in range(300)))
    with_workers = READING._replace(num_workers=2)
    wanted = f"own_sets:InOneFile: items of train are read from {path}, which is open before the worker processes start"
    refused(wanted, "InOneFile", reading=with_workers, path=str(path), kind=kind)
    alone = read("InOneFile", path=str(path), kind=kind)["train"]
    by_workers = read("InOneFile", reading=with_workers, path=str(path), kind="by_process")["train"]
    assert alone.fingerprint() == by_workers.fingerprint()


def test_a_worker_that_dies_is_told_with_what_to_do() -> None:
    wanted = "own_sets:Dies: the worker processes that read train failed: RuntimeError: DataLoader worker (pid(s) "
    refused(wanted, "Dies", reading=READING._replace(num_workers=1), count=300)


# --- labels


def test_labels_from_1_are_refused_with_what_to_do() -> None:
    wanted = "own_sets:FromOne: labels run from 1 to 3; the network counts classes from 0: subtract 1 from them in __ge"
    refused(wanted, "FromOne")


def test_more_labels_than_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_sets.Plain, "classes", ["a", "b"], raising=False)
    refused("own_sets:Plain: there is a label 2, but .classes has 2 names, for labels 0 to 1; correct one", "Plain")
    monkeypatch.setattr(own_sets.Plain, "classes", ["a", "b", "b"], raising=False)
    refused("own_sets:Plain: .classes has a name twice; give each class its own.", "Plain")


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (3, "own_sets:Plain: .classes is 3 (int); make it a list of names, the first for label 0."),
        ("abc", "own_sets:Plain: .classes is abc (str); make it a list"),
        ({"a"}, "own_sets:Plain: .classes is {'a'} (set); make it a list"),
        (lambda: ["a"], "own_sets:Plain: .classes is <bound method"),
        (property(lambda _: {}["x"]), "own_sets:Plain: its names of classes cannot be had: KeyError: 'x' ("),
        (
            {"a": 0, "b": 2, "c": 5},
            "own_sets:Plain: .class_to_idx (or .classes) gives the labels 0, 2, 5; give each of",
        ),
        (
            {"a": 0, "b": None},
            "own_sets:Plain: .class_to_idx (or .classes) gives the labels 0, None; give each of the 2",
        ),
    ],
    ids=["int", "str", "set", "method", "property", "gaps", "none"],
)
def test_names_that_do_not_belong_to_labels_are_refused(
    classes: object, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_sets.Plain, "classes", classes, raising=False)
    refused(wanted, "Plain")


def test_a_mapping_names_the_labels_that_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_sets.Plain, "classes", {"cow": 2, "ant": 0, "bee": 1}, raising=False)
    assert read("Plain")["train"].class_names == ("ant", "bee", "cow")


def test_classes_are_named_by_classes_or_class_to_idx() -> None:
    assert read("Split", folder="x")["test"].class_names == ("ant", "bee", "cow")
    assert read("Train")["test"].class_names == ("ant", "bee", "cow")


# --- splits


@pytest.mark.parametrize(
    ("name", "counts", "said"),
    [
        ("Plain", {"train": 12}, "own_sets:Plain: 12 train\n"),
        ("Train", {"train": 12, "test": 6}, "own_sets:Train: 12 train, 6 test\n"),
        ("Empty", {"train": 12, "val": 6}, "own_sets:Empty: 12 train, 6 val; no test (no items)\n"),
        ("Asserting", {"train": 12, "val": 12}, "own_sets:Asserting: 12 train, 12 val; no test (AssertionError)\n"),
    ],
)
def test_the_splits_that_were_found_are_said(
    name: str, counts: dict[str, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {split: len(source.labels_N) for split, source in read(name).items()} == counts
    assert capsys.readouterr().out == said


def test_a_split_that_is_not_known_is_said_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(read("Split", folder="x")) == ["train", "test"]
    said = "own_sets:Split: 12 train, 6 test; no val (ValueError: split 'val' is not known)\n"
    assert capsys.readouterr().out == said


def test_another_error_than_that_of_an_unknown_split_is_not_passed_over() -> None:
    line = next(n for n, text in enumerate(Path(own_sets.__file__).read_text().split("\n"), 1) if "is damaged" in text)
    wanted = (
        f"own_sets:TwoOfThree cannot be made for val: ValueError: the table of val is damaged ({own_sets.__file__}:"
        f"{line})."
    )
    refused(wanted, "TwoOfThree")


def test_a_data_set_that_takes_any_split_is_refused() -> None:
    refused("own_sets:AnySplit makes a data set of split='no_such_split' too, so it cannot be told whether", "AnySplit")


def test_an_iterable_data_set_is_refused() -> None:
    refused("own_sets:Stream gives a Stream for train, which is an IterableDataset; items are needed in an", "Stream")
    with pytest.raises(ValueError, match=r"gives a int for train, which has no __getitem__ and __len__"):
        read_own(Making(lambda: 3, "own_sets:three", {}), READING, show_progress=False)
    refused("own_sets:Plain has no items of train; len() gives 0.", "Plain", count=0)


@pytest.mark.parametrize(("count", "wanted"), [(None, "TypeError: 'NoneType'"), (4.0, "TypeError: 'float'")])
def test_a_len_that_fails_is_told(count: object, wanted: str) -> None:
    refused(f"own_sets:Plain: len() of train fails: {wanted}", "Plain", count=count)


# --- arguments


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("Split", {"foldr": "x"}, "own_sets:Split has no argument 'foldr'; nearest: folder; valid: folder."),
        ("Split", {}, "own_sets:Split needs folder; add --data.args.folder VALUE."),
        (
            "Split",
            {"folder": "x", "split": "train"},
            "data.args.split: train, val and test are asked for in turn; drop",
        ),
        ("Train", {"train": True}, "data.args.train: train, val and test are asked for in turn; drop it."),
        ("Train", {"folder": "x"}, "own_sets:Train has no argument 'folder'; it has none."),
        ("make", {}, "own_sets:make needs folder; add --data.args.folder VALUE."),
        ("NOTHING", {}, "data.dataset=own_sets:NOTHING is 3; it must be a class or a function."),
    ],
)
def test_arguments_are_held_against_the_signature(name: str, arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_making(Making(getattr(own_sets, name), f"own_sets:{name}", arguments))


def test_a_function_may_make_the_data_set_and_its_errors_are_placed() -> None:
    assert len(read("make", folder="x", size=6)["train"].labels_N) == 6
    wanted = (
        r"own_sets:Broken cannot be made for train|own_sets:Broken: item 4 of train: KeyError: 'item 4 is broken' \("
    )
    with pytest.raises(ValueError, match=wanted):
        read("Broken", kind="key")


# --- what cannot be read, or changes


@pytest.mark.parametrize("kind", ["value", "os"])
def test_items_that_cannot_be_read_are_named_or_left_out(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"value": "ValueError", "os": "OSError"}[kind]
    wanted = f"own_sets:Broken: 2 of 12 items of train cannot be read:\n  item 4: {error}: item 4 is broken ("
    refused(wanted + str(own_sets.__file__), "Broken", kind=kind)
    out = READING._replace(leave_out=("train",), max_bad_frac=0.2)
    source = read("Broken", reading=out, kind=kind)["train"]
    assert pixels(source) == [own_sets.pixels_of(place).tobytes() for place in range(12) if place not in (4, 7)]
    assert "2 of 12 items of train cannot be read, and are left out:\n  item 4: " in capsys.readouterr().out
    refused("more than data.max_bad_frac=0.1 allows", "Broken", reading=out._replace(max_bad_frac=0.1), kind=kind)


@pytest.mark.parametrize("reading", [READING, ON_DEMAND], ids=["held", "on_demand"])
def test_random_transforms_are_noticed_at_the_start(reading: Reading) -> None:
    refused(
        "is another one each time it is read; leave random transforms out of the data set", "Random", reading=reading
    )


def test_an_item_that_changes_later_or_fails_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    source = read("Plain", reading=ON_DEMAND)["train"]
    monkeypatch.setattr(own_sets.Plain, "image", lambda self, place: own_sets.pixels_of(place + 1))
    with pytest.raises(RuntimeError, match="own_sets:Plain: item 3 of train is another one each time it is read"):
        source.read_image(3, channels=3)

    def fail(self: object, place: int) -> None:
        raise (OSError if place == 3 else KeyError)("gone")

    monkeypatch.setattr(own_sets.Plain, "image", fail)
    with pytest.raises(ValueError, match=r"^OSError: gone \(.*test_sources_own_dataset\.py:\d+\)$"):
        source.read_image(3, channels=3)
    with pytest.raises(RuntimeError, match=r"^own_sets:Plain, item 4 of train: KeyError: 'gone' \(.*:\d+\)$"):
        source.read_image(4, channels=3)
