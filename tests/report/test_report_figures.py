"""Text in pictures: any name can be drawn, and a picture without pyplot is a PNG."""

import io
import warnings

import pytest
from PIL import Image

from report.figures import new_figure, png_of, short_name, text_style

NAMES = [
    "<b>&\"'",
    "$x^2$",
    "$5 or $6",
    "\\alpha",
    "猫",
    "кошка",
    "\U0001f9ff",
    "tab\there\nnew",
    "\udcff",
    "_hidden",
    "שלום",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_drawn_without_a_warning(name):
    figure = new_figure(width_inch=2, height_inch=1)
    label = short_name(name)
    figure.text(0.1, 0.5, label, **text_style([label]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(io.BytesIO(png_of(figure))) as image:
            assert image.format == "PNG"
            assert image.size == (300, 150)
            darkest, lightest = image.convert("L").getextrema()
            assert darkest < 128 < lightest, "nothing is drawn"


def test_dollars_are_no_formulas():
    def pixels(text, **style):
        figure = new_figure(width_inch=2, height_inch=1)
        figure.text(0.1, 0.5, text, **style)
        return png_of(figure)

    assert pixels("$x$", **text_style(["$x$"])) != pixels("$x$")
    assert pixels("plain", **text_style(["plain"])) == pixels("plain")


def test_names_are_cut_and_put_on_one_line():
    assert short_name("a" * 24) == "a" * 24
    assert short_name("a" * 25) == "a" * 23 + "…"
    assert short_name("one\n two\t three") == "one two three"
    assert short_name("abcdef", limit=4) == "abc…"


def test_letters_that_no_font_has_become_squares():
    assert short_name("a\U00010fffb") == "a□b"
