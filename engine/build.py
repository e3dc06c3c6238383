"""Configuration -> what the loop needs: optimizer, schedule, phases; the loss is engine/build_loss.py's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from configs.check_speed import check_speed
from configs.load import config_to_dict, default_run_folder, replace_section
from configs.own_pipeline import hash_pipeline, read_pipeline
from configs.schema import Config, InputSpec
from engine.averages import Ema, Swa
from engine.batchnorm import has_batch_norm
from engine.checkpoint import newest_card
from engine.freezing import trained_as
from engine.launch import launcher_settings
from engine.memory import check_memory
from engine.record import RunFolder
from engine.runtime import Runtime
from engine.state import FitSettings, Phase
from pipelines.batch import Loader


def resolve_config(config: Config, environ: Mapping[str, str]) -> Config:
    """The configuration with accumulation, precision and run folder decided, once, for everything that follows.

    A pipeline of the user's own is known by what its file holds (`augment.albumentations_hash`), wherever it lies.

    Args:
        config: What the recipe and the command line say.
        environ: The environment, in which `accelerate launch` passes options of its own.

    Raises:
        ValueError: Recipe and launcher disagree; or the pipeline cannot be read, or is not the one that is wanted.
    """
    settings = launcher_settings(environ)
    for name, told in settings._asdict().items():
        asked = getattr(config.train, name)
        if None not in (told, asked) and told != asked:
            raise ValueError(
                f"train.{name}={asked}, but accelerate launch was told {told}; leave one of them out (the launcher's "
                "may come from the file that `accelerate config` wrote)."
            )
    config = replace_section(
        config,
        "train",
        accumulation=config.train.accumulation or settings.accumulation or 1,
        precision=config.train.precision or settings.precision or "fp32",
    )
    check_speed(config)  # the launcher may have told what does not go with it
    path, expected_hash = config.augment.albumentations, config.augment.albumentations_hash
    own_hash = None if path is None else hash_pipeline(read_pipeline(path, expected_hash=expected_hash))
    config = replace_section(config, "augment", albumentations_hash=own_hash)
    return replace_section(config, "run", out=config.run.out or default_run_folder(config))


def build_folder(config: Config) -> RunFolder:
    """The run folder; of a dry run, a folder inside it."""
    assert config.run.out is not None, "resolve_config has decided it"
    return RunFolder(Path(config.run.out) / "dry_run" if config.dry_run else config.run.out)


def build_average(
    config: Config, module: nn.Module, loader_of: Callable[[int], Loader], *, first_epoch: int = 0
) -> Ema | Swa | None:
    """The average of the weights that a run has, if it has one.

    Args:
        config: The run's.
        module: The network.
        loader_of: Number of images -> a loader of that many training images, as evaluation shows them.
        first_epoch: From which average.swa_start_epoch counts (`engine.build_strategy.first_scheduled_epoch`).
    """
    average = config.average
    if average.ema_decay > 0:
        return Ema(average.ema_decay, average.ema_warmup, average.ema_every_steps)
    if average.swa_start_epoch is not None:
        bn_loader = loader_of(average.bn_images) if has_batch_norm(module) else None
        return Swa(first_epoch + average.swa_start_epoch, bn_loader)
    return None


def build_bn_loader(config: Config, module: nn.Module, loader_of: Callable[[int], Loader]) -> Loader | None:
    """Images by which BatchNorm's statistics are measured when training ends, if they are; arguments as above.

    Raises:
        ValueError: They are to be, but there are none.
    """
    num_images = config.train.bn_images
    if num_images and not has_batch_norm(module):
        raise ValueError(
            f"train.bn_images={num_images}, but the network {config.model.name} has no BatchNorm with running "
            "statistics; drop it."
        )
    return loader_of(num_images) if num_images else None


def micro_batch_size(config: Config, runtime: Runtime) -> int:
    """Images that one rank computes at a time in training, at the most."""
    assert config.train.accumulation is not None, "resolve_config has decided it"
    largest = max([size for _, size in config.train.batch_sizes] or [config.train.global_batch_size])
    return -(-largest // (runtime.world_size * config.train.accumulation))


def largest_input(config: Config, spec: InputSpec) -> tuple[int, int, int]:
    """Channels, height and width of the largest images of training and evaluation."""
    assert spec.size_px is not None, "complete_input leaves no field open"
    assert spec.channels is not None, "as above"
    size_px = max([spec.size_px, *(size_px for _, size_px in config.augment.sizes_px)])
    return spec.channels, size_px, size_px


def check_fits(
    config: Config, module: nn.Module, *, spec: InputSpec, runtime: Runtime, phase: Phase | None = None
) -> None:
    """Checks that a micro-batch of the largest images fits into memory.

    Args:
        config: The run's.
        module: The network.
        spec: Its input, complete.
        runtime: Where it is trained.
        phase: The one that trains most of it, for what is not trained keeps little; None = all of it is trained.

    Raises:
        MemoryError: It does not; the message gives the number of images that do.
    """
    with trained_as(module, None if phase is None else phase.trains):
        check_memory(
            module,
            largest_input(config, spec),
            num_images=micro_batch_size(config, runtime),
            device=runtime.device,
            num_ranks=runtime.num_sharing,
            autocast=runtime.autocast,
        )


def build_settings(config: Config, environ: Mapping[str, str]) -> FitSettings:
    """How `fit` behaves; of the environment, in which Slurm says when its job ends."""
    run, slurm_end = config.run, environ.get("SLURM_JOB_END_TIME", "")
    return FitSettings(
        seed=run.seed,
        select=run.select,
        log_every_steps=run.log_every_steps,
        checkpoint_every_steps=run.checkpoint_every_steps,
        keep_checkpoints=run.keep_checkpoints,
        early_stop_epochs=config.train.early_stop_epochs,
        clip_norm=config.optim.clip_norm,
        clip_value=config.optim.clip_value,
        control=run.control,
        checkpoint_every_minutes=run.checkpoint_every_minutes,
        max_minutes=run.max_minutes,
        stall_minutes=run.stall_minutes,
        slurm_end_s=float(slurm_end) if slurm_end.isdecimal() else None,
        profile=run.profile,
    )


def build_card(
    config: Config, *, class_names: tuple[str, ...], spec: InputSpec, fingerprints: dict[str, str]
) -> dict[str, Any]:
    """What a checkpoint's weights are: model name and arguments, class names, complete input, what each split held."""
    return {
        "model": config_to_dict(config.model),
        "class_names": list(class_names),
        "input": config_to_dict(spec),
        "data": fingerprints,
    }


def with_card(config: Config, card: Mapping[str, Any]) -> Config:
    """`config` with the model and the input that a checkpoint was trained with."""
    sections = {name: {key: _tuple_of_list(value) for key, value in card[name].items()} for name in ("model", "input")}
    config = replace_section(config, "model", **sections["model"])
    return replace_section(config, "input", **sections["input"])


def with_measured_input(config: Config, folder: RunFolder) -> Config:
    """`config` with the mean and std that the run in `folder` began with, if it has a checkpoint."""
    card = newest_card(folder.checkpoints)
    return config if card is None else with_card(config, card)


def _tuple_of_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
