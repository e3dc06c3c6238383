"""Configuration -> data -> loaders; the only file of this room that reads a configuration.

DataConfig -> splits -> InputSpec completed -> backend chosen -> PlannedLoader
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch

from configs.check import check_input, check_pad
from configs.schema import Config, InputSpec
from pipelines.effects import Effects, EffectSettings, Erasing, Mixing, draw_effects
from pipelines.execution import Executor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, Store, load_store
from pipelines.executors.threads import ThreadsExecutor
from pipelines.geometry import carry_out_plan
from pipelines.loader import Draw, PlannedLoader
from pipelines.order import EvaluationOrder, Order, Share, TrainingOrder
from pipelines.parallel import RowPool
from pipelines.plan import Augmentation, Fit, Plan, plan_evaluation, plan_training
from pipelines.policy import Action, Policy
from pipelines.source import WHAT_TO_DO, Source
from pipelines.sources.digits import load_digits
from pipelines.sources.index import default_cache
from pipelines.sources.scan import scan_folder
from pipelines.split import split_source
from pipelines.statistics import measure_statistics
from pipelines.tail import Tail
from pipelines.transfer import Transfer

_DIGITS_TEST_FRAC = 0.2
_DIGITS_TEST_SEED = 0  # fixed: every run is scored on the same 360 digits

_NUM_NAMED = 5  # how many bad images an error names

_T = TypeVar("_T")

Windows = Literal["drawn", "stored"]  # whether a resident store holds whole images, or windows cut and resized


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
        splits = scan_folder(
            config.data.root,
            show_progress=show_progress,
            cache=default_cache(),
            rescan=config.data.rescan,
            verify=config.data.verify or config.loader.backend == "dali",
            keep_bad=True,
        )
    if "val" not in splits and config.data.val_frac > 0:
        parts = split_source(splits["train"], held_out_frac=config.data.val_frac, seed=config.data.split_seed)
        splits["train"], splits["val"] = parts.rest, parts.held_out
    for split, source in splits.items():
        action = config.data.on_bad_sample if split == "train" else config.data.on_bad_eval_sample
        if action == "raise":
            _refuse_bad(source, source.bad)
    if "val" not in splits and config.run.select == "best":
        raise ValueError(
            "run.select=best needs val to choose by, but data.val_frac=0 and the data has no val/; "
            "use run.select=last, or data.val_frac=0.1."
        )
    skip_bad = config.data.on_bad_sample == "replace"
    spec = complete_input(config.input, splits=list(splits.values()), skip_bad=skip_bad, show_progress=show_progress)
    if config.augment.crop == "pad":
        check_pad(config.augment.pad_px, size_px=_given(spec.size_px))
    return Data(train=splits["train"], val=splits.get("val"), test=splits.get("test"), spec=spec)


def complete_input(spec: InputSpec, *, splits: list[Source], skip_bad: bool, show_progress: bool) -> InputSpec:
    """`spec` with every open field filled from the images: size and channels from all splits, mean and std from train.

    Raises:
        ValueError: The images have several sizes and `spec.size_px` is open, or given values do not fit the channels.
    """
    size_px = spec.size_px or _common_size(splits)
    channels = spec.channels or (1 if all(source.is_grey for source in splits) else 3)
    spec = dataclasses.replace(spec, size_px=size_px, channels=channels)
    check_input(spec)
    if spec.mean is None or spec.std is None:
        measured = measure_statistics(splits[0], channels=channels, skip_bad=skip_bad, show_progress=show_progress)
        spec = dataclasses.replace(spec, mean=spec.mean or measured.mean, std=spec.std or measured.std)
    return spec


def choose_backend(config: Config, data: Data) -> Backend:
    """The executor for all splits, and why.

    Raises:
        ValueError: `loader.backend=resident` with images that cannot be held, or dali where it is not installed.
    """
    asked = config.loader.backend
    if asked == "dali" and not _is_installed("nvidia.dali"):
        raise ValueError(
            "loader.backend=dali needs NVIDIA DALI, which is not installed (there are builds for Linux on x86-64: "
            "pip install nvidia-dali-cuda130); use loader.backend=threads."
        )
    if asked not in ("auto", "resident"):
        return Backend(asked, "as configured")
    sizes = np.concatenate([source.sizes_N2 for source in _splits(data).values()])
    sizes = sizes[sizes[:, 0] > 0]  # not those whose header could not be read
    drawn = _windows_are_drawn(config, data)
    if drawn and (sizes != sizes[0]).any():
        if asked == "resident":
            raise ValueError(
                "loader.backend=resident holds the images as they are stored for augment.crop=rrc and "
                "augment.sizes_px, and these have several sizes; use loader.backend=threads, or another crop."
            )
        return Backend("threads", "windows or sizes are drawn, from images of several sizes")
    height, width = sizes[0] if drawn else (_given(data.spec.size_px),) * 2
    gib = len(sizes) * int(height) * int(width) * _given(data.spec.channels) / 2**30
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
    )


def split_of(data: Data, split: str) -> Source:
    """The samples of train, val or test.

    Raises:
        ValueError: There is no such split.
    """
    source = {"train": data.train, "val": data.val, "test": data.test}[split]
    if source is None:
        raise ValueError(f"the data has no {split}; there is {', '.join(_splits(data))}.")
    return source


def check_classes(data: Data, class_names: Sequence[str]) -> None:
    """Checks that the data has the classes that a checkpoint was trained on.

    Raises:
        ValueError: It has others; they are listed.
    """
    present = data.train.class_names
    if list(present) != list(class_names):
        missing = [f"- {name}" for name in class_names if name not in present]
        unknown = [f"+ {name}" for name in present if name not in class_names]
        raise ValueError(f"the data has other classes than the checkpoint: {', '.join(missing + unknown)}.")


def fingerprint_splits(data: Data) -> dict[str, str]:
    """What each split holds, as hashes, for a checkpoint to remember."""
    return {name: source.fingerprint() for name, source in _splits(data).items()}


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
        f"loader: {loaders.backend.name} ({loaders.backend.reason})" + _describe_bad(data)
    )


def _describe_bad(data: Data) -> str:
    """A line on the images that are known to be unreadable; nothing where there are none."""
    done = {"train": "replaced", "val": "not counted", "test": "not counted"}
    known = [f"{len(source.bad)} of {split} ({done[split]})" for split, source in _splits(data).items() if source.bad]
    return f"\ncannot be read: {', '.join(known)}" if known else ""


def build_training_loader(
    config: Config, data: Data, *, place: Place, show_progress: bool, num_views: int = 1
) -> PlannedLoader:
    """Shuffled, augmented batches of train, with `num_views` differently augmented images of each sample.

    Raises:
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    fit, sizes_N2, seed = _fit(data.spec), data.train.sizes_N2, config.run.seed
    augmentation, settings = _augmentation(config), _effect_settings(config)
    order = TrainingOrder(
        len(data.train.labels_N),
        global_batch_size=config.train.global_batch_size,
        seed=seed,
        rank=place.rank,
        world_size=place.world_size,
        num_repeats=config.augment.repeats,
        in_pairs=settings.mixes,
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

    parts = _Parts("train", data.train, order, Draw(draw_plan, draw), config.data.on_bad_sample)
    windows: Windows = "drawn" if _windows_are_drawn(config, data) else "stored"
    return _join(config, data, parts, windows=windows, place=place, show_progress=show_progress)


def build_evaluation_loader(
    config: Config, data: Data, split: str, *, place: Place, show_progress: bool
) -> PlannedLoader:
    """Every sample of train, val or test once, unaugmented, in batches that are the same at any world size.

    Raises:
        ValueError: There is no such split, or an image cannot be read.
    """
    source, fit, size_px = split_of(data, split), _fit(data.spec), _given(data.spec.size_px)
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


def size_at(epoch: float, *, config: Config, spec: InputSpec) -> int:
    """The image size, in pixels, at a time counted in epochs."""
    sizes_px = [size_px for start, size_px in config.augment.sizes_px if start <= epoch + 1e-9]
    return sizes_px[-1] if sizes_px else _given(spec.size_px)


class _Parts(NamedTuple):
    """What makes the loader of one split differ from the others."""

    split: str
    source: Source
    order: Order
    draw: Draw
    action: Action


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
    channels, interpolation = _given(spec.channels), spec.interpolation
    executor = _build_executor(
        config, data, parts, windows=windows, place=place, pool=pool, show_progress=show_progress
    )
    loader = PlannedLoader(
        parts.source.labels_N,
        order=parts.order,
        draw=parts.draw,
        executor=executor,
        policy=Policy(parts.source, split=parts.split, action=parts.action, seed=seed),
        repair=functools.partial(carry_out_plan, source=parts.source, channels=channels, interpolation=interpolation),
        transfer=Transfer(place.device),
        tail=Tail(mean=_given(spec.mean), std=_given(spec.std), device=place.device, dtype=place.dtype, pool=pool),
        seed=seed,
        fingerprint=parts.source.fingerprint(),
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
    windows: Windows,
    place: Place,
    pool: RowPool,
    show_progress: bool,
) -> Executor:
    loader, source = config.loader, parts.source
    channels, interpolation = _given(data.spec.channels), data.spec.interpolation
    on_gpu = place.device.type == "cuda"
    num_threads = loader.num_threads or place.num_cores
    match choose_backend(config, data).name:
        case "reference":
            num_workers = min(8, place.num_cores) if loader.num_workers is None else loader.num_workers
            return ReferenceExecutor(
                source, channels=channels, interpolation=interpolation, num_workers=num_workers, pin_memory=on_gpu
            )
        case "threads":
            return ThreadsExecutor(
                source,
                channels=channels,
                interpolation=interpolation,
                num_threads=num_threads,
                num_prefetched=loader.prefetch_batches,
                pin_memory=on_gpu,
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
    plan = plan_evaluation(every_id, sizes_N2=source.sizes_N2, fit=_fit(spec), size_px=_given(spec.size_px))
    store = load_store(
        source,
        channels=_given(spec.channels),
        windows=plan if windows == "stored" else None,
        interpolation=spec.interpolation,
        show_progress=show_progress,
    )
    if parts.action == "raise":
        _refuse_bad(source, store.bad)
    return store


def _refuse_bad(source: Source, bad: Mapping[int, str]) -> None:
    if not bad:
        return
    first = [f"{source.describe(sample_id)}: {reason}" for sample_id, reason in list(bad.items())[:_NUM_NAMED]]
    raise ValueError(
        f"{len(bad)} of {len(source.labels_N)} images cannot be read:\n  "
        + "\n  ".join(first + ["..."] * (len(bad) > _NUM_NAMED))
        + f"\n{WHAT_TO_DO}"
    )


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
    )


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


def _splits(data: Data) -> dict[str, Source]:
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {name: source for name, source in splits.items() if source is not None}


def _given(value: _T | None) -> _T:
    assert value is not None, "complete_input leaves no field open"
    return value


def _common_size(splits: list[Source]) -> int:
    sizes = np.unique(np.concatenate([source.sizes_N2 for source in splits]), axis=0)
    sizes = sizes[sizes[:, 0] > 0]  # not those whose header could not be read
    if len(sizes) == 1 and sizes[0, 0] == sizes[0, 1]:
        return int(sizes[0, 0])
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    short = int(np.median(sizes.min(axis=1)))
    offer = max(size for size in (32, 64, 96, 128, 160, 224) if size <= max(short, 32))
    raise ValueError(
        f"the images are not squares of one size, but {low[0]} to {high[0]} pixels high and {low[1]} to {high[1]} "
        f"wide; say which square size the network sees, for example --input.size_px {offer}."
    )
