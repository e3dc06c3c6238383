"""JPEGs with restart markers: the part under a window, cut out as a small JPEG, without decoding anything.

    row of MCUs |  segment  |  segment  |  segment  |  segment  |      scan: segments, a marker RST0..7 between two
                              ^^^^^^^^ window ^^^^^^^                 small JPEG: header of its own size, then the
                                                                     segments under the window, markers counted anew

A marker starts the code anew (ITU-T T.81, E.1.4), so segments can be left out. Where each of them begins is looked up
once, by `find_segments`, and kept; decoding then costs what the window holds, not what the image holds. Pixels are
those of the whole image to the bit, as long as one pixel around the window is decoded with it: libjpeg makes colours
of pixels out of those of their neighbours (fancy upsampling).

Legend of shape letters: L segments, B bytes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.jpeg_window import Window
from pipelines.kernels import compiled

_Bytes = npt.NDArray[np.uint8]

_SOF0, _SOF1, _SOS, _DRI = 0xC0, 0xC1, 0xDA, 0xDD
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # what lies between is DHT, JPG, DAC
_LONGEST = 2**16 - 1  # bytes of a segment, for its length is kept in 16 bits
_LEAST_WIDTH_PX = 5  # of a part: with two columns of colours or less, libjpeg makes those of pixels otherwise
_MOST_AREA_FRAC = 0.8  # of an image; a larger window gains nothing (two cores of an Intel Xeon: break-even at 0.9)


class Segments(NamedTuple):
    """Where the segments of a JPEG lie.

    frame: the byte at which its frame header (SOF) holds the height. scan: the byte where the first segment begins.
    per_row: segments in a row of MCUs. mcu_height_px, segment_width_px: what an MCU, and what a segment, cover.
    lengths_L: uint16 (L,), bytes of each, without the two of the marker behind it.
    """

    frame: int
    scan: int
    per_row: int
    mcu_height_px: int
    segment_width_px: int
    lengths_L: npt.NDArray[np.uint16]


class Cut(NamedTuple):
    """Which segments hold a window and one pixel around it.

    rows, columns: first and stop, in rows of MCUs and in segments of a row. start, stop: the bytes of the file where
    those rows lie. top, left, height, width: what the small JPEG shows of the image, in pixels.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    start: int
    stop: int
    top: int
    left: int
    height: int
    width: int


class _Frame(NamedTuple):
    place: int
    height: int
    width: int
    mcu_height_px: int
    mcu_width_px: int


def find_segments(encoded: bytes | memoryview) -> Segments | None:
    """The segments of a JPEG; None of one that cannot be cut.

    It can where it is sequential, has one scan, and its restart interval divides the rows of MCUs.
    """
    markers = _markers(encoded)
    frame, scan, interval = _frame(encoded, markers), markers.get(_SOS), markers.get(_DRI)
    if frame is None or scan is None or interval is None:
        return None
    num_mcus = int.from_bytes(encoded[interval + 4 : interval + 6])
    per_line = -(-frame.width // frame.mcu_width_px)
    if num_mcus == 0 or per_line % num_mcus or not _is_only_scan(encoded, frame, scan):
        return None
    per_row = per_line // num_mcus
    num_rows = -(-frame.height // frame.mcu_height_px)
    first = scan + 2 + int.from_bytes(encoded[scan + 2 : scan + 4])
    lengths_L = np.empty(num_rows * per_row, dtype=np.int64)
    if not _measure_segments(np.frombuffer(encoded, dtype=np.uint8), first, lengths_L) or lengths_L.max() > _LONGEST:
        return None
    return Segments(
        frame=frame.place + 5,
        scan=first,
        per_row=per_row,
        mcu_height_px=frame.mcu_height_px,
        segment_width_px=num_mcus * frame.mcu_width_px,
        lengths_L=lengths_L.astype(np.uint16),
    )


def plan_cut(segments: Segments, window: Window, *, height: int, width: int, scale: int = 1) -> Cut | None:
    """Which segments hold a window; None where it is most of the image.

    Args:
        segments: Those of the image.
        window: The part that is wanted.
        height: Height of the image in pixels.
        width: Its width.
        scale: By what it will be made smaller while it is decoded (`pipelines.decode.scale_of`).
    """
    top, left, window_height, window_width = window
    if window_height * window_width > _MOST_AREA_FRAC * height * width:
        return None
    around_px = 2 * scale - 1  # a pixel of the smaller image, beyond the window rounded outward to such pixels
    tall_px, wide_px, per_row = segments.mcu_height_px, segments.segment_width_px, segments.per_row
    first_row, stop_row = (
        max(top - around_px, 0) // tall_px,
        -(-min(top + window_height + around_px, height) // tall_px),
    )
    first, stop = max(left - around_px, 0) // wide_px, -(-min(left + window_width + around_px, width) // wide_px)
    if first > 0 and min(stop * wide_px, width) - first * wide_px < _LEAST_WIDTH_PX * scale:
        first -= 1
    start = segments.scan + _num_bytes(segments.lengths_L[: first_row * per_row])
    part_top, part_left = first_row * tall_px, first * wide_px
    return Cut(
        rows=(first_row, stop_row),
        columns=(first, stop),
        start=start,
        stop=start + _num_bytes(segments.lengths_L[first_row * per_row : stop_row * per_row]),
        top=part_top,
        left=part_left,
        height=min(stop_row * tall_px, height) - part_top,
        width=min(stop * wide_px, width) - part_left,
    )


def splice(encoded: memoryview, segments: Segments, cut: Cut, *, room: _Bytes) -> memoryview:
    """The small JPEG that shows what `cut` says.

    Args:
        encoded: The bytes of the file; only the header, up to `segments.scan`, and those of `cut` need be there.
        segments: What `find_segments` found in them.
        cut: What is wanted.
        room: uint8 (B,), at least as many bytes as the file has; the small JPEG lies there.
    """
    assert len(encoded) >= cut.stop  # the loops do not look
    assert len(room) >= len(encoded)
    num_bytes = _splice(
        np.frombuffer(encoded, dtype=np.uint8),
        segments.scan,
        segments.lengths_L,
        segments.per_row,
        cut.rows[0],
        cut.rows[1],
        cut.columns[0],
        cut.columns[1],
        cut.start,
        room,
    )
    spliced = room[:num_bytes].data
    spliced[segments.frame : segments.frame + 4] = cut.height.to_bytes(2) + cut.width.to_bytes(2)
    return spliced


def _num_bytes(lengths_L: npt.NDArray[np.uint16]) -> int:
    """Of segments, each with the marker behind it."""
    return int(np.add.reduce(lengths_L, dtype=np.int64)) + 2 * len(lengths_L)


def _markers(encoded: bytes | memoryview) -> dict[int, int]:
    """Where each kind of marker of the header stands, the last of its kind, up to the first scan."""
    found: dict[int, int] = {}
    place = 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        found[marker] = place
        if marker == _SOS:
            return found
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
    return {}


def _frame(encoded: bytes | memoryview, markers: dict[int, int]) -> _Frame | None:
    """The frame header of a sequential JPEG, Huffman coded, of 8 bits."""
    frames = _FRAMES & set(markers)
    if not frames or not frames <= {_SOF0, _SOF1}:
        return None
    place = markers[frames.pop()]
    body = bytes(encoded[place : place + 2 + int.from_bytes(encoded[place + 2 : place + 4])])
    if len(body) < 13 or body[4] != 8 or body[9] not in (1, 3):
        return None
    height, width, count = int.from_bytes(body[5:7]), int.from_bytes(body[7:9]), body[9]
    factors = [divmod(body[11 + 3 * component], 16) for component in range(count)]
    most_wide, most_tall = (max(factor[i] for factor in factors) for i in (0, 1))
    if count == 1:  # its scan has a block in each MCU, whatever its factors say
        most_wide = most_tall = 1
    return _Frame(place, height, width, 8 * most_tall, 8 * most_wide)


def _is_only_scan(encoded: bytes | memoryview, frame: _Frame, scan: int) -> bool:
    """Whether the first scan holds all components."""
    return encoded[scan + 4] == encoded[frame.place + 9]


@compiled
def _measure_segments(encoded: _Bytes, first: int, lengths: npt.NDArray[np.int64]) -> bool:
    """Fills `lengths`; False where markers are missing, out of turn, or not followed by the end of the image."""
    start, count = first, 0
    place = first
    while place + 1 < len(encoded):
        if encoded[place] != 0xFF or encoded[place + 1] == 0:
            place += 1
            continue
        marker = encoded[place + 1]
        if count == len(lengths):
            return False
        lengths[count] = place - start
        count += 1
        if marker == 0xD9:
            return count == len(lengths)
        if marker != 0xD0 + (count - 1) % 8:
            return False
        place += 2
        start = place
    return False


@compiled
def _splice(
    encoded: _Bytes,
    scan: int,
    lengths: npt.NDArray[np.uint16],
    per_row: int,
    first_row: int,
    stop_row: int,
    first: int,
    stop: int,
    start: int,
    out: _Bytes,
) -> np.int64:
    """Header, then segments, markers counted anew, then the end; how many bytes. Rows begin at byte `start`."""
    out[:scan] = encoded[:scan]
    to, place, count = np.int64(scan), np.int64(start), 0
    for row in range(first_row, stop_row):
        for column in range(per_row):
            length = np.int64(lengths[row * per_row + column])
            if first <= column < stop:
                out[to : to + length] = encoded[place : place + length]
                out[to + length] = 0xFF
                out[to + length + 1] = 0xD0 + count % 8
                to += length + 2
                count += 1
            place += length + 2
    out[to - 1] = 0xD9  # the end of the image instead of the last marker
    return to
