"""metrics.jsonl -> curves.png: loss, accuracy and learning rate over the epochs."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.record import RunFolder

_DPI = 120


def draw_curves(folder: RunFolder) -> Path:
    """Draws the curves of a run into `curves.png` of its folder; gives the path."""
    rows = folder.read_metrics()
    figure = Figure(figsize=(13, 4), layout="constrained")  # not pyplot: nothing global, no window
    loss, accuracy, lr = figure.subplots(1, 3)
    _draw_line(loss, rows, "train/loss", label="train, per log step", color="tab:blue", alpha=0.3)
    _draw_line(loss, rows, "train/epoch_loss", label="train", color="tab:blue", marker=".")
    _draw_line(loss, rows, "val/loss", label="val", color="tab:orange", marker=".")
    _draw_line(accuracy, rows, "train/epoch_top1_frac", label="train", color="tab:blue", scale=100, marker=".")
    _draw_line(accuracy, rows, "val/top1_frac", label="val", color="tab:orange", scale=100, marker=".")
    _draw_line(lr, rows, "lr", label="learning rate", color="tab:green")
    for axes, title in ((loss, "loss"), (accuracy, "top-1 accuracy (%)"), (lr, "learning rate")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend()
    figure.suptitle(folder.path.resolve().name)
    path = folder.path / "curves.png"
    figure.savefig(path, dpi=_DPI)
    return path


def _draw_line(
    axes: Axes, rows: list[dict[str, Any]], key: str, *, label: str, color: str, scale: float = 1, **style: Any
) -> None:
    points = [(row["epoch"], scale * row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, **style)
