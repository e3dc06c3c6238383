"""Groups of runs over each other: curves over the epochs, and the metric of every run as a dot."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.curves import label_axes
from report.figures import new_figure, short_name, text_style
from report.groups import Group, is_frac, title_of


def draw_overlay(groups: Sequence[Group], *, key: str) -> Figure | None:
    """A metric over the epochs: a thin line per run, a thick one for the mean of its group; None if no run has it.

    Args:
        groups: A colour each.
        key: Of metrics.jsonl, in the rows that end an epoch.
    """
    if not any(key in row for group in groups for run in group.runs for row in run.epochs):
        return None
    figure = new_figure(width_inch=5.2, height_inch=3.6)
    axes = figure.subplots()
    for place, group in enumerate(groups):
        _draw_group(axes, group, key=key, color=_color(place))
    label_axes(axes, title=title_of(key))
    legend = axes.get_legend()
    for text in [] if legend is None else legend.get_texts():
        text.set(fontsize=8, **text_style([text.get_text()]))
    return figure


def _draw_group(axes: Axes, group: Group, *, key: str, color: str) -> None:
    """The mean goes as far as every run of the group does."""
    factor = 100 if is_frac(key) else 1
    curves = [{row["epoch"]: factor * row[key] for row in run.epochs if key in row} for run in group.runs]
    for curve in curves:
        axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.8, alpha=0.45)
    shared = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    means = [float(np.mean([curve[epoch] for curve in curves])) for epoch in shared]
    if shared:
        (mean,) = axes.plot(shared, means, color=color, linewidth=2.2)
        mean.set_label(short_name(f"{group.letter}: {group.name}", limit=44))


def draw_values(groups: Sequence[Group], *, metric: str) -> Figure:
    """The metric of every run as a dot, and the mean of each group as a bar."""
    figure = new_figure(width_inch=5.2, height_inch=1.2 + 0.4 * len(groups))
    axes = figure.subplots()
    factor = 100 if is_frac(metric) else 1
    for place, group in enumerate(groups):
        values = [factor * value for value in group.values]
        axes.plot(values, [place] * len(values), "o", color=_color(place), alpha=0.6)
        axes.plot([factor * group.mean] * 2, [place - 0.3, place + 0.3], color=_color(place), linewidth=2.2)
    axes.set_yticks(range(len(groups)), [group.letter for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_title(title_of(metric))
    axes.grid(axis="x", alpha=0.3)
    return figure


def _color(place: int) -> str:
    return f"C{place % 10}"
