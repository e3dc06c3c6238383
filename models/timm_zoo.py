"""timm's networks by name: timm/convnext_tiny.

name -> timm.create_model, which is told classes, channels and, where it asks for it, the size of the images

Weights are random; those that timm publishes are read by models.pretrained. A tag that names them, as in
timm/resnet18.a1_in1k, goes to timm, which may build the network a little differently for it. Importing timm takes a
second, so it is imported only where one of its names is used.
"""

import functools
import inspect
from typing import Any

import torch
from torch import nn

from models.arguments import FOLLOWS, NO_WEIGHTS, Blueprint, can_be_written, parameters_of

PREFIX = "timm/"

_REFUSED = {
    "num_classes": FOLLOWS,
    "in_chans": FOLLOWS,
    "img_size": FOLLOWS,
    "pretrained": NO_WEIGHTS,
    "pretrained_cfg": NO_WEIGHTS,
    "checkpoint_path": NO_WEIGHTS,
    "features_only": "is not offered: it makes a network without logits",
    "aux_logits": "is false here: training takes one tensor of logits",
    "device": "follows from the machine and is not an option",
    "dtype": "follows from train.precision",
}


def list_timm() -> list[str]:
    """The names, each beginning with timm/."""
    import timm

    return [PREFIX + name for name in timm.list_models()]


def list_timm_weights() -> list[str]:
    """The names with the tag of each of their weights: timm/resnet18.a1_in1k."""
    import timm

    return [PREFIX + name for name in timm.list_pretrained() if "." in name]


def has_timm(name: str) -> bool:
    """Whether timm has a network of this name and, where it has a tag, weights of that."""
    return name in (list_timm_weights() if "." in name else list_timm())


def find_timm(name: str) -> Blueprint:
    """What can be built under a name that `has_timm`; nothing is built yet."""
    parameters, is_open = parameters_of(_find_network(name.removeprefix(PREFIX)))
    is_sized = "img_size" in parameters
    return Blueprint(
        name=name,
        build=functools.partial(_build, name.removeprefix(PREFIX), is_sized=is_sized),
        parameters={
            key: one
            for key, one in parameters.items()
            if one.default is not one.empty and key not in _REFUSED and can_be_written(one)
        },
        refused=_REFUSED,
        takes_others=is_open,
        has_stem=True,
        is_sized=is_sized,
    )


def _find_network(name: str) -> type[nn.Module]:
    """The class, from the annotation of the function that builds it; where there is none, from one built without data.

    Of 1,371 functions of timm 1.0.31, 76 have no annotation; one without data takes up to a second to build.
    """
    import timm

    network = inspect.signature(timm.models.model_entrypoint(name), eval_str=True).return_annotation
    if isinstance(network, type) and issubclass(network, nn.Module):
        return network
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(timm.create_model(name, pretrained=False))


def _build(name: str, *, is_sized: bool, in_channels: int, num_classes: int, size_px: int, **args: Any) -> nn.Module:
    import timm

    if is_sized:
        args["img_size"] = size_px
    module: nn.Module = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=num_classes, **args)
    return module
