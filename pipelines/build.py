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
from pipelines.build_augment import (
    build_augmentation,
    build_effect_settings,
    build_operate,
    build_own_pipeline,
    build_steps,
    check_operations,
    home_of_operations,
)
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
from pipelines.effects import Effects, draw_effects
from pipelines.examples import read_examples
from pipelines.execution import Executor, Operate
from pipelines.executors.processes import ProcessesExecutor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, Store, load_store
from pipelines.executors.threads import ThreadsExecutor
from pipelines.geometry import carry_out_plan
from pipelines.loader import Draw, PlannedLoader
from pipelines.operations.drawing import num_slots, operations_of
from pipelines.order import EvaluationOrder, Order, Share, TrainingOrder, Weighting
from pipelines.parallel import RowPool, num_cores
from pipelines.plan import Fit, Plan, plan_evaluation, plan_training
from pipelines.policy import Action, Policy
from pipelines.preview import (
    MOST_EPOCHS,
    Preview,
    Renumbered,
    Shown,
    carry_out_meetings,
    count_first,
    find_meetings,
    ids_in,
    read_originals,
)
from pipelines.sampling import expectations, sampling_weights
from pipelines.source import Source, refuse_bad
from pipelines.sources.own_dataset import OwnSource
from pipelines.tail import Tail
from pipelines.transfer import Transfer
from pipelines.wording import Count, Range, list_names

__all__ = [  # the door of this room: what others import from here, wherever it is written
    "MOST_EPOCHS",
    "Count",
    "Data",
    "Loaders",
    "Place",
    "Preview",
    "Range",
    "Shown",
    "build_data",
    "build_evaluation_loader",
    "build_loaders",
    "build_preview",
    "build_training_loader",
    "check_classes",
    "check_dataset",
    "choose_backend",
    "describe_data",
    "fingerprint_splits",
    "num_cores",
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
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    parts = _training_parts(config, data, place=place, num_views=num_views)
    return _join(config, data, parts, place=place, show_progress=show_progress)


def _training_parts(config: Config, data: Data, *, place: Place, num_views: int = 1) -> "_Parts":
    fit, sizes_N2, seed = _fit(data.spec), data.train.sizes_N2, config.run.seed
    check_operations(config, channels=given(data.spec.channels))
    augmentation, settings = build_augmentation(config), build_effect_settings(config)
    backend = choose_backend(config, data).name
    home = home_of_operations(config, backend=backend, on_gpu=place.device.type == "cuda")
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
        effects = draw_effects(
            plan, copies_B=share.copies_N, positions_B=share.positions_N, settings=settings, seed=seed, epoch=epoch
        )
        return effects._replace(operations=plan.operations if home == "tail" else None)

    operate = build_operate(backend) if augmentation.operations and home == "executor" else None
    own_pipeline = build_own_pipeline(config, data)
    return _Parts(
        "train",
        data.train,
        order,
        Draw(draw_plan, draw),
        config.data.on_bad_sample,
        operate=own_pipeline or operate,
        windows="drawn" if _windows_are_drawn(config, data) else "stored",
        own_pipeline=None if own_pipeline is None else own_pipeline.fingerprint(),
    )


def build_preview(
    config: Config,
    data: Data,
    *,
    place: Place,
    num_images: int,
    num_samples: int,
    epoch: int,
    num_counted: int,
    show_progress: bool,
) -> Preview:
    """A few training images as the network will meet them, carried out by the training loader; no others are read.

    Args:
        config: The run's.
        data: Its data.
        place: Where batches would go, of a rank that is alone.
        num_images: How many images, if there are so many; their number alone decides which.
        num_samples: How many times of each, from `epoch` on.
        epoch: Where to begin.
        num_counted: For how many images of that epoch it is counted what is drawn.
        show_progress: Whether to draw progress bars.

    Raises:
        ValueError: As `build_training_loader`.
    """
    parts, train, spec = _training_parts(config, data, place=place), data.train, data.spec
    augmentation, settings = build_augmentation(config), build_effect_settings(config)
    originals = read_originals(
        train,
        num_images=num_images,
        size_px=given(spec.size_px),
        fit=_fit(spec),
        channels=given(spec.channels),
        interpolation=spec.interpolation,
        skip_bad=parts.action == "replace",
    )
    meetings = find_meetings(
        parts.order, originals.ids_N, first_epoch=epoch, num_wanted=num_samples, in_pairs=settings.mixes
    )
    policy = Policy(train, split=parts.split, action=parts.action, seed=config.run.seed)
    read = parts._replace(only_ids_N=ids_in(meetings, policy=policy))
    loader = _join(config, data, read, place=place, show_progress=show_progress)
    class_names = [train.class_names[label] for label in train.labels_N[originals.ids_N].tolist()]
    sizes_N2 = train.sizes_N2 if augmentation.crop == "rrc" else None
    samples = carry_out_meetings(
        loader,
        meetings,
        sizes_N2=sizes_N2,
        name_sample=lambda sample_id: f"{sample_id} ({train.class_names[train.labels_N[sample_id]]})",
    )
    counts, count = count_first(
        parts.order,
        parts.draw,
        epoch=epoch,
        most_images=num_counted,
        sizes_N2=sizes_N2,
        names=list_names(augmentation, settings),
    )
    return Preview(
        shown=[
            Shown(sample_id, train.describe(sample_id), class_name, original_HWC, samples.get(sample_id, []))
            for sample_id, class_name, original_HWC in zip(
                originals.ids_N.tolist(), class_names, originals.images_NHWC, strict=True
            )
        ],
        passed_over=originals.passed_over,
        counts=counts,
        num_counted=count,
        backend=choose_backend(config, data).name,
    )


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
    return _join(config, data, parts, place=place, show_progress=show_progress)


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
    """What makes the loader of one split differ from the others.

    operate: does the plan's operations in the executor; None = there are none, or the tail does them. windows: what a
    resident store holds. only_ids_N: int64 (N,), rising, the only samples that the executor will be asked for; None =
    all.
    """

    split: str
    source: Source
    order: Order
    draw: Draw
    action: Action
    operate: Operate | None = None
    windows: Windows = "stored"
    own_pipeline: str | None = None
    only_ids_N: npt.NDArray[np.int64] | None = None


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


def _join(config: Config, data: Data, parts: _Parts, *, place: Place, show_progress: bool) -> PlannedLoader:
    pool = RowPool(place.num_cores if place.device.type == "cpu" else 1)
    spec, seed = data.spec, config.run.seed
    channels, interpolation = given(spec.channels), spec.interpolation
    executor = _build_executor(config, data, parts, place=place, pool=pool, show_progress=show_progress)
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
            interpolation=interpolation,
            operate=parts.operate,
        ),
        transfer=Transfer(place.device),
        tail=Tail(mean=given(spec.mean), std=given(spec.std), device=place.device, dtype=place.dtype, pool=pool),
        seed=seed,
        fingerprint=parts.source.fingerprint(),
        own_pipeline=parts.own_pipeline,
        max_bad_frac=config.data.max_bad_frac,
        device=place.device,
    )
    _check_num_known_bad(parts, loader)
    return loader


def _build_executor(
    config: Config,
    data: Data,
    parts: _Parts,
    *,
    place: Place,
    pool: RowPool,
    show_progress: bool,
) -> Executor:
    if parts.only_ids_N is not None:
        some = parts._replace(source=parts.source.take(parts.only_ids_N), only_ids_N=None)
        executor = _build_executor(config, data, some, place=place, pool=pool, show_progress=show_progress)
        return Renumbered(executor, ids_N=parts.only_ids_N)
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
                operate=parts.operate,
            )
        case "processes":
            return ProcessesExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                num_workers=num_workers,
                num_prefetched=loader.prefetch_batches,
                pin_memory=on_gpu,
                operate=parts.operate,
            )
        case "threads":
            return ThreadsExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                num_threads=num_threads,
                num_prefetched=loader.prefetch_batches,
                pin_memory=on_gpu,
                operate=parts.operate,
            )
        case "dali":
            from pipelines.executors.dali import DaliExecutor  # it is not installed everywhere, and takes a second

            steps = build_steps(config) if parts.operate is not None else ()
            return DaliExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                device=place.device,
                num_threads=num_threads,
                num_prefetched=loader.prefetch_batches,
                operations=operations_of(steps),
                num_slots=num_slots(steps),
                operate=parts.operate,
            )
        case _:
            store = _load_store(data, parts, show_progress=show_progress)
            store = store._replace(images_NHWC=store.images_NHWC.to(place.device))
            return ResidentExecutor(store, interpolation=interpolation, windows=parts.windows, pool=pool)


def _load_store(data: Data, parts: _Parts, *, show_progress: bool) -> Store:
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
        windows=plan if parts.windows == "stored" else None,
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


def _fit(spec: InputSpec) -> Fit:
    return Fit(spec.fit, spec.crop_frac, border=tuple(round(255 * value) for value in given(spec.mean)))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
