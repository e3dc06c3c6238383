"""One image of a source -> the bytes that are stored of it, and what the index says of them.

keep: bytes as they are | jpeg: decoded, made smaller, encoded with restart markers | raw: decoded, made smaller, .npy
"""

import io
import math
import os
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from pipelines.decode import decode_image, decode_jpeg, read_header
from pipelines.jpeg_segments import Segments, find_segments
from pipelines.source import Source
from pipelines.sources.folder import FolderSource, explain
from pipelines.sources.packed import NPY_HEADER_BYTES, PackedSource
from pipelines.sources.packed_index import RAW

Mode = Literal["keep", "jpeg", "raw"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

_SEGMENT_PX = 40  # what a restart segment covers, about: shorter ones cost bytes, longer ones save less decoding
_LONGEST_JPEG_PX = 65500  # of libjpeg
_LEAST_SEGMENTED_PX = 128  # on both sides; of a smaller image the window is mostly decoded whole
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # else the format's name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How images are stored.

    mode: see the head of this file.
    long_side_px, short_side_px: images larger than that are made smaller to it, with their aspect ratio; None = not.
    quality: of JPEG, 1 to 100. subsampling: of its colours. restart: whether it gets restart markers, by which a
        window is decoded without the rest.
    """

    mode: Mode
    long_side_px: int | None
    short_side_px: int | None
    quality: int
    subsampling: Subsampling
    restart: bool


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A sample as it is stored; see `pipelines.sources.packed_index.PackedIndex`."""

    content: bytes
    suffix: str
    height: int
    width: int
    kind: int
    is_grey: bool
    crc: int
    segments: Segments | None


def store(source: Source, sample_id: int, settings: Settings) -> Stored:
    """A sample of a source as it is to be stored; it was decoded whole, so what is stored can be read.

    Raises:
        ValueError: It cannot be read, or has no bytes of its own to keep; the message gives the reason, not the name.
    """
    if settings.mode == "keep":
        content = _encoded(source, sample_id)
        if isinstance(source, PackedSource) and source.index.kinds_N[source.ids_M[sample_id]] == RAW:
            return describe_raw(content)
        return describe_encoded(content, decode=True)
    pixels = source.read_image(sample_id, channels=1 if _is_stored_grey(source, sample_id) else 3)
    pixels = _made_smaller(pixels, settings)
    return _store_raw(pixels) if settings.mode == "raw" else _store_jpeg(pixels, settings)


def check_can_be_stored(source: Source, settings: Settings) -> None:
    """Checks that samples of this kind can be stored that way, before any is read.

    Raises:
        ValueError: They have no bytes that could be kept.
    """
    if settings.mode == "keep" and not isinstance(source, FolderSource | PackedSource):
        raise ValueError("these images are no files whose bytes could be kept; use --mode raw or --mode jpeg.")


def describe_encoded(content: bytes, *, decode: bool) -> Stored:
    """What the index says of an image file.

    Args:
        content: The bytes of the file.
        decode: Whether it is decoded whole for it; else its header is believed.

    Raises:
        ValueError: It is not a whole image.
    """
    header = read_header(content)
    kind, channels = header.jpeg_orientation, 1 if header.grey else 3
    try:
        if decode and kind:
            decode_jpeg(content, channels=channels, orientation=kind)
        elif decode:
            decode_image(content, channels=channels)
        with Image.open(io.BytesIO(content)) as image:
            name = image.format or "img"
        segments = find_segments(content) if kind == 1 else None
    except ValueError:
        raise
    except Exception as error:  # whatever broken bytes bring about, memory that does not suffice among it
        raise ValueError(explain(error)) from error
    return _stored(
        content,
        suffix=_SUFFIXES.get(name, name.lower()),
        height=header.height,
        width=header.width,
        kind=kind,
        is_grey=header.grey,
        segments=segments,
    )


def describe_raw(content: bytes) -> Stored:
    """What the index says of pixels in an .npy.

    Raises:
        ValueError: It does not hold uint8 (H, W, 1 or 3) in rows, behind a header of the usual length.
    """
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its format is not 1.0")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy's reader raises almost anything on broken bytes
        raise ValueError(f"it is no .npy that can be read ({explain(error)})") from error
    if len(shape) != 3 or shape[2] not in (1, 3) or dtype != np.uint8 or is_fortran or 0 in shape:
        raise ValueError(f"it holds {dtype} {shape}, and pixels are uint8 (H, W, 1) or (H, W, 3), row by row")
    if file.tell() != NPY_HEADER_BYTES or len(content) != NPY_HEADER_BYTES + math.prod(shape):
        raise ValueError(
            f"its {len(content):,} bytes are not a header of {NPY_HEADER_BYTES} and {math.prod(shape):,} pixel values"
        )
    height, width, channels = shape
    return _stored(content, suffix="npy", height=height, width=width, kind=RAW, is_grey=channels == 1, segments=None)


def restart_interval(width_px: int, *, mcu_width_px: int) -> int:
    """MCUs between restart markers: the divisor of a row's that comes nearest 40 pixels."""
    per_row = -(-width_px // mcu_width_px)
    divisors = [count for count in range(1, per_row + 1) if per_row % count == 0]
    return min(divisors, key=lambda count: abs(count * mcu_width_px - _SEGMENT_PX))


def _stored(content: bytes, *, segments: Segments | None, **facts: Any) -> Stored:
    return Stored(content=content, crc=zlib.crc32(content), segments=segments, **facts)


def _encoded(source: Source, sample_id: int) -> bytes:
    """The bytes of the file that a sample comes from."""
    if isinstance(source, FolderSource):
        try:
            with open(source.describe(sample_id), "rb") as file:
                return file.read()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from error
    if isinstance(source, PackedSource):
        return source.read_bytes(sample_id)
    raise AssertionError("check_can_be_stored lets no other through")


def _is_stored_grey(source: Source, sample_id: int) -> bool:
    """Whether a sample has one channel where it comes from.

    Raises:
        ValueError: Its file is no image.
    """
    if source.is_grey:
        return True
    if isinstance(source, FolderSource):
        return read_header(source.describe(sample_id)).grey
    return isinstance(source, PackedSource) and bool(source.index.grey_N[source.ids_M[sample_id]])


def _made_smaller(pixels: npt.NDArray[np.uint8], settings: Settings) -> npt.NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scales = [
        limit / side
        for limit, side in ((settings.long_side_px, max(height, width)), (settings.short_side_px, min(height, width)))
        if limit is not None
    ]
    scale = min(scales, default=1.0)
    if scale >= 1:
        return pixels
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = np.asarray(_image_of(pixels).resize(size, Image.Resampling.LANCZOS))
    return small.reshape(size[1], size[0], -1)


def _image_of(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _store_raw(pixels: npt.NDArray[np.uint8]) -> Stored:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(pixels), version=(1, 0))
    return describe_raw(file.getvalue())


def _store_jpeg(pixels: npt.NDArray[np.uint8], settings: Settings) -> Stored:
    height, width, channels = pixels.shape
    if max(height, width) > _LONGEST_JPEG_PX:
        raise ValueError(
            f"it is {height} x {width} pixels, and a JPEG has at most {_LONGEST_JPEG_PX:,} on a side; use --long-side, "
            "or --mode raw"
        )
    options: dict[str, Any] = {"quality": settings.quality, "optimize": True}
    if channels == 3:
        options["subsampling"] = settings.subsampling
    if settings.restart and min(height, width) >= _LEAST_SEGMENTED_PX:
        mcu_width_px = 8 if channels == 1 or settings.subsampling == "4:4:4" else 16
        options["restart_marker_blocks"] = restart_interval(width, mcu_width_px=mcu_width_px)
    # Pillow hands libjpeg one buffer, which optimised tables must fit into whole
    ImageFile.MAXBLOCK = max(ImageFile.MAXBLOCK, 8 * height * width + 2**16)
    file = io.BytesIO()
    _image_of(pixels).save(file, "JPEG", **options)
    return _stored(
        file.getvalue(),
        suffix="jpg",
        height=height,
        width=width,
        kind=1,
        is_grey=channels == 1,
        segments=find_segments(file.getvalue()),
    )


def name_of(source: Source, sample_id: int, root: str | None) -> bytes:
    """What a sample is called where it comes from: a path below the root, if it has one."""
    if isinstance(source, PackedSource):
        return bytes(source.index.names_N[source.ids_M[sample_id]])
    name = source.describe(sample_id)
    if root is not None and name.startswith(root.rstrip("/") + "/"):
        name = name[len(root.rstrip("/")) + 1 :]
    return os.fsencode(name)
