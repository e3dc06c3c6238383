"""Configuration -> data -> loaders. This file and build_data.py are the only ones of this room that read one.

Config -> build_data.py: splits, InputSpec completed -> backend chosen -> PlannedLoader
"""

import functools
import importlib.util
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from configs.schema import Config, InputSpec
from pipelines.build_data import (
    Data,
    build_data,
    check_classes,
    check_dataset,
    fingerprint_splits,
    given,
    split_of,
    splits_of,
)
from pipelines.effects import Effects, EffectSettings, Erasing, Mixing, draw_effects
from pipelines.examples import read_examples
from pipelines.execution import Executor
from pipelines.executors.processes import ProcessesExecutor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, Store, load_store
from pipelines.executors.threads import ThreadsExecutor
from pipelines.geometry import carry_out_plan
from pipelines.loader import Draw, PlannedLoader
from pipelines.operations.own_pipeline import OwnPipeline
from pipelines.order import EvaluationOrder, Order, Share, TrainingOrder, Weighting
from pipelines.parallel import RowPool
from pipelines.plan import Augmentation, Fit, Plan, plan_evaluation, plan_training
from pipelines.policy import Action, Policy
from pipelines.sampling import expectations, sampling_weights
from pipelines.source import Source, refuse_bad
from pipelines.sources.own_dataset import OwnSource
from pipelines.tail import Tail
from pipelines.transfer import Transfer

__all__ = [  # the door of this room: what others import from here, wherever it is written
    "Data",
    "Loaders",
    "Place",
    "build_data",
    "build_evaluation_loader",
    "build_loaders",
    "build_training_loader",
    "check_classes",
    "check_dataset",
    "choose_backend",
    "describe_data",
    "fingerprint_splits",
    "read_training_images",
    "size_at",
    "split_of",
]

_NUM_CLASSES_SHOWN = 6

Windows = Literal["drawn", "stored"]  # whether a resident store holds whole images, or windows cut and resized


class Place(NamedTuple):
    """Where batches go: device and dtype of the inputs, rank and world size, CPU cores for this process."""

    device: torch.device
    dtype: torch.dtype
    rank: int
    world_size: int
    num_cores: int


class Loaders(NamedTuple):
    """Batches of train, shuffled and augmented, and of val and test (where there are such) for evaluation.

    sampling: how often images are met, in words, where that is not once per epoch.
    """

    train: PlannedLoader
    evaluation: dict[str, PlannedLoader]
    backend: "Backend"
    sampling: str


class Backend(NamedTuple):
    """The chosen executor and the reason."""

    name: str
    reason: str


def choose_backend(config: Config, data: Data) -> Backend:
    """The executor for all splits, and why.

    Raises:
        ValueError: `loader.backend=resident` with images that cannot be held, dali where it is not installed, or one of
            them with a pipeline of the user's own.
    """
    backend = _choose_backend(config, data)
    if backend.name == "threads" and config.loader.workers == "processes":
        return Backend("processes", f"{backend.reason}; loader.workers=processes")
    return backend


def _choose_backend(config: Config, data: Data) -> Backend:
    asked, own_pipeline = config.loader.backend, config.augment.albumentations
    if asked == "auto" and isinstance(data.train, OwnSource):
        return Backend("reference", "your own data set, not held in memory: read by worker processes")
    if own_pipeline is not None and asked in ("resident", "dali"):
        raise ValueError(
            f"loader.backend={asked} cannot carry out augment.albumentations={own_pipeline}, which takes single images "
            "on the CPU; use loader.backend=threads, or leave augment.albumentations out."
        )
    if own_pipeline is not None and asked == "auto":
        return Backend("threads", "augment.albumentations takes single images on the CPU")
    if asked == "dali" and not _is_installed("nvidia.dali"):
        raise ValueError(
            "loader.backend=dali needs NVIDIA DALI, which is not installed (there are builds for Linux on x86-64: "
            "pip install nvidia-dali-cuda130); use loader.backend=threads."
        )
    if asked not in ("auto", "resident"):
        return Backend(asked, "as configured")
    sizes = np.concatenate([source.sizes_N2 for source in splits_of(data).values()])
    sizes = sizes[sizes[:, 0] > 0]  # not those whose header could not be read
    drawn = _windows_are_drawn(config, data)
    if drawn and (sizes != sizes[0]).any():
        if asked == "resident":
            raise ValueError(
                "loader.backend=resident holds the images as they are stored for augment.crop=rrc and "
                "augment.sizes_px, and these have several sizes; use loader.backend=threads, or another crop."
            )
        return Backend("threads", "windows or sizes are drawn, from images of several sizes")
    height, width = sizes[0] if drawn else (given(data.spec.size_px),) * 2
    gib = len(sizes) * int(height) * int(width) * given(data.spec.channels) / 2**30
    if asked == "resident":
        return Backend(asked, "as configured")
    limit = (
        f"{1024 * gib:,.1f} MiB decoded, at most {config.loader.resident_max_gib:g} GiB held: loader.resident_max_gib"
    )
    return Backend("resident" if gib <= config.loader.resident_max_gib else "threads", limit)


def build_loaders(config: Config, data: Data, *, place: Place, show_progress: bool) -> Loaders:
    """The loaders of a training run.

    Raises:
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    evaluated = [split for split in ("val", "test") if getattr(data, split) is not None]
    return Loaders(
        train=build_training_loader(config, data, place=place, show_progress=show_progress),
        evaluation={
            split: build_evaluation_loader(config, data, split, place=place, show_progress=show_progress)
            for split in evaluated
        },
        backend=choose_backend(config, data),
        sampling=_describe_sampling(config, data.train),
    )


def describe_data(data: Data, loaders: Loaders) -> str:
    """A few lines on what is trained on, for the screen."""
    sizes = [f"{len(data.train.labels_N):,} train"]
    sizes += [f"{loader.num_samples:,} {split}" for split, loader in loaders.evaluation.items()]
    spec, train = data.spec, loaders.train
    mean, std = (", ".join(f"{value:.4f}" for value in given(values)) for values in (spec.mean, spec.std))
    return (
        f"data: {', '.join(sizes)}; {len(data.train.class_names)} classes; {train.num_left_out} "
        f"{'draws' if loaders.sampling else 'images'} left out of each epoch of {train.steps_per_epoch} steps\n"
        f"{loaders.sampling}"
        f"input: {spec.size_px}x{spec.size_px}, {spec.channels} channel(s), mean ({mean}), std ({std})\n"
        f"loader: {loaders.backend.name} ({loaders.backend.reason})" + _describe_bad(data)
    )


def _weights(config: Config, train: Source) -> npt.NDArray[np.float64] | None:
    """How often the images of train are to be met, in proportion; None = each once."""
    return sampling_weights(
        train.labels_N,
        sampling=config.data.sampling,
        factors={train.class_names.index(name): factor for name, factor in config.data.class_weights.items()},
        weights_N=train.weights_N,
    )


def _describe_sampling(config: Config, train: Source) -> str:
    """A line on how often an image of each class is met in an epoch, on average; of many classes the extremes."""
    weights_N = _weights(config, train)
    if weights_N is None:
        return ""
    counts = np.bincount(train.labels_N, minlength=len(train.class_names))
    sums = np.bincount(train.labels_N, weights=expectations(weights_N), minlength=len(train.class_names))
    times = [f"{name} x{each:.2f}" for name, each in zip(train.class_names, sums / np.maximum(counts, 1), strict=True)]
    if len(times) > _NUM_CLASSES_SHOWN:
        ranked = np.argsort(-sums / np.maximum(counts, 1), kind="stable").tolist()
        half = _NUM_CLASSES_SHOWN // 2
        times = [times[label] for label in ranked[:half]] + ["..."] + [times[label] for label in ranked[-half:]]
    words = config.data.sampling + (" with class_weights" if config.data.class_weights else "")
    return f"sampling: {words}: {', '.join(times)}; an epoch is {len(weights_N):,} draws\n"


def _describe_bad(data: Data) -> str:
    """A line on the images that are known to be unreadable; nothing where there are none."""
    done = {"train": "replaced", "val": "not counted", "test": "not counted"}
    known = [f"{len(source.bad)} of {split} ({done[split]})" for split, source in splits_of(data).items() if source.bad]
    return f"\ncannot be read: {', '.join(known)}" if known else ""


def build_training_loader(
    config: Config, data: Data, *, place: Place, show_progress: bool, num_views: int = 1
) -> PlannedLoader:
    """Shuffled, augmented batches of train, with `num_views` differently augmented images of each sample.

    Raises:
        ValueError: The global batch does not fit the data or the world size, an image cannot be read, or the user's own
            pipeline cannot be used.
    """
    fit, sizes_N2, seed = _fit(data.spec), data.train.sizes_N2, config.run.seed
    augmentation, settings = _augmentation(config), _effect_settings(config)
    weights_N = _weights(config, data.train)
    order = TrainingOrder(
        len(data.train.labels_N),
        global_batch_size=config.train.global_batch_size,
        seed=seed,
        rank=place.rank,
        world_size=place.world_size,
        num_repeats=config.augment.repeats,
        in_pairs=settings.mixes,
        weighting=None if weights_N is None else Weighting(data.train.labels_N, weights_N),
    )

    def draw_plan(share: Share, epoch: int, step: int) -> Plan:
        return plan_training(
            share.ids_N,
            copies_N=share.copies_N,
            sizes_N2=sizes_N2[share.ids_N],
            fit=fit,
            augmentation=augmentation,
            seed=seed,
            epoch=epoch,
            size_px=size_at(epoch + step / order.steps_per_epoch, config=config, spec=data.spec),
            num_views=num_views,
        )

    def draw(plan: Plan, share: Share, epoch: int) -> Effects:
        return draw_effects(
            plan, copies_B=share.copies_N, positions_B=share.positions_N, settings=settings, seed=seed, epoch=epoch
        )

    own_pipeline = _build_own_pipeline(config, data)
    parts = _Parts("train", data.train, order, Draw(draw_plan, draw), config.data.on_bad_sample, own_pipeline)
    windows: Windows = "drawn" if _windows_are_drawn(config, data) else "stored"
    return _join(config, data, parts, windows=windows, place=place, show_progress=show_progress)


def build_evaluation_loader(
    config: Config, data: Data, split: str, *, place: Place, show_progress: bool
) -> PlannedLoader:
    """Every sample of train, val or test once, unaugmented, in batches that are the same at any world size.

    Raises:
        ValueError: There is no such split, or an image cannot be read.
    """
    source, fit, size_px = split_of(data, split), _fit(data.spec), given(data.spec.size_px)
    order = EvaluationOrder(
        len(source.labels_N),
        batch_size_per_rank=config.loader.eval_batch_size_per_rank,
        rank=place.rank,
        world_size=place.world_size,
    )

    def draw_plan(share: Share, epoch: int, step: int) -> Plan:
        return plan_evaluation(share.ids_N, sizes_N2=source.sizes_N2[share.ids_N], fit=fit, size_px=size_px)

    draw = Draw(draw_plan, lambda plan, share, epoch: Effects())
    parts = _Parts(split, source, order, draw, config.data.on_bad_eval_sample)
    return _join(config, data, parts, windows="stored", place=place, show_progress=show_progress)


def read_training_images(config: Config, data: Data, *, num_images: int, show_progress: bool) -> torch.Tensor:
    """Up to `num_images` images of train as evaluation shows them, float (N, C, S, S), normalised, on the CPU.

    Raises:
        ValueError: An image cannot be read, and is not to be replaced.
    """
    spec = data.spec
    return read_examples(
        data.train,
        num_images=num_images,
        size_px=given(spec.size_px),
        fit=_fit(spec),
        interpolation=spec.interpolation,
        mean=given(spec.mean),
        std=given(spec.std),
        show_progress=show_progress,
        skip_bad=config.data.on_bad_sample == "replace",
    )


def size_at(epoch: float, *, config: Config, spec: InputSpec) -> int:
    """The image size, in pixels, at a time counted in epochs."""
    sizes_px = [size_px for start, size_px in config.augment.sizes_px if start <= epoch + 1e-9]
    return sizes_px[-1] if sizes_px else given(spec.size_px)


class _Parts(NamedTuple):
    """What makes the loader of one split differ from the others."""

    split: str
    source: Source
    order: Order
    draw: Draw
    action: Action
    own_pipeline: OwnPipeline | None = None


def _check_num_known_bad(parts: _Parts, loader: PlannedLoader) -> None:
    """What would stop the run in its course stops it now.

    Raises:
        ValueError: More images are known to be unreadable than data.max_bad_frac allows.
    """
    if len(parts.source.bad) > loader.max_num_bad:
        raise ValueError(
            f"{len(parts.source.bad)} of {len(parts.source.labels_N)} images of {parts.split} cannot be read, and "
            f"data.max_bad_frac allows {loader.max_num_bad}; repair the data, or raise data.max_bad_frac."
        )


def _join(
    config: Config, data: Data, parts: _Parts, *, windows: Windows, place: Place, show_progress: bool
) -> PlannedLoader:
    pool = RowPool(place.num_cores if place.device.type == "cpu" else 1)
    spec, seed = data.spec, config.run.seed
    channels, own_pipeline = given(spec.channels), parts.own_pipeline
    executor = _build_executor(
        config, data, parts, windows=windows, place=place, pool=pool, show_progress=show_progress
    )
    loader = PlannedLoader(
        parts.source.labels_N,
        order=parts.order,
        draw=parts.draw,
        executor=executor,
        policy=Policy(parts.source, split=parts.split, action=parts.action, seed=seed),
        repair=functools.partial(
            carry_out_plan,
            source=parts.source,
            channels=channels,
            interpolation=spec.interpolation,
            operate=own_pipeline,
        ),
        transfer=Transfer(place.device),
        tail=Tail(mean=given(spec.mean), std=given(spec.std), device=place.device, dtype=place.dtype, pool=pool),
        seed=seed,
        fingerprint=parts.source.fingerprint(),
        max_bad_frac=config.data.max_bad_frac,
        device=place.device,
        own_pipeline=None if own_pipeline is None else own_pipeline.fingerprint(),
    )
    _check_num_known_bad(parts, loader)
    return loader


def _build_executor(
    config: Config,
    data: Data,
    parts: _Parts,
    *,
    windows: Windows,
    place: Place,
    pool: RowPool,
    show_progress: bool,
) -> Executor:
    loader, source = config.loader, parts.source
    channels, interpolation = given(data.spec.channels), data.spec.interpolation
    on_gpu = place.device.type == "cuda"
    num_threads = loader.num_threads or place.num_cores
    num_workers = min(8, place.num_cores) if loader.num_workers is None else loader.num_workers
    match choose_backend(config, data).name:
        case "reference":
            return ReferenceExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                num_workers=num_workers,
                pin_memory=on_gpu,
                operate=parts.own_pipeline,
            )
        case "processes":
            return ProcessesExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                num_workers=num_workers,
                num_prefetched=loader.prefetch_batches,
                pin_memory=on_gpu,
                operate=parts.own_pipeline,
            )
        case "threads":
            return ThreadsExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                num_threads=num_threads,
                num_prefetched=loader.prefetch_batches,
                pin_memory=on_gpu,
                operate=parts.own_pipeline,
            )
        case "dali":
            from pipelines.executors.dali import DaliExecutor  # it is not installed everywhere, and takes a second

            return DaliExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                device=place.device,
                num_threads=num_threads,
                num_prefetched=loader.prefetch_batches,
            )
        case _:
            store = _load_store(config, data, parts, windows=windows, show_progress=show_progress)
            store = store._replace(images_NHWC=store.images_NHWC.to(place.device))
            return ResidentExecutor(store, interpolation=interpolation, windows=windows, pool=pool)


def _load_store(config: Config, data: Data, parts: _Parts, *, windows: Windows, show_progress: bool) -> Store:
    """All images of a split; a bad one is refused here already, if the run would stop at it.

    Raises:
        ValueError: An image cannot be read, and the action is raise.
    """
    source, spec = parts.source, data.spec
    every_id = np.arange(len(source.labels_N))
    plan = plan_evaluation(every_id, sizes_N2=source.sizes_N2, fit=_fit(spec), size_px=given(spec.size_px))
    store = load_store(
        source,
        channels=given(spec.channels),
        windows=plan if windows == "stored" else None,
        interpolation=spec.interpolation,
        show_progress=show_progress,
    )
    if parts.action == "raise":
        refuse_bad(source, store.bad)
    return store


def _windows_are_drawn(config: Config, data: Data) -> bool:
    """Whether what a stored image shows, or its size, changes from epoch to epoch."""
    sizes_px = {size_px for _, size_px in config.augment.sizes_px} | {data.spec.size_px}
    return config.augment.crop == "rrc" or len(sizes_px) > 1


def _augmentation(config: Config) -> Augmentation:
    augment = config.augment
    return Augmentation(
        crop=augment.crop,
        pad_px=augment.pad_px,
        rrc_scale=augment.rrc_scale,
        rrc_ratio=augment.rrc_ratio,
        flip=augment.flip,
        own_pipeline=augment.albumentations is not None,
    )


def _build_own_pipeline(config: Config, data: Data) -> OwnPipeline | None:
    """The user's own pipeline, tried out, where there is one.

    Raises:
        ValueError: It cannot be used.
    """
    if config.augment.albumentations is None:
        return None
    own_pipeline = OwnPipeline(config.augment.albumentations, describe=data.train.describe)
    sizes_px = {given(data.spec.size_px), *(size_px for _, size_px in config.augment.sizes_px)}
    own_pipeline.try_out(sizes_px=sorted(sizes_px), channels=given(data.spec.channels))
    return own_pipeline


def _effect_settings(config: Config) -> EffectSettings:
    augment = config.augment
    return EffectSettings(
        mixing=Mixing(augment.mixup_alpha, augment.cutmix_alpha, augment.mix_prob, augment.mix_switch_prob),
        erasing=Erasing(augment.erase_prob, augment.erase_scale, augment.erase_ratio),
        noise_std=augment.noise_std,
    )


def _fit(spec: InputSpec) -> Fit:
    return Fit(spec.fit, spec.crop_frac)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
