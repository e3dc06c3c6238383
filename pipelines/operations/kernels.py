"""Operations on a CPU: one call per image, compiled by numba, the GIL left free. Whoever calls it gets the same pixels.

image (S, S, C), in place: slot 0 -> slot 1 -> ... -> slot K-1, each by a table of 256 values per channel (point
operations), pixel by pixel (colour), or from a copy (affine, blur, sharpness)

Their meaning is that of reference.py (torchvision v2), from which they differ by at most 1 of 255: single pixels of
affine, hue and blur; all of an image, rarely, of contrast at large factors, for which torchvision rounds the mean grey
otherwise.

Microseconds per image of 224 x 224 x 3, here and by torchvision's tensors: affine 260 and 490 (here translation and
shear along x 50), a table 31 and 100, saturation 55 and 200, sharpness 87 and 2,400, hue 86 and 2,100, blur 350 and
7,900 (one core of an Intel Xeon, numba 0.68.1, torchvision 0.29.2, 2026-11-26). OpenCV and albumentations took 256, 35,
52, 114, 165 and 720, with pixels that differ more.

Legend of shape letters: N rows, S height and width, C channels, K operations, P = 6 parameters.
"""

import numpy as np
import numpy.typing as npt

from pipelines.kernels import compiled
from pipelines.operations.vocabulary import NUM_PARAMETERS, Operation, Operations, blur_radius
from pipelines.plan import Plan

_Pixels = npt.NDArray[np.uint8]
_Fixed = np.int64  # a place, in units of 2^-32 pixels

_AFFINE = int(Operation.AFFINE)
_BRIGHTNESS = int(Operation.BRIGHTNESS)
_CONTRAST = int(Operation.CONTRAST)
_SATURATION = int(Operation.SATURATION)
_HUE = int(Operation.HUE)
_RGB_SHIFT = int(Operation.RGB_SHIFT)
_GRAYSCALE = int(Operation.GRAYSCALE)
_GAUSSIAN_BLUR = int(Operation.GAUSSIAN_BLUR)
_POSTERIZE = int(Operation.POSTERIZE)
_SOLARIZE = int(Operation.SOLARIZE)
_EQUALIZE = int(Operation.EQUALIZE)
_AUTOCONTRAST = int(Operation.AUTOCONTRAST)
_SHARPNESS = int(Operation.SHARPNESS)
_INVERT = int(Operation.INVERT)

_ZERO, _ONE, _MOST = np.float32(0), np.float32(1), np.float32(255)
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_FRACTION_BITS = 16  # of a place between two pixels
_UNIT = np.uint64(1 << _FRACTION_BITS)
_HALF = np.uint64(1 << (2 * _FRACTION_BITS - 1))
_BLUR_SIGMAS = 4  # beyond, a Gaussian's weights sum up to 0.00006


def operate(image_SSC: _Pixels, *, plan: Plan, row: int) -> None:
    """`pipelines.execution.Operate`: what row `row` of the plan says, done to `image_SSC` in place."""
    assert image_SSC.flags.c_contiguous
    operations = plan.operations
    if operations is not None:
        _operate(image_SSC, operations.codes_NK[row], operations.values_NKP[row], blur_radius(len(image_SSC)))


def compile_operate() -> None:
    """Compiles what `operate` calls, or reads it from disk where an earlier run has compiled it.

    10 s, later 0.2 s (Intel Xeon, both cores busy with other work, numba 0.68.1, 2026-11-26).
    """
    _operate(np.zeros((2, 2, 3), np.uint8), np.zeros(1, np.int8), np.zeros((1, NUM_PARAMETERS)), 1)


def operate_rows(images_NSSC: _Pixels, operations: Operations) -> None:
    """The same for a batch, uint8 (N, S, S, C), contiguous, in place."""
    assert images_NSSC.flags.c_contiguous
    assert len(images_NSSC) == len(operations.codes_NK)  # the loops do not look
    _operate_rows(images_NSSC, operations.codes_NK, operations.values_NKP, blur_radius(images_NSSC.shape[1]))


@compiled
def _operate_rows(images: _Pixels, codes: npt.NDArray[np.int8], values: npt.NDArray[np.float64], radius: int) -> None:
    for n in range(len(images)):
        _operate(images[n], codes[n], values[n], radius)


@compiled
def _operate(image: _Pixels, codes: npt.NDArray[np.int8], values: npt.NDArray[np.float64], radius: int) -> None:
    for k in range(len(codes)):
        code, value = codes[k], values[k]
        if code == _AFFINE:
            _affine(image.copy(), value, image)
        elif code == _GAUSSIAN_BLUR:
            _blur(image, value[0], radius)
        elif code == _SHARPNESS:
            _sharpness(image.copy(), value[0], image)
        elif code == _SATURATION:
            _saturation(image, value[0])
        elif code == _GRAYSCALE:
            _saturation(image, 0.0)
        elif code == _HUE:
            _hue(image, value[0])
        elif code != 0:
            _look_up(image, _table(image, code, value))


# --- point operations: a table per channel, uint8 (C, 256)


@compiled
def _look_up(image: _Pixels, table: _Pixels) -> None:
    flat = image.reshape(-1)
    if image.shape[2] == 1:
        for i in range(len(flat)):
            flat[i] = table[0, flat[i]]
        return
    for pixel in range(len(flat) // 3):
        for c in range(3):
            place = np.uint64(3 * pixel + c)
            flat[place] = table[c, flat[place]]


@compiled
def _table(image: _Pixels, code: int, value: npt.NDArray[np.float64]) -> _Pixels:
    channels = image.shape[2]
    if code == _EQUALIZE:
        return _equalizing_table(image)
    if code == _AUTOCONTRAST:
        return _stretching_table(image)
    table = np.empty((channels, 256), dtype=np.uint8)
    if code == _CONTRAST:
        _fill_blend(table, value[0], _mean_grey(image))
    elif code == _BRIGHTNESS:
        _fill_blend(table, value[0], np.float32(0))
    else:
        for c in range(channels):
            for v in range(256):
                table[c, v] = _point(v, code, value[c] if code == _RGB_SHIFT else value[0])
    return table


@compiled
def _point(v: int, code: int, value: float) -> int:
    if code == _INVERT:
        return 255 - v
    if code == _SOLARIZE:
        return 255 - v if v >= value else v
    if code == _POSTERIZE:
        return v & (256 - (1 << (8 - int(value))))
    if code == _RGB_SHIFT:
        return min(max(v + int(value), 0), 255)
    return v


@compiled
def _fill_blend(table: _Pixels, factor: float, other: np.float32) -> None:
    """Factor times the value plus the rest times `other`, cut off to whole numbers."""
    rest = np.float32(1 - factor) * other
    for v in range(256):
        table[:, v] = np.uint8(min(max(np.float32(v) * np.float32(factor) + rest, _ZERO), _MOST))


@compiled
def _grey(red: int, green: int, blue: int) -> np.float32:
    """Cut off to a whole number."""
    grey = np.float32(red) * _RED + np.float32(green) * _GREEN + np.float32(blue) * _BLUE
    return np.float32(np.int32(grey))


@compiled
def _mean_grey(image: _Pixels) -> np.float32:
    flat = image.reshape(-1)
    total = np.int64(0)
    if image.shape[2] == 1:
        for v in flat:
            total += np.int64(v)
        return np.float32(total / len(flat))
    for pixel in range(len(flat) // 3):
        r = np.uint64(3 * pixel)
        total += np.int64(_grey(flat[r], flat[r + np.uint64(1)], flat[r + np.uint64(2)]))
    return np.float32(total / (len(flat) // 3))


@compiled
def _histogram(image: _Pixels) -> npt.NDArray[np.int64]:
    counts = np.zeros((image.shape[2], 256), dtype=np.int64)
    flat = image.reshape(-1)
    if image.shape[2] == 1:
        for v in flat:
            counts[0, v] += 1
        return counts
    for pixel in range(len(flat) // 3):
        for c in range(3):
            counts[c, flat[np.uint64(3 * pixel + c)]] += 1
    return counts


@compiled
def _equalizing_table(image: _Pixels) -> _Pixels:
    """As Pillow's: the number of darker pixels over a 255th of all but those of the brightest value."""
    counts = _histogram(image)
    table = np.empty(counts.shape, dtype=np.uint8)
    num_pixels = image.shape[0] * image.shape[1]
    for c in range(len(counts)):
        brightest = 255
        while counts[c, brightest] == 0:
            brightest -= 1
        step = (num_pixels - counts[c, brightest]) // 255
        darker = 0
        for v in range(256):
            table[c, v] = v if step == 0 else min((darker + step // 2) // step, 255)
            darker += counts[c, v]
    return table


@compiled
def _stretching_table(image: _Pixels) -> _Pixels:
    counts = _histogram(image)
    table = np.empty(counts.shape, dtype=np.uint8)
    for c in range(len(counts)):
        low, high = 0, 255
        while counts[c, low] == 0:
            low += 1
        while counts[c, high] == 0:
            high -= 1
        scale = np.float32(high - low) * np.float32(1 / 255)
        if low == high:
            low, scale = 0, _ONE
        for v in range(256):
            table[c, v] = np.uint8(min(max(np.float32(v - low) / scale, _ZERO), _MOST))
    return table


# --- colour: pixel by pixel


@compiled
def _saturation(image: _Pixels, factor: float) -> None:
    if image.shape[2] != 3:
        return
    flat = image.reshape(-1)
    own, rest = np.float32(factor), np.float64(np.float32(1 - factor))
    for pixel in range(len(flat) // 3):
        r = np.uint64(3 * pixel)
        g, b = r + np.uint64(1), r + np.uint64(2)
        other = np.float64(_grey(flat[r], flat[g], flat[b])) * rest
        flat[r] = np.uint8(min(max(_rounded_once(flat[r] * own, other), _ZERO), _MOST))
        flat[g] = np.uint8(min(max(_rounded_once(flat[g] * own, other), _ZERO), _MOST))
        flat[b] = np.uint8(min(max(_rounded_once(flat[b] * own, other), _ZERO), _MOST))


@compiled
def _rounded_once(product: np.float32, other: np.float64) -> np.float32:
    """Their sum, where torch adds and multiplies in one step; products of float32 are exact in float64."""
    return np.float32(np.float64(product) + other)


@compiled
def _hue(image: _Pixels, shift: float) -> None:
    """To hue, saturation, value and back, in float32 on the scale 0 to 1."""
    if image.shape[2] != 3:
        return
    flat = image.reshape(-1)
    to_one, turn = np.float32(1 / 255), np.float32(shift)
    for pixel in range(len(flat) // 3):
        r = np.uint64(3 * pixel)
        g, b = r + np.uint64(1), r + np.uint64(2)
        red, green, blue = np.float32(flat[r]) * to_one, np.float32(flat[g]) * to_one, np.float32(flat[b]) * to_one
        most, span = max(red, green, blue), max(red, green, blue) - min(red, green, blue)
        divisor = span if span > _ZERO else _ONE
        if most == red:
            sixths = (green - blue) / divisor
        elif most == green:
            sixths = np.float32(2) + (blue - red) / divisor
        else:
            sixths = np.float32(4) + (red - green) / divisor
        hue = sixths * np.float32(1 / 6) + turn
        sixths = (hue - np.floor(hue)) * np.float32(6)
        flat[r] = _channel_of_hue(sixths + np.float32(5), most, span)
        flat[g] = _channel_of_hue(sixths + np.float32(3), most, span)
        flat[b] = _channel_of_hue(sixths + _ONE, most, span)


@compiled
def _channel_of_hue(sixths: np.float32, most: np.float32, span: np.float32) -> np.uint8:
    place = sixths - np.float32(6) if sixths >= np.float32(6) else sixths
    part = max(_ZERO, min(_ONE, min(place, np.float32(4) - place)))
    return np.uint8((most - span * part) * np.float32(255.999))


# --- neighbourhoods: from a copy


@compiled
def _affine(image: _Pixels, value: npt.NDArray[np.float64], out: _Pixels) -> None:
    """See `vocabulary.affine_matrices`, of which this is the case of one row; in whole numbers of 2^-16 pixels."""
    size, _, channels = out.shape
    angle, shear_x, shear_y = np.radians(value[0]), np.radians(value[4]), np.radians(value[5])
    a, c = np.cos(angle - shear_y) / np.cos(shear_y), np.sin(angle - shear_y) / np.cos(shear_y)
    b, d = -(a * np.tan(shear_x) + np.sin(angle)), np.cos(angle) - c * np.tan(shear_x)
    a, b, c, d = d / value[3], -b / value[3], -c / value[3], a / value[3]
    centre = (size - 1) / 2
    unit = float(1 << 32)
    step_x, step_y = np.int64(np.rint(a * unit)), np.int64(np.rint(c * unit))
    source, target = image.reshape(-1), out.reshape(-1)
    is_along_rows = step_x == np.int64(1 << 32) and step_y == 0  # translation, shear along x
    for y in range(size):
        down = y - centre - value[2]
        at_x = np.int64(np.rint((centre + b * down - a * (centre + value[1])) * unit))
        at_y = np.int64(np.rint((centre + d * down - c * (centre + value[1])) * unit))
        if is_along_rows:
            _sample_row(image, at_x, at_y, source, target, y)
            continue
        for x in range(size):
            place = np.uint64((y * size + x) * channels)
            left, top = at_x >> 32, at_y >> 32
            if left >= 0 and top >= 0 and left < size - 1 and top < size - 1:
                _sample(source, np.uint64((top * size + left) * channels), size, channels, at_x, at_y, target, place)
            elif left < -1 or top < -1 or left >= size or top >= size:
                _blacken(target, place, place + np.uint64(channels))
            else:
                _sample_at_border(image, top, left, at_x, at_y, target, place)
            at_x += step_x
            at_y += step_y


@compiled
def _sample_row(image: _Pixels, at_x: _Fixed, at_y: _Fixed, source: _Pixels, target: _Pixels, y: int) -> None:
    """Row `y` where its pixels come from pixels one apart: the weights are those of its first, and loops are simple."""
    size, _, channels = image.shape
    left, top = at_x >> 32, at_y >> 32
    row = np.uint64(y * size * channels)
    if top < -1 or top >= size:
        _blacken(target, row, row + np.uint64(size * channels))
        return
    first = min(max(0, -left), size)  # the pixels that have all four neighbours are `first` to before `last`
    last = max(first, min(size, size - 1 - left)) if 0 <= top < size - 1 else first
    weights, whole = _weights(at_x, at_y), np.float32(_UNIT * _UNIT)
    own, right = np.float32(weights[0]) / whole, np.float32(weights[1]) / whole
    below, both = np.float32(weights[2]) / whole, np.float32(weights[3]) / whole
    start, to = np.uint64((top * size + left + first) * channels), np.uint64((y * size + first) * channels)
    beside, next_row = np.uint64(channels), np.uint64(size * channels)
    for value in range((last - first) * channels):
        upper = start + np.uint64(value)
        lower = upper + next_row
        total = own * source[upper] + right * source[upper + beside]
        total += below * source[lower] + both * source[lower + beside]
        target[to + np.uint64(value)] = np.uint8(total + np.float32(0.5))
    begin = max(first - 1, 0)  # pixels before this one, and from `end` on, have no neighbour at all
    end = min(max(size - left, 0), size)
    _blacken(target, row, row + np.uint64(begin * channels))
    for x in range(begin, first):
        _sample_at_border(image, top, left + x, at_x, at_y, target, row + np.uint64(x * channels))
    for x in range(last, end):
        _sample_at_border(image, top, left + x, at_x, at_y, target, row + np.uint64(x * channels))
    _blacken(target, row + np.uint64(max(end, begin) * channels), row + np.uint64(size * channels))


@compiled
def _blacken(target: _Pixels, start: np.uint64, stop: np.uint64) -> None:
    for offset in range(np.int64(stop) - np.int64(start)):
        target[start + np.uint64(offset)] = 0


@compiled
def _sample(
    source: _Pixels,
    pixel: np.uint64,
    size: int,
    channels: int,
    at_x: _Fixed,
    at_y: _Fixed,
    target: _Pixels,
    place: np.uint64,
) -> None:
    """The value between `pixel` and its neighbours to the right, below, and both."""
    own, right, below, both = _weights(at_x, at_y)
    beside, next_row = np.uint64(channels), np.uint64(size * channels)
    for c in range(3 if channels == 3 else 1):  # a number that numba knows, so that it unrolls the loop
        upper, to = pixel + np.uint64(c), place + np.uint64(c)
        lower = upper + next_row
        total = own * source[upper] + right * source[upper + beside]
        total += below * source[lower] + both * source[lower + beside]
        target[to] = np.uint8((total + _HALF) >> np.uint64(2 * _FRACTION_BITS))


@compiled
def _sample_at_border(
    image: _Pixels, top: _Fixed, left: _Fixed, at_x: _Fixed, at_y: _Fixed, target: _Pixels, place: np.uint64
) -> None:
    """The same where some of the neighbours, or all, lie outside: they are black."""
    own, right, below, both = _weights(at_x, at_y)
    for c in range(image.shape[2]):
        total = own * _or_black(image, top, left, c) + right * _or_black(image, top, left + 1, c)
        total += below * _or_black(image, top + 1, left, c) + both * _or_black(image, top + 1, left + 1, c)
        target[place + np.uint64(c)] = np.uint8((total + _HALF) >> np.uint64(2 * _FRACTION_BITS))


@compiled
def _weights(at_x: _Fixed, at_y: _Fixed) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Of a pixel and of its neighbours to the right, below, and both, for a place."""
    part_x = np.uint64((at_x >> (32 - _FRACTION_BITS)) & ((1 << _FRACTION_BITS) - 1))
    part_y = np.uint64((at_y >> (32 - _FRACTION_BITS)) & ((1 << _FRACTION_BITS) - 1))
    both = part_x * part_y
    right, below = part_x * _UNIT - both, part_y * _UNIT - both
    return _UNIT * _UNIT - both - right - below, right, below, both


@compiled
def _or_black(image: _Pixels, y: _Fixed, x: _Fixed, c: int) -> np.uint64:
    inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
    return np.uint64(image[y, x, c]) if inside else np.uint64(0)


@compiled
def _sharpness(image: _Pixels, factor: float, out: _Pixels) -> None:
    """A blend with the mean of the neighbourhood in which the pixel itself counts five times; the border stays."""
    size, _, channels = image.shape
    source, target = image.reshape(-1), out.reshape(-1)
    rest, thirteenth = np.float32(1 - factor), np.float32(1 / 13)
    row, side = np.uint64(size * channels), np.uint64(channels)
    for y in range(1, size - 1):
        first = np.uint64((y * size + 1) * channels)
        for value in range((size - 2) * channels):
            i = first + np.uint64(value)
            above, below = i - row, i + row
            total = np.int32(source[above - side]) + np.int32(source[above]) + np.int32(source[above + side])
            total += np.int32(source[i - side]) + 5 * np.int32(source[i]) + np.int32(source[i + side])
            total += np.int32(source[below - side]) + np.int32(source[below]) + np.int32(source[below + side])
            smooth = np.float32(np.int32(np.float32(total) * thirteenth + np.float32(0.5)))
            own = np.float32(source[i])
            target[i] = np.uint8(min(max(own + rest * (smooth - own), _ZERO), _MOST))


@compiled
def _blur(image: _Pixels, sigma: float, radius: int) -> None:
    """Columns, then rows, in float32; rounded once."""
    size, _, channels = image.shape
    radius = min(radius, int(np.ceil(_BLUR_SIGMAS * sigma)))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    across = np.empty((size, size * channels), dtype=np.float32)
    padded = np.empty((size + 2 * radius) * channels, dtype=np.float32)
    for y in range(size):
        for x in range(-radius, size + radius):
            for c in range(channels):
                padded[(x + radius) * channels + c] = image[y, _reflected(x, size), c]
        _weighted_sum(padded, weights, channels, across[y])
    total = np.empty(size * channels, dtype=np.float32)
    for y in range(size):
        total[:] = np.float32(0.5)
        for k in range(len(weights)):
            line, weight = across[_reflected(y + k - radius, size)], np.float32(weights[k])
            for i in range(len(total)):
                total[i] += weight * line[i]
        target = image[y].reshape(-1)
        for i in range(len(total)):
            target[i] = np.uint8(total[i])


@compiled
def _weighted_sum(
    padded: npt.NDArray[np.float32], weights: npt.NDArray[np.float64], step: int, out: npt.NDArray[np.float32]
) -> None:
    out[:] = _ZERO
    for k in range(len(weights)):
        weight, start = np.float32(weights[k]), k * step
        line = padded[start : start + len(out)]
        for i in range(len(out)):
            out[i] += weight * line[i]


@compiled
def _reflected(place: int, size: int) -> int:
    place = abs(place)
    return place if place < size else 2 * (size - 1) - place
