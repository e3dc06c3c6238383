"""Which parameter is trained how: a module's parameters, sorted into groups with settings of their own.

module, OptimConfig, layers -> sort_parameters -> [ParameterGroup] -> engine.optimizers

A parameter belongs to the first of `optim.groups` that it matches, else to `optim` itself. Within each, parameters
without weight decay and, with layer decay, those of each layer make groups of their own.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from torch import nn

from configs.nearest import nearest
from configs.schema import GroupConfig, OptimConfig, OptimizerName

_Value = TypeVar("_Value")
_NUM_SHOWN = 12  # names of parameters in an error


class Settings(NamedTuple):
    """How a group is trained. has_own_lr: whether a group of the configuration gives its learning rate."""

    name: OptimizerName
    lr: float
    weight_decay: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    until_epoch: float | None
    has_own_lr: bool


class ParameterGroup(NamedTuple):
    """Parameters with the same settings."""

    parameters: list[nn.Parameter]
    settings: Settings


def sort_parameters(
    module: nn.Module, optim: OptimConfig, *, layers: Sequence[Sequence[str]] = ()
) -> list[ParameterGroup]:
    """The trained parameters of a module in groups, in the order of their first member.

    Args:
        module: Its parameters with requires_grad are sorted.
        optim: Settings, groups, what has no weight decay, and layer decay.
        layers: Names of parameters, layer by layer from the first to the last; for layer decay alone.

    Raises:
        ValueError: There is nothing to train, a group matches nothing that is trained, or a parameter of one dimension
            would be trained by muon.
    """
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    if not trained:
        raise ValueError(_explain_nothing(module))
    norms, depths = _names_in_norms(module), _depths(layers)
    taken: dict[int, list[str]] = {}
    sorted_names: dict[Settings, list[str]] = {}
    for name, parameter in trained.items():
        number = next(
            (place for place, group in enumerate(optim.groups) if _matches(group, name, num_dims=parameter.dim())), None
        )
        if number is not None:
            taken.setdefault(number, []).append(name)
        settings = _settings(optim, None if number is None else optim.groups[number])
        is_vector = parameter.dim() < 2
        if settings.name == "muon" and is_vector:
            raise ValueError(_explain_muon(name))
        is_exempt = (optim.no_decay != "none" and name in norms) or (optim.no_decay == "norms_and_biases" and is_vector)
        if is_exempt and (number is None or optim.groups[number].weight_decay is None):
            settings = settings._replace(weight_decay=0.0)
        settings = settings._replace(lr=settings.lr * optim.layer_decay ** depths.get(name, 0))
        sorted_names.setdefault(settings, []).append(name)
    for number, group in enumerate(optim.groups):
        if number not in taken:
            raise ValueError(_explain_no_match(number, group, list(trained)))
    return [ParameterGroup([trained[name] for name in names], settings) for settings, names in sorted_names.items()]


def _settings(optim: OptimConfig, group: GroupConfig | None) -> Settings:
    own = group or GroupConfig()
    return Settings(
        name=own.name or optim.name,
        lr=_first(own.lr, optim.lr),
        weight_decay=_first(own.weight_decay, optim.weight_decay),
        momentum=_first(own.momentum, optim.momentum),
        nesterov=_first(own.nesterov, optim.nesterov),
        betas=_first(own.betas, optim.betas),
        until_epoch=own.until_epoch,
        has_own_lr=own.lr is not None,
    )


def _first(own: _Value | None, general: _Value) -> _Value:
    """What a group says; where it says nothing, what holds for all."""
    return general if own is None else own


def _matches(group: GroupConfig, name: str, *, num_dims: int) -> bool:
    if group.only != "all" and (group.only == "vectors") != (num_dims < 2):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in group.match)


def _names_in_norms(module: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers, whoever wrote these: their classes are called ...Norm...."""
    return {
        f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if "Norm" in type(layer).__name__
        for name, _ in layer.named_parameters(recurse=False)
    }


def _depths(layers: Sequence[Sequence[str]]) -> Mapping[str, int]:
    """How many layers lie above that of each parameter."""
    return {name: len(layers) - 1 - place for place, names in enumerate(layers) for name in names}


def _explain_nothing(module: nn.Module) -> str:
    num_frozen = len(list(module.parameters()))
    return (
        f"the network has nothing to train: {num_frozen} parameters, all with requires_grad=False; leave some of "
        "them, its last layer for example, at True."
        if num_frozen
        else "the network has nothing to train: it has no parameters; give it a layer that has, such as nn.Linear."
    )


def _explain_muon(name: str) -> str:
    return (
        f"optim.name=muon trains matrices and convolutions, but {name} has one dimension; give what has one a group "
        "with another optimizer, for example optim.groups: [{only: vectors, name: adamw, lr: 0.001}]."
    )


def _explain_no_match(number: int, group: GroupConfig, names: list[str]) -> str:
    which = "" if group.only == "all" else f" among the {group.only}"
    shown = ", ".join(names[:_NUM_SHOWN]) + f" and {len(names) - _NUM_SHOWN} more"
    return (
        f"optim.groups[{number}] matches no trained parameter{which} that no earlier group has: {list(group.match)}; "
        f"{nearest(group.match[0], names, if_many=shown)}."
    )
