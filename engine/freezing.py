"""What of a network is trained and what stays as it is: parameters, and the BatchNorm layers that stay with them.

module, phase.trains -> freeze            -> requires_grad of each parameter
module               -> find_frozen_norms -> paths of the layers whose running statistics stay
module, these paths  -> hold_norms        -> evaluation mode there, within a network in training mode
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

from torch import nn

Trains = Callable[[str], bool]


def trained_names(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that are trained."""
    return frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def freeze(module: nn.Module, trains: Trains | None, *, own: Collection[str]) -> None:
    """Has a network train what `trains` says of what it trains by itself, and nothing else; in place.

    Args:
        module: The network.
        trains: Parameter name -> whether it is trained; None = all.
        own: What the network trains where nobody asks for less, as `trained_names` of it, new: what a network of the
            user's own freezes, such as airbench the scale of its norms, stays frozen.
    """
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in own and (trains is None or trains(name)))


@contextlib.contextmanager
def trained_as(module: nn.Module, trains: Trains | None) -> Iterator[None]:
    """Within, the network trains what it does in a phase with this `trains`; then what it did before."""
    own = trained_names(module)
    freeze(module, trains, own=own)
    try:
        yield
    finally:
        freeze(module, None, own=own)


@contextlib.contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Within, all of a network is in evaluation mode; then each of its parts in the mode that it was in."""
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for one, was_training in modes.items():
            one.training = was_training


def find_frozen_norms(module: nn.Module) -> frozenset[str]:
    """Paths of the layers with running statistics in what is not trained.

    These are layers whose own parameters are all frozen; of layers that have none, those within a module that has some
    (the nearest), all of them frozen.
    """
    parts = dict(module.named_modules())
    return frozenset(
        path
        for path, part in parts.items()
        if getattr(part, "running_mean", None) is not None and not _is_trained(path, parts)
    )


def hold_norms(module: nn.Module, paths: Collection[str]) -> None:
    """Puts these layers into evaluation mode: they normalise by their running statistics, which then do not move."""
    for path in paths:
        module.get_submodule(path).eval()


def describe_trained(module: nn.Module, *, frozen_norms: Collection[str]) -> str:
    """`5,130 of 11,181,642 parameters are trained, 20 BatchNorm layers stay as they are`."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    num_trained = sum(size for size, is_trained in sizes if is_trained)
    held = f", {len(frozen_norms)} BatchNorm layers stay as they are" if frozen_norms else ""
    return f"{num_trained:,} of {sum(size for size, _ in sizes):,} parameters are trained{held}"


def _is_trained(path: str, parts: Mapping[str, nn.Module]) -> bool:
    parameters = list(parts[path].parameters(recurse=False))
    while not parameters and path:
        path = path.rpartition(".")[0]
        parameters = list(parts[path].parameters())
    return any(parameter.requires_grad for parameter in parameters)
