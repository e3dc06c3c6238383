"""Inner loops of the CPU, compiled by numba: shift and flip, normalise, copy. They leave the GIL free.

The short ones (`compiled_short`) keep it.

Their references are `pipelines.geometry.shift_and_flip` and the torch lines of `pipelines.tail`; against
those, per image of 32 x 32 x 3 on one core of an AMD EPYC: normalise 6.1 -> 0.25 us (torch 2.14.1, numba 0.68.1,
2026-11-20).

Legend of shape letters: N results, M images (or some results), S height and width, C channels, R rows, P values of a
row.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Pixels = npt.NDArray[np.uint8]


def compiled(function: _Function) -> _Function:
    """The function as machine code that leaves the GIL free; compiled at its first call, and kept on disk."""
    try:
        return cast(_Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder can be written to keep the machine code: compile at each start (1 s)
        return cast(_Function, numba.njit(nogil=True)(function))


def compiled_short(function: _Function) -> _Function:
    """The same for what takes a few microseconds: it keeps the GIL, for letting go of it would take longer."""
    try:
        return cast(_Function, numba.njit(cache=True)(function))
    except RuntimeError:  # as above
        return cast(_Function, numba.njit(function))


_fadvise: Any = numba.types.ExternalFunction(  # these two are of the C library, found by name
    "posix_fadvise",
    numba.types.int32(numba.types.int32, numba.types.int64, numba.types.int64, numba.types.int32),
)
pread: Any = (
    numba.types.ExternalFunction(  # of the C library; it is found by its name, so that machine code can be kept
        "pread", numba.types.intp(numba.types.int32, numba.types.voidptr, numba.types.uintp, numba.types.int64)
    )
)


@compiled
def expect_reading(
    files_N: npt.NDArray[np.int64], starts_N: npt.NDArray[np.int64], num_bytes_N: npt.NDArray[np.int64], advice: int
) -> None:
    """Tells the system which parts of files will be read: `advice` is os.POSIX_FADV_WILLNEED."""
    for n in range(len(files_N)):
        _fadvise(np.int32(files_N[n]), starts_N[n], num_bytes_N[n], np.int32(advice))


@compiled_short
def compact_window(
    pixels: _Pixels, width: int, channels: int, top: int, left: int, window_height: int, window_width: int, out: _Pixels
) -> None:
    """Writes a window of an image, both as they lie in memory, row after row; keeps the GIL."""
    for y in range(window_height):
        _copy(pixels, (top + y) * width + left, out, y * window_width, window_width, channels, False)


def shift_and_flip_rows(
    images_MSSC: _Pixels,
    rows_N: npt.NDArray[np.int64],
    shifts_N2: npt.NDArray[np.int64],
    flips_N: npt.NDArray[np.bool_],
    vertical_flips_N: npt.NDArray[np.bool_],
    out_NSSC: _Pixels,
) -> None:
    """Writes rows of `images_MSSC`, shifted (border by reflection), then flipped either way, into `out_NSSC`.

    Both are contiguous; shifts are below S.
    """
    assert images_MSSC.flags.c_contiguous
    assert images_MSSC.shape[1:] == out_NSSC.shape[1:]  # the loops do not look
    _shift_and_flip_rows(images_MSSC, rows_N, shifts_N2, flips_N, vertical_flips_N, out_NSSC)


def shift_and_flip_image(
    image_SSC: _Pixels, down: int, right: int, flip: bool, vertical_flip: bool, out_SSC: _Pixels
) -> None:
    """The same for one image, of any strides."""
    assert image_SSC.shape == out_SSC.shape  # the loops do not look
    _shift_and_flip(np.ascontiguousarray(image_SSC), down, right, flip, vertical_flip, out_SSC)


def flip_image(image_SSC: _Pixels, flip: bool, vertical_flip: bool) -> None:
    """Flips an image in place, left-right, up-down, both or not at all. It keeps the GIL."""
    assert image_SSC.flags.c_contiguous
    if flip or vertical_flip:
        _flip(image_SSC, flip, vertical_flip)


@compiled
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


@compiled
def _shift_and_flip_rows(
    images: _Pixels,
    rows: npt.NDArray[np.int64],
    shifts: npt.NDArray[np.int64],
    flips: npt.NDArray[np.bool_],
    vertical_flips: npt.NDArray[np.bool_],
    out: _Pixels,
) -> None:
    for n in range(len(rows)):
        _shift_and_flip(images[rows[n]], shifts[n, 0], shifts[n, 1], flips[n], vertical_flips[n], out[n])


@compiled
def _shift_and_flip(image: _Pixels, down: int, right: int, flip: bool, vertical_flip: bool, out: _Pixels) -> None:
    size, _, channels = out.shape
    source, target = image.reshape(-1), out.reshape(-1)
    first, last = max(0, -right), min(size, size - right)  # columns that need no reflection
    for y in range(size):
        from_row, to_row = _reflect(y + down, size) * size, (size - 1 - y if vertical_flip else y) * size
        to = to_row + (size - last if flip else first)
        _copy(source, from_row + first + right, target, to, last - first, channels, flip)
        for edge in range(size - (last - first)):
            x = edge if edge < first else last + edge - first
            start, to = from_row + _reflect(x + right, size), to_row + (size - 1 - x if flip else x)
            for c in range(channels):
                target[np.uint64(to * channels + c)] = source[np.uint64(start * channels + c)]


@compiled_short
def _flip(image: _Pixels, flip: bool, vertical_flip: bool) -> None:
    height, width, channels = image.shape
    values, kept = image.reshape(-1), np.empty(2 * width * channels, dtype=np.uint8)
    for y in range(height if not vertical_flip else (height + 1) // 2):
        other = height - 1 - y if vertical_flip else y
        _copy(values, y * width, kept, 0, width, channels, flip)
        if other != y:
            _copy(values, other * width, kept, width, width, channels, flip)
            _copy(kept, width, values, y * width, width, channels, False)
        _copy(kept, 0, values, other * width, width, channels, False)


@compiled
def _reflect(place: int, size: int) -> int:
    place = abs(place)
    return place if place < size else 2 * (size - 1) - place


@compiled
def _copy(source: _Pixels, start: int, target: _Pixels, to: int, count: int, channels: int, flip: bool) -> None:
    """Copies `count` pixels from `start` to the pixels from `to` on, in reverse if `flip`.

    Indices, of 1 and 3 channels, are unsigned and taken modulo 2^64: of any other numba asks whether it is below zero,
    and does not vectorise the loop then. 224 x 224 x 3 flipped: 57 -> 8 us (AMD EPYC, numba 0.68.1, 2026-11-20).
    """
    i, j = np.uint64(start * channels), np.uint64(to * channels)
    if not flip:
        for k in range(count * channels):
            target[j + np.uint64(k)] = source[i + np.uint64(k)]
    elif channels == 1:
        j += np.uint64(count - 1)
        for k in range(count):
            target[j - np.uint64(k)] = source[i + np.uint64(k)]
    elif channels == 3:
        j += np.uint64(3 * (count - 1))
        for k in range(0, 3 * count, 3):
            target[j - np.uint64(k)] = source[i + np.uint64(k)]
            target[j - np.uint64(k - 1)] = source[i + np.uint64(k + 1)]
            target[j - np.uint64(k - 2)] = source[i + np.uint64(k + 2)]
    else:
        for k in range(count):
            for c in range(channels):
                target[(to + count - 1 - k) * channels + c] = source[(start + k) * channels + c]
