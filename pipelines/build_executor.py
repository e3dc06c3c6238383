"""Configuration -> who carries plans out: the backend that is chosen, and its executor for one split.

Config, Data -> choose_backend -> build_executor (with what one split needs: Parts) -> Executor
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from configs.load import replace_section
from configs.schema import Config, InputSpec
from pipelines.build_augment import build_steps
from pipelines.build_data import Data, given, splits_of
from pipelines.execution import Executor, Operate
from pipelines.executors.dali_requirements import obstacle_to_dali, this_machine
from pipelines.executors.processes import ProcessesExecutor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, Store, load_store
from pipelines.executors.threads import ThreadsExecutor
from pipelines.loader import Draw
from pipelines.operations.drawing import num_slots, operations_of
from pipelines.order import Order
from pipelines.parallel import RowPool
from pipelines.plan import Fit, plan_evaluation
from pipelines.policy import Action
from pipelines.preview import Renumbered
from pipelines.source import Source, refuse_bad
from pipelines.sources.own_dataset import OwnSource
from pipelines.sources.packed import PackedSource

Windows = Literal["drawn", "stored"]  # whether a resident store holds whole images, or windows cut and resized


class Place(NamedTuple):
    """Where batches go: device and dtype of the inputs, rank and world size, CPU cores for this process."""

    device: torch.device
    dtype: torch.dtype
    rank: int
    world_size: int
    num_cores: int


class Parts(NamedTuple):
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


class Backend(NamedTuple):
    """The chosen executor and the reason."""

    name: str
    reason: str


def choose_backend(config: Config, data: Data, *, device: torch.device | None = None) -> Backend:
    """The executor for all splits, and why.

    Args:
        config: The run's.
        data: The images.
        device: Where batches go; None = not known yet, and what DALI needs for a GPU is not looked at.

    Raises:
        ValueError: `loader.backend=resident` with images that cannot be held, dali where it cannot work, or one of them
            with a pipeline of the user's own.
    """
    backend = _choose_backend(config, data, device)
    if backend.name == "threads" and config.loader.workers == "processes":
        return Backend("processes", f"{backend.reason}; loader.workers=processes")
    if config.loader.workers == "processes":
        return backend._replace(reason=f"{backend.reason}; loader.workers=processes is read by threads only")
    return backend


def _choose_backend(config: Config, data: Data, device: torch.device | None) -> Backend:
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
    if asked == "dali":
        _check_dali(config, data, device)
    if asked not in ("auto", "resident"):
        return Backend(asked, "as configured")
    sizes = np.concatenate([source.sizes_N2 for source in splits_of(data).values()])
    sizes = sizes[sizes[:, 0] > 0]  # not those whose header could not be read
    drawn = windows_are_drawn(config, data)
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


def build_executor(
    config: Config, data: Data, parts: Parts, *, place: Place, pool: RowPool, show_progress: bool
) -> Executor:
    """What carries the plans of one split out.

    Raises:
        ValueError: An image that is to be held cannot be read, and is not to be replaced; or DALI cannot work here.
    """
    if parts.only_ids_N is not None:
        some = parts._replace(source=parts.source.take(parts.only_ids_N), only_ids_N=None)
        executor = build_executor(config, data, some, place=place, pool=pool, show_progress=show_progress)
        return Renumbered(executor, ids_N=parts.only_ids_N)
    loader, source = config.loader, parts.source
    channels, interpolation = given(data.spec.channels), data.spec.interpolation
    on_gpu = place.device.type == "cuda"
    num_threads = loader.num_threads or place.num_cores
    num_workers = min(8, place.num_cores) if loader.num_workers is None else loader.num_workers
    decode = loader.decode if parts.split == "train" else "exact"
    match choose_backend(config, data, device=place.device).name:
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
                decode=decode,
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
                decode=decode,
                expect=source.expect if isinstance(source, PackedSource) else None,
            )
        case "dali":
            return _build_dali(config, data, parts, place=place, num_threads=num_threads)
        case _:
            return _build_resident(data, parts, place=place, pool=pool, show_progress=show_progress)


def _build_dali(config: Config, data: Data, parts: Parts, *, place: Place, num_threads: int) -> Executor:
    try:
        from pipelines.executors.dali import DaliExecutor  # it is not installed everywhere, and takes a second
    except (ImportError, OSError) as error:
        raise _without_dali(f"NVIDIA DALI does not start ({error})", config, data) from error

    steps = build_steps(config) if parts.operate is not None else ()
    return DaliExecutor(
        parts.source,
        channels=given(data.spec.channels),
        interpolation=data.spec.interpolation,
        device=place.device,
        num_threads=num_threads,
        num_prefetched=config.loader.prefetch_batches,
        hw_decoder_load=config.loader.hw_decoder_load,
        operations=operations_of(steps),
        num_slots=num_slots(steps),
    )


def _check_dali(config: Config, data: Data, device: torch.device | None) -> None:
    on_gpu = device is not None and device.type == "cuda"
    obstacle = obstacle_to_dali(this_machine(on_gpu=on_gpu))
    if obstacle is not None:
        raise _without_dali(obstacle, config, data)


def _without_dali(obstacle: str, config: Config, data: Data) -> ValueError:
    fallback = choose_backend(replace_section(config, "loader", backend="auto"), data).name
    return ValueError(f"loader.backend=dali: {obstacle}. Or use --loader.backend auto, which takes {fallback} here.")


def _build_resident(data: Data, parts: Parts, *, place: Place, pool: RowPool, show_progress: bool) -> Executor:
    store = _load_store(data, parts, show_progress=show_progress)
    store = store._replace(images_NHWC=store.images_NHWC.to(place.device))
    return ResidentExecutor(store, interpolation=data.spec.interpolation, windows=parts.windows, pool=pool)


def _load_store(data: Data, parts: Parts, *, show_progress: bool) -> Store:
    """All images of a split; a bad one is refused here already, if the run would stop at it.

    Raises:
        ValueError: An image cannot be read, and the action is raise.
    """
    source, spec = parts.source, data.spec
    every_id = np.arange(len(source.labels_N))
    plan = plan_evaluation(every_id, sizes_N2=source.sizes_N2, fit=fit_of(spec), size_px=given(spec.size_px))
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


def windows_are_drawn(config: Config, data: Data) -> bool:
    """Whether what a stored image shows, or its size, changes from epoch to epoch."""
    sizes_px = {size_px for _, size_px in config.augment.sizes_px} | {data.spec.size_px}
    return config.augment.crop == "rrc" or len(sizes_px) > 1


def fit_of(spec: InputSpec) -> Fit:
    """How an image that is not square fits."""
    return Fit(spec.fit, spec.crop_frac, border=tuple(round(255 * value) for value in given(spec.mean)))
