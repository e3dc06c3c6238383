"""Linear layers only: the network that sees no neighbourhood, to compare the others with.

images (N, C, S, S) -> flatten (N, C * S * S) -> per hidden width: linear -> norm -> activation -> dropout
                    -> linear -> logits (N, K)

On 28-pixel grey images: 784 -> 512 -> 256 -> 10. (Rosenblatt 1958; trained by gradients: Rumelhart et al. 1986.)
"""

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["none", "batch", "layer"]
Activation = Literal["relu", "gelu", "tanh", "sigmoid"]

_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class MLP(nn.Module):
    """The multi-layer perceptron. It takes images of `size_px` only.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        size_px: Height and width of the images.
        hidden: Width of each hidden layer; an empty list makes a linear classifier.
        norm: After each hidden linear layer: none, batch, or layer.
        activation: relu, gelu, tanh or sigmoid.
        dropout: Probability of dropping a hidden unit, 0 to below 1.

    Raises:
        ValueError: A number out of range. (The choices are checked by models.build.)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        size_px: int,
        hidden: Sequence[int] = (512, 256),
        norm: Norm = "none",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise ValueError(f"mlp: hidden={list(hidden)} must be widths of at least 1; use [512, 256].")
        if not 0 <= dropout < 1:
            raise ValueError(f"mlp: dropout={dropout} must be at least 0 and below 1; use 0.5.")
        widths = (in_channels * size_px * size_px, *hidden)
        self.hidden = nn.Sequential(
            nn.Flatten(),
            *(
                nn.Sequential(
                    nn.Linear(before, after),
                    nn.Identity() if norm == "none" else _NORMS[norm](after),
                    _ACTIVATIONS[activation](),
                    nn.Dropout(dropout),
                )
                for before, after in itertools.pairwise(widths)
            ),
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of normalised images, float (N, C, S, S)."""
        logits_NK: Tensor = self.head(self.hidden(images_NCHW))
        return logits_NK
