"""Configuration -> data -> loaders; the only file of this room that reads a configuration.

DataConfig -> splits -> InputSpec completed -> backend chosen -> PlannedLoader
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from configs.check import check_input, check_pad
from configs.schema import Config, InputSpec
from pipelines.digits import load_digits
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, load_store
from pipelines.folder import scan_folder
from pipelines.loader import Executor, PlannedLoader
from pipelines.order import EvaluationOrder, Order, TrainingOrder
from pipelines.plan import Augmentation, Fit, Plan, plan_evaluation, plan_training
from pipelines.source import Source
from pipelines.split import split_source
from pipelines.statistics import measure_statistics
from pipelines.tail import Tail

_DIGITS_TEST_FRAC = 0.2
_DIGITS_TEST_SEED = 0  # fixed: every run is scored on the same 360 digits

_T = TypeVar("_T")


class Data(NamedTuple):
    """The splits, and what the network will see of them: `spec` has no field left open."""

    train: Source
    val: Source | None
    test: Source | None
    spec: InputSpec


class Place(NamedTuple):
    """Where batches go: device and dtype of the inputs, rank and world size, CPU cores for this process."""

    device: torch.device
    dtype: torch.dtype
    rank: int
    world_size: int
    num_cores: int


class Loaders(NamedTuple):
    """Batches of train, shuffled and augmented, and of val and test (where there are such) for evaluation."""

    train: PlannedLoader
    evaluation: dict[str, PlannedLoader]
    backend: "Backend"


class Backend(NamedTuple):
    """The chosen executor and the reason."""

    name: str
    reason: str


def build_data(config: Config, *, show_progress: bool) -> Data:
    """The splits and the complete input specification.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: What the folder holds cannot be trained on, or does not fit `config.input` or `config.run.select`.
    """
    splits: dict[str, Source]
    if config.data.dataset == "digits":
        parts = split_source(load_digits(), held_out_frac=_DIGITS_TEST_FRAC, seed=_DIGITS_TEST_SEED)
        splits = {"train": parts.rest, "test": parts.held_out}
    else:
        assert config.data.root is not None, "check_config lets no folder pass without a root"
        splits = scan_folder(config.data.root, show_progress=show_progress)
    if "val" not in splits and config.data.val_frac > 0:
        parts = split_source(splits["train"], held_out_frac=config.data.val_frac, seed=config.data.split_seed)
        splits["train"], splits["val"] = parts.rest, parts.held_out
    if "val" not in splits and config.run.select == "best":
        raise ValueError(
            "run.select=best needs val to choose by, but data.val_frac=0 and the data has no val/; "
            "use run.select=last, or data.val_frac=0.1."
        )
    spec = complete_input(config.input, splits=list(splits.values()), show_progress=show_progress)
    if config.augment.crop == "pad":
        check_pad(config.augment.pad_px, size_px=_given(spec.size_px))
    return Data(train=splits["train"], val=splits.get("val"), test=splits.get("test"), spec=spec)


def complete_input(spec: InputSpec, *, splits: list[Source], show_progress: bool) -> InputSpec:
    """`spec` with every open field filled from the images: size and channels from all splits, mean and std from train.

    Raises:
        ValueError: The images have several sizes and `spec.size_px` is open, or given values do not fit the channels.
    """
    size_px = spec.size_px or _common_size(splits)
    channels = spec.channels or (1 if all(source.is_grey for source in splits) else 3)
    spec = dataclasses.replace(spec, size_px=size_px, channels=channels)
    check_input(spec)
    if spec.mean is None or spec.std is None:
        measured = measure_statistics(splits[0], channels=channels, show_progress=show_progress)
        spec = dataclasses.replace(spec, mean=spec.mean or measured.mean, std=spec.std or measured.std)
    return spec


def choose_backend(config: Config, data: Data) -> Backend:
    """The executor for all splits, and why.

    Raises:
        ValueError: `loader.backend=resident` with images that cannot be held.
    """
    sizes = np.concatenate([source.sizes_N2 for source in _present(data)])
    drawn = config.augment.crop == "rrc"
    if drawn and (sizes != sizes[0]).any():
        if config.loader.backend == "resident":
            raise ValueError(
                "loader.backend=resident holds random-resized-crop images as they are stored, and these have several "
                "sizes; use loader.backend=reference or augment.crop=pad."
            )
        return Backend("reference", "random-resized-crop of images of several sizes")
    height, width = sizes[0] if drawn else (_given(data.spec.size_px),) * 2
    gib = len(sizes) * int(height) * int(width) * _given(data.spec.channels) / 2**30
    if config.loader.backend != "auto":
        return Backend(config.loader.backend, "as configured")
    limit = (
        f"{1024 * gib:,.1f} MiB decoded, at most {config.loader.resident_max_gib:g} GiB held: loader.resident_max_gib"
    )
    return Backend("resident" if gib <= config.loader.resident_max_gib else "reference", limit)


def build_loaders(config: Config, data: Data, *, place: Place, show_progress: bool) -> Loaders:
    """The loaders of a training run.

    Raises:
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    evaluated = {"val": data.val, "test": data.test}
    return Loaders(
        train=build_training_loader(config, data, place=place, show_progress=show_progress),
        evaluation={
            split: build_evaluation_loader(config, data, source, place=place, show_progress=show_progress)
            for split, source in evaluated.items()
            if source is not None
        },
        backend=choose_backend(config, data),
    )


def source_of_split(data: Data, split: str, *, class_names: Sequence[str]) -> Source:
    """The samples of train, val or test.

    Raises:
        ValueError: There is no such split, or its classes are not `class_names`.
    """
    source = {"train": data.train, "val": data.val, "test": data.test}[split]
    if source is None:
        present = [name for name in ("train", "val", "test") if getattr(data, name) is not None]
        raise ValueError(f"the data has no {split}; there is {', '.join(present)}.")
    if list(source.class_names) != list(class_names):
        missing = [f"- {name}" for name in class_names if name not in source.class_names]
        unknown = [f"+ {name}" for name in source.class_names if name not in class_names]
        raise ValueError(f"the data has other classes than the checkpoint: {', '.join(missing + unknown)}.")
    return source


def fingerprint_splits(data: Data) -> dict[str, str]:
    """What each split holds, as hashes, for a checkpoint to remember."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {name: source.fingerprint() for name, source in splits.items() if source is not None}


def describe_data(data: Data, loaders: Loaders) -> str:
    """A few lines on what is trained on, for the screen."""
    sizes = [f"{len(data.train.labels_N):,} train"]
    sizes += [f"{loader.num_samples:,} {split}" for split, loader in loaders.evaluation.items()]
    spec, train = data.spec, loaders.train
    mean, std = (", ".join(f"{value:.4f}" for value in _given(values)) for values in (spec.mean, spec.std))
    return (
        f"data: {', '.join(sizes)}; {len(data.train.class_names)} classes; {train.num_left_out} images left out of "
        f"each epoch of {train.steps_per_epoch} steps\n"
        f"input: {spec.size_px}x{spec.size_px}, {spec.channels} channel(s), mean ({mean}), std ({std})\n"
        f"loader: {loaders.backend.name} ({loaders.backend.reason})"
    )


def build_training_loader(config: Config, data: Data, *, place: Place, show_progress: bool) -> PlannedLoader:
    """Shuffled, augmented batches of train.

    Raises:
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    augment, fit, sizes_N2 = config.augment, _fit(data.spec), data.train.sizes_N2
    augmentation = Augmentation(
        crop=augment.crop,
        pad_px=augment.pad_px,
        rrc_scale=augment.rrc_scale,
        rrc_ratio=augment.rrc_ratio,
        flip=augment.flip,
    )
    seed = config.run.seed
    order = TrainingOrder(
        len(data.train.labels_N),
        global_batch_size=config.train.global_batch_size,
        seed=seed,
        rank=place.rank,
        world_size=place.world_size,
    )

    def draw_plan(ids_N: npt.NDArray[np.int64], epoch: int) -> Plan:
        return plan_training(
            ids_N, sizes_N2=sizes_N2[ids_N], fit=fit, augmentation=augmentation, seed=seed, epoch=epoch
        )

    windows: Literal["drawn", "stored"] = "drawn" if augment.crop == "rrc" else "stored"
    executor = _build_executor(config, data, data.train, windows=windows, place=place, show_progress=show_progress)
    return _join(config, data, data.train, order=order, draw_plan=draw_plan, executor=executor, place=place)


def build_evaluation_loader(
    config: Config, data: Data, source: Source, *, place: Place, show_progress: bool
) -> PlannedLoader:
    """Every sample of `source` once, unaugmented, in batches that are the same at any world size.

    Raises:
        ValueError: An image cannot be read.
    """
    fit, sizes_N2 = _fit(data.spec), source.sizes_N2
    order = EvaluationOrder(
        len(source.labels_N),
        batch_size_per_rank=config.loader.eval_batch_size_per_rank,
        rank=place.rank,
        world_size=place.world_size,
    )

    def draw_plan(ids_N: npt.NDArray[np.int64], epoch: int) -> Plan:
        return plan_evaluation(ids_N, sizes_N2=sizes_N2[ids_N], fit=fit)

    executor = _build_executor(config, data, source, windows="stored", place=place, show_progress=show_progress)
    return _join(config, data, source, order=order, draw_plan=draw_plan, executor=executor, place=place)


def _build_executor(
    config: Config,
    data: Data,
    source: Source,
    *,
    windows: Literal["drawn", "stored"],
    place: Place,
    show_progress: bool,
) -> Executor:
    spec = data.spec
    size_px, channels = _given(spec.size_px), _given(spec.channels)
    if choose_backend(config, data).name == "reference":
        num_workers = config.loader.num_workers
        return ReferenceExecutor(
            source,
            size_px=size_px,
            channels=channels,
            interpolation=spec.interpolation,
            num_workers=min(8, place.num_cores) if num_workers is None else num_workers,
            pin_memory=place.device.type == "cuda",
        )
    every_id = np.arange(len(source.labels_N))
    plan = plan_evaluation(every_id, sizes_N2=source.sizes_N2, fit=_fit(spec))
    store = load_store(
        source,
        channels=channels,
        windows=plan if windows == "stored" else None,
        size_px=size_px,
        interpolation=spec.interpolation,
        show_progress=show_progress,
    )
    return ResidentExecutor(store.to(place.device), size_px=size_px, interpolation=spec.interpolation, windows=windows)


def _join(
    config: Config,
    data: Data,
    source: Source,
    *,
    order: Order,
    draw_plan: Callable[[npt.NDArray[np.int64], int], Plan],
    executor: Executor,
    place: Place,
) -> PlannedLoader:
    tail = Tail(mean=_given(data.spec.mean), std=_given(data.spec.std), device=place.device, dtype=place.dtype)
    return PlannedLoader(
        source.labels_N,
        order=order,
        draw_plan=draw_plan,
        executor=executor,
        tail=tail,
        seed=config.run.seed,
        fingerprint=source.fingerprint(),
        device=place.device,
    )


def _fit(spec: InputSpec) -> Fit:
    return Fit(spec.fit, spec.crop_frac)


def _present(data: Data) -> list[Source]:
    return [source for source in (data.train, data.val, data.test) if source is not None]


def _given(value: _T | None) -> _T:
    assert value is not None, "complete_input leaves no field open"
    return value


def _common_size(splits: list[Source]) -> int:
    sizes = np.unique(np.concatenate([source.sizes_N2 for source in splits]), axis=0)
    if len(sizes) == 1 and sizes[0, 0] == sizes[0, 1]:
        return int(sizes[0, 0])
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    short = int(np.median(sizes.min(axis=1)))
    offer = max(size for size in (32, 64, 96, 128, 160, 224) if size <= max(short, 32))
    raise ValueError(
        f"the images are not squares of one size, but {low[0]} to {high[0]} pixels high and {low[1]} to {high[1]} "
        f"wide; say which square size the network sees, for example --input.size_px {offer}."
    )
