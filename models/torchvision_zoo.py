"""torchvision's classification networks by name: torchvision/resnet18.

name -> torchvision's builder -> head of K classes -> for grey images, a first convolution of one channel

Weights are random; those that torchvision publishes are read by models.pretrained. A tag that names them, as in
torchvision/resnet18.IMAGENET1K_V1, says nothing about the network.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torchvision import models

from models.arguments import FOLLOWS, NO_WEIGHTS, Blueprint, can_be_written, parameters_of
from models.stem import make_grey

PREFIX = "torchvision/"

_REFUSED = {
    "num_classes": FOLLOWS,
    "in_channels": FOLLOWS,
    "image_size": FOLLOWS,
    "input_size": FOLLOWS,
    "weights": NO_WEIGHTS,
    "pretrained": NO_WEIGHTS,
}
# GoogLeNet and Inception alone have auxiliary logits; they warn unless told how to begin, and their own way is slow
_AUXILIARY = {"aux_logits": False, "init_weights": False}
_NO_AUXILIARY = "is false here: training takes one tensor of logits, and the weights begin as torch's own layers do"


def list_torchvision() -> list[str]:
    """The names, each beginning with torchvision/."""
    return [PREFIX + name for name in models.list_models(module=models)]


def list_torchvision_weights() -> list[str]:
    """The names with the tag of each of their weights: torchvision/resnet18.IMAGENET1K_V1."""
    return [f"{name}.{tag}" for name in list_torchvision() for tag in _list_tags(name)]


def has_torchvision(name: str) -> bool:
    """Whether torchvision has a network of this name and, where it has a tag, weights of that."""
    architecture, dot, tag = name.partition(".")
    if architecture not in list_torchvision():
        return False
    return not dot or tag == "DEFAULT" or tag in _list_tags(name)


def _list_tags(name: str) -> list[str]:
    """The weights of a network by torchvision's names for them; not those without a last layer (vgg16's FEATURES)."""
    return [one.name for one in models.get_model_weights(own_name(name)) if one.meta["categories"] is not None]


def own_name(name: str) -> str:
    """What torchvision itself calls the network of a name."""
    return name.removeprefix(PREFIX).partition(".")[0]


def find_torchvision(name: str) -> Blueprint:
    """What can be built under a name that `has_torchvision`; nothing is built yet."""
    builder = models.get_model_builder(own_name(name))
    network = inspect.signature(builder, eval_str=True).return_annotation
    parameters, _ = parameters_of(network)
    fixed = _AUXILIARY if "aux_logits" in parameters else {}
    refused = _REFUSED | dict.fromkeys(fixed, _NO_AUXILIARY)
    return Blueprint(
        name=name,
        build=functools.partial(_build, name, builder, parameters=set(parameters), fixed=fixed),
        parameters={
            key: one
            for key, one in (parameters | _find_optional(parameters)).items()
            if one.default is not one.empty and key not in refused and can_be_written(one)
        },
        refused=refused,
        has_stem=True,
        is_sized=not {"image_size", "input_size"}.isdisjoint(parameters),
    )


def _find_optional(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Of what a class requires, what its builders give unless told: EfficientNet's dropout."""
    dropout = parameters.get("dropout")
    return {} if dropout is None else {"dropout": dropout.replace(default=None)}


def _build(
    name: str,
    builder: Callable[..., nn.Module],
    *,
    parameters: set[str],
    fixed: dict[str, Any],
    in_channels: int,
    num_classes: int,
    size_px: int,
    **args: Any,
) -> nn.Module:
    if "image_size" in parameters:  # VisionTransformer
        args["image_size"] = size_px
    if "input_size" in parameters:  # MaxVit
        args["input_size"] = (size_px, size_px)
    module = builder(weights=None, num_classes=num_classes, **fixed, **args)
    if in_channels == 1:
        make_grey(module, name=name)
    return module
