"""Our own loaders at the jobs of `benchmarks.peers_job`: order, plan and policy included, as in training.

CIFAR: the whole loader, to normalised float32. ImageNet: to uint8 batches, as the peers hand them over; but where the
tail does the operations, it normalises, too, and gives float32.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers_job import (
    JITTER,
    MAGNITUDE,
    NUM_BINS,
    NUM_OPERATIONS,
    Augment,
    CifarJob,
    DecodedJob,
    Epoch,
    ImagenetJob,
)
from benchmarks.photographs import link_as_image_folder
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
from pipelines.build_augment import build_augmentation, build_operate
from pipelines.effects import Effects
from pipelines.execution import Executor, Operate
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.threads import ThreadsExecutor
from pipelines.operations.batched import operate_batch
from pipelines.order import TrainingOrder
from pipelines.packing.pack import Packing, pack
from pipelines.packing.stored import Settings
from pipelines.parallel import RowPool
from pipelines.plan import Fit, Plan, plan_training
from pipelines.source import ArraySource, Source
from pipelines.sources.packed import PackedSource, open_packed
from pipelines.sources.scan import scan_folder
from pipelines.tail import Tail

_OPERATIONS: dict[Augment, tuple[str | dict[str, Any], ...]] = {  # as recipes have them
    "none": (),
    "randaugment": ({"randaugment": {"n": NUM_OPERATIONS, "m": MAGNITUDE, "num_bins": NUM_BINS}},),
    "color_jitter": ({"color_jitter": JITTER},),
}
_UNREAD = 90  # quality of JPEG, where none is made
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_Finish = Callable[[Tensor, Plan], Tensor]  # images, uint8 (N, H, W, C), and their plan -> what is handed over


class _Planned(NamedTuple):
    """A source, and the plans of an epoch: of the next one each time it is called."""

    source: Source
    plans: Callable[[], Iterator[Plan]]


def build_resident(job: CifarJob) -> Epoch:
    """All images in memory; the kernel shifts and flips, the tail normalises."""
    source = ArraySource(
        class_names=tuple("0123456789"), labels_N=job.labels_N.astype(np.int64), images_NHWC=job.images_NHWC
    )
    spec = InputSpec(size_px=32, channels=3, mean=job.mean, std=job.std)
    augment = AugmentConfig(crop="pad", pad_px=job.max_shift_px, flip="random", operations=_OPERATIONS[job.augment])
    config = _config(augment, backend="resident", batch_size=job.batch_size)
    place = Place(torch.device("cpu"), torch.float32, rank=0, world_size=1, num_cores=job.num_threads)
    loader = build_training_loader(
        config, Data(train=source, val=None, test=None, spec=spec), place=place, show_progress=False
    )
    return lambda: (batch.inputs[0] for batch in loader)


def build_threads(job: ImagenetJob) -> Epoch:
    """simplejpeg, torch's resize, the kernels, threads."""
    planned = _plan(job)
    return _epochs(planned, _threads(planned, job, operate=_operate(job, "threads")))


def build_threads_packed(
    job: ImagenetJob, *, restart: bool = True, decode: Literal["exact", "scaled"] = "exact"
) -> Epoch:
    """The same from shards that `tools.pack` makes of the originals, with or without restart markers."""
    source = pack_images(job, restart=restart)
    return epochs_of_packed(source, job, num_threads=job.num_threads, decode=decode)


def pack_images(job: ImagenetJob, *, restart: bool = True) -> PackedSource:
    """The originals of a job in shards, each once; those that lie in its folder already."""
    dest = job.folder / "packed"
    if not dest.exists():
        storing = Settings(
            mode="raw" if job.stored == "raw" else "jpeg",
            long_side_px=job.long_side_px,
            short_side_px=None,
            quality=job.quality,
            subsampling="4:2:0",
            restart=restart,
        )
        images = _scan(list(dict.fromkeys(job.originals or job.paths)), job.folder / "tree")
        pack(Packing({"train": images}, None, storing, 2**28), dest, num_workers=job.num_threads, show_progress=False)
    return _open(dest)


def copy_packed(source: PackedSource, dest: Path, *, copies: int, num_workers: int) -> None:
    """A packed data set that holds each image several times over, byte by byte as it is stored."""
    storing = Settings(
        mode="keep", long_side_px=None, short_side_px=None, quality=_UNREAD, subsampling="4:2:0", restart=True
    )
    images = source.take(np.tile(np.arange(len(source.labels_N)), copies))
    pack(Packing({"train": images}, None, storing, 2**28), dest, num_workers=num_workers, show_progress=False)


def _open(folder: Path) -> PackedSource:
    source = open_packed(str(folder))["train"]
    assert isinstance(source, PackedSource)
    return source


def epochs_of_packed(
    source: PackedSource,
    job: ImagenetJob,
    *,
    num_threads: int,
    decode: Literal["exact", "scaled"] = "exact",
    expect: bool = True,
) -> Epoch:
    """Epochs as long as those of the job, by threads; of a job without paths as long as the source."""
    times = max(1, len(job.paths) // len(source.labels_N))
    repeated = source.take(np.tile(np.arange(len(source.labels_N)), times)) if times > 1 else source
    planned = _plans_of(repeated, _augment(job), job)
    executor = ThreadsExecutor(
        repeated,
        channels=3,
        interpolation="bilinear",
        num_threads=num_threads,
        num_prefetched=2,
        pin_memory=False,
        operate=_operate(job, "threads"),
        decode=decode,
        expect=repeated.expect if expect else None,
    )
    return _epochs(planned, executor)


def build_threads_decoded(job: DecodedJob) -> Epoch:
    """Threads that do the operations to images in memory, and nothing else."""
    num_images = len(job)
    source = ArraySource(
        class_names=("any",), labels_N=np.zeros(num_images, dtype=np.int64), images_NHWC=job.images_NHWC
    )
    planned = _plans_of(source, AugmentConfig(operations=_OPERATIONS[job.augment]), job)
    return _epochs(planned, _threads(planned, job, operate=_operate(job, "threads")))


def build_threads_tail(job: ImagenetJob) -> Epoch:
    """The same, but the operations are left to the tail."""
    planned = _plan(job)
    return _epochs(planned, _threads(planned, job, operate=None), finish=_tail(job))


def build_dali_planned(job: ImagenetJob) -> Epoch:
    """DALI on the CPU, told what to do by the plan; operations, if any, by the tail."""
    from pipelines.executors.dali import DaliExecutor  # it is not installed everywhere

    planned = _plan(job)
    executor = DaliExecutor(
        planned.source,
        channels=3,
        interpolation="bilinear",
        device=torch.device("cpu"),
        num_threads=job.num_threads,
        num_prefetched=2,
    )
    return _epochs(planned, executor, finish=_as_they_are if job.augment == "none" else _tail(job))


def build_reference(job: ImagenetJob) -> Epoch:
    """A DataLoader and torchvision."""
    planned = _plan(job)
    executor = ReferenceExecutor(
        planned.source,
        channels=3,
        interpolation="bilinear",
        num_workers=job.num_threads,
        pin_memory=False,
        operate=_operate(job, "reference"),
    )
    return _epochs(planned, executor)


def build_tail_kernels(job: ImagenetJob) -> Epoch:
    """No loader but the tail's limit on a CPU: the same finished batch each time, operations by kernels."""
    return _epochs_of_one_batch(_plan(job), job, finish=_tail(job))


def build_tail_batched(job: ImagenetJob) -> Epoch:
    """The same by the torch code for a GPU's tail, not normalised."""
    return _epochs_of_one_batch(_plan(job), job, finish=_operate_by_torch)


def _config(augment: AugmentConfig, *, backend: Literal["resident", "threads"], batch_size: int) -> Config:
    return Config(
        data=DataConfig(dataset="digits"),
        augment=augment,
        loader=LoaderConfig(backend=backend),
        model=ModelConfig(name="none"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=1, global_batch_size=batch_size),
    )


def _plan(job: ImagenetJob) -> _Planned:
    return _plans_of(_scan(job.paths, job.folder / "tree"), _augment(job), job)


def plan_images(source: Source, job: ImagenetJob) -> Callable[[], Iterator[Plan]]:
    """The plans of an epoch of any source, of the next one each time it is called; the job's paths are not read."""
    return _plans_of(source, _augment(job), job).plans


def _augment(job: ImagenetJob) -> AugmentConfig:
    return AugmentConfig(
        crop="rrc",
        rrc_scale=job.area_frac,
        rrc_ratio=job.aspect_ratio,
        flip="random",
        operations=_OPERATIONS[job.augment],
    )


def _scan(paths: Sequence[str], root: Path) -> Source:
    """The files as an image folder, made of links."""
    link_as_image_folder(paths, root)
    return scan_folder(str(root), show_progress=False)["train"]


def _plans_of(source: Source, augment: AugmentConfig, job: ImagenetJob | DecodedJob) -> _Planned:
    order = TrainingOrder(len(source.labels_N), global_batch_size=job.batch_size, seed=0, rank=0, world_size=1)
    augmentation = build_augmentation(_config(augment, backend="threads", batch_size=job.batch_size))
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
                augmentation=augmentation,
                seed=0,
                epoch=epoch,
                size_px=job.size_px,
            )

    return _Planned(source, plans)


def _threads(
    planned: _Planned,
    job: ImagenetJob | DecodedJob,
    *,
    operate: Operate | None,
) -> ThreadsExecutor:
    return ThreadsExecutor(
        planned.source,
        channels=3,
        interpolation="bilinear",
        num_threads=job.num_threads,
        num_prefetched=2,
        pin_memory=False,
        operate=operate,
    )


def _operate(job: ImagenetJob | DecodedJob, backend: str) -> Operate | None:
    return None if job.augment == "none" else build_operate(backend)


def _as_they_are(images_NHWC: Tensor, plan: Plan) -> Tensor:
    return images_NHWC


def _operate_by_torch(images_NHWC: Tensor, plan: Plan) -> Tensor:
    assert plan.operations is not None, "jobs without operations have no such contender"
    return operate_batch(images_NHWC, plan.operations)


def _tail(job: ImagenetJob) -> _Finish:
    tail = Tail(mean=_MEAN, std=_STD, device=torch.device("cpu"), dtype=torch.float32, pool=RowPool(job.num_threads))
    return lambda images_NHWC, plan: tail(images_NHWC, Effects(operations=plan.operations))[0]


def _epochs(planned: _Planned, executor: Executor, *, finish: _Finish = _as_they_are) -> Epoch:
    def images() -> Iterator[Tensor]:
        for_finish, for_executor = itertools.tee(planned.plans())
        for carried in executor.run(for_executor):
            assert not carried.bad, "the files are whole"
            yield finish(carried.images_NHWC, next(for_finish))

    return images


def _epochs_of_one_batch(planned: _Planned, job: ImagenetJob, *, finish: _Finish) -> Epoch:
    (carried,) = _threads(planned, job, operate=None).run(itertools.islice(planned.plans(), 1))
    images_NHWC = carried.images_NHWC.clone()
    return lambda: (finish(images_NHWC, plan) for plan in planned.plans())


OURS_CIFAR: dict[str, Callable[[CifarJob], Epoch]] = {"resident": build_resident}
OURS_IMAGENET: dict[str, Callable[[ImagenetJob], Epoch]] = {
    "threads": build_threads,
    "dali_planned": build_dali_planned,
    "reference": build_reference,
}
OURS_OPERATIONS: dict[str, Callable[[ImagenetJob], Epoch]] = {
    **OURS_IMAGENET,
    "threads_tail": build_threads_tail,
    "tail_kernels": build_tail_kernels,
    "tail_batched": build_tail_batched,
}
OURS_PACKED_JPEG: dict[str, Callable[[ImagenetJob], Epoch]] = {
    "threads": build_threads_packed,
    "threads_whole": partial(build_threads_packed, restart=False),
    "threads_scaled": partial(build_threads_packed, decode="scaled"),
    "threads_files": build_threads,
}
OURS_PACKED_RAW: dict[str, Callable[[ImagenetJob], Epoch]] = {"threads": build_threads_packed}
OURS_DECODED: dict[str, Callable[[DecodedJob], Epoch]] = {"threads": build_threads_decoded}
