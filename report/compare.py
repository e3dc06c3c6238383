"""Groups of runs side by side: `python -m report.compare RUN RUN ... [--out DIR] [--metric test/top1_frac]`.

Runs that differ in nothing but the seed are one group. For each pair of groups it says which is better and by how much,
or that the runs do not decide it and about how many would. Leaves compare.html and compare.csv in --out.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from engine.record import RunFolder, replace_file
from report.differences import notes_on, state_all
from report.groups import Group, check_same_images, group_runs, load_runs, show, title_of
from report.overlay import draw_overlay, draw_values
from report.sheet import Picture, Table, embed_figure, render

_CURVES = ("val/top1_frac", "val/loss", "train/epoch_loss")  # of metrics.jsonl

_PAGE = """{% extends "frame" %}
{% import "macros" as macros %}
{% block body %}
<h1>{{ title }}</h1>
{{ macros.table(groups) }}
<h2>Differences</h2>
{% if not statements %}<p>One group only: there is nothing to compare it with.</p>{% endif %}
<ul>{% for statement in statements %}<li>{{ statement }}</li>{% endfor %}</ul>
{% for note in notes %}<p class="soft">{{ note }}</p>{% endfor %}
<h2>Pictures</h2>
<div class="charts">{% for picture in pictures %}{{ macros.chart(picture) }}{% endfor %}</div>
<p class="soft">Thin lines and dots are runs, thick lines and bars the means of their groups.</p>
<h2>Runs</h2>
{{ macros.table(runs) }}
{% if left_out %}
<p>Left out:</p>
<ul>{% for line in left_out %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{% endblock %}
"""


def main() -> None:
    """Run folders named on the command line -> table and statements on the screen, compare.html and compare.csv."""
    parser = argparse.ArgumentParser(
        prog="python -m report.compare",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of train.py")
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="where the results go (runs/compare)")
    parser.add_argument("--metric", default="test/top1_frac", help="score in result.json (test/top1_frac)")
    options = parser.parse_args()
    try:
        runs, left_out = load_runs([RunFolder(run) for run in options.runs], metric=options.metric)
        check_same_images(runs)
        groups, repeated = group_runs(runs, metric=options.metric)
        paths = write_comparison(groups, metric=options.metric, left_out=left_out + repeated, out=Path(options.out))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(text_table(groups, metric=options.metric))
    for line in [*state_all(groups, metric=options.metric), *(f"left out: {line}" for line in left_out + repeated)]:
        print(line)
    print("\n".join(str(path) for path in paths))


def write_comparison(groups: Sequence[Group], *, metric: str, left_out: Sequence[str], out: Path) -> tuple[Path, Path]:
    """Writes compare.html and compare.csv; gives their paths.

    Args:
        groups: Best first.
        metric: Key of result.json that their values are of.
        left_out: Lines on the runs that are not in a group.
        out: Folder; it is made.

    Raises:
        OSError: They cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    html, table = out / "compare.html", out / "compare.csv"
    replace_file(html, render_comparison(groups, metric=metric, left_out=left_out).encode(errors="replace"))
    replace_file(table, csv_table(groups, metric=metric).encode(errors="replace"))
    return html, table


def render_comparison(groups: Sequence[Group], *, metric: str, left_out: Sequence[str]) -> str:
    """The page as HTML."""
    rows = [[group.letter, group.name, *_numbers(group, metric=metric)] for group in groups]
    columns = [("", "mark"), ("group", "name"), ("n", "number"), (f"mean of {title_of(metric)}", "number")]
    columns += [("standard deviation", "number"), ("seeds", "name"), ("minutes", "number")]
    runs = [
        [group.letter, str(run.path), str(run.seed), show(run.value, metric=metric)]
        for group in groups
        for run in group.runs
    ]
    return render(
        _PAGE,
        title=f"{len(groups)} group{'s' * (len(groups) > 1)} of runs by {metric}",
        groups=Table(columns, rows),
        statements=state_all(groups, metric=metric),
        notes=notes_on(groups, metric=metric),
        pictures=_pictures(groups, metric=metric),
        runs=Table([("", "mark"), ("run", "name"), ("seed", "number"), (title_of(metric), "number")], runs),
        left_out=list(left_out),
    )


def text_table(groups: Sequence[Group], *, metric: str) -> str:
    """The groups, in columns for a terminal."""
    rows = [["", "n", title_of(metric), "std", "seeds", "minutes", "group"]]
    for group in groups:
        rows.append([group.letter, *_numbers(group, metric=metric), group.name])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def csv_table(groups: Sequence[Group], *, metric: str) -> str:
    """The groups as CSV with a heading, in full precision; lists within a cell are separated by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["letter", "group", "metric", "n", "mean", "std", "minutes", "seeds", "values", "runs"])
    for group in groups:
        lists = ([str(run.seed) for run in group.runs], map(repr, group.values), [str(run.path) for run in group.runs])
        numbers = [len(group.runs), group.mean, "" if group.std is None else group.std, group.minutes]
        writer.writerow([group.letter, group.name, metric, *numbers, *(" ".join(values) for values in lists)])
    return text.getvalue()


def _pictures(groups: Sequence[Group], *, metric: str) -> list[Picture]:
    pictures = [embed_figure(draw_values(groups, metric=metric), alt=f"{metric} of every run")]
    for key in _CURVES:
        figure = draw_overlay(groups, key=key)
        if figure is not None:
            pictures.append(embed_figure(figure, alt=f"{key} over the epochs, by group"))
    return pictures


def _numbers(group: Group, *, metric: str) -> list[str]:
    """n, mean, standard deviation, seeds, minutes."""
    std = "-" if group.std is None else show(group.std, metric=metric)
    seeds = " ".join(str(run.seed) for run in group.runs)
    return [str(len(group.runs)), show(group.mean, metric=metric), std, seeds, f"{group.minutes:.1f}"]


if __name__ == "__main__":
    main()
