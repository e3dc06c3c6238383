"""The two inner loops of the CPU, compiled by numba: shift and flip, and normalise. They leave the GIL free.

Their references are `pipelines.geometry.shift_and_flip` and the torch lines of `pipelines.tail`; against
those, per image of 32 x 32 x 3 on one core of an AMD EPYC: normalise 6.1 -> 0.25 us (torch 2.14.1, numba 0.68.1,
2026-11-20).

Legend of shape letters: N results, M images, S height and width, C channels, R rows, P values of a row.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Pixels = npt.NDArray[np.uint8]


def _compile(function: _Function) -> _Function:
    try:
        return cast(_Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder can be written to keep the machine code: compile at each start (1 s)
        return cast(_Function, numba.njit(nogil=True)(function))


@_compile
def shift_and_flip_rows(
    images_MSSC: _Pixels,
    rows_N: npt.NDArray[np.int64],
    shifts_N2: npt.NDArray[np.int64],
    flips_N: npt.NDArray[np.bool_],
    out_NSSC: _Pixels,
) -> None:
    """Writes rows of `images_MSSC`, shifted (border by reflection), then flipped left-right, into `out_NSSC`."""
    for n in range(len(rows_N)):
        _shift_and_flip(images_MSSC[rows_N[n]], shifts_N2[n, 0], shifts_N2[n, 1], flips_N[n], out_NSSC[n])


@_compile
def shift_and_flip_image(image_SSC: _Pixels, down: int, right: int, flip: bool, out_SSC: _Pixels) -> None:
    """The same for one image, of any strides."""
    _shift_and_flip(image_SSC, down, right, flip, out_SSC)


@_compile
def normalise_rows(
    values_RP: _Pixels,
    scale_P: npt.NDArray[np.float32],
    offset_P: npt.NDArray[np.float32],
    out_RP: npt.NDArray[np.float32],
) -> None:
    """Writes values * scale + offset into `out_RP`."""
    for r in range(len(values_RP)):
        values, out = values_RP[r], out_RP[r]
        for p in range(len(scale_P)):
            out[p] = np.float32(values[p]) * scale_P[p] + offset_P[p]


@_compile
def _shift_and_flip(image: _Pixels, down: int, right: int, flip: bool, out: _Pixels) -> None:
    size, _, channels = out.shape
    first, last = max(0, -right), min(size, size - right)  # columns that need no reflection
    for y in range(size):
        source_y = abs(y + down)
        if source_y >= size:
            source_y = 2 * (size - 1) - source_y
        source, target = image[source_y], out[y]
        for x in range(size):
            if first <= x < last:
                source_x = x + right
            else:
                source_x = abs(x + right)
                if source_x >= size:
                    source_x = 2 * (size - 1) - source_x
            target_x = size - 1 - x if flip else x
            if channels == 3:  # unrolled: half the time of a loop
                target[target_x, 0] = source[source_x, 0]
                target[target_x, 1] = source[source_x, 1]
                target[target_x, 2] = source[source_x, 2]
            else:
                for c in range(channels):
                    target[target_x, c] = source[source_x, c]
