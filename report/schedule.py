"""schedule.json -> picture: the learning rate, and the momentum where it moves, over the epochs."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from report.curves import label_axes
from report.figures import GREEN, ORANGE, new_figure

_COLORS = {"lr": GREEN, "momentum": ORANGE}
_TITLES = {"lr": "planned learning rate", "momentum": "planned momentum"}


def draw_schedule(schedule: Mapping[str, list[float]]) -> Figure:
    """The planned learning rate over the epochs; momentum, where the schedule has it, below.

    Args:
        schedule: "epoch", "lr" and perhaps "momentum": lists of one length.
    """
    names = [name for name in _COLORS if name in schedule]
    figure = new_figure(width_inch=5.2, height_inch=1.2 + 2.4 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        axes.plot(schedule["epoch"], schedule[name], color=_COLORS[name])
        label_axes(axes, title=_TITLES[name])
        axes.set_ylim(bottom=0 if name == "lr" else None)
    return figure
