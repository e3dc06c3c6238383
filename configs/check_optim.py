"""What no optimizer and no schedule can do: combinations of `optim` and `schedule`, found before any work starts."""

from configs.schema import Config, GroupConfig, OptimConfig

# options of a group -> the optimizers that read them
_READERS = {
    "momentum": ("sgd", "rmsprop", "lars", "muon"),
    "nesterov": ("sgd", "lars", "muon"),
    "betas": ("adam", "adamw", "lamb"),
}


def check_optim(config: Config) -> None:
    """Checks the optimizer, its groups and the parts of the schedule against each other.

    Raises:
        ValueError: Options that contradict each other, or a group with a value out of range.
    """
    optim = config.optim
    if optim.clip_norm is not None and optim.clip_value is not None:
        raise ValueError(
            f"optim.clip_norm={optim.clip_norm:g} and optim.clip_value={optim.clip_value:g} are both set; drop one."
        )
    if optim.nesterov and optim.momentum == 0:
        raise ValueError("optim.nesterov=true needs optim.momentum above 0; use 0.9.")
    if any(abs(one) == float("inf") or one != one for one in optim.ns_coefficients):
        raise ValueError(
            f"optim.ns_coefficients={list(optim.ns_coefficients)} must be finite; use [3.4445, -4.775, 2.0315]."
        )
    for number, group in enumerate(optim.groups):
        _check_group(group, f"optim.groups[{number}]", optim=optim, epochs=config.train.epochs)
    _check_lengths(config)


def _check_group(group: GroupConfig, key: str, *, optim: OptimConfig, epochs: int) -> None:
    name = group.name or optim.name
    if not group.match:
        raise ValueError(f'{key}.match is empty; give names of parameters, for example ["head.*"].')
    for option, readers in _READERS.items():
        value = getattr(group, option)
        if value is not None and name not in readers:
            raise ValueError(
                f"{key}.{option}={value} is read only by {', '.join(readers)}, but the group's optimizer is {name}; "
                f"drop it, or add name: {readers[0]}."
            )
    if group.lr is not None and not 0 < group.lr < float("inf"):
        raise ValueError(f"{key}.lr={group.lr} must be a number above 0; for example 0.001.")
    if group.weight_decay is not None and not 0 <= group.weight_decay < float("inf"):
        raise ValueError(f"{key}.weight_decay={group.weight_decay} must be a number from 0 on; for example 0.0005.")
    if group.momentum is not None and not 0 <= group.momentum < 1:
        raise ValueError(f"{key}.momentum={group.momentum} must be at least 0 and below 1; for example 0.9.")
    momentum = optim.momentum if group.momentum is None else group.momentum
    is_nesterov = optim.nesterov if group.nesterov is None else group.nesterov
    if is_nesterov and momentum == 0 and name in _READERS["nesterov"]:
        raise ValueError(f"{key}.nesterov=true needs a momentum above 0; add momentum: 0.9.")
    if group.betas is not None and any(not 0 <= beta < 1 for beta in group.betas):
        raise ValueError(f"{key}.betas={list(group.betas)} must each be at least 0 and below 1; use [0.9, 0.999].")
    if group.until_epoch is not None and not 0 < group.until_epoch <= epochs:
        raise ValueError(
            f"{key}.until_epoch={group.until_epoch:g} must be above 0 and at most train.epochs={epochs}; use {epochs}."
        )


def _check_lengths(config: Config) -> None:
    schedule, epochs = config.schedule, config.train.epochs
    if schedule.warmup_epochs >= epochs and schedule.warmup_epochs > 0:
        raise ValueError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g} leaves nothing of train.epochs={epochs}; use less, for "
            f"example --schedule.warmup_epochs {(epochs - 1) / 10:g}."
        )
    if schedule.warmup_epochs + schedule.cooldown_epochs >= epochs and schedule.cooldown_epochs > 0:
        raise ValueError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g} and schedule.cooldown_epochs="
            f"{schedule.cooldown_epochs:g} leave nothing of train.epochs={epochs}; use less, for example "
            "--schedule.cooldown_epochs 0."
        )
