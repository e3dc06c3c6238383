"""The loader study as one picture: a bar per setting, as long as its images/s, with the spread of its turns.

Results, Verdict -> Figure -> PNG bytes
"""

import statistics
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from report.figures import BLUE, GREEN, ORANGE, new_figure, png_of, short_name, text_style
from tools.study_verdict import Result, Verdict

_WIDTH_INCH, _BAR_INCH, _AROUND_INCH = 9.0, 0.32, 2.2
_LETTERS_PER_LINE = 115
_LONG_RANGE = 10  # fastest / median: beyond, most bars of a linear axis would be too short to be told apart
_TEACHES, _OURS, _CHOSEN = "DataLoader, as courses teach it", "executors of this project", "to use"


def draw_study(results: Sequence[Result], verdict: Verdict, *, title: str, subtitle: str) -> bytes:
    """The picture as a PNG file.

    Args:
        results: A bar each, from above.
        verdict: What is told below, and which bar stands out.
        title: The line above.
        subtitle: Data, machine and date, lines of smaller letters.
    """
    words = [line for sentence in verdict.sentences for line in textwrap.wrap(sentence, _LETTERS_PER_LINE)]
    figure = new_figure(width_inch=_WIDTH_INCH, height_inch=_AROUND_INCH + _BAR_INCH * len(results) + 0.15 * len(words))
    axes = figure.add_subplot()
    kinds = [_kind(result, verdict) for result in results]
    colors = {_TEACHES: BLUE, _OURS: ORANGE, _CHOSEN: GREEN}
    rates = [result.images_per_s for result in results]
    spreads = [
        [result.images_per_s - result.lowest for result in results],
        [result.highest - result.images_per_s for result in results],
    ]
    places = range(len(results))
    axes.barh(places, rates, color=[colors[kind] for kind in kinds], xerr=spreads, capsize=3, ecolor="0.25")
    for place, result in zip(places, results, strict=True):
        axes.annotate(
            f"{result.images_per_s:,.0f}",
            (result.highest, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    _set_axes(axes, results)
    style = text_style([title, subtitle.replace("\n", ""), *words])
    figure.suptitle(short_name(title, limit=90), fontsize=12, **style)
    lines = [short_name(line, limit=_LETTERS_PER_LINE) for line in subtitle.splitlines()]
    axes.set_title("\n".join(lines), fontsize=8, color="0.35", **style)
    figure.legend(
        handles=[Patch(color=colors[kind], label=kind) for kind in colors if kind in kinds],
        title="\n".join(words),
        title_fontproperties={"size": 8},
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return png_of(figure)


def _set_axes(axes: Axes, results: Sequence[Result]) -> None:
    """Names from above, and an axis of images/s that shows the slowest, too."""
    axes.set_yticks(range(len(results)), [result.setting.name for result in results])
    axes.invert_yaxis()
    lowest, highest = min(result.lowest for result in results), max(result.highest for result in results)
    rates = [result.images_per_s for result in results]
    is_long = max(rates) > _LONG_RANGE * statistics.median(rates)
    axes.set_xscale("log" if is_long else "linear")
    axes.set_xlim((lowest / 2, highest * 3) if is_long else (0, highest * 1.14))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
    axes.set_xlabel("images/s, median of the turns and their range" + (" (logarithmic)" if is_long else ""))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _kind(result: Result, verdict: Verdict) -> str:
    if result is verdict.chosen:
        return _CHOSEN
    return _TEACHES if result.setting.backend == "reference" else _OURS
