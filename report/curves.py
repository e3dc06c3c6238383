"""metrics.jsonl -> curves.png: loss, accuracy and learning rate over the epochs; and each panel alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.record import RunFolder
from report.figures import BLUE, GREEN, ORANGE, new_figure, png_of, short_name, text_style

Rows = Sequence[dict[str, Any]]


class Line(NamedTuple):
    """One metric over the epochs: its key in metrics.jsonl, and how it is drawn."""

    key: str
    label: str
    color: str
    scale: float = 1.0
    alpha: float = 1.0
    marker: str = ""


PANELS = {
    "loss": (
        Line("train/loss", "train, per log step", BLUE, alpha=0.3),
        Line("train/epoch_loss", "train", BLUE, marker="."),
        Line("val/loss", "val", ORANGE, marker="."),
        Line("val_raw/loss", "val, weights not averaged", ORANGE, alpha=0.4),
    ),
    "top-1 accuracy (%)": (
        Line("train/epoch_top1_frac", "train", BLUE, scale=100, marker="."),
        Line("val/top1_frac", "val", ORANGE, scale=100, marker="."),
        Line("val_raw/top1_frac", "val, weights not averaged", ORANGE, scale=100, alpha=0.4),
    ),
    "learning rate": (Line("lr", "learning rate", GREEN),),
    "images per second": (Line("train/images_per_s", "_train", BLUE),),
    "time spent waiting for data (%)": (Line("train/data_wait_frac", "_train", BLUE, scale=100),),
}
_FROM_ZERO = ("images per second", "time spent waiting for data (%)")  # else noise looks like news
_SAVED = ("loss", "top-1 accuracy (%)", "learning rate")


def draw_curves(folder: RunFolder) -> Path:
    """Draws the curves of a run into `curves.png` of its folder; gives the path.

    Raises:
        ValueError: metrics.jsonl cannot be read.
        OSError: The picture cannot be written.
    """
    path = folder.path / "curves.png"
    path.write_bytes(png_of(draw_summary(folder.read_metrics(), title=folder.path.resolve().name)))
    return path


def draw_summary(rows: Rows, *, title: str) -> Figure:
    """Loss, accuracy and learning rate side by side."""
    figure = new_figure(width_inch=13, height_inch=4)
    for axes, panel in zip(figure.subplots(1, len(_SAVED)), _SAVED, strict=True):
        _fill_panel(axes, rows, panel=panel)
    figure.suptitle(short_name(title, limit=80), **text_style([title]))
    return figure


def draw_panel(rows: Rows, *, panel: str) -> Figure | None:
    """One of PANELS alone, in a size for a phone; None where the rows hold nothing for it."""
    if not any(line.key in row for row in rows for line in PANELS[panel]):
        return None
    figure = new_figure(width_inch=5.2, height_inch=3.6)
    _fill_panel(figure.subplots(), rows, panel=panel)
    return figure


def _fill_panel(axes: Axes, rows: Rows, *, panel: str) -> None:
    for line in PANELS[panel]:
        points = [(row["epoch"], line.scale * row[line.key]) for row in rows if line.key in row]
        if points:
            (curve,) = axes.plot(*zip(*points, strict=True), color=line.color, alpha=line.alpha, marker=line.marker)
            curve.set_label(line.label)
    label_axes(axes, title=panel)
    if panel in _FROM_ZERO:
        axes.set_ylim(bottom=0)


def label_axes(axes: Axes, *, title: str) -> None:
    """Title, epochs, grid, and a legend where there is something to explain."""
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
