"""The numbers of a run and the line that says them."""

import pytest
from run_folders import epoch_row
from scipy import stats

from report.summary import summarise, verdict

CONFIG = {"train": {"epochs": 6}, "run": {"select": "best"}}
RESULT = {"val/top1_frac": 0.8, "val/num_samples": 50, "test/top1_frac": 355 / 360, "test/num_samples": 360}
ROWS = [epoch_row(epoch) for epoch in range(1, 7)]


def summary_of(rows=ROWS, *, config=CONFIG, result=RESULT, environment=None):
    return summarise(rows, config=config, result=result, environment=environment or {})


def test_the_verdict_says_scores_intervals_epochs_time_and_size():
    expected = stats.binomtest(355, 360).proportion_ci(method="wilson")
    assert verdict(summary_of(environment={"num_parameters": 12345})) == (
        f"test top-1 98.61 % (355 of 360; 95 % interval {100 * expected.low:.2f} to {100 * expected.high:.2f}); "
        "val top-1 80.00 % (40 of 50; 95 % interval 66.96 to 88.76); 6 epochs in 3.0 minutes; best epoch on val: 6; "
        "12,345 parameters"
    )


def test_a_run_that_is_not_finished_says_so():
    line = verdict(summary_of(ROWS[:2], result=None))
    assert line.startswith("not finished: val top-1 60.00 % (3,000 of 5,000; ")
    assert "; 2 of 6 epochs in 1.0 minutes" in line
    assert verdict(summary_of([], result=None)) == "nothing is trained yet"


def early(patience, *, best):
    """The verdict on a run that finished after 6 of 40 epochs, the best one on val being `best`."""
    scores = [0.9 if epoch == best else 0.5 for epoch in range(1, 7)]
    rows = [epoch_row(epoch, **{"val/top1_frac": score}) for epoch, score in enumerate(scores, start=1)]
    config = CONFIG | {"train": {"epochs": 40, "early_stop_epochs": patience}}
    return verdict(summary_of(rows, config=config))


def test_a_run_that_stopped_early_says_why():
    said = "; 6 of 40 epochs in 3.0 minutes; stopped early: no better score on val for 2 epochs; best epoch on val: 4"
    assert said in early(2, best=4)
    assert "; stopped early: no better score on val for 1 epoch; best" in early(1, best=5)


def test_only_early_stopping_is_told_as_early_stopping():
    assert "stopped early" not in early(None, best=4), "train.early_stop_epochs was not set"
    assert "stopped early" not in early(3, best=4), "it would have waited for one epoch more"
    patient = CONFIG | {"train": {"epochs": 6, "early_stop_epochs": 2}}
    rows = [epoch_row(epoch, **{"val/top1_frac": 0.9 if epoch == 4 else 0.5}) for epoch in range(1, 7)]
    assert "stopped early" not in verdict(summary_of(rows, config=patient)), "all epochs are done"
    longer = CONFIG | {"train": {"epochs": 40, "early_stop_epochs": 2}}
    assert "stopped early" not in verdict(summary_of(rows, config=longer, result=None)), "it is not finished"
    assert "stopped early" not in verdict(summary_of([], config=longer)), "its rows are gone"


def test_a_run_without_val_and_test_has_no_scores():
    rows = [epoch_row(1, **{"val/loss": None, "val/top1_frac": None, "val/num_samples": None})]
    line = verdict(summary_of(rows, config={"train": {"epochs": 1}}, result={"step": 1}))
    assert line == "no val and no test to score; 1 epochs in 30 s"


def test_the_best_epoch_has_the_highest_accuracy_and_of_equals_the_lowest_loss():
    scores = [(0.5, 0.1), (0.9, 0.4), (0.9, 0.3), (0.9, 0.35)]
    rows = [epoch_row(n, **{"val/top1_frac": top1, "val/loss": loss}) for n, (top1, loss) in enumerate(scores, start=1)]
    assert summary_of(rows).best_epoch == 3


def test_waiting_is_weighed_by_time_and_leaves_out_the_first_epoch():
    waits = [(10.0, 0.9), (10.0, 0.1), (30.0, 0.5)]
    rows = [epoch_row(n, **{"train/epoch_s": s, "train/data_wait_frac": w}) for n, (s, w) in enumerate(waits, start=1)]
    assert summary_of(rows).wait_frac == pytest.approx((10 * 0.1 + 30 * 0.5) / 40)
    assert summary_of(rows[:1]).wait_frac == pytest.approx(0.9)
    assert summary_of([]).wait_frac is None


def test_what_average_and_views_are_worth_stands_beside_the_score():
    beside = {"test_raw/top1_frac": 0.975, "test_single/top1_frac": 0.98, "val_raw/top1_frac": 0.5}
    line = verdict(summary_of(result=RESULT | beside))
    assert (
        "test 97.50 % by the weights themselves, not their average; test 98.00 % without test-time augmentation" in line
    )
    rows = [epoch_row(1, **{"val_raw/top1_frac": 0.25})]
    assert "; val 25.00 % by the weights themselves, not their average; " in verdict(summary_of(rows, result=None))
