"""Configuration -> the phases of training: their optimizer, their schedule, their batches.

Config, loader -> build_phases -> [Phase]
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from configs.schema import Config, OptimConfig, ScheduleConfig
from engine.groups import sort_parameters
from engine.optimizers import make_optimizer
from engine.phases import split_by_batch_size
from engine.schedules import (
    LrFactor,
    Plateau,
    constant,
    cosine,
    cosine_restarts,
    cycle_momentum,
    multi_step,
    one_cycle,
    polynomial,
    squeezed,
    step_decay,
    until,
    with_warmup,
)
from engine.state import Phase
from pipelines.batch import Loader


def build_phases(
    config: Config,
    loader: Loader,
    loader_of: Callable[[int], Loader] | None = None,
    *,
    layers: Sequence[Sequence[str]] = (),
) -> list[Phase]:
    """The phases of plain training: one, or one for each of train.batch_sizes, which go on where the one before ends.

    Args:
        config: The run's.
        loader: Training batches of the size that training begins with.
        loader_of: Global batch size -> training batches, for the sizes that follow.
        layers: As in `build_optimizer`.
    """
    assert config.train.accumulation is not None, "resolve_config has decided it"
    first = Phase(
        name="train",
        loader=loader,
        epochs=config.train.epochs,
        accumulation=config.train.accumulation,
        build_optimizer=functools.partial(build_optimizer, config.optim, layers=layers, fused=config.speed.fused),
        lr_factor=build_schedule(config, steps_per_epoch=loader.steps_per_epoch),
        lr_factors=build_group_schedules(config, steps_per_epoch=loader.steps_per_epoch),
        momentum_at=build_momentum(config, steps_per_epoch=loader.steps_per_epoch),
        plateau=build_plateau(config.schedule),
    )
    if not config.train.batch_sizes:
        return [first]
    assert loader_of is not None, "train.batch_sizes needs it"
    return split_by_batch_size(
        first,
        config.train.batch_sizes,
        loader_of,
        batch_lr=config.train.batch_lr,
        base_size=config.train.global_batch_size,
    )


def build_optimizer(
    optim: OptimConfig,
    module: nn.Module,
    *,
    layers: Sequence[Sequence[str]] = (),
    fused: Literal["auto", "on", "off"] = "off",
) -> Optimizer:
    """The optimizer of all parameters that are trained.

    Args:
        optim: Which, and how its groups differ.
        module: The network.
        layers: Names of its parameters, layer by layer, for layer decay.
        fused: As speed.fused.

    Raises:
        ValueError: There is none; a group matches nothing; or torch has no such fused optimizer.
    """
    return make_optimizer(sort_parameters(module, optim, layers=layers), optim, fused=fused)


def build_schedule(config: Config, *, steps_per_epoch: int) -> LrFactor:
    """The schedule over all epochs, warm-up included; of plateau what the step alone decides."""
    schedule, average = config.schedule, config.average
    num_steps = config.train.epochs * steps_per_epoch
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    cooldown_steps = round(schedule.cooldown_epochs * steps_per_epoch)
    moving_steps = max(num_steps - warmup_steps - cooldown_steps, 1)
    factor = with_warmup(
        until(
            _build_decay(schedule, num_steps=moving_steps, steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps),
            num_steps=moving_steps if cooldown_steps else math.inf,
            after=constant(schedule.final_lr_frac),
        ),
        num_steps=warmup_steps,
        start_frac=schedule.warmup_start_lr_frac,
    )
    if average.swa_start_epoch is None or average.swa_lr_frac is None:
        return factor
    return until(factor, num_steps=average.swa_start_epoch * steps_per_epoch, after=constant(average.swa_lr_frac))


def _build_decay(schedule: ScheduleConfig, *, num_steps: int, steps_per_epoch: int, warmup_steps: int) -> LrFactor:
    """What follows the warm-up."""
    final_frac = schedule.final_lr_frac
    match schedule.name:
        case "constant" | "plateau":
            return constant()
        case "step":
            return step_decay(step_size=schedule.step_epochs * steps_per_epoch, gamma=schedule.gamma)
        case "exponential":
            return step_decay(step_size=steps_per_epoch, gamma=schedule.gamma)
        case "multi_step":
            milestones = [round(epoch * steps_per_epoch) - warmup_steps for epoch in schedule.milestones_epochs]
            return multi_step(milestones=milestones, gamma=schedule.gamma)
        case "linear":
            return polynomial(num_steps=num_steps, power=1.0, final_frac=final_frac)
        case "polynomial":
            return polynomial(num_steps=num_steps, power=schedule.power, final_frac=final_frac)
        case "cosine":
            return cosine(num_steps=num_steps, final_frac=final_frac)
        case "cosine_restarts":
            return cosine_restarts(
                cycle_steps=schedule.cycle_epochs * steps_per_epoch,
                mult=schedule.cycle_mult,
                decay=schedule.cycle_decay,
                final_frac=final_frac,
            )
        case "one_cycle":
            return one_cycle(
                num_steps=num_steps,
                rise_frac=schedule.rise_frac,
                start_frac=schedule.start_lr_frac,
                final_frac=final_frac,
            )


def build_group_schedules(config: Config, *, steps_per_epoch: int) -> dict[float, LrFactor]:
    """The schedules of groups that end before training does, by their `until_epoch`.

    Raises:
        ValueError: One ends before its first step.
    """
    whole, num_steps = build_schedule(config, steps_per_epoch=steps_per_epoch), config.train.epochs * steps_per_epoch
    ends = {group.until_epoch for group in config.optim.groups if group.until_epoch is not None}
    if ends and round(min(ends) * steps_per_epoch) == 0:
        raise ValueError(
            f"optim.groups has until_epoch={min(ends):g}, which is no step of an epoch of {steps_per_epoch}; use "
            f"{1 / steps_per_epoch:.3g} or more."
        )
    return {end: squeezed(whole, num_steps=num_steps, into_steps=round(end * steps_per_epoch)) for end in ends}


def build_momentum(config: Config, *, steps_per_epoch: int) -> LrFactor | None:
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
