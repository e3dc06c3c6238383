"""Our own loaders at the jobs of `benchmarks.peers_job`: order, plan and policy included, as in training.

CIFAR: the whole loader, to normalised float32. ImageNet: to uint8 batches, as the peers hand them over.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers_job import CifarJob, Epoch, ImagenetJob
from configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InputSpec,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from pipelines.build import Data, Place, build_training_loader
from pipelines.execution import Executor
from pipelines.executors.dali import DaliExecutor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.threads import ThreadsExecutor
from pipelines.order import TrainingOrder
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import ArraySource, Source
from pipelines.sources.scan import scan_folder


def build_resident(job: CifarJob) -> Epoch:
    """All images in memory; the kernel shifts and flips, the tail normalises."""
    source = ArraySource(
        class_names=tuple("0123456789"), labels_N=job.labels_N.astype(np.int64), images_NHWC=job.images_NHWC
    )
    spec = InputSpec(size_px=32, channels=3, mean=job.mean, std=job.std)
    config = Config(
        data=DataConfig(dataset="digits"),
        augment=AugmentConfig(crop="pad", pad_px=job.max_shift_px, flip="random"),
        loader=LoaderConfig(backend="resident"),
        model=ModelConfig(name="none"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=1, global_batch_size=job.batch_size),
    )
    place = Place(torch.device("cpu"), torch.float32, rank=0, world_size=1, num_cores=job.num_threads)
    loader = build_training_loader(
        config, Data(train=source, val=None, test=None, spec=spec), place=place, show_progress=False
    )
    return lambda: (batch.inputs[0] for batch in loader)


def build_threads(job: ImagenetJob) -> Epoch:
    """simplejpeg, torch's resize, threads."""
    return _build(
        job,
        lambda source: ThreadsExecutor(
            source,
            channels=3,
            interpolation="bilinear",
            num_threads=job.num_threads,
            num_prefetched=2,
            pin_memory=False,
        ),
    )


def build_dali_planned(job: ImagenetJob) -> Epoch:
    """DALI on the CPU, told what to do by the plan."""
    return _build(
        job,
        lambda source: DaliExecutor(
            source,
            channels=3,
            interpolation="bilinear",
            device=torch.device("cpu"),
            num_threads=job.num_threads,
            num_prefetched=2,
        ),
    )


def build_reference(job: ImagenetJob) -> Epoch:
    """A DataLoader and torchvision."""
    return _build(
        job,
        lambda source: ReferenceExecutor(
            source, channels=3, interpolation="bilinear", num_workers=job.num_threads, pin_memory=False
        ),
    )


def _build(job: ImagenetJob, build_executor: Callable[[Source], Executor]) -> Epoch:
    root = job.folder / "tree"
    for number, path in enumerate(job.paths):
        link = root / "train" / "ab"[number % 2] / f"{number:06}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, link)
        except OSError:  # on another disk
            link.symlink_to(Path(path).resolve())
    source = scan_folder(str(root), show_progress=False)["train"]
    order = TrainingOrder(len(job.paths), global_batch_size=job.batch_size, seed=0, rank=0, world_size=1)
    executor = build_executor(source)
    epochs = iter(range(2**31))

    def plans() -> Iterator[Plan]:
        epoch = next(epochs)
        for step in range(order.steps_per_epoch):
            share = order.share(step, epoch=epoch)
            yield plan_training(
                share.ids_N,
                copies_N=share.copies_N,
                sizes_N2=source.sizes_N2[share.ids_N],
                fit=Fit("crop", 1.0),
                augmentation=Augmentation(
                    crop="rrc", rrc_scale=job.area_frac, rrc_ratio=job.aspect_ratio, flip="random"
                ),
                seed=0,
                epoch=epoch,
                size_px=job.size_px,
            )

    def images() -> Iterator[Tensor]:
        for carried in executor.run(plans()):
            assert not carried.bad, "the files are whole"
            yield carried.images_NHWC

    return functools.partial(images)


OURS_CIFAR: dict[str, Callable[[CifarJob], Epoch]] = {"resident": build_resident}
OURS_IMAGENET: dict[str, Callable[[ImagenetJob], Epoch]] = {
    "threads": build_threads,
    "dali_planned": build_dali_planned,
    "reference": build_reference,
}
