"""Cross-validation: a run for each part of each cut, and what they give together."""

import json
import re
import statistics
from pathlib import Path

import pytest

from configs.load import replace_section
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from engine.folds import FoldOptions, list_runs, summarise
from engine.record import RunFolder

CONFIG = Config(
    data=DataConfig(dataset="digits", split_seed=5),
    model=ModelConfig(name="simple_cnn"),
    optim=OptimConfig(name="sgd", lr=0.1),
    train=TrainConfig(epochs=2, global_batch_size=10),
    run=RunConfig(out="runs/one", select="last"),
)


def test_without_folds_there_is_one_run_as_configured():
    assert list_runs(CONFIG, FoldOptions()) == [CONFIG]


def test_each_part_of_each_cut_is_val_once_and_each_cut_has_a_seed_of_its_own():
    runs = list_runs(CONFIG, FoldOptions(folds=3, repeats=2))
    cuts = [(run.data.split_seed, run.data.num_folds, run.data.fold) for run in runs]
    assert cuts == [(5, 3, 0), (5, 3, 1), (5, 3, 2), (6, 3, 0), (6, 3, 1), (6, 3, 2)]
    assert [run.run.out for run in runs[::4]] == ["runs/one/repeat_0_fold_0", "runs/one/repeat_1_fold_1"]
    assert {run.run.seed for run in runs} == {0}


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("run", {"select": "best"}, "run.select=best"),
        ("train", {"early_stop_epochs": 3}, "train.early_stop_epochs"),
        ("schedule", {"name": "plateau"}, "schedule.name=plateau"),
    ],
)
def test_what_goes_by_val_is_refused(section, values, named):
    with pytest.raises(ValueError, match=re.escape(f"nothing may go by val, but {named} does; use --run.select last")):
        list_runs(replace_section(CONFIG, section, **values), FoldOptions(folds=3))


def test_folds_of_the_configurations_own_are_refused():
    with pytest.raises(ValueError, match=r"data.num_folds is set by --folds; drop it"):
        list_runs(replace_section(CONFIG, "data", num_folds=3), FoldOptions(folds=3))


@pytest.mark.parametrize(("folds", "repeats"), [(1, 1), (-2, 1), (3, 0), (500, 3)])
def test_options_that_make_no_cross_validation_are_refused(folds, repeats):
    with pytest.raises(ValueError, match=f"folds={folds} and repeats={repeats}: give two parts or more"):
        FoldOptions(folds=folds, repeats=repeats)


def test_repeats_without_folds_are_refused():
    with pytest.raises(ValueError, match="repeats=2 is read only with folds; add --folds 5"):
        FoldOptions(repeats=2)


def test_the_summary_has_mean_and_spread_of_parts_and_of_repeats(tmp_path):
    options, scores = FoldOptions(folds=2, repeats=2), (0.5, 0.7, 0.9, 0.8)
    runs = list_runs(replace_section(CONFIG, "run", out=str(tmp_path)), options)
    for run, score in zip(runs, scores, strict=True):
        folder = RunFolder(Path(run.run.out))
        folder.path.mkdir()
        folder.save_result({"val/top1_frac": score, "test/top1_frac": score / 2, "step": 4})
    text = summarise(tmp_path, runs, options)
    written = json.loads((tmp_path / "folds.json").read_text())
    assert written["summary"]["val/top1_frac"] == pytest.approx(0.725)
    assert written["summary"]["val/top1_frac_std_of_folds"] == pytest.approx(statistics.stdev(scores))
    assert written["summary"]["val/top1_frac_std_of_repeats"] == pytest.approx(statistics.stdev((0.6, 0.85)))
    assert written["folds"][2] == {"repeat": 1, "fold": 0, "val/top1_frac": 0.9, "test/top1_frac": 0.45}
    assert text == (
        "2 folds, 2 repeat(s): val top-1 72.50 % (standard deviation of parts 17.08, of repeats 17.68), all in "
        f"{tmp_path / 'folds.json'}"
    )
