"""What no run can do about speed and memory, found before any work starts."""

from configs.schema import Config

_WHOLE_WEIGHTS = ("muon", "lars", "lamb")  # they need a parameter, or its norm, as a whole
_FUSED = ("sgd", "adam", "adamw")
_MOST_SIZES = 8  # as torch._dynamo.config.recompile_limit: what comes after is not compiled


def check_speed(config: Config) -> None:
    """Checks `speed` against the rest of the configuration.

    Raises:
        ValueError: Options that contradict each other.
    """
    speed = config.speed
    names = _optimizers(config)
    if speed.fused == "on" and not names <= set(_FUSED):
        raise ValueError(
            f"speed.fused=on, but torch has no fused {' and '.join(sorted(names - set(_FUSED)))}; it has "
            f"{', '.join(_FUSED)}. Use one of these, or --speed.fused auto."
        )
    sizes = {size_px for _, size_px in config.augment.sizes_px}
    if speed.compile != "none" and len(sizes) > _MOST_SIZES:
        raise ValueError(
            f"speed.compile makes code for each image size, for {_MOST_SIZES} at most, but augment.sizes_px has "
            f"{len(sizes)}; use fewer, or --speed.compile none."
        )
    # pytorch/pytorch#169545: an error at best, and wrong gradients at worst
    if speed.compile in ("reduce-overhead", "max-autotune") and (config.train.accumulation or 1) > 1:
        raise ValueError(
            f"speed.compile={speed.compile} records CUDA graphs, whose next run overwrites the gradients that "
            f"train.accumulation={config.train.accumulation} adds up; use --speed.compile default."
        )
    if speed.shard:
        _check_shard(config, names)


def _check_shard(config: Config, names: set[str]) -> None:
    whole = sorted(names & set(_WHOLE_WEIGHTS))
    if whole:
        raise ValueError(
            f"speed.shard=true gives each process a part of every parameter, but {' and '.join(whole)} computes with "
            "whole ones; use sgd, rmsprop, adam or adamw, or --speed.shard false."
        )
    if config.optim.fix_filter_norm:
        raise ValueError(
            "speed.shard=true does not go with optim.fix_filter_norm, which needs whole filters; drop one."
        )
    if config.train.precision == "fp16":
        raise ValueError(
            "speed.shard=true does not go with train.precision=fp16, whose loss scaling sees one process's gradients; "
            "use bf16."
        )


def _optimizers(config: Config) -> set[str]:
    return {config.optim.name, *(group.name for group in config.optim.groups if group.name is not None)}
