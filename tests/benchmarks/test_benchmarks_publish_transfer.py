"""The study of transfer into its page: table, verdicts, picture, rates."""

import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from benchmarks.publish_transfer import (
    best_rates,
    draw_transfer,
    features_table,
    frozen_table,
    rates_table,
    transfer_picture,
    transfer_table,
)
from benchmarks.transfer_study import ARMS, KEPT, METHODS, RATES_TRIED, SOURCE, TRIALS

SCRATCH, LINEAR, SVM = ([60.0, 62.0, 61.5], [80.0, 81.0, 80.2], [60.0, 63.0, 61.0])


def rows_of(method: str, num_images: int, tops: list[float]) -> list[dict[str, str]]:
    recipe, overrides = next(arm for arm, meant in ARMS.items() if meant == (method, num_images))
    return [
        {"study": "transfer", "recipe": recipe, "overrides": overrides, "seed": str(seed), "val_top1_frac": "",
         "test_top1_frac": str(top / 100), "machine": "2 cores of X", "torch": "2.14", "date": "2026-12-01"}
        for seed, top in enumerate(tops)
    ]  # fmt: skip


def trial(method: str, lr: float, top: float) -> dict[str, str]:
    recipe, overrides = next(arm for arm, meant in TRIALS.items() if meant == (method, lr))
    return {"study": "transfer_rates", "recipe": recipe, "overrides": overrides, "val_top1_frac": str(top / 100)}


@pytest.fixture
def rows() -> list[dict[str, str]]:
    other = {**rows_of("all", 50, [1.0])[0], "study": "levers"}
    return [
        *rows_of("linear", 50, LINEAR), *rows_of("features and SVM", 50, SVM), *rows_of("scratch", 50, SCRATCH),
        *rows_of("linear", 1000, [90.0]), other,
    ]  # fmt: skip


def test_a_method_has_a_line_and_a_number_of_images_a_column(rows: list[dict[str, str]]) -> None:
    lines = transfer_table(rows).splitlines()
    assert lines[0] == "| strategy | 50 per class | 200 per class | 1,000 per class |"
    assert [line.split(" | ")[0] for line in lines[2 : 2 + len(METHODS)]] == [f"| {method}" for method in METHODS]
    mean, spread = statistics.mean(SCRATCH), statistics.stdev(SCRATCH)
    assert lines[2] == f"| scratch | {mean:.2f} +- {spread:.2f} % (3 seeds) | not measured | not measured |"
    assert lines[4] == "| linear | 80.40 +- 0.53 % (3 seeds) | not measured | 90.00 % (1 seed) |"
    assert lines[-1] == "Measured on 2 cores of X, torch 2.14, 2026-12-01."
    source = {"study": "transfer_source", "recipe": SOURCE.recipe, "overrides": SOURCE.overrides}
    source |= {"test_top1_frac": "0.9012"}
    earlier = source | {"overrides": f"{SOURCE.overrides} --optim.lr 9", "test_top1_frac": "0.5"}
    assert transfer_table([*rows, earlier, source]).endswith(
        "2026-12-01. The network it starts from: 90.12 % (1 seed) on its own seven classes.\n"
    )


def test_methods_are_held_against_scratch_at_the_same_number_of_images(rows: list[dict[str, str]]) -> None:
    verdicts = [line for line in transfer_table(rows).splitlines() if line.startswith("- ")]
    linear, svm = (stats.ttest_ind(values, SCRATCH, equal_var=False) for values in (LINEAR, SVM))
    assert len(verdicts) == 2, "at 1,000 images there is nothing to hold it against"
    gain = statistics.mean(LINEAR) - statistics.mean(SCRATCH)
    assert verdicts[1].startswith(
        f"- linear at 50 per class, against scratch at 50 per class: **better**, {gain:+.2f} points"
    )
    assert verdicts[1].endswith(f"p = {2 * linear.pvalue:.2g})")
    assert verdicts[0].startswith("- features and SVM at 50 per class, against scratch at 50 per class: **undecided**")
    assert verdicts[0].endswith(f"p = {svm.pvalue:.2g})")


def test_what_was_not_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    assert transfer_table([]) == rates_table([]) == "Not measured yet.\n"
    assert transfer_picture([]) == ""
    draw_transfer([], tmp_path / "transfer.png")
    assert not list(tmp_path.iterdir())


def test_the_picture_is_drawn_of_what_there_is(rows: list[dict[str, str]], tmp_path: Path) -> None:
    assert "(figures/transfer.png)" in transfer_picture(rows)
    draw_transfer(rows, tmp_path / "transfer.png")
    pixels = np.asarray(Image.open(tmp_path / "transfer.png").convert("RGB")).reshape(-1, 3)
    assert all((pixels == color).all(axis=1).any() for color in ((44, 160, 44), (31, 119, 180)))  # linear, the SVM


def test_of_rates_the_best_on_val_is_taken_and_of_equals_the_lowest() -> None:
    low, middle, high = RATES_TRIED["scratch"]
    tried = [trial("scratch", high, 81.0), trial("scratch", low, 79.5), trial("scratch", middle, 81.0)]
    assert best_rates(tried) == {"scratch": middle}
    assert best_rates(tried[:2]) == {}, "one is missing"
    lines = rates_table(tried).splitlines()
    assert lines[2].startswith(f"| scratch | {low:g}: 79.50 %, **{middle:g}: 81.00 %**, {high:g}: 81.00 % | ")
    assert lines[3].startswith("| linear | not measured | ")
    assert len(lines) == 2 + len(RATES_TRIED)


def test_features_are_held_against_images_by_speed_and_accuracy() -> None:
    speeds, tops = {"images": (1500, 1400, 1600), "features": (60_000, 59_000, 61_000)}, (90.0, 90.2, 89.9)
    rows = [
        {"study": "transfer_features", "recipe": recipe, "overrides": overrides, "images_per_s": str(speed),
         "test_top1_frac": str(top / 100), "machine": "2 cores of X", "date": "2026-12-01"}
        for (recipe, overrides), name in KEPT.items()
        for speed, top in zip(speeds[name], tops, strict=True)
    ]  # fmt: skip
    table = features_table(rows)
    assert "| images | 2.000 | 90.03 +- 0.15 % (3 seeds) |\n| features | 0.050 | 90.03 +- 0.15 % (3 seeds) |" in table
    assert "- features, against images: **undecided**, +0.00 points" in table
    assert "An epoch on features is **40.0 times** as fast. Measured on 2 cores of X, 2026-12-01." in table
    assert features_table(rows[:3]) == "Not measured yet.\n"
    earlier = [row | {"overrides": f"{row['overrides']} --optim.lr 9", "images_per_s": "1"} for row in rows]
    assert features_table([*earlier, *rows]) == table, "what was measured before the study was changed does not count"


def test_what_is_trained_has_a_line_with_its_step_and_what_it_holds() -> None:
    row = {
        "model": "torchvision/resnet18",
        "size_px": "96",
        "batch_size": "32",
        "trained": "head",
        "parameters": "5130",
    }
    row |= {"step_ms": "240.5", "lowest_ms": "235.5", "highest_ms": "245.5", "kept_mib_per_image": "0.002"}
    row |= {"gradients_and_optimizer_mib": "0.06", "device": "CPU", "cpu": "2 cores of X", "date": "2026-12-01"}
    lines = frozen_table([row]).splitlines()
    assert lines[2] == "| head | 5,130 | 240.5 (235.5 to 245.5) | 0.002 | 0.06 |"
    assert lines[-1] == "torchvision/resnet18, 32 images of 96 px, AdamW, CPU, 2 cores of X, 2026-12-01."
    assert frozen_table([]) == "Not measured yet.\n"
