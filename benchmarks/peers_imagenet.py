"""Peers on ImageNet's files: JPEG -> RandomResizedCrop, flip, the job's operations -> uint8 batches.

All shuffle and drop the last batch. Those in PEERS_OPERATIONS know operations on pixels.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.peers_job import Epoch, ImagenetJob, Samples, epochs_of_dataloader, write_beton
from benchmarks.peers_operations import (
    albumentations_operations,
    dali_operations,
    timm_operations,
    torchvision_operations,
)

_DALI_BATCHES_AHEAD = 2  # its own default
_DECODE_CHUNK = 8


def build_dali(job: ImagenetJob) -> Epoch:
    """DALI on the CPU, its operators as its own ImageNet examples have them. Batches: (N, H, W, C)."""
    from nvidia.dali import fn, pipeline_def

    def graph() -> Any:
        encoded, _ = fn.readers.file(files=list(job.paths), random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded, random_area=list(job.area_frac), random_aspect_ratio=list(job.aspect_ratio)
        )
        images = fn.resize(images, size=[job.size_px, job.size_px])  # bilinear, antialiased
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        return dali_operations(images, job.augment, size_px=job.size_px)

    build_pipeline = pipeline_def(graph, enable_conditionals=True)
    pipeline: Any = build_pipeline(batch_size=job.batch_size, num_threads=job.num_threads, device_id=None)
    pipeline.build()
    pipeline.schedule_run()  # only the first one schedules as many batches as DALI works ahead
    for _ in range(_DALI_BATCHES_AHEAD):
        pipeline.share_outputs()
        pipeline.release_outputs()
    return partial(_epoch_of_dali, pipeline, num_batches=len(job) // job.batch_size)


def _epoch_of_dali(pipeline: Any, *, num_batches: int) -> Iterator[torch.Tensor]:
    # Not pipeline.run(): it goes on with the next epoch, so that two batches of the next one would cost nothing.
    for _ in range(min(_DALI_BATCHES_AHEAD, num_batches)):
        pipeline.schedule_run()
    for batch in range(num_batches):
        (images,) = pipeline.share_outputs()
        yield torch.utils.dlpack.from_dlpack(images.as_tensor())
        pipeline.release_outputs()
        if batch + _DALI_BATCHES_AHEAD < num_batches:
            pipeline.schedule_run()


def build_ffcv(job: ImagenetJob) -> Epoch:
    """FFCV, which reads a file of its own, with the images as JPEG or as pixels. Batches: (N, C, H, W).

    It resizes by averaging areas (OpenCV's INTER_AREA). A batch is a view of one of five buffers, written again later.
    """
    from ffcv.fields import RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    write_mode = "raw" if job.stored == "raw" else "jpg"  # OpenCV's JPEG: 4:2:0
    field = RGBImageField(write_mode=write_mode, max_resolution=job.long_side_px, jpeg_quality=job.quality)
    path = write_beton(job, field, name=f"imagenet_{write_mode}")
    crop = RandomResizedCropRGBImageDecoder((job.size_px, job.size_px), scale=job.area_frac, ratio=job.aspect_ratio)
    loader = Loader(
        path,
        batch_size=job.batch_size,
        num_workers=job.num_threads,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return lambda: (images for images, _ in loader)


def build_albumentations(job: ImagenetJob) -> Epoch:
    """Albumentations as it comes, in a DataLoader: bilinear, not antialiased. Batches: (N, H, W, C)."""
    return _build_albumentations(job, area_for_downscale=None)


def build_albumentations_area(job: ImagenetJob) -> Epoch:
    """The same, told to average areas where it makes an image smaller."""
    return _build_albumentations(job, area_for_downscale="image")


def _build_albumentations(job: ImagenetJob, *, area_for_downscale: str | None) -> Epoch:
    albumentations = import_albumentations()
    transform = albumentations.Compose(
        [
            albumentations.RandomResizedCrop(
                size=(job.size_px, job.size_px),
                scale=job.area_frac,
                ratio=job.aspect_ratio,
                area_for_downscale=area_for_downscale,
            ),
            albumentations.HorizontalFlip(),
            *albumentations_operations(albumentations, job.augment, size_px=job.size_px),
        ]
    )
    samples = Samples(job, partial(_load_by_opencv, job), transform=partial(_transform_by_albumentations, transform))
    return epochs_of_dataloader(samples, job)


def import_albumentations() -> Any:
    """The package, kept from asking the network for a newer version of itself."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _load_by_opencv(job: ImagenetJob, index: int) -> tuple[Any, int]:
    import cv2

    return cv2.imdecode(np.fromfile(job.paths[index], dtype=np.uint8), cv2.IMREAD_COLOR_RGB), 0


def _transform_by_albumentations(transform: Any, image: Any) -> Any:
    return transform(image=image)["image"]


def build_torchvision_pil(job: ImagenetJob) -> Epoch:
    """Torchvision v2 transforms of PIL images, in a DataLoader. Batches: (N, C, H, W)."""
    transform = v2.Compose([*crop_flip_operate(job), v2.PILToTensor()])
    return epochs_of_dataloader(Samples(job, job.load, transform=transform), job)


def build_torchvision_tensors(job: ImagenetJob) -> Epoch:
    """Torchvision's own decoder (deprecated since 0.29) and v2 transforms of tensors. Batches: (N, C, H, W)."""
    transform = v2.Compose(crop_flip_operate(job))
    return epochs_of_dataloader(Samples(job, partial(_load_by_torchvision, job), transform=transform), job)


def crop_flip_operate(job: ImagenetJob) -> list[v2.Transform]:
    """The job in torchvision's words, for PIL images and for tensors (C, H, W)."""
    crop = v2.RandomResizedCrop(job.size_px, scale=job.area_frac, ratio=job.aspect_ratio, antialias=True)
    return [crop, v2.RandomHorizontalFlip(), *torchvision_operations(job.augment)]


def _load_by_torchvision(job: ImagenetJob, index: int) -> tuple[torch.Tensor, int]:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(job.paths[index]), mode=ImageReadMode.RGB), 0


def build_timm(job: ImagenetJob) -> Epoch:
    """Timm's dataset, transforms and loader without its prefetcher, not normalising. Batches: (N, C, H, W)."""
    import timm.data

    timm_data: Any = timm.data
    dataset = timm_data.ImageDataset(str(_link_into_class_folder(job)))
    loader = timm_data.create_loader(
        dataset,
        input_size=(3, job.size_px, job.size_px),
        batch_size=job.batch_size,
        is_training=True,
        num_workers=job.num_threads,
        use_prefetcher=False,
        persistent_workers=True,
    )
    dataset.transform = timm_data.create_transform(  # create_loader gives no way to leave the normalising out
        job.size_px,
        is_training=True,
        scale=job.area_frac,
        ratio=job.aspect_ratio,
        interpolation="bilinear",
        normalize=False,
        **timm_operations(job.augment),
    )
    return lambda: (images for images, _ in loader)


def _link_into_class_folder(job: ImagenetJob) -> Path:
    folder = job.folder / "timm" / "class_0"
    folder.mkdir(parents=True)
    for number, path in enumerate(job.paths):
        (folder / f"{number:07d}.jpeg").symlink_to(Path(path).resolve())
    return folder.parent


def build_spdl(job: ImagenetJob) -> Epoch:
    """SPDL's pipeline of threads, in which FFmpeg decodes, crops and resizes. Batches: (N, H, W, C).

    SPDL has no RandomResizedCrop, so the window is drawn here and written into FFmpeg's filter.
    """
    import_spdl_io()
    return partial(_epoch_of_spdl, job)


def import_spdl_io() -> Any:
    """The package, with FFmpeg's libraries, which it looks for when they are first used.

    Raises:
        ImportError: The package or the libraries are not there.
    """
    import spdl.io

    try:
        spdl.io.decode_config()
    except RuntimeError as error:
        raise ImportError(f"SPDL finds no FFmpeg; install libavdevice and libavfilter: {error}") from error
    return spdl.io


def _epoch_of_spdl(job: ImagenetJob) -> Iterator[torch.Tensor]:
    from spdl.pipeline import PipelineBuilder

    builder: Any = PipelineBuilder()
    pipeline = (
        builder.add_source(random.sample(job.paths, len(job)))
        .pipe(partial(_load_by_spdl, job), concurrency=job.num_threads)
        .aggregate(job.batch_size, drop_last=True)
        .pipe(_batch_by_spdl)
        .add_sink(2)
        .build(num_threads=job.num_threads, max_failures=0)  # it would drop images that do not decode
    )
    with pipeline.auto_stop():
        yield from pipeline


def _load_by_spdl(job: ImagenetJob, path: str) -> Any:
    import spdl.io

    packets = spdl.io.demux_image(path)
    window = _draw_window(packets.height, packets.width, job=job)
    flip = random.random() < 0.5
    return spdl.io.decode_packets(packets, filter_desc=filter_of_ffmpeg(window, size_px=job.size_px, flip=flip))


def filter_of_ffmpeg(window: tuple[int, int, int, int], *, size_px: int, flip: bool) -> str:
    """FFmpeg's words for: crop to the window (top, left, height, width), resize, flip, RGB."""
    top, left, height, width = window
    crop = f"crop={width}:{height}:{left}:{top}:exact=1"  # else it moves the window to even pixels
    flip_filter = "hflip," if flip else ""
    return f"{crop},scale={size_px}:{size_px}:flags=bilinear,{flip_filter}format=rgb24"


def _draw_window(height: int, width: int, *, job: ImagenetJob) -> tuple[int, int, int, int]:
    """Top, left, height, width, as RandomResizedCrop draws them; the whole image where ten draws do not fit."""
    for _ in range(10):
        area = height * width * random.uniform(*job.area_frac)
        ratio = np.exp(random.uniform(*np.log(job.aspect_ratio)))
        window_height, window_width = round(float(np.sqrt(area / ratio))), round(float(np.sqrt(area * ratio)))
        if 0 < window_height <= height and 0 < window_width <= width:
            top, left = random.randint(0, height - window_height), random.randint(0, width - window_width)
            return top, left, window_height, window_width
    return 0, 0, height, width


def _batch_by_spdl(frames: Any) -> torch.Tensor:
    import spdl.io

    images: torch.Tensor = spdl.io.to_torch(spdl.io.convert_frames(frames))
    return images


def build_decode(job: ImagenetJob) -> Epoch:
    """No loader but their limit: whole JPEG files, already in memory, decoded by simplejpeg into memory used again."""
    return _build_decode(job, num_buffer_bytes=3 * max(_num_pixels(path) for path in set(job.paths)))


def build_decode_alloc(job: ImagenetJob) -> Epoch:
    """The same, with new memory for each image."""
    return _build_decode(job, num_buffer_bytes=0)


def _num_pixels(path: str) -> int:
    with Image.open(path) as image:
        return image.width * image.height


def _build_decode(job: ImagenetJob, *, num_buffer_bytes: int) -> Epoch:
    import simplejpeg

    files = {path: Path(path).read_bytes() for path in set(job.paths)}
    thread = threading.local()

    def prepare() -> None:
        thread.buffer = np.empty(num_buffer_bytes, dtype=np.uint8) if num_buffer_bytes else None

    def decode(paths: list[str]) -> list[str]:
        for path in paths:
            simplejpeg.decode_jpeg(files[path], colorspace="RGB", buffer=thread.buffer)
        return paths

    num_images = len(job) // job.batch_size * job.batch_size
    chunks = [list(job.paths[start : start + _DECODE_CHUNK]) for start in range(0, num_images, _DECODE_CHUNK)]
    pool = ThreadPoolExecutor(job.num_threads, initializer=prepare)
    return lambda: pool.map(decode, chunks)


PEERS_IMAGENET: dict[str, Callable[[ImagenetJob], Epoch]] = {
    "decode": build_decode,
    "decode_alloc": build_decode_alloc,
    "ffcv": build_ffcv,
    "dali": build_dali,
    "albumentations": build_albumentations,
    "albumentations_area": build_albumentations_area,
    "torchvision_tensors": build_torchvision_tensors,
    "torchvision_pil": build_torchvision_pil,
    "timm": build_timm,
    "spdl": build_spdl,
}

PEERS_OPERATIONS = {
    name: PEERS_IMAGENET[name]
    for name in ("dali", "albumentations", "albumentations_area", "torchvision_tensors", "torchvision_pil", "timm")
}
