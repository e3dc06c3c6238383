"""The list of images that could not be read: complete, in order, and evaluation's files once."""

import pytest
import torch

from engine.bad_samples import BadSampleLog, check_num_bad
from engine.record import RunFolder
from pipelines.batch import BadSample


def bad(sample_id, *, split="train", epoch=0, step=0, replaced_by=None):
    return BadSample(
        split=split,
        epoch=epoch,
        step=step,
        sample_id=sample_id,
        name=f"{split}/{sample_id}.png",
        reason="burnt",
        replaced_by=replaced_by,
        replaced_by_name=None if replaced_by is None else f"{split}/{replaced_by}.png",
    )


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def log(folder, runtime, progress):
    return BadSampleLog(folder, runtime=runtime, progress=progress)


def test_a_line_gives_everything_that_is_known_of_a_sample(log, folder):
    log.write([bad(7, epoch=2, step=5, replaced_by=9)], step=25)
    assert folder.read_bad_samples() == [
        {
            "after_step": 25,
            "split": "train",
            "epoch": 2,
            "step": 5,
            "sample_id": 7,
            "name": "train/7.png",
            "reason": "burnt",
            "replaced_by": 9,
            "replaced_by_name": "train/9.png",
        }
    ]


def test_lines_are_in_the_order_of_epoch_step_and_sample_whoever_met_them(log, folder):
    met = [
        bad(3, step=4, replaced_by=1),
        bad(9, step=2, replaced_by=1),
        bad(1, epoch=1, replaced_by=0),
        bad(2, step=4, replaced_by=8),
    ]
    log.write(met, step=10)
    assert [row["sample_id"] for row in folder.read_bad_samples()] == [9, 2, 3, 1]


def test_training_is_told_every_time_and_evaluation_once_per_split(log, folder):
    for epoch in range(3):
        log.write([bad(7, epoch=epoch, replaced_by=1)], step=epoch)
        log.write([bad(7, split="val"), bad(8, split="val")], step=epoch)
    log.write([bad(7, split="test")], step=3)
    told = [(row["split"], row["sample_id"], row["after_step"]) for row in folder.read_bad_samples()]
    assert told == [
        ("train", 7, 0),
        ("val", 7, 0),
        ("val", 8, 0),
        ("train", 7, 1),
        ("train", 7, 2),
        ("test", 7, 3),
    ]


def test_the_same_sample_twice_in_a_step_is_two_lines(log, folder):
    log.write([bad(7, replaced_by=5), bad(7, replaced_by=2)], step=1)
    assert [row["replaced_by"] for row in folder.read_bad_samples()] == [2, 5]


def test_ranks_other_than_the_first_gather_but_do_not_write(folder, runtime, progress, monkeypatch):
    gathered = []
    monkeypatch.setattr(runtime, "is_main", False)
    monkeypatch.setattr(runtime, "gather_objects", lambda objects: gathered.append(objects) or objects)
    BadSampleLog(folder, runtime=runtime, progress=progress).write([bad(7)], step=1)
    assert gathered == [[bad(7)]]
    assert not (folder.path / "bad_samples.jsonl").exists()


def test_what_all_ranks_have_met_is_written_by_the_first(folder, runtime, progress, monkeypatch):
    monkeypatch.setattr(runtime, "gather_objects", lambda objects: [*objects, bad(4, split="val"), bad(2, split="val")])
    BadSampleLog(folder, runtime=runtime, progress=progress).write([bad(7, split="val")], step=1)
    assert [row["sample_id"] for row in folder.read_bad_samples()] == [2, 4, 7]


def test_without_a_run_folder_the_list_is_printed(bad_log, progress):
    bad_log.write([bad(7, split="test"), bad(3, split="test")], step=0)
    assert progress._stream.getvalue() == "not counted: test/3.png: burnt\nnot counted: test/7.png: burnt\n"


def test_more_than_the_loader_allows_stops_with_the_numbers(make_loader):
    loader = make_loader(torch.zeros(20, 1), torch.zeros(20, dtype=torch.long), batch_size=5, max_num_bad=2)
    check_num_bad(2, loader)
    with pytest.raises(ValueError, match=r"^3 of 20 images of this epoch .* data\.max_bad_frac allows 2\."):
        check_num_bad(3, loader)
