"""How near each peer's pixels come to Pillow's, where all cut the same window out of the same image files.

Each function takes files and windows and returns uint8 (N, size_px, size_px, 3); some are ours. What a peer changes
when it stores images counts where it makes its own copy of files that others read as they are (`RESIZES`), but not
where all read what was stored beforehand (`RESIZES_STORED`, `RESIZES_PIXELS`).
"""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from benchmarks.peers_imagenet import filter_of_ffmpeg, import_albumentations, import_spdl_io

Resize = Callable[..., npt.NDArray[np.uint8]]
"""Takes crops, and by keyword size_px."""


class Crop(NamedTuple):
    """An image file, its size, and the window of it that is to be resized, in pixels."""

    encoded: bytes
    image_height: int
    image_width: int
    top: int
    left: int
    height: int
    width: int


def mean_difference_from_pillow(resize: Resize, *, paths: Sequence[str], size_px: int = 224) -> float:
    """Mean of |peer - Pillow|, of 255, after decoding and resizing the middle three quarters of each file.

    Args:
        resize: What the peer does, out of `RESIZES`, `RESIZES_STORED` (JPEG files) or `RESIZES_PIXELS` (any files).
        paths: Image files.
        size_px: Height and width of the results.

    Raises:
        ImportError: The peer is not installed.
    """
    crops = [_central_crop(path) for path in paths]
    expected = resize_by_pillow(crops, size_px=size_px)
    found = resize(crops, size_px=size_px)
    return float(np.abs(found.astype(np.int16) - expected).mean())


def _central_crop(path: str) -> Crop:
    encoded = Path(path).read_bytes()
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
    return Crop(encoded, height, width, height // 8, width // 8, height * 3 // 4, width * 3 // 4)


def resize_by_pillow(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """The reference: Pillow's crop and resize, bilinear, which is antialiased."""
    images = []
    for crop in crops:
        image = _open_by_pillow(crop).crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
        images.append(np.asarray(image.resize((size_px, size_px), Image.Resampling.BILINEAR)))
    return np.stack(images)


def resize_by_torchvision_pil(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """What torchvision's and timm's transforms do with a PIL image."""
    return np.stack([np.asarray(_resized_crop(_open_by_pillow(crop), crop, size_px)) for crop in crops])


def resize_by_torchvision_tensors(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """The decoder of torchvision, then its transforms of tensors."""
    from torchvision.io import ImageReadMode, decode_jpeg

    images = []
    for crop in crops:
        image = decode_jpeg(torch.frombuffer(bytearray(crop.encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)
        images.append(_resized_crop(image, crop, size_px).permute(1, 2, 0).numpy())
    return np.stack(images)


def resize_by_simplejpeg_and_torch(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """The decoder of simplejpeg, then torch's resize of bytes."""
    images = []
    for crop in crops:
        pixels = simplejpeg.decode_jpeg(crop.encoded, colorspace="RGB")
        images.append(_resize_by_torch(pixels, crop, size_px))
    return np.stack(images)


def resize_pixels_by_torch(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """Torch's resize of bytes that were stored as pixels."""
    return np.stack([_resize_by_torch(np.array(_open_by_pillow(crop)), crop, size_px) for crop in crops])


def resize_by_albumentations(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """OpenCV's decoder, then albumentations' resize: bilinear, not antialiased."""
    return _resize_by_albumentations(crops, size_px=size_px, area_for_downscale=None)


def resize_by_albumentations_area(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """The same, averaging areas where the image becomes smaller."""
    return _resize_by_albumentations(crops, size_px=size_px, area_for_downscale="image")


def _resize_by_albumentations(
    crops: Iterable[Crop], *, size_px: int, area_for_downscale: str | None
) -> npt.NDArray[np.uint8]:
    albumentations = import_albumentations()
    import cv2

    resize = albumentations.Resize(size_px, size_px, area_for_downscale=area_for_downscale)
    images = []
    for crop in crops:
        image: Any = cv2.imdecode(np.frombuffer(crop.encoded, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        window = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        images.append(resize(image=window)["image"])
    return np.stack(images)


def resize_by_dali(crops: Sequence[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """DALI's decoder, which decodes no more than the window, and its resize."""
    from nvidia.dali import Pipeline, fn

    pipeline: Any = Pipeline(batch_size=len(crops), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded, start, shape = (fn.external_source(name=name) for name in ("encoded", "start", "shape"))
        images = fn.decoders.image_slice(encoded, start=start, shape=shape, axis_names="HW")
        pipeline.set_outputs(fn.resize(images, size=[size_px, size_px]))
    (found,) = pipeline.run(
        encoded=[np.frombuffer(crop.encoded, dtype=np.uint8) for crop in crops],
        start=[np.array([crop.top, crop.left], dtype=np.int32) for crop in crops],
        shape=[np.array([crop.height, crop.width], dtype=np.int32) for crop in crops],
    )
    return np.array(found.as_tensor())


def resize_by_ffcv(crops: Sequence[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """FFCV's own copy of the image (JPEG of quality 90), decoded and resized as its loader does."""
    from ffcv.fields.rgb_image import encode_jpeg

    copies = [encode_jpeg(np.array(_open_by_pillow(crop)), 90) for crop in crops]
    return np.stack([_decode_and_resize_by_ffcv(copy, crop, size_px) for copy, crop in zip(copies, crops, strict=True)])


def resize_by_ffcv_stored(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """A stored JPEG file, decoded and resized as FFCV's loader does: its file holds such JPEGs as they are."""
    encoded = ((np.frombuffer(crop.encoded, dtype=np.uint8), crop) for crop in crops)
    return np.stack([_decode_and_resize_by_ffcv(jpeg, crop, size_px) for jpeg, crop in encoded])


def resize_by_ffcv_raw(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """From a copy that keeps the pixels as they are: what FFCV's resize alone changes."""
    return np.stack([_resize_by_ffcv(np.array(_open_by_pillow(crop)), crop, size_px) for crop in crops])


def resize_by_spdl(crops: Iterable[Crop], *, size_px: int) -> npt.NDArray[np.uint8]:
    """FFmpeg's decoder, crop and resize, as the SPDL peer calls them."""
    spdl_io = import_spdl_io()
    images = []
    for crop in crops:
        description = filter_of_ffmpeg((crop.top, crop.left, crop.height, crop.width), size_px=size_px, flip=False)
        frames = spdl_io.decode_packets(spdl_io.demux_image(crop.encoded), filter_desc=description)
        images.append(spdl_io.to_numpy(spdl_io.convert_frames(frames)))
    return np.stack(images)


def _open_by_pillow(crop: Crop) -> Image.Image:
    return Image.open(io.BytesIO(crop.encoded)).convert("RGB")


def _resized_crop(image: Any, crop: Crop, size_px: int) -> Any:
    return tv.resized_crop(image, crop.top, crop.left, crop.height, crop.width, [size_px, size_px], antialias=True)


def _resize_by_torch(pixels_HWC: npt.NDArray[np.uint8], crop: Crop, size_px: int) -> npt.NDArray[np.uint8]:
    image = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
    resized: npt.NDArray[np.uint8] = _resized_crop(image, crop, size_px).permute(1, 2, 0).numpy()
    return resized


def _decode_and_resize_by_ffcv(jpeg: npt.NDArray[np.uint8], crop: Crop, size_px: int) -> npt.NDArray[np.uint8]:
    from ffcv.libffcv import imdecode

    height, width = crop.image_height, crop.image_width
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    imdecode(jpeg, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
    return _resize_by_ffcv(pixels, crop, size_px)


def _resize_by_ffcv(pixels: npt.NDArray[np.uint8], crop: Crop, size_px: int) -> npt.NDArray[np.uint8]:
    from ffcv.libffcv import resize_crop

    image = np.empty((size_px, size_px, 3), dtype=np.uint8)
    resize_crop(pixels, crop.top, crop.top + crop.height, crop.left, crop.left + crop.width, image)
    return image


RESIZES: dict[str, Resize] = {
    "threads": resize_by_simplejpeg_and_torch,
    "reference": resize_by_torchvision_tensors,
    "dali_planned": resize_by_dali,
    "ffcv": resize_by_ffcv,
    "dali": resize_by_dali,
    "albumentations": resize_by_albumentations,
    "albumentations_area": resize_by_albumentations_area,
    "torchvision_tensors": resize_by_torchvision_tensors,
    "torchvision_pil": resize_by_torchvision_pil,
    "timm": resize_by_torchvision_pil,
    "spdl": resize_by_spdl,
}

RESIZES_STORED: dict[str, Resize] = {
    **RESIZES,
    **dict.fromkeys(("threads", "threads_whole", "threads_files"), resize_by_simplejpeg_and_torch),
    "ffcv": resize_by_ffcv_stored,
    "webdataset": resize_by_torchvision_pil,
    "litdata": resize_by_torchvision_tensors,
    "mosaicml": resize_by_torchvision_pil,
}

RESIZES_PIXELS: dict[str, Resize] = {
    "threads": resize_pixels_by_torch,
    "ffcv": resize_by_ffcv_raw,
    "torchvision_pil": resize_by_torchvision_pil,
    **dict.fromkeys(("webdataset", "litdata", "mosaicml"), resize_pixels_by_torch),
}
