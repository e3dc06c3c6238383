"""Contenders that take turns, what they are fed with, and the table of what they did."""

import contextlib
import csv
import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from benchmarks import throughput
from benchmarks.fed import FEEDS, FedLoader, Feed
from benchmarks.throughput import (
    CONTENDERS,
    SYNTHETIC,
    Task,
    _build,
    _OverError,
    _Turns,
    build_config,
    check,
    main,
    measure,
    save,
)

TASK = Task("resnet18", batch_size=2, size_px=32, num_warmup=1, num_steps=2)
QUICK = Task("simple_cnn", batch_size=8, size_px=32, num_warmup=2, num_steps=3, num_classes=10)
ROW = {"model": "resnet18", "contender": "ours", "images_per_s": 10.0, "device": "CPU", "cpu": "2 cores"}
CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    """Seven JPEG files, some in a folder within."""
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "n01").mkdir(parents=True)
    for name in ("a.JPEG", "b.jpg", "c.jpeg", "n01/a.JPEG", "n01/d.JPEG", "n01/e.JPEG", "n01/f.JPEG"):
        pixels = rng.integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    (tmp_path / "images" / "README.txt").write_text("no image")
    return tmp_path / "images"


def test_a_turn_is_so_many_steps_after_the_warm_up_and_ends_with_its_seconds(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("go\ngo\n"))
    turns = _Turns(TASK._replace(num_warmup=3), CPU)
    printed = []
    with contextlib.suppress(_OverError):
        while len(printed) < 20:
            turns.before_step()
            printed.append(bool(capsys.readouterr().out))
    assert printed == [False] * 3 + [True, False, True, False], "three to warm up, two turns of two"


def test_steps_that_take_batches_which_were_ready_are_not_counted(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("go\ngo\n"))
    clock = SimpleNamespace(now_s=0.0, perf_counter=lambda: clock.now_s)
    monkeypatch.setattr(throughput, "time", clock)
    turns, taken_s = _Turns(TASK, CPU, num_ready=3), 0
    with contextlib.suppress(_OverError):
        while taken_s < 50:
            turns.before_step()
            turns.waited_s += 0.25
            taken_s += 1
            clock.now_s += 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [{"seconds": 1, "waited_s": 0.25}] + [{"seconds": 2, "waited_s": 0.5}] * 2
    assert taken_s == 1 + 2 * (3 + 2), "each turn of two follows three that are not counted"


class _SlowLoader:
    """Three batches an epoch, each of which takes its time; open: how many iterations there are that are not over."""

    num_samples, num_open, num_epochs = 6, 0, 0

    def __iter__(self):
        self.num_open += 1
        self.num_epochs += 1
        try:
            for number in range(3):
                time.sleep(0.1)
                yield number
        finally:
            self.num_open -= 1


def test_waiting_for_a_slow_loader_is_measured_over_epochs_and_the_loader_is_closed(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    slow = _SlowLoader()
    turns = _Turns(TASK._replace(num_steps=7), CPU, num_ready=2)
    met = []
    with contextlib.suppress(_OverError):
        for batch in FedLoader(slow, turns):
            met.append(batch)
            time.sleep(0.1)
    _, answer = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert 0.3 < answer["waited_s"] / answer["seconds"] < 0.7, "half of the time"
    assert answer["waited_s"] >= 7 * 0.1 - 0.01
    assert met == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert (slow.num_epochs, slow.num_open) == (4, 0)


@pytest.mark.slow
def test_a_network_of_ours_is_measured_without_a_loader_and_with_each_which_ends_quietly(
    tmp_path, monkeypatch, capfd, images
):
    fed_by = [backend for backend in FEEDS if DALI_IS_EXPECTED or backend != "dali"]
    contenders = ["ours", *(f"ours_{backend}" for backend in fed_by)]
    words = f"--models simple_cnn --classes 10 --batch 8 --size 32 --warmup 2 --steps 3 --repeats 2 --images {images}"
    words += f" --loader threads.num_threads=3 --loader prefetch_batches=1 --results {tmp_path / 'table.csv'}"
    monkeypatch.setattr("sys.argv", ["throughput", *words.split(), "--contenders", *contenders])
    main()
    assert capfd.readouterr().err == ""
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contender"] for row in rows] == contenders
    assert [row["data"] for row in rows] == ["synthetic", *fed_by]
    assert {row["data"]: row["loader"] for row in rows} == {"synthetic": ""} | dict.fromkeys(
        fed_by, "prefetch_batches=1"
    ) | {"threads": "num_threads=3 prefetch_batches=1"}
    assert list(rows[0])[-8:] == ["data", "loader", "data_wait_frac", "device", "date", "commit", "cpu", "versions"]
    assert all(0 < float(row["data_wait_frac"]) < 1 for row in rows[1:])
    assert float(rows[0]["data_wait_frac"]) == 0


@pytest.mark.slow
def test_contenders_of_each_kind_are_measured(tmp_path):
    assert (len(SYNTHETIC), len(CONTENDERS)) == (13, 25)
    rows = measure(TASK._replace(size_px=64), ["ours", "timm_bf16"], repeats=2)
    assert [row["contender"] for row in rows] == ["ours", "timm_bf16"]
    for row in rows:
        assert 0 < row["lowest"] <= row["images_per_s"] <= row["highest"]
        assert row["device"] == ("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
        assert {"commit", "cpu", "versions", "date"} <= row.keys()
    save(rows, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3


def test_all_train_the_same_network_whose_stem_fits_small_images():
    for size_px, stem, stride in ((32, "small", (1, 1)), (64, "default", (2, 2))):
        task = TASK._replace(size_px=size_px)
        assert build_config("ours", task, Feed()).model.stem == stem
        assert [_build(task, is_timm=is_timm).conv1.stride for is_timm in (False, True)] == [stride] * 2


def test_a_network_of_ours_has_the_arguments_of_its_recipe():
    model = build_config("ours_bf16", QUICK._replace(model="airbench"), Feed()).model
    assert (model.name, model.args, model.stem) == (
        "airbench",
        {"head_std": 1.0, "logit_scale": 0.00390625},
        "default",
    )
    assert build_config("ours", TASK, Feed()).model.name == "torchvision/resnet18"


def test_a_field_of_the_loader_is_for_all_that_are_fed_or_for_one_backend(images):
    feed = Feed(images, None, ("num_threads=3", "dali.hw_decoder_load=0.65"))
    dali, threads = (build_config(f"ours_{backend}", TASK, feed).loader for backend in ("dali", "threads"))
    assert (dali.backend, dali.num_threads, dali.hw_decoder_load) == ("dali", 3, 0.65)
    assert (threads.backend, threads.num_threads, threads.hw_decoder_load) == ("threads", 3, 1.0)


def test_files_are_repeated_so_often_that_no_epoch_ends(images):
    feed = check(QUICK, ["ours_threads"], Feed(images), repeats=2)
    num_steps = 2 + 2 * (3 + 2 + 2)  # to warm up; turns, each after the four that may be ready
    assert feed.copies == -(-num_steps * 8 // 7)
    assert check(QUICK, ["ours_threads"], Feed(images, copies=2), repeats=2).copies == 2


@pytest.mark.parametrize(
    ("contenders", "changes", "feed", "message"),
    [
        ("ours_dali", {}, Feed(), "ours_dali is fed from files; give --images DIR, a folder of JPEG files."),
        ("ours_dali", {}, Feed(Path("nowhere")), "there are no files *.jpg or *.jpeg in nowhere or within it."),
        ("ours_threads", {}, Feed("images", 1), "x 1 copies are less than a batch of 8 images; use --copies 2 or more"),
        ("ours_resident", {"size_px": 64}, Feed(), "images of 32 pixels, as CIFAR-10's, and the size is 64"),
        ("ours bare", {}, Feed(), "simple_cnn is a network of ours, which bare cannot train; use contenders that"),
        ("ours", {"model": "simple_cn"}, Feed(), "unknown model 'simple_cn'; nearest: simple_cnn"),
        ("ours_residents", {}, Feed(), "there is no contender 'ours_residents'; nearest: ours_resident"),
        ("ours_threads", {}, Feed(loader=("num_threads",)), "'num_threads' is not KEY=VALUE"),
        ("ours_threads", {}, Feed(loader=("thread.num_threads=2",)), "or BACKEND.KEY=VALUE with one of dali, threads"),
        ("ours_threads", {}, Feed(loader=("backend=dali",)), "the backend itself is the last word of a contender"),
        ("ours_threads", {}, Feed(loader=("num_thread=2",)), "'loader.num_thread'; nearest: loader.num_threads"),
        ("ours_threads", {}, Feed(loader=("dali.num_threads=2",)), "no contender that reads them among ours_threads"),
        ("ours", {}, Feed(loader=("num_threads=2",)), "add one whose name ends in dali or threads or resident"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(contenders, changes, feed, message, images):
    if feed.images == "images":
        feed = feed._replace(images=images)
    with pytest.raises(ValueError, match=re.escape(message)):
        measure(QUICK._replace(**changes), contenders.split(), repeats=1, **feed._asdict())


def test_rows_of_the_same_network_and_machine_are_replaced_and_others_kept(tmp_path):
    path = tmp_path / "table.csv"
    save([ROW, ROW | {"contender": "bare"}], path)
    save([ROW | {"device": "H200"}], path)
    save([ROW | {"images_per_s": 11.0}], path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["contender"], row["device"], row["images_per_s"]) for row in rows] == [
        ("ours", "H200", "10.0"),
        ("ours", "CPU", "11.0"),
    ]
