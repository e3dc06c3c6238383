"""A network of three convolutions, the one every course begins with.

images (N, C, S, S) -> 3 x (conv 3x3 -> norm -> activation -> max-pool 2) -> at most 4x4 -> linear -> logits (N, K)

On 32-pixel images: 32 -> 16 -> 8 -> 4 pixels, 32 -> 64 -> 128 channels, a hidden layer of 256.
"""

import itertools
from typing import Literal

from torch import Tensor, nn

Norm = Literal["none", "batch", "layer", "instance", "group"]
Activation = Literal["relu", "gelu", "sigmoid"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
_NUM_GROUPS = 8
_LARGEST_GRID = 4  # larger feature maps are averaged down to 4x4 before the linear layers


class SimpleCNN(nn.Module):
    """The plain network.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        size_px: Height and width of the images, at least 8.
        width: Channels of the first convolution, a multiple of 8; the others have 2 and 4 times as many.
        hidden: Width of the hidden linear layer.
        norm: After each convolution: none, batch, layer (over channels and pixels), instance, or group (8 groups).
        activation: relu, gelu or sigmoid.
        dropout: Probability of dropping a hidden unit, 0 to below 1.
        init: default = PyTorch's; kaiming = normal with the fan-in and the gain of ReLU, biases zero (He et al. 2015).

    Raises:
        ValueError: A number out of range. (The choices are checked by models.build.)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size_px: int,
        width: int = 32,
        hidden: int = 256,
        norm: Norm = "none",
        activation: Activation = "relu",
        dropout: float = 0.0,
        init: Literal["default", "kaiming"] = "default",
    ) -> None:
        super().__init__()
        if size_px < 8:
            raise ValueError(
                f"simple_cnn halves its input three times, so size_px={size_px} is too small; use 8 or more."
            )
        if width < _NUM_GROUPS or width % _NUM_GROUPS:
            raise ValueError(f"simple_cnn: width={width} must be a multiple of {_NUM_GROUPS}; use 32.")
        if hidden < 1:
            raise ValueError(f"simple_cnn: hidden={hidden} must be at least 1; use 256.")
        if not 0 <= dropout < 1:
            raise ValueError(f"simple_cnn: dropout={dropout} must be at least 0 and below 1; use 0.5.")
        channels = (in_channels, width, 2 * width, 4 * width)
        grid = min(size_px // 8, _LARGEST_GRID)
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel_size=3, padding=1),
                    _build_norm(norm, channels=after),
                    _ACTIVATIONS[activation](),
                    nn.MaxPool2d(2),
                )
                for before, after in itertools.pairwise(channels)
            )
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.Linear(channels[-1] * grid * grid, hidden),
            _ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        if init == "kaiming":
            self.apply(_init_kaiming)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of normalised images, float (N, C, S, S)."""
        logits_NK: Tensor = self.head(self.features(images_NCHW))
        return logits_NK


def _build_norm(norm: Norm, *, channels: int) -> nn.Module:
    match norm:
        case "none":
            return nn.Identity()
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.GroupNorm(1, channels)  # one group: statistics over channels and pixels of each image
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)
        case "group":
            return nn.GroupNorm(_NUM_GROUPS, channels)


def _init_kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
