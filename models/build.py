"""Name + arguments -> network.

resnet              our own: a file each in this room
torchvision/NAME    torchvision's   |
timm/NAME           timm's          | -> Blueprint -> check -> build -> small stem -> one black image -> nn.Module
package.module:Name yours           |

Of torchvision's and timm's, NAME.TAG is the same network, and the weights that are meant where weights are loaded.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.imports import is_import_path, load_object
from configs.schema import Config, InputSpec, ModelConfig
from models.airbench import Airbench
from models.alexnet import AlexNet
from models.arguments import FOLLOWS, Blueprint, check_arguments, offer, parameters_of
from models.checkpointing import checkpoint_blocks
from models.imported import find_imported
from models.mlp import MLP
from models.names import list_names_like, nearest_names
from models.pretrained import Published, describe_published, load_pretrained, load_published
from models.resnet import ResNet
from models.simple_cnn import SimpleCNN
from models.stem import make_stem_small
from models.surgery import find_head, list_head
from models.timm_zoo import PREFIX as TIMM
from models.timm_zoo import find_timm, has_timm
from models.torchvision_zoo import PREFIX as TORCHVISION
from models.torchvision_zoo import find_torchvision, has_torchvision
from models.trial import check_output, describe_error, show_black_image
from models.vgg import VGG
from models.weights import Match, load_into, read_weights

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
        name: torchvision/NAME or timm/NAME, with a tag or without.
        num_classes: Classes of the data, which must be as many as the network tells apart.

    Raises:
        OSError: The weights are not in the library's cache, and cannot be downloaded.
        ValueError: Unknown name, one without weights, or other classes.
    """
    return load_pretrained(name, num_classes=num_classes), build_pretrained_spec(name)


def build_published(
    model: ModelConfig,
    *,
    num_classes: int,
    spec: InputSpec,
    seed: int,
    keeps_head: bool,
    partial: bool,
    has_checkpointing: bool = False,
) -> tuple[nn.Module, Match]:
    """A network of torchvision or timm to start training from: published weights, and a last layer for the data.

    Args:
        model: torchvision/NAME or timm/NAME, with a tag or without, and arguments.
        num_classes: Classes of the data.
        spec: What the network sees, complete.
        seed: Seed of the last layer, and of whatever else has no published weights.
        keeps_head: Whether the last layer is that of the weights, which must tell as many classes apart.
        partial: Whether layers that arguments change may stay as they were drawn.
        has_checkpointing: As of `build_model`.

    Returns:
        The network, on the CPU in float32, and how the weights fitted it.

    Raises:
        OSError: The weights are not in the library's cache, and cannot be downloaded.
        ValueError: As `build_model`; or the name has no weights, or they are not for such a network or such images.
    """
    check_model(model)
    published = describe_published(model.name)
    _check_published(model, published, num_classes=num_classes, spec=spec, keeps_head=keeps_head)
    size_px = spec.size_px or published.size_px
    spec = dataclasses.replace(spec, size_px=size_px, channels=len(published.mean))
    module = build_model(model, num_classes=num_classes, spec=spec, seed=seed, has_checkpointing=has_checkpointing)
    head = list_head(module, find_head(module, num_classes=num_classes))
    if getattr(module, "transform_input", True) is False:
        raise ValueError(
            f"{model.name} has weights for images that it scales once more itself; add --model.args.transform_input "
            "true."
        )
    state = load_published(model.name, size_px=size_px)
    return module, load_into(module, state, head=head, keeps_head=keeps_head, partial=partial)


def build_started(config: Config, *, file: Path | None, num_classes: int, spec: InputSpec) -> tuple[nn.Module, Match]:
    """The network that fine-tuning begins with: weights, and a last layer as weights.head says.

    Args:
        config: model, weights, run.seed and speed.gradient_checkpointing are read.
        file: Of weights; None = those that are published under model.name.
        num_classes: Classes of the data.
        spec: What the network sees, complete.

    Raises:
        OSError: The weights are not there, or cannot be downloaded.
        ValueError: As `build_model`; or they do not fit the network.
    """
    weights, seed, has_checkpointing = config.weights, config.run.seed, config.speed.gradient_checkpointing
    keeps_head = weights.head == "keep"
    if file is None:
        return build_published(
            config.model,
            num_classes=num_classes,
            spec=spec,
            seed=seed,
            keeps_head=keeps_head,
            partial=weights.partial,
            has_checkpointing=has_checkpointing,
        )
    module = build_model(
        config.model, num_classes=num_classes, spec=spec, seed=seed, has_checkpointing=has_checkpointing
    )
    head = list_head(module, find_head(module, num_classes=num_classes))
    return module, load_into(module, read_weights(file), head=head, keeps_head=keeps_head, partial=weights.partial)


def build_pretrained_spec(name: str) -> InputSpec:
    """What a network of torchvision or timm takes with its published weights; nothing is built or downloaded.

    Args:
        name: torchvision/NAME or timm/NAME, with a tag or without.

    Raises:
        ValueError: Unknown name, or one without weights.
    """
    published = describe_published(name)
    return InputSpec(
        size_px=published.size_px,
        channels=len(published.mean),
        mean=published.mean,
        std=published.std,
        interpolation="bilinear" if published.interpolation == "bilinear" else "bicubic",
        crop_frac=published.crop_frac,
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


def _check_published(
    model: ModelConfig, published: Published, *, num_classes: int, spec: InputSpec, keeps_head: bool
) -> None:
    """Whether weights can go into such a network, before it is built and they are looked for."""
    if model.stem != "default":
        raise ValueError(
            f"model.stem={model.stem} changes the first layers of {model.name}, which its weights were not trained "
            "for; leave it at default, and enlarge small images by --input.size_px."
        )
    if spec.channels not in (None, len(published.mean)):
        raise ValueError(
            f"{model.name} has weights for images of {len(published.mean)} channels, but input.channels="
            f"{spec.channels}; leave it out, and grey images are shown as RGB."
        )
    if keeps_head and published.num_classes != num_classes:
        raise ValueError(
            f"weights.head=keep, but {model.name} tells {published.num_classes} classes apart, and the data has "
            f"{num_classes}; use --weights.head new."
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
    if name.startswith(TORCHVISION) and has_torchvision(name):
        return find_torchvision(name)
    if name.startswith(TIMM) and has_timm(name):
        return find_timm(name)
    if is_import_path(name):
        return find_imported(name, load_object(name, option="model.name"))
    close = nearest_names(name, list_names_like(name, list(MODELS)))
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
