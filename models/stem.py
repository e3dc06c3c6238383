"""The first layers of a published network, cut to fit other images than photographs in colour.

published:  images (N, 3, 224, 224) -> conv 7x7, stride 2 -> norm, activation -> max-pool 2 -> 56x56 -> ...
small:      images (N, C, 32, 32)   -> conv 3x3, stride 1 -> norm, activation ->               32x32 -> ...

With that, torchvision's resnet18 is the ResNet-18 that papers train on CIFAR. Weights that stay are the middle of
those drawn, scaled so that the variance of what the convolution gives remains what its authors chose.
"""

import math

import torch
from torch import nn

_SMALL_PATCH_PX = 2


def make_grey(module: nn.Module, *, name: str) -> None:
    """Makes the first convolution of a network for three channels read one.

    Args:
        module: The network; it is changed.
        name: What messages call it.

    Raises:
        ValueError: No convolution reads three channels.
    """
    _, conv = _first_convolution(module, in_channels=3, name=name)
    with torch.no_grad():
        conv.weight = nn.Parameter(conv.weight[:, :1] * math.sqrt(conv.in_channels))
    conv.in_channels = 1


def make_stem_small(module: nn.Module, *, in_channels: int, name: str, is_sized: bool = False) -> None:
    """Lets a network keep the size of its images at first: no stride, kernel at most 3x3, no max-pool after it.

    Where the first convolution cuts patches (its stride is its kernel), the patches become 2x2.

    Args:
        module: The network; it is changed.
        in_channels: Channels of its images.
        name: What messages call it.
        is_sized: Whether the network is built for one image size, so that its grid of patches cannot change.

    Raises:
        ValueError: There is no such convolution, it has no stride already, or its patches cannot change.
    """
    path, conv = _first_convolution(module, in_channels=in_channels, name=name)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if kernel == stride and kernel > 1 and is_sized:
        raise ValueError(
            f"model.stem=small: {name} cuts the image into a fixed grid of patches of {kernel} pixels; leave "
            "model.stem at default and give --model.args.patch_size 4, for example, which most of timm's networks of "
            "this kind take."
        )
    least = _SMALL_PATCH_PX if kernel == stride else 1
    if stride <= least:
        raise ValueError(
            f"model.stem=small: the first convolution of {name} has stride {stride} as it is; leave model.stem at "
            "default."
        )
    _cut_kernel(conv, least if kernel == stride else min(kernel, 3))
    conv.stride = (least, least)
    if least == 1:
        _keep_size(conv)
    _remove_max_pool(module, after=path)


def _first_convolution(module: nn.Module, *, in_channels: int, name: str) -> tuple[str, nn.Conv2d]:
    for path, one in module.named_modules():
        if isinstance(one, nn.Conv2d):
            if one.in_channels == in_channels:
                return path, one
            break
    raise ValueError(
        f"{name} does not begin with a convolution that reads {in_channels} channels, so its stem cannot be changed; "
        "use another network, or leave model.stem at default and input.channels at 3."
    )


def _cut_kernel(conv: nn.Conv2d, kernel: int) -> None:
    before = conv.kernel_size[0]
    start = (before - kernel) // 2
    middle = slice(start, start + kernel)
    with torch.no_grad():
        conv.weight = nn.Parameter(conv.weight[:, :, middle, middle] * (before / kernel))
    conv.kernel_size = (kernel, kernel)
    scale = getattr(conv, "scale", None)
    if isinstance(scale, float):  # timm's ScaledStdConv2d: 1 / sqrt(fan-in), set when it is built
        conv.scale = scale * before / kernel  # type: ignore[assignment]


def _keep_size(conv: nn.Conv2d) -> None:
    """Pads by what is missing; timm's convolutions that pad by themselves miss nothing."""
    conv.padding = (0, 0)
    with torch.no_grad():
        size_px = conv(torch.zeros(1, conv.in_channels, 16, 16)).shape[-1]
    conv.padding = ((16 - size_px) // 2,) * 2


def _remove_max_pool(module: nn.Module, *, after: str) -> None:
    """Takes out the first max-pool, if it comes before any other stride, and beside or above the convolution."""
    paths = [path for path, _ in module.named_modules()]
    for path in paths[paths.index(after) + 1 :]:
        one = module.get_submodule(path)
        if isinstance(one, nn.Conv2d) and max(one.stride) > 1:
            return
        owner, _, leaf = path.rpartition(".")
        if isinstance(one, nn.MaxPool2d) and (after + ".").startswith(owner + "." if owner else ""):
            setattr(module.get_submodule(owner), leaf, nn.Identity())
            return
