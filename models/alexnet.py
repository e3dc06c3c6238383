"""AlexNet (Krizhevsky, Sutskever & Hinton 2012) for small images.

images (N, C, S, S) -> conv 5x5, pool -> conv 5x5, pool -> conv 3x3, conv 3x3, conv 3x3, pool -> at most 4x4
                    -> 2 x (dropout -> linear) -> linear -> logits (N, K)

On 32-pixel images: 32 -> 16 -> 8 -> 4 pixels, 64, 192, 384, 256, 256 channels, two hidden layers of 1,024.

Where it differs from the paper, which had photographs of 224 pixels: the first convolution is 5x5 without stride
instead of 11x11 with stride 4; pools are 2x2; hidden layers have 1,024 units instead of 4,096; there is no local
response normalisation (Simonyan & Zisserman 2015 found that it does not help), but batch norm as an option. The
numbers of channels are those of the one-column network (Krizhevsky 2014).
"""

from typing import Literal

from torch import Tensor, nn

Norm = Literal["none", "batch"]

_LEAST_PX = 8
_LARGEST_GRID = 4  # larger feature maps are averaged down to 4x4 before the linear layers
# channels at width 1, kernel, whether a pool follows
_LAYERS = ((64, 5, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))


class AlexNet(nn.Module):
    """Five convolutions, three linear layers.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        size_px: Height and width of the images, at least 8.
        width: Factor on the channels of the convolutions, which become multiples of 8.
        hidden: Width of the two hidden linear layers.
        norm: After each convolution: none, or batch.
        dropout: Probability of dropping an input of a hidden linear layer, 0 to below 1.

    Raises:
        ValueError: A number out of range. (The choices are checked by models.build.)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size_px: int,
        width: float = 1.0,
        hidden: int = 1024,
        norm: Norm = "none",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if size_px < _LEAST_PX:
            raise ValueError(f"alexnet halves its input three times, so size_px={size_px} is too small; use 8 or more.")
        if not width > 0:
            raise ValueError(f"alexnet: width={width} must be above 0; use 1.0.")
        if hidden < 1:
            raise ValueError(f"alexnet: hidden={hidden} must be at least 1; use 1024.")
        if not 0 <= dropout < 1:
            raise ValueError(f"alexnet: dropout={dropout} must be at least 0 and below 1; use 0.5.")
        blocks: list[nn.Module] = []
        before = in_channels
        for channels, kernel, has_pool in _LAYERS:
            after = max(8, round(channels * width / 8) * 8)
            blocks.append(_build_block(before, after, kernel=kernel, norm=norm, has_pool=has_pool))
            before = after
        grid = min(size_px // 8, _LARGEST_GRID)
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(before * grid * grid, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of normalised images, float (N, C, S, S)."""
        logits_NK: Tensor = self.head(self.features(images_NCHW))
        return logits_NK


def _build_block(before: int, after: int, *, kernel: int, norm: Norm, has_pool: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=kernel, padding=kernel // 2, bias=norm == "none"),
        nn.BatchNorm2d(after) if norm == "batch" else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2) if has_pool else nn.Identity(),
    )
