"""Name + arguments -> network; the names live in one plain dict."""

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from configs.nearest import nearest
from configs.schema import InputSpec, ModelConfig
from models.simple_cnn import SimpleCNN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
}

_GIVEN_BY_DATA = ("in_channels", "num_classes", "size_px")


def build_model(model: ModelConfig, *, num_classes: int, spec: InputSpec, seed: int) -> nn.Module:
    """The network with initial weights drawn from `seed`, on the CPU, in float32.

    Args:
        model: Name and arguments.
        num_classes: Classes of the data.
        spec: What the network sees; size and channels are taken from it.
        seed: Seed of the initial weights; torch's CPU generator is left as it was.

    Raises:
        ValueError: Unknown name, argument or value; the message lists the valid ones, nearest first.
    """
    check_model(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[model.name](
            in_channels=spec.channels, num_classes=num_classes, size_px=spec.size_px, **model.args
        )


def check_sizes(module: nn.Module, *, spec: InputSpec, sizes_px: Sequence[int]) -> None:
    """Lets one black image of each size through the network, before any training; its state stays as it was.

    Args:
        module: The network, on the CPU.
        spec: Its channels are read.
        sizes_px: Heights and widths in pixels.

    Raises:
        ValueError: The network does not take a size.
    """
    was_training = module.training
    module.eval()
    for size_px in sorted(set(sizes_px)):
        try:
            with torch.inference_mode():
                module(torch.zeros(1, spec.channels or 1, size_px, size_px))
        except RuntimeError as error:
            raise ValueError(
                f"the network does not take images of {size_px} pixels ({error}), but augment.sizes_px has them; use "
                f"input.size_px={spec.size_px} throughout, or a network that takes any size."
            ) from error
    module.train(was_training)


def check_model(model: ModelConfig) -> None:
    """Checks name and arguments against the network's signature, before anything is read or built.

    Raises:
        ValueError: As `build_model`.
    """
    if model.name not in MODELS:
        raise ValueError(f"unknown model {model.name!r}; {nearest(model.name, list(MODELS))}")
    signature = inspect.signature(MODELS[model.name])
    own = [name for name in signature.parameters if name not in _GIVEN_BY_DATA]
    for name, value in model.args.items():
        if name in _GIVEN_BY_DATA:
            raise ValueError(f"model.args.{name} follows from the data and is not an option; {nearest(name, own)}")
        if name not in own:
            raise ValueError(f"{model.name} has no argument {name!r}; {nearest(name, own)}")
        _check_value(model.name, name, value, kind=signature.parameters[name].annotation)


def _check_value(model: str, name: str, value: Any, *, kind: Any) -> None:
    if typing.get_origin(kind) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        if value not in typing.get_args(kind):
            raise ValueError(f"{model}: {name}={value!r} is not a choice; {nearest(str(value), choices)}")
        return
    kinds: tuple[type, ...] = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in kinds:
        kinds = (*kinds, int)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{model}: {name}={value!r} is of type {type(value).__name__}; wanted: {wanted}.")
