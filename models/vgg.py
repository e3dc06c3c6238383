"""VGG (Simonyan & Zisserman 2015) for small images.

images (N, C, S, S) -> 5 stages x (1 to 4 x conv 3x3 -> norm -> relu, then max-pool 2) -> mean over pixels -> dropout
                    -> linear -> logits (N, K)

On 32-pixel images: 32 -> 16 -> 8 -> 4 -> 2 -> 1 pixels, 64, 128, 256, 512, 512 channels.

Where it differs from the paper, which had photographs of 224 pixels: below 32 pixels the first stages have no pool,
so that the last map keeps a pixel; one linear layer on the mean over pixels takes the place of three with 4,096 units;
batch norm (Ioffe & Szegedy 2015) is on, because without it the deeper ones hardly begin to learn.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

Norm = Literal["none", "batch"]

_LEAST_PX = 8
_CHANNELS = (64, 128, 256, 512, 512)
# convolutions of each stage: configurations A, B, D and E of the paper
_CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """3x3 convolutions in five stages, each of half the size and up to twice the channels.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        size_px: Height and width of the images, at least 8.
        depth: Layers with weights as the paper counts them, its two hidden linear ones included: 11, 13, 16 or 19.
        width: Factor on the channels of the convolutions, which become multiples of 8.
        norm: After each convolution: none, or batch.
        dropout: Probability of dropping an input of the linear layer, 0 to below 1.

    Raises:
        ValueError: A number out of range. (The choices are checked by models.build.)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size_px: int,
        depth: Literal[11, 13, 16, 19] = 16,
        width: float = 1.0,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if size_px < _LEAST_PX:
            raise ValueError(
                f"vgg halves its input at least three times, so size_px={size_px} is too small; use 8 or more."
            )
        if not width > 0:
            raise ValueError(f"vgg: width={width} must be above 0; use 1.0.")
        if not 0 <= dropout < 1:
            raise ValueError(f"vgg: dropout={dropout} must be at least 0 and below 1; use 0.5.")
        num_pools = min(len(_CHANNELS), size_px.bit_length() - 1)  # 8 -> 3, 16 -> 4, 32 -> 5
        stages: list[nn.Module] = []
        before = in_channels
        for stage, (channels, convolutions) in enumerate(zip(_CHANNELS, _CONVOLUTIONS[depth], strict=True)):
            after = max(8, round(channels * width / 8) * 8)
            pool = nn.MaxPool2d(2) if stage >= len(_CHANNELS) - num_pools else nn.Identity()
            stages.append(nn.Sequential(*_build_layers(before, after, count=convolutions, norm=norm), pool))
            before = after
        self.features = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(before, num_classes)
        )
        self.features.apply(_init_convolution)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of normalised images, float (N, C, S, S)."""
        logits_NK: Tensor = self.head(self.features(images_NCHW))
        return logits_NK


def _build_layers(before: int, after: int, *, count: int, norm: Norm) -> Iterator[nn.Module]:
    for place in range(count):
        yield nn.Conv2d(before if place == 0 else after, after, kernel_size=3, padding=1, bias=norm == "none")
        if norm == "batch":
            yield nn.BatchNorm2d(after)
        yield nn.ReLU()


def _init_convolution(module: nn.Module) -> None:
    """Normal weights with the fan-out and the gain of ReLU (He et al. 2015), biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
