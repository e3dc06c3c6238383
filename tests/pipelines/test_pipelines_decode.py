"""Decoding: every mode that Pillow opens becomes upright 8-bit grey or RGB, or is refused with the reason."""

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from pipelines.decode import Header, decode_image, decode_jpeg, encode_pnm, read_header
from pipelines.scratch import Scratch

Pixels = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 20, 30


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def luma(rgb: Pixels) -> npt.NDArray[np.float64]:
    """ITU-R 601, as Pillow's "L" is defined."""
    return rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


@pytest.fixture
def rgb(pixels_of: Callable[..., Pixels]) -> Pixels:
    return pixels_of(HEIGHT, WIDTH, channels=3)


@pytest.fixture
def grey(pixels_of: Callable[..., Pixels]) -> Pixels:
    return pixels_of(HEIGHT, WIDTH, channels=1)[..., 0]


def assert_decodes_to(encoded: bytes, rgb: npt.NDArray[Any], *, is_grey: bool, tolerance: int = 0) -> None:
    """As colour equal to `rgb` within the tolerance, as grey to its luma within one more; the header agrees."""
    height, width, _ = rgb.shape
    assert read_header(encoded)[:3] == (height, width, is_grey)
    colour, grey = decode_image(encoded, channels=3), decode_image(encoded, channels=1)
    assert (colour.shape, grey.shape) == ((height, width, 3), (height, width, 1))
    assert colour.dtype == grey.dtype == np.uint8
    assert np.abs(colour.astype(int) - rgb).max() <= tolerance
    assert np.abs(grey[..., 0] - luma(rgb.astype(np.uint8))).max() <= tolerance + 0.51


def as_rgb(grey: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_rgb_is_kept_exactly(rgb: Pixels, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert_decodes_to(encode(Image.fromarray(rgb), kind, **options), rgb, is_grey=False)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_grey_is_kept_exactly_and_repeated_for_three_channels(grey: Pixels, kind: str) -> None:
    assert_decodes_to(encode(Image.fromarray(grey), kind), as_rgb(grey), is_grey=True)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_decodes_as_pillow_decodes_it(rgb: Pixels, mode: str) -> None:
    encoded = encode(Image.fromarray(rgb).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(encoded)) as image:
        assert_decodes_to(encoded, np.asarray(image.convert("RGB")), is_grey=mode == "L", tolerance=0)


def test_black_and_white_becomes_0_and_255(grey: Pixels) -> None:
    white = grey > 128
    assert_decodes_to(encode(Image.fromarray(white)), as_rgb(np.where(white, 255, 0)), is_grey=True)


def palette_image(**info: Any) -> tuple[Image.Image, Pixels]:
    """An image of 16 palette colours, and the colours looked up by hand."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (16, 3), dtype=np.uint8)
    places = rng.integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(colours.tobytes())
    image.info.update(info)
    return image, colours[places]


def test_a_palette_is_looked_up() -> None:
    image, rgb = palette_image()
    assert image.mode == "P"
    assert_decodes_to(encode(image), rgb, is_grey=False)


@pytest.mark.parametrize("transparency", [3, bytes([0, 128] + [255] * 14)], ids=["index", "per_colour"])
def test_a_palette_with_transparency_is_looked_up_and_the_transparency_dropped(transparency: int | bytes) -> None:
    image, rgb = palette_image()
    assert_decodes_to(encode(image, transparency=transparency), rgb, is_grey=False)


def test_the_alpha_of_rgba_and_la_is_dropped_not_blended(rgb: Pixels, grey: Pixels) -> None:
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    assert_decodes_to(encode(Image.fromarray(np.concatenate([rgb, alpha], axis=2))), rgb, is_grey=False)
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha[..., 0])])
    assert_decodes_to(encode(la), as_rgb(grey), is_grey=True)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_colour_of_an_image_without_alpha_is_dropped(rgb: Pixels, mode: str) -> None:
    image = Image.fromarray(rgb).convert(mode)
    key = image.getpixel((0, 0))
    wanted = np.asarray(image.convert("RGB"))
    assert_decodes_to(encode(image, transparency=key), wanted, is_grey=mode == "L")


def test_cmyk_becomes_rgb_by_the_plain_formula() -> None:
    cmyk = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    ink = cmyk.astype(np.float64) / 255
    wanted = np.rint(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:]))
    encoded = encode(Image.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes()), "TIFF")
    assert_decodes_to(encoded, wanted, is_grey=False, tolerance=1)


def test_a_cmyk_jpeg_is_not_decoded_inverted() -> None:
    paper_with_red = np.zeros((16, 16, 4), dtype=np.uint8)
    paper_with_red[:, 8:, 1:3] = 255  # magenta and yellow in the right half
    pixels = decode_image(encode(Image.frombytes("CMYK", (16, 16), paper_with_red.tobytes()), "JPEG"), channels=3)
    assert np.abs(pixels[:, :8].astype(int) - 255).max() <= 3
    assert np.abs(pixels[:, 8:].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    wanted = np.rint(values / 257)
    assert_decodes_to(encode(Image.fromarray(values), kind), as_rgb(wanted), is_grey=True)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_for_their_range_is_unknown(dtype: type) -> None:
    encoded = encode(Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4)), "TIFF")
    with pytest.raises(ValueError, match=r"^pixels of mode [IF] \(32 bits\) .* store them with 8 or 16 bits$"):
        decode_image(encoded, channels=1)
    with pytest.raises(ValueError, match="no agreed range"):
        read_header(encoded)


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # what undoes each EXIF orientation, by the EXIF standard
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, k=-1),  # clockwise
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),  # anticlockwise
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_to_header_and_pixels(rgb: Pixels, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(rgb), kind, exif=exif)
    with Image.open(io.BytesIO(encoded)) as image:
        stored = np.asarray(image.convert("RGB"))
    assert stored.shape == (HEIGHT, WIDTH, 3), "Pillow itself hands out what is stored"
    assert_decodes_to(encoded, UPRIGHT[orientation](stored), is_grey=False)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_ignored(rgb: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_decodes_to(encode(Image.fromarray(rgb), exif=exif), rgb, is_grey=False)


def test_of_an_animated_gif_the_first_frame_counts() -> None:
    first, rgb = palette_image()
    second = Image.fromarray(255 - np.asarray(first))
    second.putpalette(first.getpalette() or [])
    encoded = encode(first, "GIF", save_all=True, append_images=[second], loop=0)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.n_frames == 2
    assert_decodes_to(encoded, rgb, is_grey=False)


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\xff\xd8\xff", bytes(1000)])
def test_bytes_that_are_no_image_are_refused(content: bytes) -> None:
    for attempt in (lambda: read_header(content), lambda: decode_image(content, channels=3)):
        with pytest.raises(ValueError, match="not an image in any format that Pillow reads"):
            attempt()


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_truncated_image_is_refused_with_the_reason(pixels_of: Callable[..., Pixels], kind: str, kept: float) -> None:
    whole = encode(Image.fromarray(pixels_of(64, 64)), kind)
    decode_image(whole, channels=3)
    with pytest.raises(ValueError, match=r"^\w+: \w+") as caught:
        decode_image(whole[: int(len(whole) * kept)], channels=3)
    assert "truncated" in str(caught.value) or "not processed" in str(caught.value)


def png_that_claims(width: int, height: int) -> bytes:
    """A valid PNG header of so many pixels with hardly any data behind it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.usefixtures("no_decoding")
def test_a_header_that_claims_50000_x_50000_pixels_is_refused_without_allocating_them(tmp_path: Path) -> None:
    encoded = png_that_claims(50_000, 50_000)
    path = tmp_path / "huge.png"
    path.write_bytes(encoded)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for attempt in (
        lambda: read_header(encoded),
        lambda: read_header(str(path)),
        lambda: decode_image(encoded, channels=3),
    ):
        with pytest.raises(ValueError, match="2500000000 pixels"):
            attempt()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 64 * 1024  # the pixels would be 7.5 GB


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow warns, we refuse
def test_a_header_that_pillow_only_warns_of_is_refused_with_its_size(tmp_path: Path) -> None:
    encoded = png_that_claims(12_000, 10_000)
    path = tmp_path / "large.png"
    path.write_bytes(encoded)
    for attempt in (
        lambda: read_header(encoded),
        lambda: read_header(str(path)),
        lambda: decode_image(encoded, channels=1),
    ):
        with pytest.raises(ValueError, match="its header claims 12000 x 10000 pixels, more than is safe to decode"):
            attempt()


def test_a_file_that_is_not_there_is_a_value_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"FileNotFoundError: .*gone\.png"):
        read_header(str(tmp_path / "gone.png"))


def test_a_header_read_from_a_file_equals_that_read_from_its_bytes(rgb: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(Image.fromarray(rgb), "JPEG"))
    assert read_header(str(path)) == read_header(path.read_bytes()) == Header(HEIGHT, WIDTH, False, 1)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP", "TIFF"])
def test_a_header_is_read_without_decoding(rgb: Pixels, kind: str) -> None:  # except PNG, whose EXIF may lie at the end
    assert read_header(encode(Image.fromarray(rgb), kind)) == Header(HEIGHT, WIDTH, False, int(kind == "JPEG"))


def test_16_bit_pgm_is_scaled_like_16_bit_png() -> None:
    values = np.array([[0, 257, 65535], [32896, 1000, 514]], dtype=">u2")
    encoded = b"P5 3 2 65535\n" + values.tobytes()
    assert decode_image(encoded, channels=1)[..., 0].tolist() == [[0, 1, 255], [128, 4, 2]]
    assert read_header(encoded).grey


JPEGS: dict[str, dict[str, Any]] = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "grey": {"mode": "L"},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True, "quality": 30},
    "restarts": {"restart_marker_rows": 1},
}


def encode_jpeg(pixels: Pixels, *, mode: str = "RGB", **options: Any) -> bytes:
    return encode(Image.fromarray(pixels).convert(mode), "JPEG", **{"quality": 90, **options})


@pytest.fixture
def photo(pixels_of: Callable[..., Pixels]) -> Pixels:
    return pixels_of(61, 83)  # no multiples of 8 or 16


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_has_the_same_pixels_by_either_decoder(photo: Pixels, kind: str, channels: int) -> None:
    encoded = encode_jpeg(photo, **JPEGS[kind])
    wanted = decode_image(encoded, channels=channels)
    assert read_header(encoded) == Header(61, 83, kind == "grey", 1)
    for scratch in (None, Scratch()):
        decoded = decode_jpeg(memoryview(encoded), channels=channels, orientation=1, scratch=scratch)
        assert (decoded.shape, decoded.dtype) == ((61, 83, channels), np.uint8)
        np.testing.assert_array_equal(decoded, wanted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_is_turned_upright_by_either_decoder(photo: Pixels, orientation: int, channels: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode_jpeg(photo, exif=exif)
    header = read_header(encoded)
    decoded = decode_jpeg(encoded, channels=channels, orientation=header.jpeg_orientation, scratch=Scratch())
    assert header.jpeg_orientation == orientation
    assert decoded.shape[:2] == header[:2]
    np.testing.assert_array_equal(decoded, decode_image(encoded, channels=channels))


@pytest.mark.parametrize("orientation", [0, 9])
def test_a_jpeg_of_an_orientation_that_does_not_exist_counts_as_upright(photo: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read_header(encode_jpeg(photo, exif=exif)).jpeg_orientation == 1


def test_what_simplejpeg_would_not_decode_to_pillows_pixels_is_left_to_pillow(photo: Pixels) -> None:
    cmyk = encode_jpeg(photo, mode="CMYK")
    assert read_header(cmyk) == Header(61, 83, False, 0)
    assert read_header(encode(Image.fromarray(photo), "PNG")).jpeg_orientation == 0
    assert decode_image(cmyk, channels=3).shape == (61, 83, 3)


def verdict(decode: Callable[[], Pixels]) -> Pixels | None:
    """The pixels; None of a bad image. Any other error than a ValueError fails the test."""
    try:
        return decode()
    except ValueError:
        return None


@pytest.mark.parametrize("kind", JPEGS)
def test_both_decoders_find_the_same_broken_jpegs_bad_and_never_raise_anything_else(photo: Pixels, kind: str) -> None:
    whole = encode_jpeg(photo, **JPEGS[kind])
    rng, num_bad = np.random.default_rng(0), 0
    for attempt in range(60):
        broken = bytearray(whole)
        place = int(rng.integers(len(whole)))
        if attempt % 3:
            broken[place] ^= 1 << int(rng.integers(8))
        else:
            del broken[place:]
        for channels in (1, 3):
            by_pillow = verdict(lambda: decode_image(bytes(broken), channels=channels))  # noqa: B023
            by_simplejpeg = verdict(lambda: decode_jpeg(bytes(broken), channels=channels, orientation=1))  # noqa: B023
            assert (by_pillow is None) == (by_simplejpeg is None)
            if by_pillow is not None and by_simplejpeg is not None:
                np.testing.assert_array_equal(by_simplejpeg, by_pillow)
            num_bad += by_pillow is None
    assert num_bad > 2 * 20  # at least the truncated ones


@pytest.mark.parametrize("num_missing", [2, 3, 50])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_ends_too_early_is_bad_for_either_decoder(photo: Pixels, kind: str, num_missing: int) -> None:
    broken = encode_jpeg(photo, **JPEGS[kind])[:-num_missing]
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(broken, channels=3)
    with pytest.raises(ValueError, match=r"\w"):
        decode_jpeg(broken, channels=3, orientation=1)


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(photo: Pixels) -> None:
    encoded = encode_jpeg(photo)
    for channels in (1, 3):
        wanted = decode_image(encoded, channels=channels)
        np.testing.assert_array_equal(decode_image(encoded + bytes(100), channels=channels), wanted)
        np.testing.assert_array_equal(decode_jpeg(encoded + bytes(100), channels=channels, orientation=1), wanted)


def test_a_jpeg_whose_header_claims_too_many_pixels_is_refused_before_memory_is_asked_for(photo: Pixels) -> None:
    encoded = bytearray(encode_jpeg(photo))
    place = encoded.index(b"\xff\xc0") + 5  # height and width, 16 bits each
    encoded[place : place + 4] = struct.pack(">HH", 50_000, 50_000)

    class NoScratch(Scratch):
        def pixels(self, num_bytes: int) -> Pixels:
            pytest.fail(f"{num_bytes} bytes were asked for")

    with pytest.raises(ValueError, match="claims 50000 x 50000 pixels, more than is safe to decode"):
        decode_jpeg(bytes(encoded), channels=3, orientation=1, scratch=NoScratch())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pnm_is_read_back_to_the_bit(photo: Pixels, channels: int) -> None:
    pixels = photo[..., :channels]
    encoded = encode_pnm(np.ascontiguousarray(pixels))
    assert read_header(encoded) == Header(61, 83, channels == 1, 0)
    np.testing.assert_array_equal(decode_image(encoded, channels=channels), pixels)
