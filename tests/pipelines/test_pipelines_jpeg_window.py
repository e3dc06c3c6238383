"""A window of a JPEG equals the same part of the whole image, to the bit, or is left to whoever decodes it whole."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from pipelines import jpeg_window
from pipelines.decode import decode_jpeg
from pipelines.jpeg_window import JpegWindowDecoder, Window
from pipelines.source import cut

Pixels = npt.NDArray[np.uint8]

pytestmark = pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of nvImageCodec for this system")

KINDS: list[dict[str, Any]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "restart_marker_blocks": 3},
    {"subsampling": 0, "restart_marker_rows": 1},
    {"subsampling": 2, "optimize": True, "quality": 30},
    {"keep_rgb": True},
]


def make_noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(pixels: Pixels, *, mode: str = "RGB", **options: Any) -> memoryview:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **{"quality": 90, **options})
    return memoryview(file.getvalue())


def draw_windows(height: int, width: int, *, count: int) -> list[Window]:
    """Those that touch an edge, and others."""
    rng = np.random.default_rng(0)
    windows: list[Window] = [(0, 0, 1, 2), (height - 1, width - 2, 1, 2), (0, 0, height, 2), (0, 0, 1, width)]
    for _ in range(count):
        window_height, window_width = int(rng.integers(1, height + 1)), int(rng.integers(2, width + 1))
        top, left = (int(rng.integers(0, size + 1)) for size in (height - window_height, width - window_width))
        windows.append((top, left, window_height, window_width))
    return windows


def check_windows(encoded: memoryview, *, channels: int, count: int = 80) -> None:
    whole = decode_jpeg(encoded, channels=channels, orientation=1)
    height, width = whole.shape[:2]
    decoder, num_decoded = JpegWindowDecoder(), 0
    for window in draw_windows(height, width, count=count):
        part = decoder.decode(encoded, window, height=height, width=width, channels=channels)
        if part is None:
            assert window[2:] == (height, width), window
            continue
        num_decoded += 1
        np.testing.assert_array_equal(part, cut(whole, window), err_msg=str(window))
    assert num_decoded > count // 2


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("size", [(97, 131), (64, 64), (17, 33), (5, 9), (200, 18)])
def test_a_window_is_that_part_of_the_whole_image(options: dict[str, Any], size: tuple[int, int]) -> None:
    check_windows(encode(make_noise(*size), **options), channels=3)


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings_too(subsampling: str) -> None:
    for size in [(97, 131), (17, 33)]:
        encoded = simplejpeg.encode_jpeg(make_noise(*size), colorsubsampling=subsampling)
        check_windows(memoryview(encoded), channels=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_as_one_channel_or_three(channels: int) -> None:
    check_windows(encode(make_noise(97, 131), mode="L"), channels=channels)


def decode(encoded: memoryview, window: Window = (10, 20, 30, 40), **changes: int) -> Pixels | None:
    arguments = {"height": 97, "width": 131, "channels": 3, **changes}
    return JpegWindowDecoder().decode(encoded, window, **arguments)


def test_what_must_be_cut_from_the_whole_image_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(make_noise(97, 131))
    assert decode(encoded) is not None
    assert decode(encoded, (0, 0, 97, 131)) is None, "nothing to save"
    assert decode(encoded, (10, 0, 30, 1)) is None, "one column comes out otherwise"
    assert decode(encode(make_noise(97, 131), progressive=True)) is None, "its blocks may be smoothed by neighbours"
    assert decode(encoded, height=98) is None, "another size than the index says"
    assert decode(encoded, channels=1) is None, "Pillow's grey rounds otherwise than libjpeg's"
    monkeypatch.setattr(jpeg_window, "nvimgcodec", None)
    assert decode(encoded) is None, "not installed"


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_bytes_that_are_no_jpeg_are_left_to_the_decoder_of_whole_images(content: bytes) -> None:
    assert decode(memoryview(content)) is None


def test_a_torn_file_is_left_to_the_decoder_of_whole_images() -> None:
    encoded = encode(make_noise(97, 131))
    assert decode(encoded[: len(encoded) // 2], (80, 20, 17, 40)) is None


def test_pixels_are_valid_until_the_next_call_in_memory_that_is_used_again() -> None:
    decoder, encoded = JpegWindowDecoder(), encode(make_noise(97, 131))
    first = decoder.decode(encoded, (0, 0, 90, 90), height=97, width=131, channels=3)
    second = decoder.decode(encoded, (5, 5, 20, 20), height=97, width=131, channels=3)
    assert first is not None
    assert second is not None
    assert np.shares_memory(first, second)


def test_one_giant_window_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_window, "_MOST_KEPT", 3 * 20 * 20)
    decoder, encoded = JpegWindowDecoder(), encode(make_noise(97, 131))

    def read(size: int) -> Pixels:
        pixels = decoder.decode(encoded, (0, 0, size, size), height=97, width=131, channels=3)
        assert pixels is not None
        return pixels

    kept, giant = read(20), read(90)
    assert not np.shares_memory(kept, giant)
    assert np.shares_memory(kept, read(10))


def test_threads_with_a_decoder_each_do_not_disturb_each_other() -> None:
    images = [(encode(pixels), pixels.shape[:2]) for pixels in (make_noise(97 + n, 131 - n) for n in range(8))]

    def read_often(number: int) -> int:
        decoder, rng, (encoded, (height, width)) = JpegWindowDecoder(), np.random.default_rng(number), images[number]
        whole = decode_jpeg(encoded, channels=3, orientation=1)
        for _ in range(100):
            window = (int(rng.integers(0, 40)), int(rng.integers(0, 40)), int(rng.integers(1, 50)), 60)
            part = decoder.decode(encoded, window, height=height, width=width, channels=3)
            assert part is not None
            np.testing.assert_array_equal(part, cut(whole, window))
        return 100

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert sum(pool.map(read_often, range(8))) == 800
