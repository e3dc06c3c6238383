"""What is wanted on a GPU is held against what was found, and what was not measured is neither met nor not."""

from typing import Any

import pytest

from benchmarks.verdicts_gpu import Verdict, judge, verdict_table


def training_row(model: str, data: str, images_per_s: float, waited: float, size_px: int = 224) -> dict[str, str]:
    """As csv.DictReader gives it."""
    row = {"model": model, "data": data, "images_per_s": images_per_s, "data_wait_frac": waited, "size_px": size_px}
    row["batch_size"] = 256
    return {key: str(value) for key, value in row.items()}


def everything(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tests": {"num_passed": 40, "num_skipped": 4, "not_passed": []},
        "loaders": {
            "rows": [
                {"contender": "hand", "images_per_s": 10000.0},
                {"contender": "dali", "images_per_s": 9800.0},
                {"contender": "timm", "images_per_s": 1900.0},
            ]
        },
        "training": {
            "rows": [
                training_row("resnet50", "synthetic", 3000.0, 0.0),
                training_row("resnet50", "dali", 2950.0, 0.012),
                training_row("resnet18", "synthetic", 9000.0, 0.0),
                training_row("resnet18", "synthetic", 40000.0, 0.0, size_px=32),
                training_row("resnet18", "resident", 39500.0, 0.001, size_px=32),
            ]
        },
        "agreement": {
            "pixels": [{"way": "dali", "mean_of_255": 0.4}],
            "predictions": [{"way": "dali", "same_prediction_frac": 0.995}],
        },
    }
    return found | changes


def of(verdicts: list[Verdict], words: str) -> Verdict:
    (verdict,) = [each for each in verdicts if words in each.what]
    return verdict


def test_all_that_is_wanted_is_met_where_the_figures_say_so() -> None:
    verdicts = judge(everything())
    assert len(verdicts) == 10
    assert all(verdict.is_met for verdict in verdicts)
    assert of(verdicts, "by hand") == Verdict("`dali` / DALI by hand, images/s", "at least 0.97", "0.980", True)
    assert of(verdicts, "timm").found == "5.16"
    assert of(verdicts, "resnet50, 224 px, fed by `dali` / synthetic").found == "0.983"
    assert of(verdicts, "resnet18, 32 px, fed by `resident` / synthetic").wanted == "at least 0.98"


@pytest.mark.parametrize(
    ("changes", "words", "found"),
    [
        ({"tests": {"not_passed": ["a", "b"]}}, "tests that did not", "2"),
        ({"tests": {"num_passed": 0, "num_skipped": 40, "not_passed": []}}, "tests that passed", "0"),
        (
            {
                "loaders": {
                    "rows": [{"contender": "hand", "images_per_s": 10.0}, {"contender": "dali", "images_per_s": 9.6}]
                }
            },
            "by hand",
            "0.960",
        ),
        (
            {"training": {"rows": [training_row("a", "synthetic", 100.0, 0), training_row("a", "dali", 96.0, 0.01)]}},
            "fed by `dali` / synthetic",
            "0.960",
        ),
        (
            {"training": {"rows": [training_row("a", "synthetic", 100.0, 0), training_row("a", "dali", 99.0, 0.02)]}},
            "waited for data",
            "0.0200",
        ),
        ({"agreement": {"predictions": [{"way": "dali", "same_prediction_frac": 0.98}]}}, "predictions", "0.9800"),
        ({"agreement": {"pixels": [{"way": "dali", "mean_of_255": 1.0}]}}, "Pillow", "1.000"),
    ],
)
def test_what_falls_short_is_not_met(changes: dict[str, Any], words: str, found: str) -> None:
    verdict = of(judge(everything(**changes)), words)
    assert verdict.is_met is False
    assert verdict.found == found
    assert "**not met**" in verdict_table([verdict])


def test_of_what_is_missing_nothing_is_said() -> None:
    for found in ({}, {"loaders": {"failed": "no GPU"}, "training": {"rows": []}, "tests": {"failed": "no report"}}):
        verdicts = judge(found)
        assert len(verdicts) == 7
        assert {verdict.is_met for verdict in verdicts} == {None}
        assert {verdict.found for verdict in verdicts} == {"not measured"}
    crashed = {"rows": [{"contender": "hand", "images_per_s": None}, {"contender": "dali", "images_per_s": 5.0}]}
    assert of(judge(everything(loaders=crashed)), "by hand").is_met is None


def test_a_network_that_was_not_measured_without_data_has_no_verdict() -> None:
    rows = [training_row("a", "dali", 99.0, 0.0), training_row("a", "synthetic", 99.0, 0.0, size_px=32)]
    assert of(judge({"training": {"rows": rows}}), "fed by").is_met is None


def test_the_table_has_a_line_for_each() -> None:
    verdicts = judge(everything(tests={}))
    lines = verdict_table(verdicts).splitlines()
    assert len(lines) == len(verdicts) + 2
    assert lines[3] == "| tests that did not pass | at most 0 | not measured |  |"
    assert lines[4] == "| `dali` / DALI by hand, images/s | at least 0.97 | 0.980 | met |"
