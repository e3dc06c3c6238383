"""Segments of a JPEG cut out and decoded: the pixels of the whole image, to the bit."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from pipelines.decode import decode_jpeg, scaled_window
from pipelines.jpeg_segments import Places, Segments, find_segments, plan_cut, read_at, read_parts, splice

NUM_CROPS = 10_000
NUM_IMAGES = 500
MOST_PX = 600
KINDS = ("L", "4:4:4", "4:2:2", "4:2:0")

ROOM = np.empty(4 * 2**20, dtype=np.uint8)


def picture(rng: np.random.Generator, *, height: int, width: int, channels: int) -> npt.NDArray[np.uint8]:
    """Edges, gradients and noise of strong colours, so that a wrong neighbour shows."""
    y, x = np.mgrid[:height, :width]
    base = 127 + 120 * np.sin(
        (y * rng.uniform(0.01, 0.9) + x * rng.uniform(0.01, 0.9))[..., None] + np.arange(channels)
    )
    noisy = base + rng.normal(0, rng.uniform(0, 60), (height, width, channels))
    return noisy.clip(0, 255).astype(np.uint8)


def encode(pixels: npt.NDArray[np.uint8], *, kind: str, blocks: int, **options: Any) -> bytes:
    if kind != "L":
        options["subsampling"] = kind
    file = io.BytesIO()
    ImageFile.MAXBLOCK = 2**22
    Image.fromarray(pixels[..., 0] if kind == "L" else pixels).save(
        file, "JPEG", quality=90, restart_marker_blocks=blocks, **options
    )
    return file.getvalue()


def blocks_of(rng: np.random.Generator, *, width: int, kind: str) -> int:
    """A restart interval that divides the row, any."""
    per_row = -(-width // (8 if kind in ("L", "4:4:4") else 16))
    return int(rng.choice([count for count in range(1, per_row + 1) if per_row % count == 0]))


def any_window(rng: np.random.Generator, *, height: int, width: int) -> tuple[int, int, int, int]:
    tall, wide = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1)), tall, wide


def decode_window(
    encoded: bytes, segments: Segments, window: tuple[int, int, int, int], *, size: tuple[int, int], scale: int = 1
) -> npt.NDArray[np.uint8] | None:
    """By splicing; None where that says that the window is most of the image."""
    cut = plan_cut(segments, window, height=size[0], width=size[1], scale=scale)
    if cut is None:
        return None
    only = np.zeros(len(encoded), dtype=np.uint8)  # what it need not know is not there
    source = np.frombuffer(encoded, dtype=np.uint8)
    only[: segments.scan] = source[: segments.scan]
    only[cut.start : cut.stop] = source[cut.start : cut.stop]
    spliced = splice(only.data, segments, cut, room=ROOM)
    channels = 1 if encoded[segments.frame + 4] == 1 else 3
    pixels = decode_jpeg(spliced, channels=channels, orientation=1, scale=scale)
    if scale == 1:
        assert pixels.shape[:2] == (cut.height, cut.width)
    top, left, height, width = scaled_window((window[0] - cut.top, window[1] - cut.left, *window[2:]), scale)
    return pixels[top : top + height, left : left + width]


def test_ten_thousand_windows_are_those_of_the_whole_image_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    num_cut = num_seen = 0
    for number in range(NUM_IMAGES):
        kind = KINDS[number % len(KINDS)]
        height, width = (int(value) for value in rng.integers(1, MOST_PX + 1, 2))
        if number < 8:
            height, width = ((1, 1), (MOST_PX, MOST_PX))[number // 4]
        pixels = picture(rng, height=height, width=width, channels=1 if kind == "L" else 3)
        encoded = encode(pixels, kind=kind, blocks=blocks_of(rng, width=width, kind=kind), optimize=bool(number % 3))
        whole = decode_jpeg(encoded, channels=pixels.shape[2], orientation=1)
        segments = find_segments(encoded)
        assert segments is not None
        for _ in range(NUM_CROPS // NUM_IMAGES):
            top, left, tall, wide = window = any_window(rng, height=height, width=width)
            num_seen += 1
            part = decode_window(encoded, segments, window, size=(height, width))
            if part is not None:
                num_cut += 1
                assert np.array_equal(part, whole[top : top + tall, left : left + wide]), (kind, height, width, window)
    assert num_seen == NUM_CROPS
    assert num_cut > 0.8 * NUM_CROPS


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_made_smaller_while_it_is_decoded_a_window_is_that_of_the_whole_image_made_smaller(scale: int) -> None:
    rng = np.random.default_rng(scale)
    num_cut = 0
    for number in range(40):
        kind = KINDS[number % len(KINDS)]
        height, width = (int(value) for value in rng.integers(20, MOST_PX, 2))
        pixels = picture(rng, height=height, width=width, channels=1 if kind == "L" else 3)
        encoded = encode(pixels, kind=kind, blocks=blocks_of(rng, width=width, kind=kind))
        segments = find_segments(encoded)
        assert segments is not None
        whole = decode_jpeg(encoded, channels=pixels.shape[2], orientation=1, scale=scale)
        assert whole.shape[:2] == (-(-height // scale), -(-width // scale))
        for _ in range(10):
            window = any_window(rng, height=height, width=width)
            part = decode_window(encoded, segments, window, size=(height, width), scale=scale)
            if part is not None:
                num_cut += 1
                top, left, tall, wide = scaled_window(window, scale)
                assert np.array_equal(part, whole[top : top + tall, left : left + wide]), (kind, height, width, window)
    assert num_cut > 200


def test_a_window_costs_no_more_bytes_than_it_needs() -> None:
    encoded = encode(picture(np.random.default_rng(0), height=512, width=512, channels=3), kind="4:2:0", blocks=2)
    segments = find_segments(encoded)
    assert segments is not None
    assert (segments.per_row, segments.mcu_height_px, segments.segment_width_px) == (16, 16, 32)
    assert len(segments.lengths_L) == 32 * 16
    cut = plan_cut(segments, (100, 200, 50, 60), height=512, width=512)
    assert cut is not None
    assert (cut.top, cut.left, cut.height, cut.width) == (96, 192, 64, 96), "one pixel around it, then to the segments"
    small = splice(memoryview(encoded), segments, cut, room=ROOM)
    assert len(small) < segments.scan + 0.05 * (len(encoded) - segments.scan)
    at_the_end = plan_cut(segments, (500, 500, 12, 12), height=512, width=512)
    assert at_the_end is not None
    assert (at_the_end.top, at_the_end.left, at_the_end.height, at_the_end.width) == (496, 480, 16, 32)
    assert at_the_end.stop == len(encoded), "the end of the image stands where a marker would"
    assert plan_cut(segments, (0, 0, 512, 500), height=512, width=512) is None, "most of the image: nothing to gain"


@pytest.mark.parametrize(
    ("options", "blocks"),
    [({}, 0), ({"progressive": True}, 2), ({}, 3)],
    ids=["no_markers", "progressive", "not_a_divisor_of_the_row"],
)
def test_a_jpeg_that_cannot_be_cut_is_known(options: dict[str, Any], blocks: int) -> None:
    pixels = picture(np.random.default_rng(0), height=128, width=128, channels=3)
    assert find_segments(encode(pixels, kind="4:2:0", blocks=blocks, **options)) is None


def test_bytes_that_are_broken_or_cut_short_have_no_segments() -> None:
    pixels = picture(np.random.default_rng(0), height=128, width=128, channels=3)
    encoded = encode(pixels, kind="4:2:0", blocks=2)
    assert find_segments(encoded) is not None
    for length in [0, 1, 2, 3, 4, 10, 160, 400, 620, 700, len(encoded) - 2, len(encoded) - 1]:
        assert find_segments(encoded[:length]) is None, length
    marker = encoded.index(b"\xff\xd1")
    assert find_segments(encoded[: marker + 1] + b"\xd2" + encoded[marker + 2 :]) is None, "a marker out of turn"
    assert find_segments(encoded[:marker] + encoded[marker + 2 :]) is None, "a marker is missing"


def test_many_read_at_once_are_those_read_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    encoded, windows, sizes, scales = [], [], [], []
    for number in range(40):
        kind = KINDS[number % len(KINDS)]
        height, width = (int(value) for value in rng.integers(30, 400, 2))
        pixels = picture(rng, height=height, width=width, channels=1 if kind == "L" else 3)
        encoded.append(encode(pixels, kind=kind, blocks=blocks_of(rng, width=width, kind=kind)))
        windows.append(any_window(rng, height=height, width=width))
        sizes.append((height, width))
        scales.append(int(rng.choice([1, 1, 2, 4, 8])))
    paths = [tmp_path / name for name in "ab"]
    for path, some in zip(paths, (encoded[:20], encoded[20:]), strict=True):
        path.write_bytes(b"something before" + b"".join(some))
    found = [find_segments(each) for each in encoded]
    segments = [each for each in found if each is not None]
    assert len(segments) == 40
    num_bytes = np.array([len(each) for each in encoded])
    lengths = [len(each.lengths_L) for each in segments]
    cuts_N5 = np.array([each[:5] for each in segments], dtype=np.int32)
    cuts_N5[7] = 0
    with open(paths[0], "rb") as first, open(paths[1], "rb") as second:
        offsets_N = np.concatenate(
            [16 + np.cumsum(np.append(0, part[:-1])) for part in (num_bytes[:20], num_bytes[20:])]
        )
        offsets_N[33] = 10**9
        spliced = read_parts(
            Places(
                files_N=np.repeat([first.fileno(), second.fileno()], 20),
                offsets_N=offsets_N,
                num_bytes_N=num_bytes,
                sizes_N2=np.array(sizes, dtype=np.int32),
                cuts_N5=cuts_N5,
                starts_N=np.cumsum([0, *lengths[:-1]]),
                lengths_L=np.concatenate([each.lengths_L for each in segments]),
            ),
            np.array(windows),
            np.array(scales),
            file_room=np.empty(num_bytes.max(), dtype=np.uint8),
            room=np.empty(num_bytes.sum(), dtype=np.uint8),
        )
    num_cut = 0
    for number, (place, length, *shows) in enumerate(spliced.places_N6.tolist()):
        height, width = sizes[number]
        cut = plan_cut(segments[number], windows[number], height=height, width=width, scale=scales[number])
        if cut is None or number in (7, 33):
            assert length == 0, "most of the image, not to be cut, or not there to be read"
            continue
        num_cut += 1
        alone = splice(memoryview(encoded[number]), segments[number], cut, room=ROOM)
        assert bytes(alone) == spliced.encoded[place : place + length].tobytes()
        assert shows == [cut.top, cut.left, cut.height, cut.width]
    assert num_cut > 25


def test_bytes_of_a_file_are_read_where_they_are_wanted_and_failure_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    room = np.full(50, 255, dtype=np.uint8)
    with open(path, "rb") as file:
        assert read_at(file.fileno(), 30, 20, room, 10)
        assert room.tolist() == [255] * 10 + list(range(30, 50)) + [255] * 20
        assert file.tell() == 0
        assert not read_at(file.fileno(), 190, 20, room, 0), "the file ends before"
    assert not read_at(-1, 0, 1, room, 0), "no such file"
