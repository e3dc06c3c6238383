"""Peers on CIFAR-10: images in memory -> shift, flip, the job's operations -> normalised float32 batches (N, C, H, W).

All shuffle and drop the last batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from benchmarks.peers_job import CifarJob, Epoch, Samples, epochs_of_dataloader, write_beton
from benchmarks.peers_operations import torchvision_operations


def build_torchvision_pil(job: CifarJob) -> Epoch:
    """Torchvision v2 transforms of PIL images, as its data set CIFAR10 gives them, in a DataLoader."""
    transform = v2.Compose([*_augment(job), v2.ToImage(), *_normalize(job)])
    return epochs_of_dataloader(Samples(job, job.load, transform=transform), job)


def build_torchvision_tensors(job: CifarJob) -> Epoch:
    """The same, made tensors first."""
    transform = v2.Compose([v2.ToImage(), *_augment(job), *_normalize(job)])
    return epochs_of_dataloader(Samples(job, job.load, transform=transform), job)


def _augment(job: CifarJob) -> list[v2.Transform]:
    size_px = job.images_NHWC.shape[1]
    crop = v2.RandomCrop(size_px, padding=job.max_shift_px, padding_mode="reflect")
    return [crop, v2.RandomHorizontalFlip(), *torchvision_operations(job.augment)]


def _normalize(job: CifarJob) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(job.mean, job.std)]


def build_ffcv(job: CifarJob) -> Epoch:
    """FFCV, normalised by its lookup table. It fills the border with the mean colour: it knows no reflection."""
    from ffcv.transforms import NormalizeImage

    mean_255, std_255 = (255 * np.array(values) for values in (job.mean, job.std))
    return _build_ffcv(job, [NormalizeImage(mean_255, std_255, np.float32)], name="cifar")


def build_ffcv_uint8(job: CifarJob) -> Epoch:
    """FFCV as its CIFAR example has it: batches stay uint8, the example normalises them on the GPU."""
    return _build_ffcv(job, [], name="cifar_uint8")


def _build_ffcv(job: CifarJob, normalize: list[Any], *, name: str) -> Epoch:
    # A batch is a view of one of five buffers, which are written again.
    from ffcv.fields import RGBImageField
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    border = tuple(round(255 * value) for value in job.mean)
    image = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=job.max_shift_px, fill=border)]
    loader = Loader(
        write_beton(job, RGBImageField(write_mode="raw"), name=name),
        batch_size=job.batch_size,
        num_workers=job.num_threads,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": [*image, *normalize, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]},
    )
    return lambda: (images for images, _ in loader)


PEERS_CIFAR: dict[str, Callable[[CifarJob], Epoch]] = {
    "ffcv": build_ffcv,
    "ffcv_uint8": build_ffcv_uint8,
    "torchvision_tensors": build_torchvision_tensors,
    "torchvision_pil": build_torchvision_pil,
}

PEERS_CIFAR_OPERATIONS = {name: PEERS_CIFAR[name] for name in ("torchvision_tensors", "torchvision_pil")}
