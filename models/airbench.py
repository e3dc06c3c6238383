"""The network of cifar10-airbench (Jordan 2024, arXiv 2404.00498): few convolutions, halved as early as possible.

images (N, C, S, S) -> stem: conv 2x2 without padding, set to whiten patches of the training images -> activation
                    -> groups: conv 3x3 -> max-pool 2 -> norm -> activation -> conv 3x3 -> norm -> activation
                       (depth 3, behind the first activation: conv 3x3 -> norm -> activation -> conv 3x3 -> norm
                       -> + what the first activation gave -> activation)
                    -> times logit_scale -> maximum over pixels -> linear without bias -> logits (N, K)

On 32-pixel images: 31 -> 15 -> 7 -> 3 pixels. Pooling comes before norm and activation, so these see a quarter of the
pixels, and only one convolution per group works at its full size. The first filters of each 3x3 convolution begin as
the identity (dirac), the others as torch's.

The defaults are airbench94; airbench94_muon has logit_scale 1/256 and head_std 1; airbench96 has depth 3, widths 128,
384 and 512, and norm_momentum 0.1. How long and how fast the stem's bias and those of the norms are trained,
optim.groups say: they are called stem.0.bias and groups.*.bias.

Where it differs from the source: where there are more groups than halvings that leave a pixel (images of 8 pixels for
three groups, of up to 16 for four), the first groups have no pool. And the source multiplies by logit_scale after the
linear layer, which is done before the maximum here, with the same logits: the scale is positive, the layer has no bias.
So the linear layer is the last thing done, and what goes into it are features that another classifier can take.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "relu"]

_LEAST_PX = 8
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
_PATCH_PX = 2
_NUM_PIXELS = 5_000 * 32**2  # of the training images whose patches are whitened: the source's 5,000 of CIFAR
_CHUNK_PIXELS = 2**17  # of images whose patches are held at a time: 12 float64 for each pixel in colour


class Airbench(nn.Module):
    """Stem, groups of two convolutions, maximum over pixels, linear layer.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        size_px: Height and width of the images, at least 8.
        widths: Channels of each group.
        activation: gelu or relu.
        stem: whitened = its filters are set by `start_from`, and stay; drawn = they are trained from random ones.
        depth: Convolutions of each group, 2 or 3; of three, the last two have a residual connection around them.
        norm_momentum: Part (above 0, to 1) of a batch's statistics in the running ones of the norms, which evaluation
            takes.
        head_std: Standard deviation of the last layer's weights at the beginning. Default: as torch draws them.
        logit_scale: What the logits are multiplied by: the convolutions' high learning rate is too high for the last
            layer, whose steps this makes smaller by its square.

    Raises:
        ValueError: A number out of range. (The choices are checked by models.build.)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size_px: int,
        widths: Sequence[int] = (64, 256, 256),
        activation: Activation = "gelu",
        stem: Literal["whitened", "drawn"] = "whitened",
        depth: Literal[2, 3] = 2,
        norm_momentum: float = 0.4,
        head_std: float | None = None,
        logit_scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        _check(size_px=size_px, widths=widths, norm_momentum=norm_momentum, head_std=head_std, logit_scale=logit_scale)
        before = 2 * in_channels * _PATCH_PX**2  # every direction of a patch, and its opposite
        conv = nn.Conv2d(in_channels, before, kernel_size=_PATCH_PX)
        conv.weight.requires_grad_(stem == "drawn")  # whitening filters stay: `start_from` or a checkpoint sets them
        self.stem = nn.Sequential(conv, _ACTIVATIONS[activation]())
        self.num_start_images = max(1, _NUM_PIXELS // size_px**2) if stem == "whitened" else 0
        num_pools = (size_px - 1).bit_length() - 1  # 7 -> 2 halvings that leave a pixel, 15 -> 3, 31 -> 4
        groups: list[nn.Module] = []
        for place, channels in enumerate(widths):
            has_pool = place >= len(widths) - num_pools
            group = _build_group(
                before, channels, has_pool=has_pool, activation=activation, depth=depth, norm_momentum=norm_momentum
            )
            groups.append(group)
            before = channels
        self.groups = nn.Sequential(*groups)
        self.logit_scale = logit_scale
        linear = nn.Linear(before, num_classes, bias=False)
        if head_std is not None:
            with torch.no_grad():
                linear.weight.mul_(head_std / linear.weight.std())
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of normalised images, float (N, C, S, S)."""
        logits_NK: Tensor = self.head(self.groups(self.stem(images_NCHW)) * self.logit_scale)
        return logits_NK

    def start_from(self, images_NCHW: Tensor) -> None:
        """Sets the stem to whiten the patches of these images, and freezes its filters; before training.

        Args:
            images_NCHW: Training images, normalised, float (num_start_images or fewer, C, S, S), on the CPU.
        """
        conv = self.stem[0]
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            conv.weight.copy_(whitening_filters(images_NCHW, patch_px=_PATCH_PX))
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


def whitening_filters(images_NCHW: Tensor, *, patch_px: int, eps: float = 5e-4) -> Tensor:
    """Filters whose outputs over these images have the identity for second moments, and the opposite of each.

    The eigenvectors of the patches' second moments, divided by the root of their eigenvalues (Page 2018, airbench).

    Args:
        images_NCHW: float (N, C, S, S).
        patch_px: Height and width of the filters.
        eps: Added to the eigenvalues, on the scale of the normalised pixels.

    Returns:
        float32 (2 * C * patch_px**2, C, patch_px, patch_px), on the CPU.
    """
    channels, num_pixels = images_NCHW.shape[1], images_NCHW.shape[2] * images_NCHW.shape[3]
    size = channels * patch_px**2
    moments_DD, num_patches = torch.zeros(size, size, dtype=torch.float64), 0
    for chunk_NCHW in torch.split(images_NCHW, max(1, _CHUNK_PIXELS // num_pixels)):
        patches_NDL = F.unfold(chunk_NCHW.double(), patch_px)
        moments_DD += torch.einsum("ndl,nel->de", patches_NDL, patches_NDL)
        num_patches += patches_NDL.shape[0] * patches_NDL.shape[2]
    eigenvalues_D, eigenvectors_DD = torch.linalg.eigh(moments_DD / num_patches)
    filters_DD = (eigenvectors_DD / (eigenvalues_D + eps).sqrt()).T.flip(0)  # the largest first
    filters = filters_DD.reshape(size, channels, patch_px, patch_px).float()
    return torch.cat([filters, -filters])


class Residual(nn.Module):
    """x + layers(x).

    Args:
        layers: They keep the shape.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features (N, C, H, W) of features (N, C, H, W)."""
        added_NCHW: Tensor = self.layers(x_NCHW)
        return x_NCHW + added_NCHW


def _build_group(
    before: int, after: int, *, has_pool: bool, activation: Activation, depth: int, norm_momentum: float
) -> nn.Sequential:
    def convolution_and_norm() -> tuple[nn.Module, nn.Module]:
        return _build_convolution(after, after), _build_norm(after, momentum=norm_momentum)

    later: tuple[nn.Module, ...] = convolution_and_norm()
    if depth == 3:
        later = (Residual(*later, _ACTIVATIONS[activation](), *convolution_and_norm()),)
    return nn.Sequential(
        _build_convolution(before, after),
        nn.MaxPool2d(2) if has_pool else nn.Identity(),
        _build_norm(after, momentum=norm_momentum),
        _ACTIVATIONS[activation](),
        *later,
        _ACTIVATIONS[activation](),
    )


def _build_norm(channels: int, *, momentum: float) -> nn.BatchNorm2d:
    """Its scale stays at 1, as in the source: weight decay would make it smaller, and GELU does not undo that."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm


def _build_convolution(before: int, after: int) -> nn.Conv2d:
    """3x3; its first filters hand on a channel each, the others are drawn."""
    conv = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:before])
    return conv


def _check(
    *, size_px: int, widths: Sequence[int], norm_momentum: float, head_std: float | None, logit_scale: float
) -> None:
    if size_px < _LEAST_PX:
        raise ValueError(f"airbench: size_px={size_px} is too small; use {_LEAST_PX} or more.")
    if not widths or min(widths) < 1:
        raise ValueError(
            f"airbench: widths={list(widths)} must be one number of at least 1 per group; use [64, 256, 256]."
        )
    if not 0 < norm_momentum <= 1:
        raise ValueError(f"airbench: norm_momentum={norm_momentum} must be above 0 and at most 1; use 0.4.")
    if head_std is not None and not 0 < head_std < math.inf:
        raise ValueError(f"airbench: head_std={head_std} must be a positive number; use 1.0, or leave it out.")
    if not 0 < logit_scale < math.inf:
        raise ValueError(f"airbench: logit_scale={logit_scale} must be a positive number; use 0.111.")
