"""Peers on images that are decoded and at their size already: the job's operations -> uint8 batches, nothing else.

So that what an operation costs is not hidden behind decoding, which takes two thirds of the time of the other jobs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torchvision.transforms import v2

from benchmarks.peers_imagenet import import_albumentations
from benchmarks.peers_job import DecodedJob, Epoch, Samples, epochs_of_dataloader
from benchmarks.peers_operations import albumentations_operations, timm_operations, torchvision_operations


def build_albumentations(job: DecodedJob) -> Epoch:
    """Its Compose, in a DataLoader. Batches: (N, H, W, C)."""
    albumentations = import_albumentations()
    transform = albumentations.Compose(albumentations_operations(albumentations, job.augment, size_px=job.size_px))
    transform = partial(_transform_by_albumentations, transform)
    return epochs_of_dataloader(Samples(job, lambda index: (job.images_NHWC[index], 0), transform=transform), job)


def build_torchvision_tensors(job: DecodedJob) -> Epoch:
    """Torchvision v2 on tensors, which lie as it likes them best. Batches: (N, C, H, W)."""
    images_NCHW = torch.from_numpy(job.images_NHWC).permute(0, 3, 1, 2).contiguous()
    transform = v2.Compose(torchvision_operations(job.augment))
    return epochs_of_dataloader(Samples(job, lambda index: (images_NCHW[index], 0), transform=transform), job)


def build_torchvision_pil(job: DecodedJob) -> Epoch:
    """Torchvision v2 on PIL images. Batches: (N, C, H, W)."""
    transform = v2.Compose([*torchvision_operations(job.augment), v2.PILToTensor()])
    return epochs_of_dataloader(Samples(job, job.load, transform=transform), job)


def build_timm(job: DecodedJob) -> Epoch:
    """What timm's create_transform has between its crop and its tensor. Batches: (N, C, H, W)."""
    import timm.data

    timm_data: Any = timm.data
    whole = timm_data.create_transform(
        job.size_px, is_training=True, interpolation="bilinear", normalize=False, **timm_operations(job.augment)
    )
    operations = [one for one in whole.transforms if type(one).__name__ in ("RandAugment", "ColorJitter")]
    assert len(operations) == 1, whole
    return epochs_of_dataloader(Samples(job, job.load, transform=v2.Compose([*operations, v2.PILToTensor()])), job)


def _transform_by_albumentations(transform: Any, image: Any) -> Any:
    return transform(image=image)["image"]


PEERS_DECODED: dict[str, Callable[[DecodedJob], Epoch]] = {
    "albumentations": build_albumentations,
    "torchvision_tensors": build_torchvision_tensors,
    "torchvision_pil": build_torchvision_pil,
    "timm": build_timm,
}
