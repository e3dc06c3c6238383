"""Repeated stratified k-fold cross-validation: one configuration -> a run for each part of each cut -> mean and spread.

Config, K, R -> list_runs -> K * R configurations, each with a run folder OUT/repeat_R_fold_K
their results -> summarise -> OUT/folds.json, and a line

The score of a part is that of `val`, which nothing of its run may go by: no checkpoint is chosen, nothing stops early.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.load import replace_section
from configs.schema import Config
from engine.record import RunFolder, replace_file

_MOST_RUNS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """Cross-validation, for few images.

    Attributes:
        folds: Parts that train is cut into, each of them val in one run; 0 = one run, as the configuration says.
        repeats: How often, each time cut anew (data.split_seed counts up).
    """

    folds: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError where there is nothing to cut or to repeat, or too much."""
        if self.folds < 0 or self.folds == 1 or self.repeats < 1 or self.folds * self.repeats > _MOST_RUNS:
            raise ValueError(
                f"folds={self.folds} and repeats={self.repeats}: give two parts or more, one repeat or more, and "
                f"{_MOST_RUNS} runs at the most, for example --folds 5 --repeats 3."
            )
        if self.folds == 0 and self.repeats > 1:
            raise ValueError(
                f"repeats={self.repeats} is read only with folds; add --folds 5, or, for several runs on one split, "
                "start one for each --run.seed."
            )


def list_runs(config: Config, options: FoldOptions) -> list[Config]:
    """The configurations of all runs: `config` itself without cross-validation.

    Args:
        config: With run.out decided.
        options: How many parts, how often.

    Raises:
        ValueError: The configuration goes by the scores on val, or cuts train in its own way.
    """
    if not options.folds:
        return [config]
    goes_by_val = {
        "run.select=best": config.run.select == "best",
        "train.early_stop_epochs": config.train.early_stop_epochs is not None,
        "schedule.name=plateau": config.schedule.name == "plateau",
    }
    asked = [name for name, is_asked in goes_by_val.items() if is_asked]
    if asked:
        raise ValueError(
            f"--folds tells how good a recipe is by val, so nothing may go by val, but {' and '.join(asked)} does; use "
            "--run.select last, without early stopping or plateau."
        )
    if config.data.num_folds:
        raise ValueError("data.num_folds is set by --folds; drop it from the configuration.")
    return [_one_run(config, options, repeat=repeat, fold=fold) for repeat, fold in _pairs(options)]


def _pairs(options: FoldOptions) -> list[tuple[int, int]]:
    return [(repeat, fold) for repeat in range(options.repeats) for fold in range(options.folds)]


def _one_run(config: Config, options: FoldOptions, *, repeat: int, fold: int) -> Config:
    one = replace_section(
        config, "data", num_folds=options.folds, fold=fold, split_seed=config.data.split_seed + repeat
    )
    return replace_section(one, "run", out=f"{config.run.out}/repeat_{repeat}_fold_{fold}")


def summarise(folder: Path, runs: Sequence[Config], options: FoldOptions) -> str:
    """Writes OUT/folds.json, the scores of all runs; gives them as lines, with mean and standard deviation.

    Args:
        folder: OUT.
        runs: As `list_runs` gave them, all finished.
        options: As it was given.

    Raises:
        OSError: The file cannot be written.
    """
    results = [RunFolder(str(run.run.out)).read_result() or {} for run in runs]
    rows: list[dict[str, Any]] = [
        {"repeat": repeat, "fold": fold, **{key: value for key, value in result.items() if key.endswith("top1_frac")}}
        for (repeat, fold), result in zip(_pairs(options), results, strict=True)
    ]
    scores = [float(result["val/top1_frac"]) for result in results]
    means = [statistics.fmean(scores[start : start + options.folds]) for start in range(0, len(scores), options.folds)]
    of_folds, of_repeats = statistics.stdev(scores), statistics.stdev(means) if len(means) > 1 else None
    summary = {
        "val/top1_frac": statistics.fmean(scores),
        "val/top1_frac_std_of_folds": of_folds,
        "val/top1_frac_std_of_repeats": of_repeats,
    }
    replace_file(folder / "folds.json", (json.dumps({"summary": summary, "folds": rows}, indent=2) + "\n").encode())
    spread = f"of parts {100 * of_folds:.2f}" + (
        f", of repeats {100 * of_repeats:.2f}" if of_repeats is not None else ""
    )
    return (
        f"{options.folds} folds, {options.repeats} repeat(s): val top-1 {100 * statistics.fmean(scores):.2f} % "
        f"(standard deviation {spread}), all in {folder / 'folds.json'}"
    )
