"""Measured rows into texts: means, spreads, verdicts, and nothing where nothing was measured."""

import statistics
from typing import Any

import pytest
from scipy import stats

from benchmarks import publish
from benchmarks.publish import Group, course_block, length_block, with_figure

PLAIN, BN = "configs/cifar10/simple_cnn.yaml", "configs/cifar10/simple_cnn_bn.yaml"
DROPOUT, AUG = "configs/cifar10/simple_cnn_bn_dropout.yaml", "configs/cifar10/simple_cnn_bn_dropout_aug.yaml"


def make_group(recipe: str, tops: list[float], *, timed: dict[str, str] | None = None, overrides: str = "") -> Group:
    rows = [
        {"test_top1_frac": str(top / 100), "val_top1_frac": "0.5", "last_train_top1_frac": "0.6", "date": "2026-11-24",
         "torch": "2.14", "seed": str(seed)}
        for seed, top in enumerate(tops)
    ]  # fmt: skip
    return Group("course", recipe, overrides, rows, timed)


def test_a_group_is_told_by_mean_and_standard_deviation_over_its_seeds() -> None:
    tops = [69.0, 70.0, 72.5]
    group = make_group(PLAIN, tops)
    assert group.top1 == f"{statistics.mean(tops):.2f} +- {statistics.stdev(tops):.2f} %"
    assert group.header == f"# {group.top1} on test (3 seeds), torch 2.14, 2026-11-24."
    timed = make_group(PLAIN, tops, timed={"minutes": "1.26", "machine": "2 cores of X"})
    assert timed.header == f"# {group.top1} on test (3 seeds), 1.3 min on 2 cores of X, torch 2.14, 2026-11-24."
    assert make_group(PLAIN, [69.0]).top1 == "69.00 %"


def test_the_figure_of_a_recipe_is_replaced_and_all_else_stays() -> None:
    recipe = "# A title.\n# accelerate launch train.py --config X\n# Not measured yet.\n# A note.\ndata:\n  # inside\n"
    once = with_figure(recipe, header="# 70.00 % on test (1 seed), 2026-11-24.")
    assert once == recipe.replace("# Not measured yet.", "# 70.00 % on test (1 seed), 2026-11-24.")
    twice = with_figure(once, header="# 71.00 % on test (2 seeds), 2026-11-25.")
    assert twice == recipe.replace("# Not measured yet.", "# 71.00 % on test (2 seeds), 2026-11-25.")
    assert with_figure(twice, header="# Not measured yet.") == recipe


def test_neighbours_are_compared_by_welchs_test_corrected_for_their_number() -> None:
    values = [[69.0, 69.5, 70.0], [72.0, 72.4, 72.8], [72.1, 72.9, 72.2]]
    groups = [make_group(recipe, tops) for recipe, tops in zip((PLAIN, BN, DROPOUT), values, strict=True)]
    lines = course_block(groups[::-1], {PLAIN: "plain", BN: "bn", DROPOUT: "dropout"}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| plain", "| bn", "| dropout"], (
        "in the order of the names"
    )
    first = stats.ttest_ind(values[1], values[0], equal_var=False)
    second = stats.ttest_ind(values[2], values[1], equal_var=False)
    low, high = first.confidence_interval()
    assert lines[6] == (
        f"- bn, against plain: **better**, +2.90 points (95 % interval {low:+.2f} to {high:+.2f}, "
        f"p = {2 * first.pvalue:.2g})"
    )
    assert lines[7].startswith("- dropout, against bn: **undecided**")
    assert lines[7].endswith(f"p = {second.pvalue:.2g})")


def test_a_group_that_is_worse_is_called_worse() -> None:
    groups = [make_group(PLAIN, [72.0, 72.4, 72.8]), make_group(BN, [69.0, 69.5, 70.0])]
    assert "**worse**, -2.90 points" in course_block(groups, {PLAIN: "plain", BN: "bn"})


def test_lengths_are_read_at_epochs_that_at_least_two_runs_reached() -> None:
    def row(recipe: str, seed: int, epoch: int, top1: float) -> dict[str, Any]:
        return {"study": "length", "recipe": recipe, "seed": str(seed), "epoch": str(epoch), "val_top1_frac": top1}

    rows = [row(DROPOUT, seed, epoch, 0.70 + seed / 100) for seed in (0, 1) for epoch in range(1, 11)]
    rows += [row(AUG, seed, epoch, 0.73 + seed / 100) for seed in (0, 1) for epoch in range(1, 11)]
    rows += [row(AUG, 0, 20, 0.8), row(DROPOUT, 0, 20, 0.7)]
    lines = length_block(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 5", "| 10"]
    assert "| 70.50 +- 0.71 % (2 seeds) | 73.50 +- 0.71 % (2 seeds) | +3.00 (-" in lines[3]


def test_what_was_not_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert course_block([], {PLAIN: "plain"}) == "Not measured yet.\n"
    assert length_block([]) == "Not measured yet.\n"
    assert publish.picture_block([], "course") == ""
    table = publish.readme_table([make_group(PLAIN, [70.0])])
    assert f"| `{PLAIN}` | 70.00 % (1 seed) |  |" in table
    assert f"| `{BN}` | not measured yet |  |" in table
    assert table.count("\n") == 2 + len(publish.all_recipes())


def test_all_texts_are_there_and_hold_the_blocks() -> None:
    names = {str(path.relative_to(publish.ROOT)) for path in publish.texts()}
    assert names == {"README.md", "docs/recipes.md", "docs/course.md", *publish.all_recipes()}
