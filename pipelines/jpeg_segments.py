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
from pipelines.kernels import compiled, pread

_Bytes = npt.NDArray[np.uint8]

_SOF0, _SOF1, _SOS, _DRI = 0xC0, 0xC1, 0xDA, 0xDD
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # what lies between is DHT, JPG, DAC
_LONGEST = 2**16 - 1  # bytes of a segment, for its length is kept in 16 bits
_LEAST_WIDTH_PX = 5  # of a part: with two columns of colours or less, libjpeg makes those of pixels otherwise
_MOST_AREA_FRAC = 0.95  # of an image; a larger window gains nothing


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
    _, scan, per_row, tall_px, wide_px, lengths_L = segments
    first_row, stop_row, first, stop, start, end = _plan_cut(
        scan, per_row, tall_px, wide_px, lengths_L, *window, height, width, scale
    )
    if stop_row == 0:
        return None
    return Cut(
        rows=(first_row, stop_row),
        columns=(first, stop),
        start=start,
        stop=end,
        top=first_row * tall_px,
        left=first * wide_px,
        height=min(stop_row * tall_px, height) - first_row * tall_px,
        width=min(stop * wide_px, width) - first * wide_px,
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


class Spliced(NamedTuple):
    """Small JPEGs that lie one after the other.

    places_N6: int64 (N, 6), of each the first byte and the number of bytes, and what it shows: top, left, height and
    width, in pixels of the image; zeros of one that could not be made.
    """

    encoded: _Bytes
    places_N6: npt.NDArray[np.int64]


class Places(NamedTuple):
    """Where some JPEGs lie in files, and their segments.

    files_N: int64 (N,), descriptors. offsets_N, num_bytes_N: int64 (N,). sizes_N2: int32 (N, 2), height and width.
    cuts_N5: int32 (N, 5), the fields of `Segments` but the last; a row of zeros is passed over. starts_N: int64 (N,),
    where the lengths of each begin in `lengths_L`, uint16.
    """

    files_N: npt.NDArray[np.int64]
    offsets_N: npt.NDArray[np.int64]
    num_bytes_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    cuts_N5: npt.NDArray[np.int32]
    starts_N: npt.NDArray[np.int64]
    lengths_L: npt.NDArray[np.uint16]


def read_parts(
    places: Places,
    windows_N4: npt.NDArray[np.int64],
    scales_N: npt.NDArray[np.int64],
    *,
    file_room: _Bytes,
    room: _Bytes,
) -> Spliced:
    """Reads and splices for some images what `plan_cut` and `splice` would, the GIL free all the while.

    Where threads share the GIL, letting go of it for each image costs more than what is done meanwhile.

    Args:
        places: The images.
        windows_N4: What is wanted of each.
        scales_N: By what each will be made smaller while it is decoded.
        file_room: As many bytes as the longest file has; it is written to.
        room: As many as all together have; the small JPEGs lie there.
    """
    assert len(file_room) >= places.num_bytes_N.max()
    assert len(room) >= places.num_bytes_N.sum()
    found_N6 = np.zeros((len(windows_N4), 6), dtype=np.int64)
    _read_parts(*places, windows_N4, scales_N, file_room, room, found_N6)
    return Spliced(room, found_N6)


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
def _plan_cut(
    scan: int,
    per_row: int,
    tall_px: int,
    wide_px: int,
    lengths: npt.NDArray[np.uint16],
    top: int,
    left: int,
    window_height: int,
    window_width: int,
    height: int,
    width: int,
    scale: int,
) -> tuple[int, int, int, int, int, int]:
    """First and stop of rows, of columns, of bytes; zeros where the window is most of the image."""
    if window_height * window_width > _MOST_AREA_FRAC * height * width:
        return 0, 0, 0, 0, 0, 0
    around_px = 2 * scale - 1  # a pixel of the smaller image, beyond the window rounded outward to such pixels
    first_row = max(top - around_px, 0) // tall_px
    stop_row = -(-min(top + window_height + around_px, height) // tall_px)
    first = max(left - around_px, 0) // wide_px
    stop = -(-min(left + window_width + around_px, width) // wide_px)
    if first > 0 and min(stop * wide_px, width) - first * wide_px < _LEAST_WIDTH_PX * scale:
        first -= 1
    start = scan
    for k in range(first_row * per_row):
        start += int(lengths[k]) + 2
    end = start
    for k in range(first_row * per_row, stop_row * per_row):
        end += int(lengths[k]) + 2
    return first_row, stop_row, first, stop, start, end


@compiled
def read_at(file: int, start: int, num_bytes: int, room: _Bytes, place: int) -> bool:
    """Fills `num_bytes` of `room`, from `place` on, with those of a file from `start` on; False where that fails.

    It stands here, not among the kernels: numba does not notice that what a function calls has changed in another file.
    """
    filled = 0
    while filled < num_bytes:
        left = num_bytes - filled
        count = pread(np.int32(file), room[place + filled :].ctypes, np.uintp(left), np.int64(start + filled))
        if count <= 0:
            return False
        filled += count
    return True


@compiled
def _read_parts(
    files: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    num_bytes: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
    cuts: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    all_lengths: npt.NDArray[np.uint16],
    windows: npt.NDArray[np.int64],
    scales: npt.NDArray[np.int64],
    file_room: _Bytes,
    room: _Bytes,
    found: npt.NDArray[np.int64],
) -> None:
    place = np.int64(0)
    for n in range(len(files)):
        frame, scan, per_row, tall_px, wide_px = cuts[n]
        if per_row == 0:
            continue
        height, width = int(sizes[n, 0]), int(sizes[n, 1])
        num_rows = -(-height // tall_px)
        lengths = all_lengths[starts[n] : starts[n] + num_rows * per_row]
        top, left, window_height, window_width = windows[n]
        first_row, stop_row, first, stop, start, end = _plan_cut(
            scan, per_row, tall_px, wide_px, lengths, top, left, window_height, window_width, height, width, scales[n]
        )
        if stop_row == 0 or max(scan, end) > num_bytes[n]:  # lengths of another file: who reads it alone says so
            continue
        if not read_at(files[n], offsets[n], scan, file_room, 0):
            continue
        if not read_at(files[n], offsets[n] + start, end - start, file_room, start):
            continue
        spliced = room[place : place + num_bytes[n]]
        length = _splice(file_room, scan, lengths, per_row, first_row, stop_row, first, stop, start, spliced)
        part_height = min(stop_row * tall_px, height) - first_row * tall_px
        part_width = min(stop * wide_px, width) - first * wide_px
        spliced[frame], spliced[frame + 1] = part_height >> 8, part_height & 255
        spliced[frame + 2], spliced[frame + 3] = part_width >> 8, part_width & 255
        found[n, 0], found[n, 1] = place, length
        found[n, 2], found[n, 3] = first_row * tall_px, first * wide_px
        found[n, 4], found[n, 5] = part_height, part_width
        place += length


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
