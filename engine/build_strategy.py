"""Configuration -> the phases of fine-tuning: which stages of the network are trained when, and how fast.

Config, loader, stages -> build_strategy_phases -> [Phase]

    linear          head ------------------------------------------------ the schedule
    head_then_all   head, constant | all, all_lr_frac of the rate ------- the schedule
    gradual         head, constant | last 2 stages, constant | ... | all  the schedule
    all, scratch    all ------------------------------------------------- the schedule
    differential    all, each stage slower than the one after it -------- the schedule

The schedule, with warm-up, momentum and plateau, is that of the last phase and counts from its first step, and so does
`average.swa_start_epoch`. Each phase begins with a new optimizer. What goes on over phases: the order of the images and
the times of augmentation (`augment.sizes_px`, `augment.mix_until_epoch`), which count the epochs of the whole run; the
EMA; the choice of the best checkpoint. Early stopping counts the epochs of the last phase alone, against the best score
of all of them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import nn

from configs.check_strategy import check_strategy
from configs.load import replace_section
from configs.schema import AverageConfig, Config, ScheduleConfig, StrategyConfig
from engine.build_phases import build_phases
from engine.checkpoint import newest_card
from engine.choose_strategy import choose, measure_knowing
from engine.features import HeadError, compute_features
from engine.run import Desk
from engine.state import Phase
from pipelines.batch import Loader

STAGE_DECAY = 0.4  # of the docstring of StrategyConfig; of a ResNet's six stages the first is then at 1 % of the rate
_NUM_LOOKED_AT = 1000  # images by which auto sees how well the network tells the classes apart

Names = Sequence[Sequence[str]]


def build_strategy_phases(
    config: Config, loader: Loader, loader_of: Callable[[int], Loader] | None, *, stages: Names, layers: Names
) -> list[Phase]:
    """The phases of strategy.name, for all but auto, which is decided before, and features.

    Args:
        config: The run's.
        loader: Training batches, at the beginning of their first epoch.
        loader_of: Global batch size -> training batches, for later phases: their own loaders begin where those of the
            phases before end.
        stages: Names of all parameters in stages from the images to the head, which is the last, alone.
        layers: The same layer by layer, for optim.layer_decay.

    Raises:
        ValueError: The phases before the last take all epochs, or leave too few for what is to happen in the last; or
            BatchNorm's statistics are to be both kept and measured anew.
    """
    strategy, num_stages = config.strategy, len(stages)
    assert strategy.name not in ("auto", "features"), "decided before, and trained elsewhere"
    before = first_scheduled_epoch(strategy, num_stages=num_stages)
    assert not (before and config.train.batch_sizes), "check_strategy refuses it"
    _check_epochs(config, before=before)
    _check_bn(config)
    config, layers = _with_stage_decay(config, stages=stages, layers=layers)
    phases: list[Phase] = []
    for number in _stages_of_early_phases(strategy, num_stages=num_stages):
        phase = _constant_phase(config, loader, layers=layers)
        name, trains = _name(number, num_stages=num_stages), _contains(stages[-number:])
        phases.append(phase._replace(name=name, trains=trains, may_stop_early=False))
        loader = _loader_at(len(phases) * strategy.head_epochs, config, loader_of)
    last = build_phases(_config_of_last(config, before=before), loader, loader_of, layers=layers)
    number = 1 if strategy.name == "linear" else num_stages
    if strategy.name == "linear" or phases:
        last = [phase._replace(trains=_contains(stages[-number:])) for phase in last]
    if not config.train.batch_sizes:  # else they are called by those
        last = [phase._replace(name=_name(number, num_stages=num_stages)) for phase in last]
    frozen_bn = "train" if strategy.name == "scratch" else strategy.frozen_bn  # it has no statistics worth keeping
    return [phase._replace(frozen_bn=frozen_bn) for phase in phases + last]


def decide_strategy(
    config: Config,
    module: nn.Module,
    loader_of: Callable[[int], Loader],
    *,
    head: str,
    labels_N: npt.NDArray[np.int64],
    desk: Desk,
) -> Config:
    """`config` with strategy.name decided where it is auto, by some training images; says what it is, and why.

    A run that goes on keeps the strategy that it began with: measured anew, what is near the limit may fall otherwise.

    Args:
        config: The run's.
        module: The network as training begins, placed.
        loader_of: Number of images -> a loader of that many training images, as evaluation shows them.
        head: The path of its last layer.
        labels_N: Of all training images, int64 (N,).
        desk: Where it is computed and said, and where the checkpoints of a run that goes on lie.

    Raises:
        ValueError: An image cannot be read; or what was chosen does not go with the rest of the configuration.
    """
    (runtime, folder, progress), strategy = desk, config.strategy
    if strategy.name != "auto":
        return config
    card = newest_card(folder.checkpoints)
    if card is not None and "strategy" in card:
        progress.say(f"strategy: {card['strategy']}, with which this run began")
        return replace_section(config, "strategy", name=card["strategy"])
    knows = None
    if strategy.similarity == "measured":
        loader = loader_of(min(_NUM_LOOKED_AT, len(labels_N)))
        beat = partial(runtime.watchdog.beat, "looking at the data")
        with contextlib.suppress(HeadError):  # a network that does more after its last layer: not measured
            features = compute_features(module, loader, head=head, runtime=runtime, beat=beat, progress=progress)
            knows = measure_knowing(features.features_ND, features.labels_N)
    choice = choose(len(labels_N) / len(np.unique(labels_N)), knows=knows, similarity=strategy.similarity)
    progress.say(f"strategy: {choice.name}: {choice.why}")
    decided = replace_section(config, "strategy", name=choice.name)
    check_strategy(decided)
    return decided


def first_scheduled_epoch(strategy: StrategyConfig, *, num_stages: int) -> int:
    """Epochs of the whole run before its last phase, in which the schedule begins."""
    return strategy.head_epochs * len(_stages_of_early_phases(strategy, num_stages=num_stages))


def _stages_of_early_phases(strategy: StrategyConfig, *, num_stages: int) -> list[int]:
    """How many stages, from the last on, each phase but the last one trains."""
    match strategy.name:
        case "head_then_all":
            return [1]
        case "gradual":
            return list(range(1, num_stages))
        case _:
            return []


def _loader_at(epoch: int, config: Config, loader_of: Callable[[int], Loader] | None) -> Loader:
    """Training batches from that epoch of the whole run on."""
    assert loader_of is not None, "later phases need it"
    loader = loader_of(config.train.global_batch_size)
    loader.load_state_dict(loader.state_dict() | {"epoch": epoch})
    return loader


def _constant_phase(config: Config, loader: Loader, *, layers: Names) -> Phase:
    """One of strategy.head_epochs epochs at optim.lr."""
    held = dataclasses.replace(config, schedule=ScheduleConfig(), average=AverageConfig())
    held = replace_section(held, "train", epochs=config.strategy.head_epochs, batch_sizes=())
    (phase,) = build_phases(held, loader, layers=layers)
    return phase


def _config_of_last(config: Config, *, before: int) -> Config:
    """The configuration that `build_phases` is to see for the last phase."""
    lr_frac = config.strategy.all_lr_frac if config.strategy.name == "head_then_all" else 1.0
    config = replace_section(config, "optim", lr=config.optim.lr * lr_frac)
    return replace_section(config, "train", epochs=config.train.epochs - before)


def _with_stage_decay(config: Config, *, stages: Names, layers: Names) -> tuple[Config, Names]:
    """The configuration with the decay that a strategy wants, and what it falls over."""
    strategy, optim = config.strategy, config.optim
    if strategy.name not in ("gradual", "differential") or optim.layer_decay != 1:
        return config, layers
    decay = STAGE_DECAY if strategy.stage_decay is None else strategy.stage_decay
    return replace_section(config, "optim", layer_decay=decay), stages


def _contains(stages: Names) -> Callable[[str], bool]:
    return frozenset(name for stage in stages for name in stage).__contains__


def _name(num_trained: int, *, num_stages: int) -> str:
    if num_trained == num_stages:
        return "all"
    return "head" if num_trained == 1 else f"last {num_trained} of {num_stages} stages"


def _check_epochs(config: Config, *, before: int) -> None:
    """Checks that the last phase has epochs, and enough of them for the times that count from its beginning."""
    strategy, schedule, epochs = config.strategy, config.schedule, config.train.epochs
    left = epochs - before
    if left < 1:
        raise ValueError(
            f"strategy.name={strategy.name} trains parts of the network for {before} epochs, strategy.head_epochs="
            f"{strategy.head_epochs} of them for each of {before // strategy.head_epochs}, before all of it, and "
            f"train.epochs={epochs} leaves none; use --train.epochs {before + 1} or more, or fewer head_epochs."
        )
    is_stepped = schedule.name == "multi_step" and schedule.milestones_epochs
    times = {
        "schedule.warmup_epochs": schedule.warmup_epochs,
        "schedule.warmup_epochs + schedule.cooldown_epochs": schedule.warmup_epochs + schedule.cooldown_epochs,
        "the last of schedule.milestones_epochs": schedule.milestones_epochs[-1] if is_stepped else 0,
        "average.swa_start_epoch": config.average.swa_start_epoch or 0,
    }
    for key, time in times.items():
        if before and time >= left:
            raise ValueError(
                f"{key} = {time:g} counts from the last phase of strategy.name={strategy.name} on, and that has "
                f"{left} of train.epochs={epochs}, after {before} at a constant learning rate; use less than {left}, "
                f"or --train.epochs {before + int(time) + 1} or more."
            )


def _check_bn(config: Config) -> None:
    strategy, num_images = config.strategy, config.train.bn_images
    if strategy.name == "linear" and strategy.frozen_bn == "eval" and num_images:
        raise ValueError(
            f"train.bn_images={num_images} would measure BatchNorm's statistics anew, but strategy.name=linear with "
            "strategy.frozen_bn=eval keeps them; drop one of them."
        )
