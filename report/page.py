"""A run on one page: `python -m report.page RUN [RUN ...]` writes report.html into each run folder.

run folder -> material -> parts: verdict, hints, curves, samples, classes, configuration -> template -> report.html
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import yaml

from engine.record import RunFolder, replace_file
from report.curves import draw_curves
from report.parts import (
    Guard,
    build_bad,
    build_classes,
    build_commands,
    build_curves,
    build_environment,
    build_epochs,
    build_hints,
    build_samples,
    build_schedule,
    build_settings,
    build_summary,
    read_material,
)
from report.sheet import render
from report.summary import verdict

_PAGE = """{% extends "frame" %}
{% import "macros" as macros %}
{% block body %}
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for problem in problems %}
<p class="problem">{{ problem }}</p>
{% endfor %}
{% for hint in hints or [] %}
<div class="hint">
<p><strong>{{ hint.finding }}</strong> {{ hint.advice }}</p>
<p class="rule">Rule: {{ hint.rule }}.</p>
</div>
{% endfor %}
{% if curves or schedule %}
<h2>{{ "Curves" if curves else "Schedule" }}</h2>
<div class="charts">
{% for picture in curves %}{{ macros.chart(picture) }}{% endfor %}
{% if schedule %}{{ macros.chart(schedule) }}{% endif %}
</div>
{% endif %}
{% if curves %}
<p class="soft">Train is measured while training, on images varied at random and by a network that still changes; val
after each epoch, on images as they are. So val may lie above train.</p>
{% endif %}
{% if tiles %}
<h2>Training images as the network sees them</h2>
<div class="tiles">
{% for tile, source in tiles %}
<figure><figcaption>{{ tile.label }}</figcaption>
<img src="{{ source }}" class="{{ 'small' if tile.is_small else 'large' }}" alt="training image: {{ tile.label }}"
width="{{ tile.width_px }}" height="{{ tile.height_px }}"></figure>
{% endfor %}
</div>
{% endif %}
{% for part in splits %}
{% if loop.first %}
<h2>Classes on {{ part.split }}</h2>
{{ classes(part) }}
{% else %}
<details><summary>Classes on {{ part.split }}</summary>
{{ classes(part) }}
</details>
{% endif %}
{% endfor %}
{% if epochs %}
<h2>Epochs</h2>
<details><summary>{{ epochs.rows|length }} epochs as numbers</summary>
{{ macros.table(epochs) }}
</details>
{% endif %}
{% if bad %}
<h2>Files that could not be read</h2>
{{ macros.table(bad) }}
{% if num_bad > bad.rows|length %}
<p>and {{ num_bad - bad.rows|length }} more lines in bad_samples.jsonl</p>
{% endif %}
{% endif %}
{% if config_text %}
<h2>Configuration</h2>
{% if settings %}{{ macros.table(settings) }}{% endif %}
<details><summary>every option</summary><pre>{{ config_text }}</pre></details>
{% endif %}
{% if environment %}
<h2>Environment</h2>
<details><summary>{{ machine }}</summary>
{{ macros.table(environment) }}
</details>
{% endif %}
{% if commands %}
<h2>Repeat it</h2>
{% for words, command in commands %}
<p>{{ words }}</p>
<pre>{{ command }}</pre>
{% endfor %}
{% endif %}
{% endblock %}
{% macro classes(part) %}
{% if part.confusion %}
<p>Confusion matrix: rows are what an image is, columns what it was taken for; numbers are counts.</p>
{{ macros.chart(part.confusion) }}
{% endif %}
{% if part.pairs %}
<p>Most confused:</p>
{{ macros.table(part.pairs) }}
{% endif %}
<p>Accuracy of each class, worst first
{%- if part.confusion %}; lines are 95 % intervals (Wilson), numbers in brackets are images. Classes whose lines overlap
widely may not differ at all{% endif %}.</p>
{{ macros.chart(part.bars) }}
<details><summary>as numbers</summary>
{{ macros.table(part.scores) }}
</details>
{% endmacro %}
"""


def main() -> None:
    """Run folders named on the command line -> their pages."""
    parser = argparse.ArgumentParser(
        prog="python -m report.page",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of train.py")
    folders = [RunFolder(run) for run in parser.parse_args().runs]
    for folder in folders:
        if not folder.holds_anything():
            parser.error(f"{folder.path} is not a run folder: it holds nothing that train.py writes.")
    for folder in folders:
        try:
            print(write_page(folder))
        except OSError as error:
            parser.exit(1, f"{parser.prog}: error: {folder.path / 'report.html'} cannot be written: {error}\n")


def draw_run(folder: RunFolder, say: Callable[[str], None]) -> str:
    """Draws curves.png and report.html, and gives the page's path; a fault there must not make a training fail.

    Args:
        folder: The run folder.
        say: Told of a fault; the command that tries again is then given in place of the path.
    """
    try:
        if folder.read_metrics():
            draw_curves(folder)
        return str(write_page(folder))
    except Exception as error:
        say(f"the report could not be drawn ({type(error).__name__}: {error})")
        return f"python -m report.page {folder.path}"


def write_page(folder: RunFolder) -> Path:
    """Writes report.html, one file with everything in it; gives its path.

    Raises:
        OSError: It cannot be written.
    """
    path = folder.path / "report.html"
    replace_file(path, render_page(folder).encode(errors="replace"))  # file names need not be valid text
    return path


def render_page(folder: RunFolder) -> str:
    """The page as HTML; what is missing is left out, and what is broken is named."""
    guard = Guard()
    material = read_material(folder, guard=guard)
    summary = guard.attempt(lambda: build_summary(material), name="the summary")
    values = {
        "title": _title(folder.path.resolve(), is_dry=bool(material.config.get("dry_run"))),
        "verdict": verdict(summary) if summary else "its numbers could not be read",
        "hints": guard.attempt(lambda: build_hints(material, summary=summary), name="hints") if summary else [],
        "curves": build_curves(material, guard=guard),
        "schedule": guard.attempt(lambda: build_schedule(material), name="the schedule"),
        "tiles": guard.attempt(lambda: build_samples(material), name="samples"),
        "splits": build_classes(material, guard=guard),
        "epochs": guard.attempt(lambda: build_epochs(material), name="the table of epochs"),
        "bad": guard.attempt(lambda: build_bad(material), name="files that could not be read"),
        "num_bad": len(material.bad),
        "settings": guard.attempt(lambda: build_settings(material), name="options"),
        "config_text": yaml.safe_dump(material.config, sort_keys=False, allow_unicode=True) if material.config else "",
        "machine": material.environment.get("machine", "versions and machine"),
        "environment": guard.attempt(lambda: build_environment(material), name="the environment"),
        "commands": guard.attempt(lambda: build_commands(material), name="the commands"),
    }
    return render(_PAGE, problems=guard.problems, **values)


def _title(path: Path, *, is_dry: bool) -> str:
    """The run's name; a dry run lies in a folder inside that of its run."""
    return f"{path.parent.name}: dry run" if is_dry else path.name


if __name__ == "__main__":
    main()
