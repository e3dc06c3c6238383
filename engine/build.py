"""Configuration -> what the loop needs: loss, optimizer, schedule, phases."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from configs.check_speed import check_speed
from configs.load import config_to_dict, default_run_folder, replace_section
from configs.own_pipeline import hash_pipeline, read_pipeline
from configs.schema import Config, InputSpec, OptimConfig, ScheduleConfig
from engine.checkpoint import newest_card
from engine.fused import fused_of
from engine.losses import LossFn, supervised
from engine.memory import check_memory
from engine.record import RunFolder
from engine.runtime import Runtime, launcher_settings
from engine.schedules import (
    LrFactor,
    Plateau,
    constant,
    cosine,
    cycle_momentum,
    multi_step,
    one_cycle,
    step_decay,
    with_warmup,
)
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


def build_phases(config: Config, loader: Loader) -> list[Phase]:
    """The phases of plain training: one."""
    assert config.train.accumulation is not None, "resolve_config has decided it"
    return [
        Phase(
            name="train",
            loader=loader,
            epochs=config.train.epochs,
            accumulation=config.train.accumulation,
            build_optimizer=functools.partial(build_optimizer, config.optim, fused=config.speed.fused),
            lr_factor=build_schedule(config, steps_per_epoch=loader.steps_per_epoch),
            momentum_at=build_momentum(config, steps_per_epoch=loader.steps_per_epoch),
            plateau=build_plateau(config.schedule),
        )
    ]


def build_loss(config: Config, *, num_classes: int) -> LossFn:
    """The loss function of plain training."""
    return supervised(num_classes=num_classes, label_smoothing=config.loss.label_smoothing)


def build_optimizer(optim: OptimConfig, module: nn.Module, *, fused: Literal["auto", "on", "off"] = "off") -> Optimizer:
    """The optimizer of all parameters that are trained; `fused` is speed.fused.

    Raises:
        ValueError: There is none, or torch has no fused one.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        num_frozen = len(list(module.parameters()))
        raise ValueError(
            f"the network has nothing to train: {num_frozen} parameters, all with requires_grad=False; leave some of "
            "them, its last layer for example, at True."
            if num_frozen
            else "the network has nothing to train: it has no parameters; give it a layer that has, such as nn.Linear."
        )
    given: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    if fused_of(fused, name=optim.name, device=parameters[0].device):
        given["fused"] = True
    match optim.name:
        case "sgd":
            return SGD(parameters, momentum=optim.momentum, nesterov=optim.nesterov, **given)
        case "rmsprop":
            return RMSprop(parameters, momentum=optim.momentum, alpha=optim.alpha, eps=optim.eps, **given)
        case "adam":
            return Adam(parameters, betas=optim.betas, eps=optim.eps, **given)
        case "adamw":
            return AdamW(parameters, betas=optim.betas, eps=optim.eps, **given)


def build_schedule(config: Config, *, steps_per_epoch: int) -> LrFactor:
    """The schedule over all epochs, warm-up included; of plateau what the step alone decides."""
    schedule = config.schedule
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    num_steps = config.train.epochs * steps_per_epoch - warmup_steps
    match schedule.name:
        case "constant" | "plateau":
            after = constant()
        case "step":
            after = step_decay(step_size=schedule.step_epochs * steps_per_epoch, gamma=schedule.gamma)
        case "exponential":
            after = step_decay(step_size=steps_per_epoch, gamma=schedule.gamma)
        case "multi_step":
            milestones = [round(epoch * steps_per_epoch) - warmup_steps for epoch in schedule.milestones_epochs]
            after = multi_step(milestones=milestones, gamma=schedule.gamma)
        case "cosine":
            after = cosine(num_steps=max(num_steps, 1), final_frac=schedule.final_lr_frac)
        case "one_cycle":
            after = one_cycle(
                num_steps=num_steps,
                rise_frac=schedule.rise_frac,
                start_frac=schedule.start_lr_frac,
                final_frac=schedule.final_lr_frac,
            )
    return with_warmup(after, num_steps=warmup_steps)


def build_momentum(config: Config, *, steps_per_epoch: int) -> Callable[[int], float] | None:
    """The momentum over all epochs, where the schedule moves it."""
    schedule = config.schedule
    if schedule.momentum_range is None:
        return None
    high, low = schedule.momentum_range
    num_steps = config.train.epochs * steps_per_epoch
    return cycle_momentum(num_steps=num_steps, rise_frac=schedule.rise_frac, high=high, low=low)


def build_plateau(schedule: ScheduleConfig) -> Plateau | None:
    """What lowers the learning rate by the scores on val, if the schedule is plateau."""
    if schedule.name != "plateau":
        return None
    return Plateau(schedule.gamma, schedule.patience_epochs, schedule.threshold_frac, schedule.min_lr_frac)


def check_fits(config: Config, module: nn.Module, spec: InputSpec, runtime: Runtime) -> None:
    """Checks that the activations of a micro-batch of the largest images fit into memory.

    Raises:
        MemoryError: They do not; the message gives the number of images that do.
    """
    check_memory(
        module,
        largest_input(config, spec),
        num_images=micro_batch_size(config, runtime),
        device=runtime.device,
        num_ranks=runtime.num_sharing,
        autocast=runtime.autocast,
    )


def micro_batch_size(config: Config, runtime: Runtime) -> int:
    """Images that one rank computes at a time in training."""
    assert config.train.accumulation is not None, "resolve_config has decided it"
    return -(-config.train.global_batch_size // (runtime.world_size * config.train.accumulation))


def largest_input(config: Config, spec: InputSpec) -> tuple[int, int, int]:
    """Channels, height and width of the largest images of training and evaluation."""
    assert spec.size_px is not None, "complete_input leaves no field open"
    assert spec.channels is not None, "as above"
    size_px = max([spec.size_px, *(size_px for _, size_px in config.augment.sizes_px)])
    return spec.channels, size_px, size_px


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
