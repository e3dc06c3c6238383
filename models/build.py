"""Name + arguments -> network.

resnet              our own: a file each in this room
torchvision/NAME    torchvision's   |
timm/NAME           timm's          | -> Blueprint -> check -> build -> small stem -> one black image -> nn.Module
package.module:Name yours           |
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from configs.imports import is_import_path, load_object
from configs.schema import InputSpec, ModelConfig
from models.airbench import Airbench
from models.alexnet import AlexNet
from models.arguments import FOLLOWS, Blueprint, check_arguments, offer, parameters_of
from models.checkpointing import checkpoint_blocks
from models.imported import find_imported
from models.mlp import MLP
from models.names import list_names, nearest_names
from models.pretrained import load_pretrained
from models.resnet import ResNet
from models.simple_cnn import SimpleCNN
from models.stem import make_stem_small
from models.timm_zoo import PREFIX as TIMM
from models.timm_zoo import find_timm, list_timm
from models.torchvision_zoo import PREFIX as TORCHVISION
from models.torchvision_zoo import find_torchvision, list_torchvision
from models.trial import check_output, describe_error, show_black_image
from models.vgg import VGG

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "simple_cnn": SimpleCNN,
    "alexnet": AlexNet,
    "vgg": VGG,
    "resnet": ResNet,
    "airbench": Airbench,
}

_GIVEN_BY_DATA = ("in_channels", "num_classes", "size_px")


def build_model(
    model: ModelConfig, *, num_classes: int, spec: InputSpec, seed: int, has_checkpointing: bool = False
) -> nn.Module:
    """The network with initial weights drawn from `seed`, on the CPU, in float32; it has seen one black image.

    Args:
        model: Name, arguments and stem.
        num_classes: Classes of the data.
        spec: What the network sees; size and channels are taken from it.
        seed: Seed of the initial weights; torch's CPU generator is left as it was.
        has_checkpointing: Whether its blocks compute their activations again in the backward pass.

    Raises:
        ValueError: Unknown name, argument or value; the message lists the valid ones, nearest first. Or the network
            does not make logits of such images, or has no blocks where these are asked for.
    """
    check_model(model)
    blueprint = _find(model.name)
    channels, size_px = spec.channels or 1, spec.size_px or 1  # both are known once the data is read
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _build(blueprint, model.args, in_channels=channels, num_classes=num_classes, size_px=size_px)
        if model.stem == "small":
            make_stem_small(module, in_channels=channels, name=model.name, is_sized=blueprint.is_sized)
        check_output(module, blueprint, stem=model.stem, channels=channels, size_px=size_px, num_classes=num_classes)
    if has_checkpointing:
        checkpoint_blocks(module)
    return module


def build_pretrained(name: str, *, num_classes: int) -> tuple[nn.Module, InputSpec]:
    """A network of torchvision or timm with its published weights, on the CPU, and what it takes.

    Args:
        name: torchvision/NAME or timm/NAME.
        num_classes: Classes of the data, which must be as many as the network tells apart.

    Raises:
        OSError: The weights are not in the library's cache, and cannot be downloaded.
        ValueError: Unknown name, one without weights, or other classes.
    """
    module, size_px, mean, std, interpolation, crop_frac = load_pretrained(name, num_classes=num_classes)
    spec = InputSpec(
        size_px=size_px,
        channels=len(mean),
        mean=mean,
        std=std,
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        crop_frac=crop_frac,
    )
    return module, spec


def check_sizes(module: nn.Module, *, spec: InputSpec, sizes_px: Sequence[int]) -> None:
    """Lets one black image of each size through the network, before any training; its state stays as it was.

    Args:
        module: The network, on the CPU.
        spec: Its channels are read.
        sizes_px: Heights and widths in pixels.

    Raises:
        ValueError: The network does not take a size.
    """
    for size_px in sorted(set(sizes_px)):
        try:
            show_black_image(module, channels=spec.channels or 1, size_px=size_px)
        except Exception as error:  # whatever a network does with an image it is not made for
            raise ValueError(
                f"the network does not take images of {size_px} pixels ({error}), but augment.sizes_px has them; use "
                f"input.size_px={spec.size_px} throughout, or a network that takes any size."
            ) from error


def check_model(model: ModelConfig) -> None:
    """Checks name, arguments and stem, before anything is read or built.

    Raises:
        ValueError: As `build_model`.
    """
    blueprint = _find(model.name)
    check_arguments(blueprint, model.args)
    if model.stem != "default" and not blueprint.has_stem:
        raise ValueError(
            f"model.stem={model.stem} is for networks of torchvision and timm; {model.name} is made for its images by "
            f"its own arguments: {', '.join(blueprint.parameters) or 'it has none'}."
        )


def _find(name: str) -> Blueprint:
    """What can be built under a name; torchvision and timm are looked into only where the name says so."""
    if name in MODELS:
        parameters, _ = parameters_of(MODELS[name])
        return Blueprint(
            name=name,
            build=MODELS[name],
            parameters={key: one for key, one in parameters.items() if key not in _GIVEN_BY_DATA},
            refused=dict.fromkeys(_GIVEN_BY_DATA, FOLLOWS),
            is_ours=True,
        )
    if name.startswith(TORCHVISION) and name in list_torchvision():
        return find_torchvision(name)
    if name.startswith(TIMM) and name in list_timm():
        return find_timm(name)
    if is_import_path(name):
        return find_imported(name, load_object(name, option="model.name"))
    close = nearest_names(name, list_names(list(MODELS)))
    like = f"nearest: {', '.join(close)}; " if close else ""
    raise ValueError(
        f"unknown model {name!r}; {like}our own: {', '.join(MODELS)}; "
        "`python -m models.list` lists and searches torchvision's and timm's."
    )


def _build(blueprint: Blueprint, args: dict[str, Any], **from_data: int) -> nn.Module:
    if blueprint.is_ours:
        return blueprint.build(**from_data, **args)
    try:
        return blueprint.build(**from_data, **args)
    except Exception as error:  # whatever another's code does with arguments and images it is not made for
        raise ValueError(_explain(blueprint, error, args=args, **from_data)) from error


def _explain(
    blueprint: Blueprint, error: Exception, *, args: dict[str, Any], in_channels: int, num_classes: int, size_px: int
) -> str:
    """Why a network could not be built, in the words of model.args where the error names one of them."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown and unknown[1] in args:
        return f"{blueprint.name} has no argument {unknown[1]!r}; {offer(unknown[1], list(blueprint.parameters))}"
    fixed = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
    if fixed and fixed[1] in args:
        others = [name for name in blueprint.parameters if name != fixed[1]]
        return f"{blueprint.name} sets {fixed[1]} itself, so model.args cannot; {offer(fixed[1], others)}"
    told = f", {', '.join(f'{name}={value!r}' for name, value in args.items())}" if args else ""
    return (
        f"{blueprint.name} cannot be built for {num_classes} classes and images of {size_px} px with {in_channels} "
        f"channel(s){told}: {describe_error(error)}"
    )
