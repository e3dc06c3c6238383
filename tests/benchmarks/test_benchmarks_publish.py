"""Measured rows into texts: means, spreads, verdicts, and nothing where nothing was measured."""

import re
import statistics
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import publish, recipes
from benchmarks.publish import COMPARISONS, Comparison, Group, checkpoint_block, course_block, length_block, with_figure

PLAIN, BN = "configs/cifar10/simple_cnn.yaml", "configs/cifar10/simple_cnn_bn.yaml"
DROPOUT = "configs/cifar10/simple_cnn_bn_dropout.yaml"


def make_group(recipe: str, tops: list[float], *, timed: dict[str, str] | None = None, overrides: str = "") -> Group:
    rows = [
        {"test_top1_frac": str(top / 100), "val_top1_frac": "0.5", "last_train_top1_frac": "0.6", "date": "2026-11-24",
         "torch": "2.14", "seed": str(seed)}
        for seed, top in enumerate(tops)
    ]  # fmt: skip
    return Group("course", recipe, overrides, rows, timed)


def compare(**names: str) -> Comparison:
    """Of the recipes as they are, in this order, by the names given."""
    recipes = {"plain": PLAIN, "bn": BN, "dropout": DROPOUT}
    return Comparison("course", {(recipes[key], ""): name for key, name in names.items()}, "")


def test_a_group_is_told_by_mean_and_standard_deviation_over_its_seeds() -> None:
    tops = [69.0, 70.0, 72.5]
    group = make_group(PLAIN, tops)
    assert group.top1 == f"{statistics.mean(tops):.2f} +- {statistics.stdev(tops):.2f} %"
    assert group.header == f"# {group.top1} on test (3 seeds), torch 2.14, 2026-11-24."
    timed = make_group(PLAIN, tops, timed={"minutes": "1.26", "machine": "2 cores of X"})
    assert timed.header == f"# {group.top1} on test (3 seeds), 1.3 min on 2 cores of X, torch 2.14, 2026-11-24."
    quick = make_group(PLAIN, tops, timed={"minutes": "0.08", "machine": "2 cores of X"})
    assert quick.minutes == "5 s on 2 cores of X"
    assert make_group(PLAIN, [69.0]).top1 == "69.00 %"


def test_a_recipe_took_the_median_time_of_its_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(study: str, seed: int, minutes: float, beside: str, machine: str = "X") -> dict[str, str]:
        return {"study": study, "recipe": PLAIN, "overrides": "", "seed": str(seed), "minutes": str(minutes),
                "beside": beside, "machine": machine, "torch": "2.14"}  # fmt: skip

    rows = [row("course", 0, 9.0, "2 runs at a time"), row("course", 1, 3.0, "1 run"), row("timing", 0, 4.0, "1 run")]
    monkeypatch.setattr(publish, "read_csv", lambda path: rows)
    assert [(one.study, one.rows, one.timed) for one in publish.load_groups()] == [("course", rows[:2], rows[2])]
    rows.append(row("timing", 1, 2.0, "1 run"))
    assert [one.timed for one in publish.load_groups()] == [rows[1]]
    rows.append(row("timing", 2, 9.0, "1 run", machine="Y"))
    assert [one.timed for one in publish.load_groups()] == [rows[-1]], "machines are not mixed"
    rows.append(row("timing", 3, 0.0, "1 run") | {"minutes": ""})
    assert [one.timed for one in publish.load_groups()] == [rows[-2]], "what is not trained has no time"
    rows[1:] = []
    assert [one.timed for one in publish.load_groups()] == [None]


def test_the_figure_of_a_recipe_is_replaced_and_all_else_stays() -> None:
    recipe = "# A title.\n# accelerate launch train.py --config X\n# Not measured yet.\n# A note.\ndata:\n  # inside\n"
    once = with_figure(recipe, header="# 70.00 % on test (1 seed), 2026-11-24.")
    assert once == recipe.replace("# Not measured yet.", "# 70.00 % on test (1 seed), 2026-11-24.")
    twice = with_figure(once, header="# 71.00 % on test (2 seeds), 2026-11-25.")
    assert twice == recipe.replace("# Not measured yet.", "# 71.00 % on test (2 seeds), 2026-11-25.")
    assert with_figure(twice, header="# Not measured yet.") == recipe


def test_a_recipe_that_says_why_it_is_not_measured_says_so_until_it_is() -> None:
    command = "# A title:\n#\n#   accelerate launch finetune.py --config X\n"
    recipe = f"{command}#\n# Not measured: its weights are a download.\ndata:\n"
    assert with_figure(recipe, header="# Not measured yet.") == recipe
    once = with_figure(recipe, header="# 70.00 % on test (1 seed), 2026-11-24.")
    assert once == f"{command}# 70.00 % on test (1 seed), 2026-11-24.\n#\ndata:\n"


def test_neighbours_are_compared_by_welchs_test_corrected_for_their_number() -> None:
    values = [[69.0, 69.5, 70.0], [72.0, 72.4, 72.8], [72.1, 72.9, 72.2]]
    groups = [make_group(recipe, tops) for recipe, tops in zip((PLAIN, BN, DROPOUT), values, strict=True)]
    lines = course_block(groups[::-1], compare(plain="plain", bn="bn", dropout="dropout")).splitlines()
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
    assert "**worse**, -2.90 points" in course_block(groups, compare(plain="plain", bn="bn"))


def test_arms_are_held_against_the_one_that_a_comparison_names() -> None:
    groups = [make_group(PLAIN, [69.0, 69.5]), make_group(BN, [72.0, 72.4]), make_group(DROPOUT, [71.0, 71.5])]
    comparison = compare(plain="plain", bn="bn", dropout="dropout")._replace(against={"dropout": "plain"})
    said = [line.split(":")[0] for line in course_block(groups, comparison).splitlines() if line.startswith("-")]
    assert said == ["- bn, against plain", "- dropout, against plain"]
    assert "against" not in course_block(groups[1:2] + groups[2:], comparison), "without plain there is nothing to say"


def test_every_arm_of_the_study_of_augmentations_is_in_its_block() -> None:
    cells = {(cell.recipe, cell.overrides) for cell in recipes.STUDIES["augment"]}
    comparison = COMPARISONS["augment"]
    assert set(comparison.arms) == cells
    assert len(cells) == 7
    assert len(recipes.STUDIES["augment"]) == 21
    assert len(publish._COLORS) >= len(cells)
    assert set(comparison.against.values()) == {"crop and alternating flip"} < set(comparison.arms.values())
    assert [name for name in comparison.arms.values() if name in comparison.against] == [
        "+ RandAugment", "+ cutout", "+ mixup", "+ CutMix",
    ]  # fmt: skip


def test_a_length_is_told_by_the_best_epoch_within_it_where_at_least_two_runs_reached_it() -> None:
    without, with_both = COMPARISONS["length"].arms

    def rows_of(arm: tuple[str, str], seed: int, tops: list[float]) -> list[dict[str, str]]:
        return [
            {"study": "thirty", "recipe": arm[0], "overrides": arm[1], "seed": str(seed), "epoch": str(epoch),
             "val_top1_frac": str(top1)}
            for epoch, top1 in enumerate(tops, start=1)
        ]  # fmt: skip

    rows = [row for seed in (0, 1) for row in rows_of(without, seed, [0.5, 0.70 + seed / 100] + [0.6] * 8)]
    rows += [row for seed in (0, 1) for row in rows_of(with_both, seed, [0.4] * 7 + [0.73 + seed / 100] + [0.6] * 2)]
    rows += rows_of(with_both, 2, [0.9] * 4)
    rows += [{**row, "study": "course", "val_top1_frac": "0.99"} for row in rows]
    lines = length_block(rows[::-1]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 5", "| 10"]
    assert "| 70.50 +- 0.71 % (2 seeds) | 40.00 +- 0.00 % (2 seeds) | -30.50 (" in lines[2]
    assert "| 70.50 +- 0.71 % (2 seeds) | 73.50 +- 0.71 % (2 seeds) | +3.00 (-" in lines[3]


def test_what_was_not_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert course_block([], compare(plain="plain")) == "Not measured yet.\n"
    assert length_block([]) == "Not measured yet.\n"
    assert publish.picture_block([], "course") == ""
    table = publish.readme_table([make_group(PLAIN, [70.0])])
    assert f"| `{PLAIN}` | 70.00 % (1 seed) |  |" in table
    assert f"| `{BN}` | not measured yet |  |" in table
    assert table.count("\n") == 2 + len(publish.all_recipes())


def test_commits_are_shortened_and_stay_dirty() -> None:
    assert publish.shorten("0123abcd" * 5) == "0123abcd"
    assert publish.shorten("0123abcd" * 5 + "-dirty") == "0123abcd-dirty"
    assert publish.shorten("0123abcd" * 5 + " then " + "fedc9876" * 5) == "0123abcd then fedc9876"


def test_a_recipes_header_has_no_figure_but_the_measured_one() -> None:
    for recipe in publish.all_recipes():
        header = [line for line in (publish.ROOT / recipe).read_text().splitlines() if line.startswith("#")]
        others = [number for number, line in enumerate(header) if line.startswith("# Source: ")]  # and what follows
        header = header[: others[0]] if others else header
        figures = [line for line in header if re.search(r"\d{4}-\d\d-\d\d| %|Not measured", line)]
        assert len(figures) == 1, recipe


def test_the_page_of_recipes_has_a_line_for_each_with_what_others_had_and_what_it_gave_here() -> None:
    group = make_group(PLAIN, [70.0])
    whole = {"epochs": "10", "machine": "2 cores of X", "commit": "0123abcd"}
    group = group._replace(rows=[row | whole for row in group.rows])
    lines = publish.recipes_page([group]).splitlines()
    head = lines.index("| recipe | data | epochs | top-1 that others had | top-1 measured here |")
    table = lines[head + 2 : lines.index("## Every run") - 1]
    assert len(table) == len(publish.all_recipes()) == 19
    assert f"| `{PLAIN.removeprefix('configs/')}` | CIFAR-10 | 10 |  | 70.00 % (1 seed) |" in table
    assert (
        "| `cifar10/speedrun96.yaml` | CIFAR-10 | 37 | 96.03 %, 34.7 s on an A100 (airbench96) | not measured yet |"
        in table
    )
    assert "| `finetune/cifar10_three.yaml` | three classes of CIFAR-10 | 30 |  | not measured yet |" in table
    assert "| `finetune/folder.yaml` | your own images | 10 |  | not measured yet |" in table
    for recipe, words in publish.PUBLISHED.items():
        header = "".join(line for line in (publish.ROOT / recipe).read_text().splitlines() if line.startswith("#"))
        assert words.split(" %")[0] in header, f"{recipe}: its header has the same figure"


def test_runs_without_a_score_on_val_have_none_in_the_page() -> None:
    group = make_group(PLAIN, [70.0, 71.0])
    rows = [row | {"val_top1_frac": top1} for row, top1 in zip(group.rows, ("", "0.5"), strict=True)]
    assert publish._mean(group._replace(rows=rows), "val_top1_frac") == "50.00 %"
    assert publish._mean(group._replace(rows=rows[:1]), "val_top1_frac") == ""


def test_all_texts_are_there_and_hold_the_blocks() -> None:
    names = {str(path.relative_to(publish.ROOT)) for path in publish.texts()}
    pages = {
        f"docs/{page}.md"
        for page in (
            *("recipes", "course", "operations", "augmentation", "dali"),
            *("levers", "loader", "loader_study", "transfer"),
        )
    }
    assert names == {"README.md", *pages, *publish.all_recipes()}


def test_the_page_of_operations_has_a_line_for_each_and_a_column_for_each_way() -> None:
    def row(operation: str, executor: str, mean: float, worst: float) -> dict[str, str]:
        return {"operation": operation, "parameters": "factor 0 to 2", "executor": executor, "device": "CPU",
                "images": "250", "mean_of_255": str(mean), "worst_image_of_255": str(worst), "limit_of_255": "2.0",
                "date": "2026-11-26", "commit": "0123abcd" * 5, "versions": "torch 2.14"}  # fmt: skip

    rows = [
        row("RGB_SHIFT", "reference", 0.0, 0.0),
        row("RGB_SHIFT", "kernels", 0.25, 1.5),
        row("HUE", "kernels", 0, 0.1),
    ]
    lines = publish.operations_page(rows).splitlines()
    heads = [*publish.WAYS.values()]
    table = lines.index(f"| operation | parameters | limit | {' | '.join(heads)} |")
    assert len(heads) == 4
    assert lines[table + 2 : table + 5] == [
        "| rgb shift | factor 0 to 2 | 2 | 0 | 0.250 (1.500) | not measured yet | not measured yet |",
        "| hue | factor 0 to 2 | 2 | not offered | < 0.001 (0.100) | not measured yet | not measured yet |",
        "",
    ]
    assert lines[-2:] == [
        f"- {head}: 250 images, by code that ran on CPU, 2026-11-26, 0123abcd, torch 2.14" for head in heads[:2]
    ]
    assert publish.operations_page([]).endswith("Not measured yet.\n")


def test_speeds_stand_beside_each_other_by_job_and_say_where_they_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    assert publish.speed_block() == "Not measured yet.\n"
    head = "contender,images_per_s,repeats,cpu,date\n"
    (tmp_path / "loader_randaugment_decoded.csv").write_text(head + "threads,7235,5,2 cores of X,2026-11-26\n")
    (tmp_path / "loader_color_jitter.csv").write_text(head + "threads,900,7,2 cores of X,2026-11-26\ntimm,500,7,X,Y\n")
    lines = publish.speed_block().splitlines()
    assert lines[2:] == [
        "| `threads` | 7,235 |  |  | 900 |",
        "| `timm` |  |  |  | 500 |",
        "",
        "Medians of 5 or 7 epochs, 2 cores of X, 2026-11-26.",
    ]


def test_the_block_of_the_loader_study_is_what_the_screen_showed_without_the_name_of_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    (tmp_path / "loader_study.txt").write_text("9 images\nsetting  images/s\nuse --x\nchart: a.png\n")
    assert publish.study_block() == "\n    9 images\n    setting  images/s\n    use --x\n\n"


def test_the_table_of_checkpoints_says_the_least_number_of_repeats() -> None:
    about = {"cpu": "2 cores of X", "date": "2026-11-30", "stall_s": "0.1", "written_s": "1.25", "resume_s": "2"}
    rows = [
        {"model": "net", "contender": contender, "mib": "1234.5", "repeats": repeats, **about}
        for contender, repeats in (("ours", "6"), ("accelerate", "5"))
    ]
    lines = checkpoint_block(rows).splitlines()
    assert lines[2] == "| net | **train.py** | 1,234 | 0.10 | 1.25 | 2.00 |"
    assert lines[3].startswith("| net | `accelerator.save_state` |")
    assert lines[-1].startswith("Medians of 5 or more checkpoints, 2 cores of X, 2026-11-30")
    assert checkpoint_block([]) == "Not measured yet.\n"
