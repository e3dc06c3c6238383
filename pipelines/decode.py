"""Encoded bytes -> uint8 pixels, upright, grey or RGB: JPEG by simplejpeg, everything else by Pillow, equal to the bit.

bytes -> header (size, grey?, JPEG?) | bytes -> decode -> EXIF orientation -> 8 bits -> grey or RGB -> uint8 (H, W, C)

An image is bad when it does not decode whole: libjpeg's warnings (a premature end, bad Huffman codes, bytes left over)
are errors here, where Pillow fills the rest with grey and says nothing.
"""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.jpeg_window import Window
from pipelines.scratch import Scratch

_GREY_MODES = {"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "LA", "La"}
_EXIF_ORIENTATION = 0x0112
_ORIENTATIONS_ON_SIDE = {5, 6, 7, 8}


class Header(NamedTuple):
    """What an image says of itself.

    height, width: in pixels, upright. grey: whether it has one channel. jpeg_orientation: the EXIF orientation, 1 to 8,
    of a JPEG that `decode_jpeg` takes (grey or RGB); 0 for everything else, which `decode_image` takes.
    """

    height: int
    width: int
    grey: bool
    jpeg_orientation: int


def read_header(file: str | bytes) -> Header:
    """The header of an image file (a path) or of encoded bytes, without decoding it.

    Raises:
        ValueError: Not an image, or its header is broken.
    """
    try:
        with _open(file) as image:
            width, height = image.size
            orientation = _orientation(image)
            if orientation in _ORIENTATIONS_ON_SIDE:
                width, height = height, width
            is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
            jpeg_orientation = (orientation if 1 <= orientation <= 8 else 1) if is_jpeg else 0
            return Header(height, width, image.mode in _GREY_MODES, jpeg_orientation)
    except Exception as error:  # Pillow's readers raise almost anything on broken bytes
        raise ValueError(_reason(error)) from error


def scale_of(window: Window, least_px: tuple[int, int] | None) -> int:
    """By what a JPEG can be made smaller while it is decoded: 1, 2, 4 or 8; its window keeps `least_px` on both sides.

    libjpeg then leaves out the finer frequencies of each block, and the work on them.
    """
    if least_px is None:
        return 1
    most = min(window[2] // least_px[0], window[3] // least_px[1])
    return next((scale for scale in (8, 4, 2) if scale <= most), 1)


def scaled_window(window: Window, scale: int) -> Window:
    """The window in an image made smaller by `scale`, rounded outward to its pixels."""
    top, left, height, width = window
    bottom, right = -(-(top + height) // scale), -(-(left + width) // scale)
    return top // scale, left // scale, bottom - top // scale, right - left // scale


def decode_jpeg(
    encoded: bytes | memoryview,
    *,
    channels: int,
    orientation: int,
    scratch: Scratch | None = None,
    scale: int = 1,
) -> npt.NDArray[np.uint8]:
    """The pixels of a grey or RGB JPEG, as `decode_image` gives them; the GIL is free while it decodes.

    Args:
        encoded: The bytes of the file.
        channels: 1 for grey, 3 for RGB.
        orientation: EXIF orientation, 1 to 8.
        scratch: Where the pixels may lie; they are then valid until its next use. A fifth faster than new memory
            for each image (1.39 -> 1.09 ms for ImageNet's, AMD EPYC, simplejpeg 1.9.0, 2026-11-20).
        scale: 1, 2, 4 or 8: the sides are divided by it, and rounded up.

    Returns:
        uint8 (H, W, C), 0..255, upright.

    Raises:
        ValueError: The bytes are not a whole JPEG; the message gives the reason.
    """
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
    _check_num_pixels(width, height)
    is_grey = colorspace == "Gray" and channels == 1
    buffer = None if scratch is None else scratch.pixels(height * width * (1 if is_grey else 3))
    pixels = simplejpeg.decode_jpeg(
        encoded,
        colorspace="GRAY" if is_grey else "RGB",
        buffer=buffer,
        strict=True,
        min_height=0 if scale == 1 else -(-height // scale),
        min_width=0 if scale == 1 else -(-width // scale),
    )
    if channels == 1 and not is_grey:  # not libjpeg's own grey, which rounds otherwise than Pillow's
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return pixels if orientation == 1 else np.ascontiguousarray(_turn(pixels, orientation))


def decode_image(encoded: bytes, *, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels of an encoded image of any format, by Pillow.

    Args:
        encoded: The bytes of an image file; of an animation the first frame counts.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 (H, W, C), 0..255, upright. 16-bit values are scaled to 8 bits, transparency is dropped.

    Raises:
        ValueError: The bytes are not a whole image, or have 32-bit pixels; the message gives the reason.
    """
    try:
        with _open(encoded) as image:
            pixels = np.asarray(_to_8_bits(_upright(image)).convert("L" if channels == 1 else "RGB"))
            if image.format in ("JPEG", "MPO"):
                _check_whole_jpeg(encoded)
    except Exception as error:  # as above
        raise ValueError(_reason(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def to_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of an image that Pillow has opened, uint8 (H, W, C): grey if its mode is, else RGB; as it lies.

    Raises:
        ValueError: It has 32-bit pixels.
    """
    _check_decodable(image)
    channels = 1 if image.mode in _GREY_MODES else 3
    pixels = np.asarray(_to_8_bits(image).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def encode_pnm(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The pixels, uint8 (H, W, C), as an uncompressed PGM or PPM file, which every decoder reads."""
    height, width, channels = pixels.shape
    return b"P%d %d %d 255\n" % (5 if channels == 1 else 6, width, height) + pixels.tobytes()


def _turn(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Upright pixels from stored ones, as EXIF defines orientations 1 to 8."""
    if orientation in _ORIENTATIONS_ON_SIDE:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _check_whole_jpeg(encoded: bytes) -> None:
    _, _, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
    simplejpeg.decode_jpeg(encoded, colorspace="CMYK" if colorspace in ("CMYK", "YCCK") else "GRAY", strict=True)


def _open(file: str | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    try:
        _check_decodable(image)
    except ValueError:
        image.close()
        raise
    return image


def _check_num_pixels(width: int, height: int) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:  # Pillow itself only warns here
        raise ValueError(f"its header claims {width} x {height} pixels, more than is safe to decode; store it smaller")


def _check_decodable(image: Image.Image) -> None:
    _check_num_pixels(image.width, image.height)
    if image.mode in ("I", "F") and image.format != "PPM":  # of PGM, Pillow opens 16 bits as mode I
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no agreed range; store them with 8 or 16 bits")


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:  # exif_transpose would copy the pixels all the same
        return image
    return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the pixels to look behind them: 4 ms instead of 0.03 for 500x375
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own convert clips these at 255
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in any format that Pillow reads"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
