"""What the check on a GPU is to show, and whether it does: figures of benchmarks.gpu_check -> verdicts.

Where a figure is missing, because a part failed or was left out, a verdict is neither met nor not.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

_WANTED = {"at least": operator.ge, "under": operator.lt, "at most": operator.le}


class Verdict(NamedTuple):
    """wanted: in words. found: the figure, as it is written; "not measured" where there is none, and is_met is None."""

    what: str
    wanted: str
    found: str
    is_met: bool | None


def judge(found: dict[str, Any]) -> list[Verdict]:
    """A verdict for each line of what is to be shown, in order."""
    speeds = {row["contender"]: row.get("images_per_s") for row in found.get("loaders", {}).get("rows", [])}
    tests = found.get("tests", {})
    not_passed = len(tests["not_passed"]) if "not_passed" in tests else None
    return [
        _verdict("tests that passed", "at least", 1, tests.get("num_passed"), "{:.0f}"),
        _verdict("tests that did not pass", "at most", 0, not_passed, "{:.0f}"),
        _verdict("`dali` / DALI by hand, images/s", "at least", 0.97, _ratio(speeds, "dali", "hand"), "{:.3f}"),
        _verdict("`dali` / timm, images/s", "at least", 5.0, _ratio(speeds, "dali", "timm"), "{:.2f}"),
        *_of_training(found.get("training", {}).get("rows", [])),
        *_of_agreement(found.get("agreement", {})),
    ]


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """Markdown, a line each."""
    words = {True: "met", False: "**not met**", None: ""}
    lines = ["| what | wanted | found | |", "| --- | --- | ---: | --- |"]
    lines += [f"| {each.what} | {each.wanted} | {each.found} | {words[each.is_met]} |" for each in verdicts]
    return "\n".join(lines)


def _of_training(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Speed of what was fed against what was not, and the time that it waited."""
    verdicts = []
    synthetic = {_task(row): float(row["images_per_s"]) for row in rows if row["data"] == "synthetic"}
    for row in rows:
        alone = synthetic.get(_task(row))
        if row["data"] == "synthetic" or not alone:
            continue
        name = f"{row['model']}, {row['size_px']} px, fed by `{row['data']}`"
        ratio = float(row["images_per_s"]) / alone
        least = 0.98 if row["data"] == "resident" else 0.97
        verdicts.append(_verdict(f"{name} / synthetic, images/s", "at least", least, ratio, "{:.3f}"))
        waited = float(row["data_wait_frac"])
        verdicts.append(_verdict(f"{name}: of the time, waited for data", "under", 0.02, waited, "{:.4f}"))
    return verdicts or [_verdict("a network fed by the loader / synthetic, images/s", "at least", 0.97, None, "")]


def _task(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in ("model", "size_px", "batch_size"))


def _of_agreement(found: dict[str, Any]) -> list[Verdict]:
    pixels = {row["way"]: row for row in found.get("pixels", [])}
    predicted = {row["way"]: row for row in found.get("predictions", [])}
    off = pixels.get("dali", {}).get("mean_of_255")
    same = predicted.get("dali", {}).get("same_prediction_frac")
    return [
        _verdict("`dali` from Pillow's pixels, mean of 255", "under", 1.0, off, "{:.3f}"),
        _verdict("predictions that are the same by `dali` and `threads`", "at least", 0.99, same, "{:.4f}"),
    ]


def _verdict(what: str, relation: str, limit: float, found: float | None, form: str) -> Verdict:
    wanted = f"{relation} {limit:g}"
    if found is None:
        return Verdict(what, wanted, "not measured", None)
    compare: Callable[[float, float], bool] = _WANTED[relation]
    return Verdict(what, wanted, form.format(found), compare(found, limit))


def _ratio(speeds: dict[str, Any], one: str, other: str) -> float | None:
    return speeds[one] / speeds[other] if speeds.get(one) and speeds.get(other) else None
