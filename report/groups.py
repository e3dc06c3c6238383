"""Run folders -> groups of runs that differ in nothing but the seed, best group first.

folders -> load_runs -> finished runs, and why the others are left out -> check_same_images -> group_runs -> groups
"""

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.nearest import nearest
from engine.record import RunFolder
from report.settings import names_of_groups, settings_of_result
from report.summary import epoch_rows, train_minutes


class FinishedRun(NamedTuple):
    """A run that has a result.

    value: of the metric. epochs: the rows of metrics.jsonl that end an epoch. settings: what determines the result, but
    for the seed. scored_on: what is known of the images that the metric is of.
    """

    path: Path
    seed: int
    value: float
    minutes: float
    epochs: list[dict[str, Any]]
    settings: dict[str, Any]
    scored_on: dict[str, Any]


class Group(NamedTuple):
    """Runs that differ in nothing but the seed; `name` says what tells them from the other groups."""

    letter: str
    name: str
    runs: list[FinishedRun]

    @property
    def values(self) -> list[float]:
        """The metric of each run."""
        return [run.value for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Standard deviation of the metric (n - 1); None of one run."""
        return float(np.std(self.values, ddof=1)) if len(self.runs) > 1 else None

    @property
    def minutes(self) -> float:
        """Mean minutes of training."""
        return float(np.mean([run.minutes for run in self.runs]))


def lower_is_better(metric: str) -> bool:
    """Whether less of this metric is better."""
    return _quantity(metric).endswith("loss")


def title_of(metric: str) -> str:
    """A heading: `test/top1 (%)`."""
    return f"{metric.replace('_frac', '', 1)} (%)" if is_frac(metric) else metric


def show(value: float, *, metric: str) -> str:
    """A value of the metric, in per cent where it is a fraction."""
    return f"{100 * value:.2f}" if is_frac(metric) else f"{value:.4g}"


def is_frac(metric: str) -> bool:
    """Whether the metric is a part of one, shown in per cent."""
    return _quantity(metric).endswith("_frac")


def is_score(metric: str) -> bool:
    """Whether runs can be better or worse by this key: a fraction or a loss, and no count, step or epoch."""
    return is_frac(metric) or lower_is_better(metric)


def _quantity(metric: str) -> str:
    """`top1_frac` of test/top1_frac and of test/top1_frac/<class>."""
    parts = metric.split("/")
    return parts[1] if len(parts) > 1 else ""


def load_runs(folders: Sequence[RunFolder], *, metric: str) -> tuple[list[FinishedRun], list[str]]:
    """The runs that are finished and have the metric; and, of each other, why it is left out.

    Args:
        folders: Where to look.
        metric: A key of result.json that is a score.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: No run is finished, none has the metric, it is no score, or a file of one cannot be read.
    """
    runs, left_out, keys = [], [], dict[str, None]()
    for folder in folders:
        if not folder.path.is_dir():
            raise FileNotFoundError(f"{folder.path} is not there; give run folders of train.py.")
        result = folder.read_result() or {}
        keys |= dict.fromkeys(key for key in result if key.count("/") == 1 and is_score(key))
        why = _why_left_out(folder, result, metric=metric)
        if why is None:
            runs.append(_load_run(folder, result, metric=metric))
        else:
            left_out.append(f"{folder.path}: {why}")
    if runs and not is_score(metric):
        offer = nearest(metric, list(keys)) if keys else "these runs have none, for they had no val and no test."
        raise ValueError(f"the metric {metric!r} is no score to compare runs by; {offer}")
    if not runs and keys:
        raise ValueError(f"no run has the metric {metric!r}; {nearest(metric, list(keys))}")
    if not runs:
        raise ValueError("none of these is a finished run:\n  " + "\n  ".join(left_out))
    return runs, left_out


def _why_left_out(folder: RunFolder, result: dict[str, Any], *, metric: str) -> str | None:
    if not (folder.path / "config.yaml").exists():
        return "not a run folder"
    if not result:
        epochs = epoch_rows(folder.read_metrics())
        return f"not finished ({epochs[-1]['epoch'] if epochs else 0} epochs done)"
    return None if metric in result else f"has no {metric}"


def _load_run(folder: RunFolder, result: dict[str, Any], *, metric: str) -> FinishedRun:
    config, rows = folder.read_config(), folder.read_metrics()
    return FinishedRun(
        path=folder.path,
        seed=config.get("run", {}).get("seed", 0),
        value=float(result[metric]),
        minutes=train_minutes(rows),
        epochs=epoch_rows(rows),
        settings=settings_of_result(config),
        scored_on=_scored_on(config, folder.read_environment(), result, split=metric.partition("/")[0]),
    )


def _scored_on(
    config: dict[str, Any], environment: dict[str, Any], result: dict[str, Any], *, split: str
) -> dict[str, Any]:
    num_samples = result.get(f"{split}/num_samples", 0) + result.get(f"{split}/num_excluded", 0)
    return {
        "data set": config.get("data", {}).get("dataset"),
        "images": f"{num_samples:,} of {split}",
        "class names": environment.get("class_names"),
        "fingerprint": environment.get("fingerprints", {}).get(split.partition("_")[0]),  # test_raw are images of test
    }


def check_same_images(runs: Sequence[FinishedRun]) -> None:
    """Checks, as far as the runs tell, that all were scored on the same images.

    Fingerprints decide where every run has one; else data set, number of images and class names.

    Raises:
        ValueError: They were not.
    """
    known = [key for key in runs[0].scored_on if all(run.scored_on[key] is not None for run in runs)]
    keys = ["fingerprint"] if "fingerprint" in known else known
    for key in keys:
        for run in runs:
            if run.scored_on[key] != runs[0].scored_on[key]:
                here, there = (_shorten(one.scored_on[key]) for one in (run, runs[0]))
                raise ValueError(
                    f"these runs were not scored on the same images, so their scores cannot be compared: {key} of "
                    f"{run.path} is {here}, of {runs[0].path} {there}. Compare runs of the same data only."
                )


def group_runs(runs: Sequence[FinishedRun], *, metric: str) -> tuple[list[Group], list[str]]:
    """The groups, best mean first; and, of runs that repeat a seed of their group, why they are left out."""
    found: dict[str, list[FinishedRun]] = {}
    left_out = []
    for run in runs:
        group = found.setdefault(json.dumps(run.settings, sort_keys=True), [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is None:
            group.append(run)
        else:
            left_out.append(f"{run.path}: same options and seed as {twin.path}, so it says nothing about the spread")
    sign = 1 if lower_is_better(metric) else -1
    ordered = sorted(found.values(), key=lambda group: sign * np.mean([run.value for run in group]))
    names = names_of_groups([group[0].settings for group in ordered])
    groups = [
        Group(_letter(place), name or _plain_name(group[0]), sorted(group, key=lambda run: run.seed))
        for place, (group, name) in enumerate(zip(ordered, names, strict=True))
    ]
    return groups, left_out


def _plain_name(run: FinishedRun) -> str:
    """For a group that is alone."""
    return ", ".join(str(run.settings.get(key)) for key in ("data.dataset", "model.name"))


def _letter(place: int) -> str:
    """A, B, ..., Z, A2, B2, ..."""
    letters = string.ascii_uppercase
    return letters[place % len(letters)] + (str(place // len(letters) + 1) if place >= len(letters) else "")


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
