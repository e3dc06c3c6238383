"""What our pages share: one HTML file with everything in it, for wide and narrow, light and dark screens and paper.

pictures -> data URLs -> render(template, ...) -> HTML; all text is escaped, because class names are folder names.
"""

import base64
from typing import Any, NamedTuple

from jinja2 import DictLoader, Environment, StrictUndefined
from matplotlib.figure import Figure

from report.figures import png_of

_CSS_PX_PER_INCH = 96
_WIDE_PX = 560  # pictures wider than this keep a readable width on a phone, and are pushed sideways

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #1b1b1b; --soft: #666; --line: #ddd; --paper: #fff; --shade: #f5f5f3; --mark: #1f77b4; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p, ul { margin: .4rem 0; }
.verdict { font-size: 1.1rem; border-left: .3rem solid var(--mark); padding-left: .8rem; margin: .8rem 0; }
.soft, .rule { color: var(--soft); font-size: .85rem; }
.hint { background: var(--shade); border-radius: .4rem; padding: .6rem .9rem; margin: .5rem 0; }
.hint p { margin: .1rem 0; }
.problem { border: 1px solid #c33; border-radius: .4rem; padding: .5rem .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .8rem;
  align-items: start; }
.chart { max-width: 100%; overflow-x: auto; }
.chart img { display: block; max-width: 100%; height: auto; }
.chart.wide img { min-width: min(44rem, 100vw * 1.7); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .7rem; align-items: end; }
.tiles figure { margin: 0; }
.tiles figcaption { font-size: .8rem; line-height: 1.25; margin-bottom: .2rem; overflow-wrap: anywhere; }
.tiles img { display: block; width: 100%; height: auto; }
.tiles img.small { image-rendering: pixelated; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 7rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
pre { background: var(--shade); border-radius: .4rem; padding: .6rem .9rem; overflow-x: auto; font-size: .85rem; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e2; --soft: #a3a3a0; --line: #3a3a3a; --paper: #171717; --shade: #242424; --mark: #6cb2e4; }
  .chart img { filter: invert(.91) hue-rotate(180deg); }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  .chart, .tiles figure, tr, .hint { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; }
}
</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""

_MACROS = """
{% macro chart(picture) %}
<div class="chart{{ ' wide' if picture.is_wide }}">
<img src="{{ picture.source }}" width="{{ picture.width_px }}" height="{{ picture.height_px }}" alt="{{ picture.alt }}">
</div>
{% endmacro %}
{% macro table(content) %}
<div class="table">
<table>
<thead><tr>{% for name, kind in content.columns %}<th class="{{ kind }}">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in content.rows %}
<tr>{% for value in row %}<td class="{{ content.columns[loop.index0][1] }}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
"""


class Picture(NamedTuple):
    """A picture with its bytes inside `source`, a data URL, and what it shows in words."""

    source: str
    alt: str
    width_px: int
    height_px: int

    @property
    def is_wide(self) -> bool:
        """Whether it would be unreadable at the width of a phone."""
        return self.width_px > _WIDE_PX


class Table(NamedTuple):
    """Headings, each with `name` (text that may wrap), `number` or `mark` (a letter); and the rows."""

    columns: list[tuple[str, str]]
    rows: list[list[str]]


def embed_figure(figure: Figure, *, alt: str) -> Picture:
    """A figure as a picture for a page."""
    width_inch, height_inch = figure.get_size_inches()
    source = data_url(png_of(figure), media_type="image/png")
    return Picture(source, alt, round(width_inch * _CSS_PX_PER_INCH), round(height_inch * _CSS_PX_PER_INCH))


def data_url(content: bytes, *, media_type: str) -> str:
    """A file as a URL that holds all of it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def render(template: str, **values: Any) -> str:
    """A page from a template that extends `frame` and may import `macros`; every value is escaped.

    Args:
        template: In Jinja's language.
        values: What it names; `title` among them.
    """
    templates = {"frame": _FRAME, "macros": _MACROS, "page": template}
    environment = Environment(
        loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page").render(**values)
