"""A preview as one picture: a row per training image, its pixels enlarged whole, what was drawn in small letters below.

Preview -> cells (image, lines) -> Figure -> PNG bytes

Legend of shape letters: C channels, S height and width of an image, H and W of what is shown.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from configs.schema import InputSpec
from pipelines.build import Preview, Shown
from report.figures import png_of, short_name, text_style

_DPI = 150  # of report.figures.png_of: so that a pixel of a cell is a pixel of the file
_UNIT_PX = 75  # half an inch: sides of the picture are whole multiples, which no rounding changes
_CELL_PX, _MOST_CELL_PX = 240, 400  # about how large an image is shown, and the most
_GAP_PX, _TITLE_PX, _LINE_PX, _LETTER_PX = 20, 60, 18, 8
_FONT_PT = 6.5
_MOST_LETTERS = 300  # of a line, before it is wrapped


class Cell(NamedTuple):
    """An image, uint8 (S, S, C), and the lines below it."""

    image_HWC: npt.NDArray[np.uint8]
    lines: list[str]


def draw_preview(preview: Preview, spec: InputSpec, *, title: str) -> bytes:
    """The picture as a PNG file.

    Args:
        preview: What to draw.
        spec: mean and std, by which the network's pixels were normalised, and the usual size.
        title: The line above.
    """
    assert spec.size_px is not None, "build_data leaves no field open"
    rows = [cells_of(shown, spec) for shown in preview.shown]
    cell_px = side_of_cells(spec.size_px)
    num_letters = cell_px // _LETTER_PX
    texts = [["\n".join(_wrap(cell.lines, num_letters=num_letters)) for cell in row] for row in rows]
    heights_px = [cell_px + _LINE_PX * (1 + max(text.count("\n") + 1 for text in row)) for row in texts]
    width_px = _whole_units(max(len(row) for row in rows) * (cell_px + _GAP_PX) + _GAP_PX)
    height_px = _whole_units(_TITLE_PX + sum(heights_px) + _GAP_PX)
    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI)
    style = text_style([title, *(text.replace("\n", "") for row in texts for text in row)])
    down_px = _TITLE_PX
    figure.text(
        _GAP_PX / width_px, 1 - _GAP_PX / height_px, short_name(title, limit=200), va="top", fontsize=9, **style
    )
    for row, row_texts, row_px in zip(rows, texts, heights_px, strict=True):
        for place, (cell, text) in enumerate(zip(row, row_texts, strict=True)):
            right_px = _GAP_PX + place * (cell_px + _GAP_PX)
            image_HWC = enlarge(cell.image_HWC, cell_px=cell_px)
            figure.figimage(image_HWC, xo=right_px, yo=height_px - down_px - cell_px)
            x, y = right_px / width_px, 1 - (down_px + cell_px + _LINE_PX / 4) / height_px
            figure.text(x, y, text, va="top", fontsize=_FONT_PT, linespacing=1.2, **style)
        down_px += row_px
    return png_of(figure)


def cells_of(shown: Shown, spec: InputSpec) -> list[Cell]:
    """A row of the picture: the image as evaluation shows it, then its samples, each with its words."""
    name = Path(shown.name).name
    first = Cell(shown.original_HWC, [f"{shown.sample_id}: {shown.class_name}", name, "as in evaluation"])
    return [first] + [
        Cell(as_bytes(sample.pixels_CHW, spec), [f"epoch {sample.epoch}", *(drawn.words for drawn in sample.drawn)])
        for sample in shown.samples
    ]


def as_bytes(pixels_CHW: Tensor, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """What the network sees, back on the scale of stored images: uint8 (S, S, C), cut off at 0 and 255."""
    pixels_HWC = pixels_CHW.permute(1, 2, 0).double().numpy()
    values: npt.NDArray[np.float64] = (pixels_HWC * np.array(spec.std) + np.array(spec.mean)) * 255
    return values.round().clip(0, 255).astype(np.uint8)


def side_of_cells(size_px: int) -> int:
    """How many pixels of the picture an image of `size_px` takes: a whole multiple, or 320 of a large one."""
    side_px = size_px * max(1, round(_CELL_PX / size_px))
    return side_px if side_px <= _MOST_CELL_PX else 320


def enlarge(image_HWC: npt.NDArray[np.uint8], *, cell_px: int) -> npt.NDArray[np.uint8]:
    """uint8 (cell_px, cell_px, 3): each pixel as a square of whole ones, white around; a large image made smaller."""
    image_HW3 = np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC
    side_px = len(image_HW3)
    if side_px > cell_px:
        return np.asarray(Image.fromarray(image_HW3).resize((cell_px, cell_px), Image.Resampling.BOX))
    times = cell_px // side_px
    squares = image_HW3.repeat(times, axis=0).repeat(times, axis=1)
    before = (cell_px - len(squares)) // 2
    around = (before, cell_px - len(squares) - before)
    return np.pad(squares, (around, around, (0, 0)), constant_values=255)


def _wrap(lines: Sequence[str], *, num_letters: int) -> list[str]:
    shown = [short_name(line, limit=_MOST_LETTERS) for line in lines]
    return [part for line in shown for part in textwrap.wrap(line, num_letters, subsequent_indent="  ") or [""]]


def _whole_units(length_px: int) -> int:
    return -(-length_px // _UNIT_PX) * _UNIT_PX
