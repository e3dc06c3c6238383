"""Configuration -> the loader of one split: what is drawn for it, its executor, its tail.

Config, Data -> Parts (training_parts, or those of an evaluation) -> join: its executor -> assemble -> PlannedLoader
"""

import functools

import numpy as np
import numpy.typing as npt

from configs.load import replace_section
from configs.schema import Config, InputSpec
from pipelines.build_augment import (
    build_augmentation,
    build_effect_settings,
    build_operate,
    build_own_pipeline,
    check_operations,
    home_of_operations,
)
from pipelines.build_data import Data, given, split_of
from pipelines.build_executor import Parts, Place, build_executor, choose_backend, fit_of, windows_are_drawn
from pipelines.effects import Effects, Mixing, draw_effects
from pipelines.execution import Executor
from pipelines.geometry import carry_out_plan
from pipelines.loader import Draw, PlannedLoader
from pipelines.order import EvaluationOrder, Share, TrainingOrder, Weighting, epoch_permutation
from pipelines.parallel import RowPool
from pipelines.plan import Plan, plan_evaluation, plan_training
from pipelines.policy import Action, Policy
from pipelines.sampling import sampling_weights
from pipelines.source import Source
from pipelines.tail import Tail
from pipelines.transfer import Transfer


def build_training_loader(
    config: Config, data: Data, *, place: Place, show_progress: bool, num_views: int = 1
) -> PlannedLoader:
    """Shuffled, augmented batches of train, with `num_views` differently augmented images of each sample.

    Raises:
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    parts = training_parts(config, data, place=place, num_views=num_views)
    return join(config, data, parts, place=place, show_progress=show_progress)


def in_batches_of(
    global_batch_size: int, *, loader: PlannedLoader, config: Config, data: Data, place: Place
) -> PlannedLoader:
    """The loader of train with another global batch size; what both need is there once (`in_other_batches`).

    Raises:
        ValueError: The global batch does not fit the data or the world size.
    """
    config = replace_section(config, "train", global_batch_size=global_batch_size)
    parts = training_parts(config, data, place=place)
    return loader.in_other_batches(order=parts.order, draw=parts.draw)


def training_parts(config: Config, data: Data, *, place: Place, num_views: int = 1) -> Parts:
    """What the loader of train is made of: its order, what is drawn for each image, who carries operations out.

    Raises:
        ValueError: As `build_training_loader`, but for images that cannot be read.
    """
    fit, sizes_N2, seed = fit_of(data.spec), data.train.sizes_N2, config.run.seed
    check_operations(config, channels=given(data.spec.channels))
    augmentation = build_augmentation(config)
    settings = build_effect_settings(config, num_images=len(data.train.labels_N))
    _check_pairs(config, mixes=settings.mixes)
    unmixed = settings._replace(mixing=Mixing())
    backend = choose_backend(config, data, device=place.device).name
    home = home_of_operations(config, backend=backend, on_gpu=place.device.type == "cuda")
    order = training_order(config, data.train, place=place, in_pairs=settings.mixes)

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

    def draw(plan: Plan, share: Share, epoch: int, step: int) -> Effects:
        effects = draw_effects(
            plan,
            copies_B=share.copies_N,
            positions_B=share.positions_N,
            settings=settings if mixes_at(epoch + step / order.steps_per_epoch, config=config) else unmixed,
            seed=seed,
            epoch=epoch,
        )
        return effects._replace(operations=plan.operations if home == "tail" else None)

    operate = build_operate(backend) if augmentation.operations and home == "executor" else None
    own_pipeline = build_own_pipeline(config, data)
    return Parts(
        "train",
        data.train,
        order,
        Draw(draw_plan, draw),
        config.data.on_bad_sample,
        operate=own_pipeline or operate,
        windows="drawn" if windows_are_drawn(config, data) else "stored",
        own_pipeline=None if own_pipeline is None else own_pipeline.fingerprint(),
    )


def _check_pairs(config: Config, *, mixes: bool) -> None:
    batch = config.train.global_batch_size
    if mixes and batch % 2:
        raise ValueError(
            f"a global batch of {batch} is odd, but mixup and CutMix take images in pairs; use {batch - 1} or "
            f"{batch + 1}, or --augment.mixup_alpha 0 --augment.cutmix_alpha 0."
        )


def training_order(config: Config, train: Source, *, place: Place, in_pairs: bool = False) -> TrainingOrder:
    """Which samples of train each step takes.

    Args:
        config: The run's.
        train: The samples.
        place: Rank and world size are read.
        in_pairs: Whether a share is widened to whole pairs, for mixing.

    Raises:
        ValueError: The global batch does not fit the data or the world size.
    """
    weights_N = weights_of(config, train)
    return TrainingOrder(
        len(train.labels_N),
        global_batch_size=config.train.global_batch_size,
        seed=config.run.seed,
        rank=place.rank,
        world_size=place.world_size,
        num_repeats=config.augment.repeats,
        in_pairs=in_pairs,
        weighting=None if weights_N is None else Weighting(train.labels_N, weights_N),
    )


def evaluation_order(config: Config, source: Source, *, place: Place) -> EvaluationOrder:
    """Every sample of a split once, in batches that are the same at any world size."""
    return EvaluationOrder(
        len(source.labels_N),
        batch_size_per_rank=config.loader.eval_batch_size_per_rank,
        rank=place.rank,
        world_size=place.world_size,
    )


def build_evaluation_loader(
    config: Config, data: Data, split: str, *, place: Place, show_progress: bool
) -> PlannedLoader:
    """Every sample of train, val or test once, unaugmented, in batches that are the same at any world size.

    Raises:
        ValueError: There is no such split, or an image cannot be read.
    """
    source = split_of(data, split)
    order = evaluation_order(config, source, place=place)
    parts = Parts(split, source, order, _evaluation_draw(source, data.spec), config.data.on_bad_eval_sample)
    return join(config, data, parts, place=place, show_progress=show_progress)


def build_whole_train_loader(config: Config, data: Data, *, place: Place, show_progress: bool) -> PlannedLoader:
    """Every image of train once, unaugmented, to train on what is computed of them; what training replaces is left out.

    Raises:
        ValueError: An image cannot be read, and is not to be replaced.
    """
    action = "raise" if config.data.on_bad_sample == "raise" else "exclude"
    config = replace_section(config, "data", on_bad_eval_sample=action)
    return build_evaluation_loader(config, data, "train", place=place, show_progress=show_progress)


def build_measuring_loader(
    config: Config, data: Data, num_images: int, *, place: Place, show_progress: bool
) -> PlannedLoader:
    """Some images of train, as evaluation shows them, in batches that mix the classes, for statistics of the network.

    Which ones follows from the seed, and the batches are the same at any world size. They are whole: of more images
    than a batch (loader.eval_batch_size_per_rank) holds, those that do not fill another one are left out; so are images
    that cannot be read where training replaces them.

    Raises:
        ValueError: An image cannot be read, and is not to be replaced.
    """
    batch_size, seed = config.loader.eval_batch_size_per_rank, config.run.seed
    ids_N = epoch_permutation(len(data.train.labels_N), seed=seed, epoch=0)
    ids_N = ids_N[~np.isin(ids_N, list(data.train.bad))][:num_images]
    num_whole = len(ids_N) // batch_size * batch_size
    source = data.train.take(np.sort(ids_N[: num_whole or len(ids_N)]))
    num_taken = len(source.labels_N)
    order = EvaluationOrder(
        num_taken,
        batch_size_per_rank=batch_size,
        rank=place.rank,
        world_size=place.world_size,
        ids_N=epoch_permutation(num_taken, seed=seed, epoch=0),
    )
    action: Action = "raise" if config.data.on_bad_sample == "raise" else "exclude"
    parts = Parts("train", source, order, _evaluation_draw(source, data.spec), action)
    return join(config, data, parts, place=place, show_progress=show_progress)


def _evaluation_draw(source: Source, spec: InputSpec) -> Draw:
    """Every image as it is, at the size of evaluation."""
    fit, size_px = fit_of(spec), given(spec.size_px)

    def draw_plan(share: Share, epoch: int, step: int) -> Plan:
        return plan_evaluation(share.ids_N, sizes_N2=source.sizes_N2[share.ids_N], fit=fit, size_px=size_px)

    return Draw(draw_plan, lambda plan, share, epoch, step: Effects())


def size_at(epoch: float, *, config: Config, spec: InputSpec) -> int:
    """The image size, in pixels, at a time counted in epochs."""
    sizes_px = [size_px for start, size_px in config.augment.sizes_px if start <= epoch + 1e-9]
    return sizes_px[-1] if sizes_px else given(spec.size_px)


def mixes_at(epoch: float, *, config: Config) -> bool:
    """Whether pairs are still mixed, where any are, at a time counted in epochs."""
    until_epoch = config.augment.mix_until_epoch
    return until_epoch is None or epoch + 1e-9 < until_epoch


def weights_of(config: Config, train: Source) -> npt.NDArray[np.float64] | None:
    """How often the images of train are to be met, in proportion; None = each once."""
    return sampling_weights(
        train.labels_N,
        sampling=config.data.sampling,
        factors={train.class_names.index(name): factor for name, factor in config.data.class_weights.items()},
        weights_N=train.weights_N,
    )


def join(config: Config, data: Data, parts: Parts, *, place: Place, show_progress: bool) -> PlannedLoader:
    """The loader of one split, with its executor and tail.

    Raises:
        ValueError: An image cannot be read, and is not to be replaced, or more are known to be so than are allowed.
    """
    pool = build_pool(place)
    executor = build_executor(config, data, parts, place=place, pool=pool, show_progress=show_progress)
    return assemble(config, data, parts, executor=executor, transfer=Transfer(place.device), place=place, pool=pool)


def build_pool(place: Place) -> RowPool:
    """Threads for the rows of arrays: of what a CPU computes as the device, and of nothing beside a GPU."""
    return RowPool(place.num_cores if place.device.type == "cpu" else 1)


def assemble(
    config: Config, data: Data, parts: Parts, *, executor: Executor, transfer: Transfer, place: Place, pool: RowPool
) -> PlannedLoader:
    """The loader of one split around its executor.

    Raises:
        ValueError: More images are known to be unreadable than are allowed.
    """
    spec, seed = data.spec, config.run.seed
    channels, interpolation = given(spec.channels), spec.interpolation
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
        transfer=transfer,
        tail=Tail(mean=given(spec.mean), std=given(spec.std), device=place.device, dtype=place.dtype, pool=pool),
        seed=seed,
        fingerprint=parts.source.fingerprint(),
        own_pipeline=parts.own_pipeline,
        max_bad_frac=config.data.max_bad_frac,
        device=place.device,
    )
    _check_num_known_bad(parts, loader)
    return loader


def _check_num_known_bad(parts: Parts, loader: PlannedLoader) -> None:
    """What would stop the run in its course stops it now.

    Raises:
        ValueError: More images are known to be unreadable than data.max_bad_frac allows.
    """
    if len(parts.source.bad) > loader.max_num_bad:
        raise ValueError(
            f"{len(parts.source.bad)} of {len(parts.source.labels_N)} images of {parts.split} cannot be read, and "
            f"data.max_bad_frac allows {loader.max_num_bad}; repair the data, or raise data.max_bad_frac."
        )
