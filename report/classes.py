"""Accuracy of each class, with its 95 % interval, worst first.

confusion.npz, or the keys test/top1_frac/<class> of result.json -> ClassScore -> picture
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from report.figures import BLUE, new_figure, short_name, text_style
from report.intervals import Interval, wilson_interval

_MOST_AT_AN_END = 25


class ClassScore(NamedTuple):
    """Accuracy of one class; `num_samples` is None where only the accuracy was kept, and then there is no interval."""

    name: str
    top1_frac: float
    num_samples: int | None = None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval (Wilson)."""
        if self.num_samples is None:
            return None
        return wilson_interval(round(self.top1_frac * self.num_samples), num_samples=self.num_samples)


def scores_of_counts(counts_KK: NDArray[np.int64], *, class_names: Sequence[str]) -> list[ClassScore]:
    """The classes that have samples, worst first.

    Args:
        counts_KK: int64 (K, K), samples of each true class (rows) taken for each class (columns).
        class_names: The K names.
    """
    seen_K, right_K = counts_KK.sum(axis=1), counts_KK.diagonal()
    scores = [
        ClassScore(name, int(right) / int(seen), int(seen))
        for name, right, seen in zip(class_names, right_K, seen_K, strict=True)
        if seen
    ]
    return sorted(scores, key=lambda score: score.top1_frac)


def scores_of_result(result: Mapping[str, Any], *, split: str) -> list[ClassScore]:
    """The classes of a result.json, worst first, for runs that kept no counts."""
    start = f"{split}/top1_frac/"
    scores = [ClassScore(key[len(start) :], frac) for key, frac in result.items() if key.startswith(start)]
    return sorted(scores, key=lambda score: score.top1_frac)


def worst_and_best(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """All of them, or the 25 at either end of more than 50."""
    if len(scores) <= 2 * _MOST_AT_AN_END:
        return list(scores)
    return [*scores[:_MOST_AT_AN_END], *scores[-_MOST_AT_AN_END:]]


def draw_classes(scores: Sequence[ClassScore]) -> Figure:
    """A bar per class, worst at the top, with its interval and number of images; of over 50 classes, 25 at either end.

    Args:
        scores: Worst first; at least one.
    """
    shown = worst_and_best(scores)
    places = [place + (place >= _MOST_AT_AN_END and len(shown) < len(scores)) for place in range(len(shown))]
    figure = new_figure(width_inch=5.6, height_inch=1.1 + 0.24 * len(shown))
    axes = figure.subplots()
    axes.barh(places, [100 * score.top1_frac for score in shown], color=BLUE, alpha=0.55)
    for place, score in zip(places, shown, strict=True):
        if score.interval is not None:
            low, high = score.interval
            axes.plot([100 * low, 100 * high], [place, place], color="black", linewidth=1.2, marker="|", markersize=5)
    labels = [_label(score) for score in shown]
    axes.set_yticks(places, labels, fontsize=8, **text_style(labels))
    axes.set_ylim(max(places) + 0.7, -0.7)
    axes.set_xlim(0, 101)
    axes.set_xlabel("top-1 accuracy (%)")
    axes.grid(axis="x", alpha=0.3)
    if len(shown) < len(scores):
        axes.set_title(f"the 25 worst and the 25 best of {len(scores):,} classes", fontsize=10)
    return figure


def _label(score: ClassScore) -> str:
    return short_name(score.name) + ("" if score.num_samples is None else f"  ({score.num_samples:,})")
