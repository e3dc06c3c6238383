"""What the numbers of a run suggest: each hint says what was found, what may help, and by which rule it was found.

A hint is a suggestion, not a proof. Where the images of val or test are too few to tell, there is none.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from report.summary import Rows, Score, Summary, epoch_rows

_GAP_FRAC = 0.10
_RISE_FRAC = 0.10
_FALL_FRAC = 0.05
_WAIT_FRAC = 0.20
_HALF_WIDTH_FRAC = 0.02
_FEWEST_EPOCHS = 5


class Hint(NamedTuple):
    """What was found, what may help, and the rule."""

    finding: str
    advice: str
    rule: str


def find_hints(
    rows: Rows,
    *,
    summary: Summary,
    class_names: Sequence[str] = (),
    confusions: Mapping[str, NDArray[np.int64]] | None = None,
    num_bad: int = 0,
) -> list[Hint]:
    """All hints that the numbers give.

    Args:
        rows: Of metrics.jsonl.
        summary: Of the same run.
        class_names: Names in the order of labels; () where not known.
        confusions: Split -> counts [true, predicted].
        num_bad: Files listed in bad_samples.jsonl.
    """
    epochs = epoch_rows(rows)
    found = [
        _did_not_learn(epochs),
        _guesses(summary, num_classes=len(class_names)),
        _overfits(epochs),
        _val_loss_rises(epochs),
        _still_falling(epochs, stopped_early=summary.stale_epochs is not None),
        _waits(summary),
        _val_is_unlike_test(summary),
        _too_few_images(summary),
        *_never_predicted(confusions or {}, class_names=class_names),
        _bad_samples(num_bad),
    ]
    return [hint for hint in found if hint is not None]


def _overfits(epochs: Rows) -> Hint | None:
    last = epochs[-1] if epochs else {}
    if not {"train/epoch_top1_frac", "val/top1_frac", "val/num_samples"} <= last.keys():
        return None
    train, val = last["train/epoch_top1_frac"], Score("val", last["val/top1_frac"], last["val/num_samples"])
    if train - val.top1_frac < _GAP_FRAC or train <= val.interval.high:
        return None
    return Hint(
        f"train {_percent(train)}, val {_percent(val.top1_frac)}: it overfits.",
        "More or more varied images help most: augment.crop, augment.flip, augment.mixup_alpha; then weight decay, "
        "dropout, or a smaller network.",
        "after the last epoch, train top-1 is 10 points or more above val's, and above val's 95 % interval",
    )


def _val_loss_rises(epochs: Rows) -> Hint | None:
    losses = [(row["val/loss"], row["epoch"]) for row in epochs if "val/loss" in row]
    if len(losses) < _FEWEST_EPOCHS:
        return None
    (lowest, epoch), (last, _) = min(losses), losses[-1]
    if last < (1 + _RISE_FRAC) * lowest:
        return None
    return Hint(
        f"val loss was lowest after epoch {epoch:g} ({lowest:.4g}) and has risen to {last:.4g} since.",
        "The network grows too sure of its mistakes: label smoothing, mixup, weight decay, or fewer epochs.",
        "5 epochs or more, and val loss after the last is 10 % or more above its lowest",
    )


def _still_falling(epochs: Rows, *, stopped_early: bool) -> Hint | None:
    if len(epochs) < _FEWEST_EPOCHS:
        return None
    keys = ["train/epoch_loss", *(["val/loss"] if all("val/loss" in row for row in epochs) else [])]
    before = epochs[-1 - max(len(epochs) // 5, 1)]
    if not all(epochs[-1][key] <= (1 - _FALL_FRAC) * before[key] for key in keys):
        return None
    words = "train and val loss are" if len(keys) == 2 else "train loss is (there is no val to check it against)"
    return Hint(
        f"{words} still falling: longer training may pay.",
        "Early stopping ended it: raise train.early_stop_epochs."
        if stopped_early
        else "Raise train.epochs (schedules cosine and one_cycle stretch with it).",
        "5 epochs or more, and train loss, and val loss where there is val, fell by 5 % or more over the last fifth",
    )


def _did_not_learn(epochs: Rows) -> Hint | None:
    if len(epochs) < 2 or epochs[-1]["train/epoch_loss"] < epochs[0]["train/epoch_loss"]:
        return None
    return Hint(
        "train loss has not fallen since the first epoch: it does not learn.",
        "Most often optim.lr is too high (try a tenth) or far too low (try ten times); else the labels are mixed up.",
        "2 epochs or more, and train loss of the last is not below that of the first",
    )


def _guesses(summary: Summary, *, num_classes: int) -> Hint | None:
    score = _main_score(summary)
    if score is None or num_classes < 2 or score.interval.low > 1 / num_classes:
        return None
    return Hint(
        f"{score.split} top-1 {_percent(score.top1_frac)} is not clearly better than guessing among {num_classes:,} "
        f"classes ({_percent(1 / num_classes)}).",
        "Look at the samples below: are the labels right? Then try another optim.lr and more epochs.",
        "1 / number of classes is not below the 95 % interval of top-1",
    )


def _waits(summary: Summary) -> Hint | None:
    if summary.wait_frac is None or summary.wait_frac < _WAIT_FRAC:
        return None
    return Hint(
        f"{_percent(summary.wait_frac)} of the time waits for data.",
        "The network could train faster than images arrive: more CPU cores, smaller files (tools.pack), or another "
        "loader.backend, such as dali on a GPU; python -m tools.loader_study measures them.",
        "over the epochs after the first, 20 % of the training time or more is waiting for data",
    )


def _val_is_unlike_test(summary: Summary) -> Hint | None:
    if not {"val", "test"} <= summary.scores.keys():
        return None
    val, test = summary.scores["val"], summary.scores["test"]
    if val.interval.low <= test.interval.high and test.interval.low <= val.interval.high:
        return None
    return Hint(
        f"val {_percent(val.top1_frac)} and test {_percent(test.top1_frac)} differ by more than chance.",
        "The images of the two are of different kinds, or near copies of training images are in one of them.",
        "the 95 % intervals of val and test do not overlap",
    )


def _too_few_images(summary: Summary) -> Hint | None:
    score = _main_score(summary)
    if score is None:
        return None
    half = (score.interval.high - score.interval.low) / 2
    if half < _HALF_WIDTH_FRAC:
        return None
    return Hint(
        f"{score.num_samples:,} images of {score.split} tell top-1 to about {100 * half:.1f} points either way.",
        "Do not read anything into smaller differences; more images to score on would help.",
        "half of the 95 % interval is 2 points or more",
    )


def _never_predicted(
    confusions: Mapping[str, NDArray[np.int64]], *, class_names: Sequence[str]
) -> Iterator[Hint | None]:
    split = next((split for split in ("test", "val") if split in confusions), None)
    if split is None:
        return
    counts_KK = confusions[split]
    places = np.flatnonzero((counts_KK.sum(axis=0) == 0) & (counts_KK.sum(axis=1) > 0)).tolist()
    names = [class_names[place] if len(class_names) == len(counts_KK) else str(place) for place in places]
    if names:
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        yield Hint(
            f"never predicted on {split}: {', '.join(names[:5])}{more}.",
            "Rare classes are given up first: more images of them, data.sampling balanced, or longer training.",
            "a class has images in the split, and none of any class was taken for it",
        )


def _bad_samples(num_bad: int) -> Hint | None:
    if not num_bad:
        return None
    files = "1 file" if num_bad == 1 else f"{num_bad:,} files"
    return Hint(
        f"{files} could not be read: listed below.",
        "Repair or delete what is listed.",
        "bad_samples.jsonl has lines",
    )


def _main_score(summary: Summary) -> Score | None:
    return summary.scores.get("test", summary.scores.get("val"))


def _percent(frac: Any) -> str:
    return f"{100 * frac:.3g} %"
