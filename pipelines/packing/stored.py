"""One image of a source -> the bytes that are stored of it, and what the index says of them.

keep: bytes as they are | jpeg: decoded, made smaller, encoded with restart markers | raw: decoded, made smaller, .npy
"""

import io
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
from pipelines.sources.folder import FolderSource
from pipelines.sources.packed import NPY_HEADER_BYTES, PackedSource
from pipelines.sources.packed_index import RAW

Mode = Literal["keep", "jpeg", "raw"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

_SEGMENT_PX = 40  # what a restart segment covers, about: shorter ones cost bytes, longer ones save less decoding
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
        return describe_encoded(_encoded(source, sample_id))
    pixels = source.read_image(sample_id, channels=1 if _is_stored_grey(source, sample_id) else 3)
    pixels = _made_smaller(pixels, settings)
    return _store_raw(pixels) if settings.mode == "raw" else _store_jpeg(pixels, settings)


def describe_encoded(content: bytes) -> Stored:
    """What the index says of an image file, which is decoded whole for it.

    Raises:
        ValueError: It is not a whole image.
    """
    header = read_header(content)
    kind, channels = header.jpeg_orientation, 1 if header.grey else 3
    if kind:
        decode_jpeg(content, channels=channels, orientation=kind)
    else:
        decode_image(content, channels=channels)
    with Image.open(io.BytesIO(content)) as image:
        name = image.format or "img"
    return _stored(
        content,
        suffix=_SUFFIXES.get(name, name.lower()),
        height=header.height,
        width=header.width,
        kind=kind,
        is_grey=header.grey,
        segments=find_segments(content) if kind == 1 else None,
    )


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
    raise ValueError("these images are no files whose bytes could be kept; use --mode raw or --mode jpeg")


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
    assert len(file.getvalue()) == NPY_HEADER_BYTES + pixels.size, "the header of an .npy has another length"
    height, width, channels = pixels.shape
    return _stored(
        file.getvalue(), suffix="npy", height=height, width=width, kind=RAW, is_grey=channels == 1, segments=None
    )


def _store_jpeg(pixels: npt.NDArray[np.uint8], settings: Settings) -> Stored:
    height, width, channels = pixels.shape
    options: dict[str, Any] = {"quality": settings.quality, "optimize": True}
    if channels == 3:
        options["subsampling"] = settings.subsampling
    if settings.restart and min(height, width) >= _LEAST_SEGMENTED_PX:
        mcu_width_px = 8 if channels == 1 or settings.subsampling == "4:4:4" else 16
        options["restart_marker_blocks"] = restart_interval(width, mcu_width_px=mcu_width_px)
    # Pillow hands libjpeg one buffer, which optimised tables must fit into whole
    ImageFile.MAXBLOCK = max(ImageFile.MAXBLOCK, 4 * height * width + 2**16)
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
    name = source.describe(sample_id)
    if root is not None and os.path.isabs(name) == os.path.isabs(root) and name.startswith(root.rstrip("/") + "/"):
        name = name[len(root.rstrip("/")) + 1 :]
    return os.fsencode(name)
