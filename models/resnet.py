"""ResNets (He et al. 2016) for small images: those of CIFAR, and those of ImageNet with a stem for small images.

images (N, C, S, S) -> stem: conv 3x3 -> norm -> relu (-> max-pool 2)
                    -> stages of residual blocks, from the second one on each of half the size
                    -> mean over pixels -> dropout -> linear -> logits (N, K)

basic block:       conv 3x3 -> norm -> relu -> conv 3x3 -> norm -> + shortcut -> relu
bottleneck block:  conv 1x1 -> norm -> relu -> conv 3x3 -> norm -> relu -> conv 1x1 -> norm -> + shortcut -> relu
drop_path:         in training, what is added to the shortcut is left out at random (Huang et al. 2016)

On 32-pixel images, depth 18: 32 -> 16 -> 8 -> 4 pixels, 64, 128, 256, 512 channels; depth 20: 32 -> 16 -> 8 pixels,
16, 32, 64 channels. Where a bottleneck halves the size, its 3x3 convolution does (Goyal et al. 2017; in the paper the
first 1x1 did).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

Depth = Literal[18, 34, 50, 20, 32, 44, 56, 110]
BlockKind = Literal["basic", "bottleneck"]
ShortcutKind = Literal["projection", "padding"]

_LEAST_PX = 8
_EXPANSION = {"basic": 1, "bottleneck": 4}  # channels that a block puts out, per channel of its 3x3 convolution


class Layout(NamedTuple):
    """What a depth stands for; `widths` are channels per stage, of a bottleneck a quarter of those it puts out."""

    block: BlockKind
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: ShortcutKind


# Depths of ImageNet project a shortcut that changes shape (the paper's option B), those of CIFAR pad it (option A).
LAYOUTS: dict[int, Layout] = {
    18: Layout("basic", (2, 2, 2, 2), (64, 128, 256, 512), "projection"),
    34: Layout("basic", (3, 4, 6, 3), (64, 128, 256, 512), "projection"),
    50: Layout("bottleneck", (3, 4, 6, 3), (64, 128, 256, 512), "projection"),
} | {6 * n + 2: Layout("basic", (n, n, n), (16, 32, 64), "padding") for n in (3, 5, 7, 9, 18)}


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean, linear layer.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        size_px: Height and width of the images, at least 8.
        depth: Layers with weights: 18, 34 or 50 as on ImageNet, 20, 32, 44, 56 or 110 as on CIFAR. It sets the kind
            of block (bottleneck for 50), the blocks and widths of the stages, and the shortcut.
        blocks: Blocks per stage, in place of those of the depth, for example [1, 1, 1].
        widths: Channels per stage, in place of those of the depth, for example [32, 64, 128].
        width: Factor on the channels of all stages.
        stem: conv = 3x3 at full size; pool = and max-pooled to half of it, for a quarter of the computation.
        shortcut: Where a block changes the shape: projection = conv 1x1 and norm; padding = every other pixel, and
            zeros for the new channels, without parameters; default = that of the depth.
        zero_init: Whether the last norm of each block starts at 0, so that each block starts as its shortcut.
        dropout: Probability of dropping an input of the linear layer, 0 to below 1.
        drop_path: Stochastic depth: probability, of each image for itself, that the last block is its shortcut alone,
            0 to below 1; that of the l-th of L blocks is l / L of it.

    Raises:
        ValueError: A number out of range. (The choices are checked by models.build.)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size_px: int,
        depth: Depth = 18,
        blocks: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        width: float = 1.0,
        stem: Literal["conv", "pool"] = "conv",
        shortcut: Literal["default", "projection", "padding"] = "default",
        zero_init: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        layout = LAYOUTS[depth]
        blocks = layout.blocks if blocks is None else blocks
        widths = layout.widths if widths is None else widths
        kind = layout.shortcut if shortcut == "default" else shortcut
        _check(size_px=size_px, blocks=blocks, widths=widths, width=width, dropout=dropout, drop_path=drop_path)
        channels = [max(1, round(width * one)) for one in widths]
        self.stem = nn.Sequential(
            *_conv_norm(in_channels, channels[0], kernel=3),
            nn.ReLU(),
            nn.MaxPool2d(2) if stem == "pool" else nn.Identity(),
        )
        stages: list[nn.Module] = []
        before, number = channels[0], 0
        for stage, (count, middle) in enumerate(zip(blocks, channels, strict=True)):
            stage_blocks: list[nn.Module] = []
            for place in range(count):
                number += 1
                block = Block(
                    before,
                    middle,
                    kind=layout.block,
                    stride=2 if stage > 0 and place == 0 else 1,
                    shortcut=kind,
                    zero_init=zero_init,
                    drop_path=drop_path * number / sum(blocks),
                )
                stage_blocks.append(block)
                before = block.num_channels
            stages.append(nn.Sequential(*stage_blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(before, num_classes)
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of normalised images, float (N, C, S, S)."""
        logits_NK: Tensor = self.head(self.stages(self.stem(images_NCHW)))
        return logits_NK


class Block(nn.Module):
    """relu(residual(x) + shortcut(x)).

    Args:
        before: Channels that come in.
        middle: Channels of the 3x3 convolutions.
        kind: basic or bottleneck.
        stride: 2 halves the size, 1 keeps it.
        shortcut: projection or padding, where the shape changes.
        zero_init: Whether the last norm starts at 0.
        drop_path: In training, the part of images that get the shortcut alone; the residual of the others is divided
            by the rest, 1 - drop_path.
    """

    def __init__(
        self,
        before: int,
        middle: int,
        *,
        kind: BlockKind,
        stride: int,
        shortcut: ShortcutKind,
        zero_init: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.num_channels = after = middle * _EXPANSION[kind]
        if kind == "basic":
            layers = [*_conv_norm(before, middle, kernel=3, stride=stride), nn.ReLU()]
            last = _conv_norm(middle, after, kernel=3)
        else:
            layers = [*_conv_norm(before, middle, kernel=1), nn.ReLU()]
            layers += [*_conv_norm(middle, middle, kernel=3, stride=stride), nn.ReLU()]
            last = _conv_norm(middle, after, kernel=1)
        if zero_init:
            nn.init.zeros_(last[1].weight)
        self.residual = nn.Sequential(*layers, *last)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        if before == after and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "padding":
            self.shortcut = PaddingShortcut(stride=stride, num_new=after - before)
        else:
            self.shortcut = nn.Sequential(*_conv_norm(before, after, kernel=1, stride=stride))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features (N, num_channels, H', W') of features (N, C, H, W)."""
        return F.relu(self.drop_path(self.residual(x_NCHW)) + self.shortcut(x_NCHW))


class PaddingShortcut(nn.Module):
    """Every other pixel where the size is halved, and zeros for the channels that are new.

    Args:
        stride: 2 halves the size, 1 keeps it.
        num_new: New channels; below 0, that many are cut off.
    """

    def __init__(self, *, stride: int, num_new: int) -> None:
        super().__init__()
        self.stride = stride
        self.num_new = num_new

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features (N, C + num_new, H', W') of features (N, C, H, W)."""
        return F.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_new))


def _conv_norm(before: int, after: int, *, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Convolution, its weights normal with the fan-out and the gain of ReLU (He et al. 2015), and batch norm."""
    conv = nn.Conv2d(before, after, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(after)


def _check(
    *, size_px: int, blocks: Sequence[int], widths: Sequence[int], width: float, dropout: float, drop_path: float
) -> None:
    if size_px < _LEAST_PX:
        raise ValueError(f"resnet: size_px={size_px} is too small; use {_LEAST_PX} or more.")
    if len(blocks) != len(widths) or not blocks:
        raise ValueError(
            f"resnet: blocks={list(blocks)} has {len(blocks)} stages, but widths={list(widths)} has {len(widths)}; "
            "give both, one number per stage, for example blocks [1, 1, 1] and widths [32, 64, 128]."
        )
    for name, values in (("blocks", blocks), ("widths", widths)):
        if min(values) < 1:
            raise ValueError(f"resnet: {name}={list(values)} must be numbers of at least 1.")
    if not width > 0:
        raise ValueError(f"resnet: width={width} must be above 0; use 1.0.")
    for name, value, offer in (("dropout", dropout, 0.5), ("drop_path", drop_path, 0.1)):
        if not 0 <= value < 1:
            raise ValueError(f"resnet: {name}={value} must be at least 0 and below 1; use {offer}.")
