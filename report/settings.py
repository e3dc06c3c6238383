"""Configurations as flat dotted names: what differs from the defaults, and what tells groups of runs apart."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from configs.load import config_defaults, config_keys

_MISSING = "(none)"
_SEED = "run.seed"


class Setting(NamedTuple):
    """An option, what it was set to, and its default in words."""

    name: str
    value: str
    default: str


def settings_changed(config: Mapping[str, Any]) -> list[Setting]:
    """The options that differ from their defaults, and those that have none, in the order of the configuration."""
    defaults = config_defaults()
    return [
        Setting(key, show_value(value), show_value(defaults.get(key, _MISSING)))
        for key, value in flatten(config).items()
        if key not in defaults or defaults[key] != value
    ]


def flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """`{"optim": {"lr": 0.1}}` -> `{"optim.lr": 0.1}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, prefix=f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def settings_of_result(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that determine the result, but for the seed: two runs that agree in them are one group.

    An option that the configuration lacks, because it was written before there was one, had its default.
    """
    free = {*config_keys()} - {*config_keys(may_change=False)} | {_SEED}
    return {key: value for key, value in (config_defaults() | flatten(config)).items() if key not in free}


def names_of_groups(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each group from the others: `model.args.norm=batch, augment.crop=pad`; "" where there is but one."""
    keys = dict.fromkeys(key for group in groups for key in group)
    differing = [key for key in keys if any(group.get(key) != groups[0].get(key) for group in groups)]
    return [", ".join(f"{key}={show_value(group.get(key, _MISSING))}" for key in differing) for group in groups]


def show_value(value: Any) -> str:
    """A value as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value)
