"""Each hint comes by its rule, just inside it and not just outside."""

import numpy as np
import pytest
from run_folders import epoch_row

from report.hints import find_hints
from report.summary import summarise


def findings(rows, *, result=None, **more):
    summary = summarise(rows, config={}, result=result, environment={})
    return [hint.finding for hint in find_hints(rows, summary=summary, **more)]


def rows_of(**lists):
    num_epochs = len(next(iter(lists.values())))
    names = {key.replace("__", "/"): values for key, values in lists.items()}
    return [epoch_row(n + 1, **{key: values[n] for key, values in names.items()}) for n in range(num_epochs)]


def has(found, words):
    return any(words in finding for finding in found)


STEADY = [epoch_row(epoch, **{"train/epoch_loss": 1 - epoch / 1000, "val/loss": 1.0}) for epoch in range(1, 11)]


def test_a_run_with_nothing_to_say_has_no_hints():
    assert findings(STEADY) == []
    assert findings([]) == []


@pytest.mark.parametrize(("train", "num_val", "expected"), [(0.99, 5000, True), (0.89, 5000, False), (0.95, 12, False)])
def test_overfitting_needs_ten_points_and_more_than_chance(train, num_val, expected):
    rows = [epoch_row(1, **{"train/epoch_top1_frac": train, "val/top1_frac": 0.8, "val/num_samples": num_val})]
    assert has(findings(rows), "it overfits") == expected
    if expected:
        assert has(findings(rows), "train 99 %, val 80 %: it overfits.")


@pytest.mark.parametrize(("last", "expected"), [(0.56, True), (0.54, False)])
def test_val_loss_that_rises_by_a_tenth_is_named(last, expected):
    rows = rows_of(val__loss=[1, 0.8, 0.5, 0.52, last])
    assert has(findings(rows), "val loss was lowest after epoch 3 (0.5) and has risen") == expected
    assert not has(findings(rows[1:]), "has risen"), "four epochs are too few"


@pytest.mark.parametrize(
    ("train", "val", "expected"), [(0.94, 0.94, True), (0.96, 0.94, False), (0.94, 0.96, False), (0.94, None, True)]
)
def test_losses_that_still_fall_suggest_longer_training(train, val, expected):
    rows = rows_of(train__epoch_loss=[2] * 8 + [1.0, 0.97, train], val__loss=[2] * 8 + [1.0, 0.97, val])
    if val is None:
        rows = [{key: value for key, value in row.items() if "val" not in key} for row in rows]
    found = findings(rows)
    assert has(found, "still falling: longer training may pay") == expected
    assert has(found, "no val to check it against") == (val is None)


def test_a_run_that_stopped_early_is_not_told_to_ask_for_more_epochs():
    rows = rows_of(train__epoch_loss=[2, 1.5, 1.2, 1, 0.8], val__loss=[2, 1.5, 1.2, 1, 0.8])
    summary = summarise(rows, config={}, result=None, environment={})
    for stale_epochs, wanted in ((None, "Raise train.epochs"), (2, "raise train.early_stop_epochs")):
        hints = find_hints(rows, summary=summary._replace(stale_epochs=stale_epochs))
        advice = [hint.advice for hint in hints if "still falling" in hint.finding]
        assert len(advice) == 1
        assert wanted in advice[0]


@pytest.mark.parametrize(("last", "expected"), [(2.3, True), (2.31, True), (2.29, False)])
def test_a_loss_that_never_fell_is_named(last, expected):
    assert has(findings(rows_of(train__epoch_loss=[2.3, last])), "does not learn") == expected


@pytest.mark.parametrize(("num_correct", "expected"), [(12, True), (15, True), (17, False)])
def test_guessing_is_named(num_correct, expected):
    result = {"test/top1_frac": num_correct / 100, "test/num_samples": 100}
    found = findings(STEADY, result=result, class_names=[str(n) for n in range(10)])
    assert has(found, "not clearly better than guessing among 10 classes (10 %)") == expected
    assert not has(findings(STEADY, result=result), "guessing"), "the number of classes is not known"


@pytest.mark.parametrize(("frac", "expected"), [(0.2, True), (0.19, False)])
def test_waiting_for_data_is_named_from_a_fifth(frac, expected):
    rows = rows_of(train__data_wait_frac=[0.9, frac, frac])
    assert has(findings(rows), "20 % of the time waits for data") == expected


@pytest.mark.parametrize(("val", "expected"), [(0.5, True), (0.88, False)])
def test_val_and_test_that_differ_beyond_chance_are_named(val, expected):
    result = {"val/top1_frac": val, "val/num_samples": 200, "test/top1_frac": 0.9, "test/num_samples": 200}
    assert has(findings(STEADY, result=result), "differ by more than chance") == expected


@pytest.mark.parametrize(("num_samples", "expected"), [(360, True), (5000, False)])
def test_too_few_images_to_score_on_are_named(num_samples, expected):
    result = {"test/top1_frac": 0.9, "test/num_samples": num_samples}
    assert has(findings(STEADY, result=result), "tell top-1 to about 3.1 points either way") == expected


def test_classes_that_are_never_predicted_are_named():
    counts = np.array([[5, 0, 1, 0], [2, 0, 1, 0], [0, 0, 4, 0], [0, 0, 0, 0]])  # the last has no images either
    found = findings(STEADY, confusions={"test": counts}, class_names=["a", "<b>", "c", "d"])
    assert found == ["never predicted on test: <b>."]
    assert findings(STEADY, confusions={"val": counts}) == ["never predicted on val: 1."]
    assert findings(STEADY, confusions={"test": np.eye(3, dtype=int)}) == []


def test_bad_files_are_counted():
    assert findings(STEADY, num_bad=1) == ["1 file could not be read: listed below."]
    assert findings(STEADY, num_bad=1200) == ["1,200 files could not be read: listed below."]


def test_every_hint_states_advice_and_rule():
    rows = rows_of(val__loss=[1, 1, 1, 1, 2], train__data_wait_frac=[0.5] * 5, train__epoch_top1_frac=[1.0] * 5)
    summary = summarise(rows, config={}, result=None, environment={})
    hints = find_hints(rows, summary=summary, num_bad=3)
    assert len(hints) == 4
    for hint in hints:
        assert hint.advice.endswith(".")
        assert len(hint.rule) > 20
