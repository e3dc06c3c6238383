"""What all pictures share: figures without pyplot, text that any font can write, PNG bytes.

names -> TextStyle -> draw_* -> Figure -> png_of -> bytes
"""

import functools
import io
import warnings
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager, get_font

BLUE, ORANGE, GREEN = "tab:blue", "tab:orange", "tab:green"
_DPI = 150
_FONT = "DejaVu Sans"  # comes with matplotlib
_MISSING = "\N{WHITE SQUARE}"


def new_figure(*, width_inch: float, height_inch: float) -> Figure:
    """An empty figure: not pyplot's, so nothing is global and no window opens."""
    return Figure(figsize=(width_inch, height_inch), layout="constrained")


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    content = io.BytesIO()
    with warnings.catch_warnings():  # scripts that matplotlib cannot shape are drawn as well as it can
        warnings.filterwarnings("ignore", message="Glyph .* missing from|Matplotlib currently does not support")
        figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def short_name(name: str, *, limit: int = 24) -> str:
    """A name as a label in a picture: one line, at most `limit` letters, a square for each that no font here has."""
    words = " ".join(name.split())
    written = "".join(letter if _family_with(letter) else _MISSING for letter in words)
    return written if len(written) <= limit else written[: limit - 1] + "…"


def text_style(names: Iterable[str]) -> dict[str, Any]:
    """Arguments of matplotlib's text: `$` is a dollar, and fonts that have the names' letters."""
    letters = sorted({letter for name in names for letter in name})
    families = [_family_with(letter) for letter in letters]
    return {"parse_math": False, "fontfamily": list(dict.fromkeys([_FONT, *(one for one in families if one)]))}


@functools.cache
def _family_with(letter: str) -> str | None:
    """A font that has the letter: matplotlib's own, or the first on this machine; None if none has."""
    if not letter.isprintable():
        return None
    if ord(letter) in _letters_of(fontManager.findfont(_FONT)):
        return _FONT
    return next((font.name for font in _other_fonts() if ord(letter) in _letters_of(font.fname)), None)


@functools.cache
def _other_fonts() -> list[FontEntry]:
    usable = [
        font
        for font in fontManager.ttflist
        if font.style == "normal" and not any(word in font.name for word in ("Emoji", "Last Resort"))
    ]
    return sorted(usable, key=lambda font: (font.name, font.fname))


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that cannot be opened
        return frozenset()
