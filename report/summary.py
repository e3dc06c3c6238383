"""The numbers of a run that a reader wants first, and a line that says them.

config.yaml, metrics.jsonl, environment.json, result.json -> Summary -> verdict
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from report.intervals import Interval, wilson_interval

Rows = Sequence[dict[str, Any]]


class Score(NamedTuple):
    """Top-1 accuracy on a split: the part that is right, of how many, and the 95 % interval (Wilson)."""

    split: str
    top1_frac: float
    num_samples: int

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        return wilson_interval(round(self.top1_frac * self.num_samples), num_samples=self.num_samples)

    def describe(self) -> str:
        """`test top-1 98.61 % (355 of 360; 95 % interval 96.79 to 99.41)`."""
        low, high = self.interval
        right = round(self.top1_frac * self.num_samples)
        return (
            f"{self.split} top-1 {100 * self.top1_frac:.2f} % ({right:,} of {self.num_samples:,}; "
            f"95 % interval {100 * low:.2f} to {100 * high:.2f})"
        )


class Summary(NamedTuple):
    """A run in numbers.

    is_finished: whether there is a result. scores: of the result; while there is none, of val after the last epoch.
    epochs_done, epochs_asked: of training. stale_epochs: those without a better score on val after which early stopping
    ended the run, None where it did not. beside: what the score on test (or val) would be without the average of the
    weights, or without test-time augmentation, in words. best_epoch: the one with the highest val top-1 (ties: lowest
    loss), None without val. scored_epoch: the one that the scores are of, if known. minutes: of training. wait_frac:
    part of the time spent waiting for data, after the first epoch where there are more.
    """

    is_finished: bool
    scores: dict[str, Score]
    epochs_done: int
    epochs_asked: int | None
    stale_epochs: int | None
    best_epoch: int | None
    scored_epoch: int | None
    minutes: float
    wait_frac: float | None
    num_parameters: int | None
    beside: tuple[str, ...] = ()


def summarise(
    rows: Rows, *, config: Mapping[str, Any], result: Mapping[str, Any] | None, environment: Mapping[str, Any]
) -> Summary:
    """A run in numbers, finished or not.

    Args:
        rows: Of metrics.jsonl.
        config: config.yaml, or {}.
        result: result.json, or None.
        environment: environment.json, or {}.
    """
    epochs = epoch_rows(rows)
    last = epochs[-1] if epochs else {}
    best = _best_epoch(epochs)
    selects_best = config.get("run", {}).get("select", "best") == "best"
    done = int(last.get("epoch", 0))
    return Summary(
        is_finished=result is not None,
        scores=_scores(last if result is None else result),
        epochs_done=done,
        epochs_asked=config.get("train", {}).get("epochs"),
        stale_epochs=_stale_epochs(config, done=done, best=best) if result is not None else None,
        best_epoch=best,
        scored_epoch=(best if selects_best else done) if result is not None else done or None,
        minutes=train_minutes(rows),
        wait_frac=_wait_frac(epochs),
        num_parameters=environment.get("num_parameters"),
        beside=_beside(last if result is None else result),
    )


def verdict(summary: Summary) -> str:
    """The run in a line."""
    if not summary.epochs_done and not summary.scores:
        return "nothing is trained yet"
    scores = [summary.scores[split].describe() for split in ("test", "val") if split in summary.scores]
    parts = [*(scores or ["no val and no test to score"]), *summary.beside]
    asked = "" if summary.epochs_asked in (None, summary.epochs_done) else f" of {summary.epochs_asked}"
    parts.append(f"{summary.epochs_done}{asked} epochs in {_minutes(summary.minutes)}")
    if summary.stale_epochs is not None:
        epochs = f"{summary.stale_epochs} epoch{'s' * (summary.stale_epochs > 1)}"
        parts.append(f"stopped early: no better score on val for {epochs}")
    if summary.best_epoch is not None:
        parts.append(f"best epoch on val: {summary.best_epoch}")
    if summary.num_parameters is not None:
        parts.append(f"{summary.num_parameters:,} parameters")
    return ("" if summary.is_finished else "not finished: ") + "; ".join(parts)


def epoch_rows(rows: Rows) -> list[dict[str, Any]]:
    """The rows that end an epoch."""
    return [row for row in rows if "train/epoch_loss" in row]


def train_minutes(rows: Rows) -> float:
    """Minutes of training, evaluation not counted."""
    return sum(float(row.get("train/epoch_s", 0)) for row in rows) / 60


def _scores(metrics: Mapping[str, Any]) -> dict[str, Score]:
    found = {}
    for split in ("val", "test"):
        frac, count = metrics.get(f"{split}/top1_frac"), metrics.get(f"{split}/num_samples")
        if frac is not None and count:
            found[split] = Score(split, float(frac), int(count))
    return found


def _beside(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """`test 97.50 % by the weights themselves, not their average`, and likewise without test-time augmentation."""
    split = "test" if "test/top1_frac" in metrics else "val"
    words = {"raw": "by the weights themselves, not their average", "single": "without test-time augmentation"}
    fracs = {name: metrics.get(f"{split}_{name}/top1_frac") for name in words}
    return tuple(f"{split} {100 * frac:.2f} % {words[name]}" for name, frac in fracs.items() if frac is not None)


def _best_epoch(epochs: Rows) -> int | None:
    scored = [row for row in epochs if "val/top1_frac" in row]
    if not scored:
        return None
    return int(max(scored, key=lambda row: (row["val/top1_frac"], -row.get("val/loss", 0.0)))["epoch"])


def _stale_epochs(config: Mapping[str, Any], *, done: int, best: int | None) -> int | None:
    """Epochs after the best one of a finished run, if early stopping is why it did fewer than were asked for."""
    train = config.get("train", {})
    patience = train.get("early_stop_epochs")
    if patience is None or best is None or done >= train.get("epochs", done) or done - best < patience:
        return None
    return done - best


def _wait_frac(epochs: Rows) -> float | None:
    """Over the epochs after the first, in which things are made once; over that one where it is the only one."""
    timed = [row for row in epochs if "train/data_wait_frac" in row and row.get("train/epoch_s")]
    timed = timed[1:] or timed
    seconds = sum(row["train/epoch_s"] for row in timed)
    return sum(row["train/data_wait_frac"] * row["train/epoch_s"] for row in timed) / seconds if seconds else None


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
