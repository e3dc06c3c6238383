"""Encoded bytes -> uint8 pixels, upright, grey or RGB, by Pillow.

bytes -> header (size, grey?) | bytes -> decode -> EXIF orientation -> 8 bits -> grey or RGB -> uint8 (H, W, C)
"""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

_GREY_MODES = {"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "LA", "La"}
_EXIF_ORIENTATION = 0x0112
_ORIENTATIONS_ON_SIDE = {5, 6, 7, 8}


class Header(NamedTuple):
    """What an image says of itself: height and width in pixels, upright, and whether it is grey."""

    height: int
    width: int
    grey: bool


def read_header(file: str | bytes) -> Header:
    """The header of an image file (a path) or of encoded bytes, without decoding it.

    Raises:
        ValueError: Not an image, or its header is broken.
    """
    try:
        with _open(file) as image:
            width, height = image.size
            if _orientation(image) in _ORIENTATIONS_ON_SIDE:
                width, height = height, width
            return Header(height, width, image.mode in _GREY_MODES)
    except Exception as error:  # Pillow's readers raise almost anything on broken bytes
        raise ValueError(_reason(error)) from error


def decode_image(encoded: bytes, *, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels of an encoded image.

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
    except Exception as error:  # as above
        raise ValueError(_reason(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(file: str | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    try:
        _check_decodable(image)
    except ValueError:
        image.close()
        raise
    return image


def _check_decodable(image: Image.Image) -> None:
    num_pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS is not None and num_pixels > Image.MAX_IMAGE_PIXELS:  # Pillow itself only warns here
        raise ValueError(
            f"its header claims {image.width} x {image.height} pixels, more than is safe to decode; store it smaller"
        )
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
