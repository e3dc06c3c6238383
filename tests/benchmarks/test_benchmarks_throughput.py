"""Contenders that take turns, and the table of what they did."""

import contextlib
import csv
import io

import pytest
import torch

from benchmarks.throughput import CONTENDERS, Task, _OverError, _Turns, measure, save

TASK = Task("resnet18", batch_size=2, size_px=32, num_warmup=1, num_steps=2)
ROW = {"model": "resnet18", "contender": "ours", "images_per_s": 10.0, "device": "CPU", "cpu": "2 cores"}


def test_a_turn_is_so_many_steps_after_the_warm_up_and_ends_with_its_seconds(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("go\ngo\n"))
    turns = _Turns(TASK._replace(num_warmup=3), torch.device("cpu"))
    printed = []
    with contextlib.suppress(_OverError):
        while len(printed) < 20:
            turns.before_step()
            printed.append(bool(capsys.readouterr().out))
    assert printed == [False] * 3 + [True, False, True, False], "three to warm up, two turns of two"


@pytest.mark.slow
def test_contenders_of_each_kind_are_measured(tmp_path):
    assert len(CONTENDERS) == 13
    rows = measure(TASK, ["ours", "timm_bf16"], repeats=2)
    assert [row["contender"] for row in rows] == ["ours", "timm_bf16"]
    for row in rows:
        assert 0 < row["lowest"] <= row["images_per_s"] <= row["highest"]
        assert row["device"] == ("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
        assert {"commit", "cpu", "versions", "date"} <= row.keys()
    save(rows, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3


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
