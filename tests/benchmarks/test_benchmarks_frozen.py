"""The benchmark of frozen parts: less that is trained keeps and holds less."""

import csv

import pytest

from benchmarks.frozen import make_config, measure, save

WORDS = ("--model.name", "torchvision/resnet18", "--input.size_px", "32", "--train.epochs", "2")


def test_less_is_trained_less_is_held(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("engine.runtime.keep_freed_memory", lambda: None)
    config = make_config([*WORDS, "--train.global_batch_size", "2", "--run.num_threads", "1", "--run.trackers", "[]"])
    rows = measure(config, num_steps=1, repeats=1)
    whole, last_two, head, features = rows
    assert [row["trained"] for row in rows] == ["all", "last two stages", "head", "head, on features"]
    assert whole["parameters"] == 11_181_642
    assert head["parameters"] == features["parameters"] == 5_130
    num_bytes = 3 * 4  # a gradient, two averages of AdamW
    for row in (whole, head, features):
        assert row["gradients_and_optimizer_mib"] == pytest.approx(row["parameters"] * num_bytes / 2**20, abs=0.01)
    kept = [row["kept_mib_per_image"] for row in rows]
    assert kept[0] > 5 * kept[1] > 5 * kept[2] == 5 * kept[3] > 0
    assert kept[2] == pytest.approx(512 * 4 / 2**20, abs=1e-4)
    assert last_two["parameters"] == 11_181_642 - 2_782_784
    assert all(row["lowest_ms"] > 0 for row in rows)
    save(rows, tmp_path / "frozen.csv")
    with open(tmp_path / "frozen.csv", newline="") as file:
        saved = list(csv.DictReader(file))
    assert [row["trained"] for row in saved] == [row["trained"] for row in rows]
    assert {"date", "commit", "cpu", "versions"} <= saved[0].keys()
