"""The benchmark of features: both ways train the same head, and what is said of them follows from the rows."""

import csv

import pytest

from benchmarks.features import WAYS, Task, make_config, measure, prepare, save, summary

ROW = {"way": "images", "seed": 0, "epoch_s": 2.0, "top1_frac": 0.9}
ROWS = [ROW, ROW | {"seed": 1, "top1_frac": 0.92}] + [
    ROW | {"way": "features", "epoch_s": 0.1, "seed": seed, "top1_frac": 0.91} for seed in (0, 1)
]


def test_the_summary_has_seconds_accuracies_and_their_ratio():
    assert summary(ROWS).splitlines() == [
        "images: 2.0000 s per epoch, top-1 91.00 +- 1.41 % (2 seeds)",
        "features: 0.1000 s per epoch, top-1 91.00 +- 0.00 % (2 seeds)",
        "features are 20.0 times as fast",
    ]


def test_rows_say_where_they_were_measured(tmp_path):
    save(ROWS, tmp_path / "features.csv")
    with open(tmp_path / "features.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == ["images", "images", "features", "features"]
    assert {"date", "commit", "cpu", "versions"} <= rows[0].keys()


@pytest.mark.slow
def test_both_ways_train_the_same_head(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    words = ["--model.name", "simple_cnn", "--model.args", '{"width": 8, "hidden": 32}', "--run.num_threads", "1"]
    bench = prepare(Task(make_config(words), start_epochs=1, head_epochs=2))
    rows = {way: measure(way, bench, seed=0) for way in WAYS}
    assert rows["images"]["top1_frac"] == pytest.approx(rows["features"]["top1_frac"], abs=0.006)  # two of 360
    assert rows["features"]["compute_s"] > 0 == rows["images"]["compute_s"]
    assert all(row["epoch_s"] > 0 for row in rows.values())


def test_a_network_with_batch_norm_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    words = ["--model.name", "simple_cnn", "--model.args", '{"norm": "batch"}', "--run.num_threads", "1"]
    with pytest.raises(
        ValueError, match="simple_cnn has BatchNorm; give a network without, such as timm/convnext_atto"
    ):
        prepare(Task(make_config(words), start_epochs=1, head_epochs=1))
