"""Runs in groups, and what may be said of their differences."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_folders import Page, epoch_row
from scipy import stats

from engine.record import RunFolder
from report.compare import csv_table, render_comparison, text_table
from report.differences import compare_groups, notes_on, state_all
from report.groups import check_same_images, group_runs, load_runs, lower_is_better
from report.overlay import draw_overlay, draw_values

ROOT = Path(__file__).parents[2]
METRIC = "test/top1_frac"


@pytest.fixture
def make_group(make_run):
    """Makes a run per value, seeds 0, 1, ...; `sections` as in make_run."""

    def make(name, values, *, metric=METRIC, **sections):
        return [
            make_run(f"{name}{seed}", result={metric: value}, run={"seed": seed}, **sections)
            for seed, value in enumerate(values)
        ]

    return make


def groups_of(folders, *, metric=METRIC):
    runs, _ = load_runs(folders, metric=metric)
    check_same_images(runs)
    return group_runs(runs, metric=metric)[0]


BETTER, WORSE = [0.93, 0.94, 0.935, 0.932, 0.938], [0.91, 0.92, 0.915, 0.912, 0.921]


def test_runs_that_differ_in_the_seed_are_one_group_and_the_best_comes_first(make_group):
    folders = make_group("low", WORSE, optim={"lr": 0.5}) + make_group("high", BETTER)
    first, second = groups_of(folders)
    assert (first.letter, first.name, first.values) == ("A", "optim.lr=0.1", BETTER)
    assert (second.letter, second.name, second.values) == ("B", "optim.lr=0.5", WORSE)
    assert [run.seed for run in first.runs] == [0, 1, 2, 3, 4]
    assert first.mean == pytest.approx(sum(BETTER) / 5)
    assert first.std == pytest.approx(np.sqrt(sum((value - first.mean) ** 2 for value in BETTER) / 4))
    assert first.minutes == pytest.approx(3.0)
    assert [group.values for group in groups_of(folders, metric="test/loss")] == [[1.25] * 5] * 2


def test_a_difference_that_is_clear_is_stated_with_its_interval(make_group):
    groups = groups_of(make_group("high", BETTER) + make_group("low", WORSE, optim={"lr": 0.5}))
    test = stats.ttest_ind(BETTER, WORSE, equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert state_all(groups, metric=METRIC) == [
        f"A is better than B by {100 * (np.mean(BETTER) - np.mean(WORSE)):.2f} points (95 % interval {100 * low:.2f} "
        f"to {100 * high:.2f}; 5 and 5 runs; p = {test.pvalue:.2g})"
    ]


def test_a_difference_that_is_not_clear_is_undecided_with_a_number_of_runs(make_group):
    first, second = [0.93, 0.95, 0.91], [0.92, 0.94, 0.905]
    groups = groups_of(make_group("high", first) + make_group("low", second, optim={"lr": 0.5}))
    (sentence,) = state_all(groups, metric=METRIC)
    assert sentence.startswith("undecided: A looks better than B by 0.83 points (95 % interval -3.")
    needed = int(sentence.split("about ")[1].split(" runs")[0])
    effect = (np.mean(first) - np.mean(second)) / np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    powers = {}
    for runs in (needed - 3, needed + 3):
        degrees, shift = 2 * (runs - 1), effect * np.sqrt(runs / 2)
        powers[runs] = stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, shift)
    assert powers[needed - 3] < 0.8 < powers[needed + 3]


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.51]])
def test_one_run_decides_nothing_however_large_the_difference(make_group, values):
    groups = groups_of(make_group("high", [0.99]) + make_group("low", values, optim={"lr": 0.5}))
    (sentence,) = state_all(groups, metric=METRIC)
    assert sentence.startswith("undecided: A looks better than B by 4")
    assert "one run says nothing about its spread" in sentence
    assert notes_on(groups, metric=METRIC) == []


def test_runs_without_any_spread_decide_nothing(make_group):
    groups = groups_of(make_group("high", [0.9, 0.9]) + make_group("low", [0.8, 0.8], optim={"lr": 0.5}))
    (sentence,) = state_all(groups, metric=METRIC)
    assert "undecided" in sentence
    assert "score exactly the same" in sentence


def test_of_two_that_score_the_same_neither_looks_better(make_group):
    groups = groups_of(make_group("high", [0.9]) + make_group("low", [0.9], optim={"lr": 0.5}))
    (sentence,) = state_all(groups, metric=METRIC)
    assert sentence.startswith("undecided: A and B score the same (1 and 1 runs); one run says nothing")


def test_of_losses_the_lower_is_better(make_group):
    folders = make_group("high", [0.5, 0.52, 0.51], metric="test/loss")
    folders += make_group("low", [0.7, 0.71, 0.72], metric="test/loss", optim={"lr": 0.5})
    groups = groups_of(folders, metric="test/loss")
    assert [group.name for group in groups] == ["optim.lr=0.1", "optim.lr=0.5"]
    (sentence,) = state_all(groups, metric="test/loss")
    assert sentence.startswith("A is better than B by 0.2 (95 % interval 0.17")


@pytest.mark.parametrize("name", ["gloss", "loss", "x_frac", "a/b"])
def test_the_accuracy_of_a_class_is_compared_whatever_the_class_is_called(make_group, name):
    metric = f"test/top1_frac/{name}"
    folders = make_group("high", [0.9, 0.92], metric=metric)
    folders += make_group("low", [0.5, 0.52], metric=metric, optim={"lr": 0.5})
    assert not lower_is_better(metric)
    assert [group.values for group in groups_of(folders, metric=metric)] == [[0.9, 0.92], [0.5, 0.52]]


@pytest.mark.parametrize("metric", ["step", "epoch", "test/num_samples"])
def test_what_is_no_score_is_refused_with_the_scores_there_are(make_group, metric):
    folders = make_group("high", [0.9, 0.92]) + make_group("low", [0.8], optim={"lr": 0.5})
    assert metric in folders[0].read_result()
    scores = "valid: val/top1_frac, val/loss, test/top1_frac, test/loss"
    nearby = {"test/num_samples": "nearest: test/loss, test/top1_frac; "}.get(metric, "")
    message = f"^the metric '{metric}' is no score to compare runs by; {nearby}{scores}$"
    with pytest.raises(ValueError, match=message):
        load_runs(folders, metric=metric)


def test_runs_without_any_score_offer_none(make_run):
    with pytest.raises(ValueError, match="'step' is no score to compare runs by; these runs have none"):
        load_runs([make_run(splits=())], metric="step")


def test_several_comparisons_are_corrected_and_said(make_group):
    folders = make_group("a", [0.930, 0.940, 0.935])
    folders += make_group("b", [0.918, 0.927, 0.924], optim={"lr": 0.5})
    folders += make_group("c", [0.916, 0.926, 0.921], optim={"lr": 0.7})
    groups = groups_of(folders)
    comparisons = compare_groups(groups, metric=METRIC)
    assert [(one.better.letter, one.worse.letter) for one in comparisons] == [("A", "B"), ("A", "C"), ("B", "C")]
    plain = [stats.ttest_ind(one.better.values, one.worse.values, equal_var=False).pvalue for one in comparisons]
    order = np.argsort(plain)
    expected = np.empty(3)
    expected[order] = np.minimum(np.maximum.accumulate(np.array(plain)[order] * [3, 2, 1]), 1)
    assert [one.p_value for one in comparisons] == pytest.approx(expected)
    assert plain[0] < 0.05 < expected[0], "the case that matters: clear alone, not among three"
    assert state_all(groups, metric=METRIC)[0].startswith("undecided: A looks better than B")
    assert notes_on(groups, metric=METRIC)[1].startswith("3 comparisons were made")


def test_runs_that_cannot_be_counted_are_named_and_left_out(make_run, make_group, tmp_path):
    folders = make_group("high", [0.9, 0.91])
    folders.append(make_run("unfinished", finished=False))
    folders.append(make_run("without", splits=("val",)))
    (tmp_path / "other").mkdir()
    folders.append(RunFolder(tmp_path / "other"))
    folders.append(make_run("again", result={METRIC: 0.9}, run={"seed": 1}))
    runs, left_out = load_runs(folders, metric=METRIC)
    groups, repeated = group_runs(runs, metric=METRIC)
    assert groups[0].values == [0.9, 0.91]
    assert left_out == [
        f"{tmp_path / 'unfinished'}: not finished (6 epochs done)",
        f"{tmp_path / 'without'}: has no test/top1_frac",
        f"{tmp_path / 'other'}: not a run folder",
    ]
    assert repeated == [
        f"{tmp_path / 'again'}: same options and seed as {tmp_path / 'high1'}, so it says nothing about the spread"
    ]


def test_runs_scored_on_other_images_are_refused(make_run):
    one = make_run("one")
    others = [
        make_run("names", names=("cat", "dog", "fox")),
        make_run("number", names=("cat", "dog")),
        make_run("kind", data={"dataset": "cifar10"}),
    ]
    for other in others:
        runs, _ = load_runs([one, other], metric=METRIC)
        with pytest.raises(ValueError, match=rf"not scored on the same images.*{other.path.name}"):
            check_same_images(runs)


def test_runs_compared_by_their_weights_without_average_are_known_by_the_images_of_test(make_run):
    folders = [make_run(name, result={"test_raw/top1_frac": 0.9}) for name in ("one", "two")]
    for folder, fingerprint in zip(folders, ("aa", "bb"), strict=True):
        environment = folder.read_environment() | {"fingerprints": {"test": fingerprint}}
        folder.save_start(folder.read_config(), environment)
    runs, _ = load_runs(folders, metric="test_raw/top1_frac")
    with pytest.raises(ValueError, match="not scored on the same images"):
        check_same_images(runs)


def test_fingerprints_decide_where_every_run_has_one(make_run):
    folders = [make_run("one"), make_run("two", data={"dataset": "cifar10"}), make_run("three")]
    for folder, fingerprint in zip(folders, ("aa", "aa", "bb"), strict=True):
        environment = folder.read_environment() | {"fingerprints": {"test": fingerprint, "train": folder.path.name}}
        folder.save_start(folder.read_config(), environment)
    check_same_images(load_runs(folders[:2], metric=METRIC)[0])
    with pytest.raises(ValueError, match=r"fingerprint of .*three is bb, of .*one aa"):
        check_same_images(load_runs(folders, metric=METRIC)[0])


def test_curves_have_a_thin_line_per_run_and_a_thick_mean(make_run):
    rows = [[epoch_row(n, **{"val/loss": n * factor}) for n in range(1, last)] for factor, last in ((1, 5), (3, 4))]
    folders = [make_run(f"run{seed}", rows=rows[seed], run={"seed": seed}) for seed in range(2)]
    (axes,) = draw_overlay(groups_of(folders), key="val/loss").axes
    thin, also_thin, mean = axes.get_lines()
    assert thin.get_ydata() == pytest.approx([1, 2, 3, 4])
    assert also_thin.get_ydata() == pytest.approx([3, 6, 9])
    assert mean.get_xdata() == pytest.approx([1, 2, 3])
    assert mean.get_ydata() == pytest.approx([2, 4, 6])
    assert mean.get_linewidth() > 2 > thin.get_linewidth()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["A: digits, simple_cnn"]
    assert draw_overlay(groups_of(folders), key="val/nothing") is None


def test_every_run_is_a_dot(make_group):
    groups = groups_of(make_group("high", BETTER) + make_group("low", WORSE, optim={"lr": 0.5}))
    lines = draw_values(groups, metric=METRIC).axes[0].get_lines()
    assert lines[0].get_xdata() == pytest.approx([100 * value for value in BETTER])
    assert lines[3].get_xdata() == pytest.approx([100 * np.mean(WORSE)] * 2)


def test_the_table_has_a_line_per_group(make_group):
    groups = groups_of(make_group("high", [0.9, 0.92]) + make_group("low", [0.8], optim={"lr": 0.5}))
    assert text_table(groups, metric=METRIC).splitlines() == [
        "   n  test/top1 (%)  std   seeds  minutes  group",
        "A  2  91.00          1.41  0 1    3.0      optim.lr=0.1",
        "B  1  80.00          -     0      3.0      optim.lr=0.5",
    ]


def test_the_csv_keeps_every_value(make_group):
    groups = groups_of(make_group("high", BETTER) + make_group("low", [0.1], model={"args": {"norm": 'a,"b"'}}))
    first, second = csv.DictReader(io.StringIO(csv_table(groups, metric=METRIC)))
    assert [float(value) for value in first["values"].split()] == BETTER
    assert float(first["mean"]) == groups[0].mean
    assert float(first["std"]) == groups[0].std
    assert (second["group"], second["n"], second["std"]) == ('model.args.norm=a,"b"', "1", "")


def test_the_page_is_one_file_with_everything_escaped(make_group):
    groups = groups_of(make_group("<b>$1$", BETTER) + make_group("low", WORSE, model={"args": {"norm": "<i>$x$"}}))
    page = Page(render_comparison(groups, metric=METRIC, left_out=["<u>: no run"]))
    assert not {"b", "i", "u", "script", "link"} & {tag for tag, _ in page.tags}
    assert len(page.images) == 4
    assert all(url.startswith("data:image/png;base64,") for url in page.urls())
    assert "model.args.norm=<i>$x$" in page.text
    assert "A is better than B by 1.94 points" in page.text
    assert "<u>: no run" in page.text


def test_the_sentences_in_the_documentation_are_those_that_are_printed(make_group):
    page = " ".join((ROOT / "docs" / "read_a_run.md").read_text().split())
    spread = 0.0048 * np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5)
    folders = make_group("a", (0.95 + spread).tolist()) + make_group("b", (0.934 + spread).tolist(), optim={"lr": 0.5})
    assert state_all(groups_of(folders), metric=METRIC)[0] in page
    spread = 0.00397 * np.array([-1, 0, 1])
    folders = make_group("c", (0.95 + spread).tolist()) + make_group("d", (0.946 + spread).tolist(), optim={"lr": 0.5})
    assert state_all(groups_of(folders), metric=METRIC)[0] in page


def run_compare(*arguments):
    command = [sys.executable, "-W", "error", "-m", "report.compare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_prints_and_writes(make_group, make_run, tmp_path):
    folders = make_group("high", BETTER) + make_group("low", WORSE, optim={"lr": 0.5})
    folders.append(make_run("unfinished", finished=False))
    done = run_compare(*(folder.path for folder in folders), "--out", tmp_path / "out")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[1].startswith("A  5  93.50")
    assert lines[3].startswith("A is better than B by 1.94 points")
    assert lines[4] == f"left out: {tmp_path / 'unfinished'}: not finished (6 epochs done)"
    assert lines[5:] == [str(tmp_path / "out" / name) for name in ("compare.html", "compare.csv")]
    Page((tmp_path / "out" / "compare.html").read_text())
    assert len((tmp_path / "out" / "compare.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--metric", "test/top1_frc"], "no run has the metric 'test/top1_frc'; nearest: test/top1_frac"),
        (["{run}", "--metric", "step"], "the metric 'step' is no score to compare runs by; valid: "),
        (["{run}", "{tmp}/nowhere"], "nowhere is not there; give run folders of train.py."),
        (["{tmp}"], "none of these is a finished run:"),
        (["{run}", "--out", "{run}/config.yaml/x"], "Not a directory"),
    ],
)
def test_mistakes_are_named_without_a_traceback(make_run, tmp_path, arguments, message):
    run = make_run("run").path
    done = run_compare(*(word.format(run=run, tmp=tmp_path) for word in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
