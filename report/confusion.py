"""Counts [true, predicted] -> a picture of them, and the pairs of classes that are taken for each other most.

Legend of shape letters: K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from report.figures import new_figure, short_name, text_style

_MOST_WITH_COUNTS = 20  # classes: beyond, numbers in the cells are too small to read
_MOST_DRAWN = 50  # beyond, the most confused classes stand for all
_DARK_FRAC = 0.55  # from here on, white text on the cell


class Confusion(NamedTuple):
    """`num_samples` of class `true` were taken for `predicted`, this part of the class."""

    true: str
    predicted: str
    num_samples: int
    class_frac: float


def most_confused(counts_KK: NDArray[np.int64], *, class_names: Sequence[str], limit: int) -> list[Confusion]:
    """The pairs of classes with the most mistakes, most first; where counts are equal, larger parts first.

    Args:
        counts_KK: int64 (K, K), samples of each true class (rows) taken for each class (columns).
        class_names: The K names.
        limit: How many to give at most.
    """
    fracs_KK = _row_fracs(counts_KK)
    return [
        Confusion(class_names[true], class_names[predicted], int(counts_KK[true, predicted]), fracs_KK[true, predicted])
        for true, predicted in _wrong_pairs(counts_KK)[:limit]
    ]


def draw_confusion(counts_KK: NDArray[np.int64], *, class_names: Sequence[str]) -> Figure:
    """The confusion matrix: colours are parts of the true class, numbers are counts.

    Up to 20 classes have the counts written in their cells, up to 50 only colours; of more, the 20 of which
    the worst pairs are made.

    Args:
        counts_KK: int64 (K, K), samples of each true class (rows) taken for each class (columns).
        class_names: The K names.
    """
    shown = _shown_classes(counts_KK)
    cells, fracs = counts_KK[np.ix_(shown, shown)], _row_fracs(counts_KK)[np.ix_(shown, shown)]
    labels = [short_name(class_names[place]) for place in shown]
    side_inch = 2.2 + (0.42 if len(shown) <= _MOST_WITH_COUNTS else 0.19) * len(shown)
    figure = new_figure(width_inch=max(side_inch + 0.8, 4.6), height_inch=max(side_inch, 3.8))
    axes = figure.subplots()
    image = axes.imshow(100 * fracs, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.7)
    _label_classes(axes, labels)
    if len(shown) <= _MOST_WITH_COUNTS:
        _write_counts(axes, cells, fracs)
    if len(shown) < len(counts_KK):
        axes.set_title(f"the {len(shown)} most confused of {len(counts_KK):,} classes", fontsize=10)
    return figure


def _row_fracs(counts_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each count as a part of its row; 0 in the row of a class without samples."""
    fracs_KK: NDArray[np.float64] = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    return fracs_KK


def _wrong_pairs(counts_KK: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The pairs (true, predicted) that were met and are mistakes, most first."""
    fracs_KK = _row_fracs(counts_KK)
    pairs = [(int(true), int(predicted)) for true, predicted in np.argwhere(counts_KK > 0) if true != predicted]
    return sorted(pairs, key=lambda pair: (-counts_KK[pair], -fracs_KK[pair], pair))


def _shown_classes(counts_KK: NDArray[np.int64]) -> list[int]:
    """All classes; of more than 50 the 20 that the worst pairs are made of, in their order."""
    if len(counts_KK) <= _MOST_DRAWN:
        return list(range(len(counts_KK)))
    met = dict.fromkeys(place for pair in _wrong_pairs(counts_KK) for place in pair)  # each once, worst pairs first
    return sorted(list(met)[:_MOST_WITH_COUNTS]) or list(range(_MOST_WITH_COUNTS))


def _label_classes(axes: Axes, labels: Sequence[str]) -> None:
    style = text_style(labels) | {"fontsize": 9 if len(labels) <= _MOST_WITH_COUNTS else 7}
    is_narrow = max(len(label) for label in labels) <= 2
    axes.set_xticks(range(len(labels)), labels, rotation=0 if is_narrow else 90, **style)
    axes.set_yticks(range(len(labels)), labels, **style)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _write_counts(axes: Axes, cells: NDArray[np.int64], fracs: NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(cells):
        if count:
            color = "white" if fracs[row, column] > _DARK_FRAC else "black"
            size = 9 if count < 1000 or len(cells) <= 4 else 7 if count < 10_000 else 6
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=size)
