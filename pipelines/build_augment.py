"""Configuration -> what is drawn for training images, and who carries the operations out."""

import dataclasses
from typing import Literal

from configs.operations import read_operations
from configs.own_pipeline import read_pipeline
from configs.schema import Config
from pipelines.build_data import Data, given
from pipelines.effects import EffectSettings, Erasing, Mixing
from pipelines.execution import Operate
from pipelines.operations.drawing import Step, operations_of
from pipelines.operations.own_pipeline import OwnPipeline
from pipelines.operations.vocabulary import NATIVE_OPERATIONS, Operation
from pipelines.plan import Augmentation

Home = Literal["executor", "tail"]


def build_augmentation(config: Config) -> Augmentation:
    """What the plan draws."""
    augment = config.augment
    return Augmentation(
        crop=augment.crop,
        pad_px=augment.pad_px,
        rrc_scale=augment.rrc_scale,
        rrc_ratio=augment.rrc_ratio,
        flip=augment.flip,
        vertical_flip_prob=augment.vertical_flip_prob,
        operations=build_steps(config),
        own_pipeline=config.augment.albumentations is not None,
    )


def build_steps(config: Config) -> tuple[Step, ...]:
    """The steps of augment.operations."""
    return tuple(
        Step(name, {field.name: getattr(step, field.name) for field in dataclasses.fields(step)})
        for name, step in read_operations(config.augment.operations)
    )


def build_effect_settings(config: Config, *, num_images: int) -> EffectSettings:
    """What the tail does, as it is drawn, where train has `num_images`."""
    augment = config.augment
    mixing = Mixing(augment.mixup_alpha, augment.cutmix_alpha, augment.mix_prob, augment.mix_switch_prob)
    return EffectSettings(
        mixing=mixing if num_images >= augment.mix_from_images else Mixing(),
        erasing=Erasing(augment.erase_prob, augment.erase_scale, augment.erase_ratio),
        noise_std=augment.noise_std,
        cutout_px=augment.cutout_px,
    )


def home_of_operations(config: Config, *, backend: str, on_gpu: bool) -> Home:
    """Who carries the plan's operations out: the executor itself, or the tail behind it. All of them, never some.

    DALI does what it has, on a GPU and where nothing is left to be shifted behind it. On a CPU the tail's kernels take
    a tenth of its time: colour jitter 0.12 ms an image of 224 px against 1.2 (Intel Xeon, DALI 2.4.0, 2026-11-26).
    """
    if backend == "dali":
        is_native = on_gpu and config.augment.crop != "pad" and operations_of(build_steps(config)) <= NATIVE_OPERATIONS
        return "executor" if is_native else "tail"
    return "executor" if backend in ("threads", "processes", "reference") else "tail"


def build_operate(backend: str) -> Operate:
    """What does operations to one image: in the executor, and wherever it needs an image mended.

    Kernels are compiled here, before there are worker processes, each of which would compile them for itself.
    """
    if backend in ("reference", "dali"):
        from pipelines.operations import reference

        return reference.operate
    from pipelines.operations import kernels  # numba takes a second to import

    kernels.compile_operate()
    return kernels.operate


def build_own_pipeline(config: Config, data: Data) -> OwnPipeline | None:
    """The user's own pipeline, tried out, where there is one.

    Raises:
        ValueError: It cannot be used, or is not the one of augment.albumentations_hash.
    """
    path = config.augment.albumentations
    if path is None:
        return None
    read_pipeline(path, expected_hash=config.augment.albumentations_hash)
    own_pipeline = OwnPipeline(path, describe=data.train.describe)
    sizes_px = {given(data.spec.size_px), *(size_px for _, size_px in config.augment.sizes_px)}
    own_pipeline.try_out(sizes_px=sorted(sizes_px), channels=given(data.spec.channels))
    return own_pipeline


def check_operations(config: Config, *, channels: int) -> None:
    """Checks the operations against the images.

    Raises:
        ValueError: A shift of three colours for grey images.
    """
    if channels == 1 and Operation.RGB_SHIFT in operations_of(build_steps(config)):
        raise ValueError(
            "augment.operations has rgb_shift, which needs three channels, but the images are grey (input.channels=1); "
            "use brightness, or --input.channels 3."
        )
