"""The last layer of a network: taken out as a linear layer, and set to what was fitted elsewhere.

network -> copy_head    -> nn.Linear on its own, to be trained on features
weights -> install_linear -> the network, with these in its last layer

Legend of shape letters: D width of what goes in, K classes.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


def copy_head(module: nn.Module, head: str) -> nn.Linear:
    """A linear layer of its own with the weights of the layer `head`, features (N, D) -> logits (N, K).

    Raises:
        ValueError: That is no linear layer, and no convolution that is one.
    """
    layer = head_of(module, head)
    weight = layer.weight.detach().flatten(1)
    copy = nn.Linear(
        weight.shape[1], weight.shape[0], bias=layer.bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        copy.weight.copy_(weight)
        if layer.bias is not None:
            copy.bias.copy_(layer.bias)
    return copy


def install_linear(
    module: nn.Module,
    head: str,
    weight_KD: Tensor | npt.NDArray[np.float32],
    bias_K: Tensor | npt.NDArray[np.float32] | None,
) -> None:
    """Sets the weights of the layer `head`, in place.

    Args:
        module: The network.
        head: The path of its last layer.
        weight_KD: float (K, D).
        bias_K: float (K,); None where the layer has none.

    Raises:
        ValueError: That is no linear layer, has other numbers of classes or features, or no bias where one is given.
    """
    layer = head_of(module, head)
    weight, bias = torch.as_tensor(weight_KD), None if bias_K is None else torch.as_tensor(bias_K)
    wanted = (layer.weight.shape[0], layer.weight.shape[1])
    if tuple(weight.shape) != wanted:
        raise ValueError(
            f"the last layer {head} is {wanted} (classes, features), but what was fitted is "
            f"{tuple(weight.shape)}; fit it on the features of this network."
        )
    if (layer.bias is None) != (bias is None):
        has, given = ("no bias", "one") if layer.bias is None else ("a bias", "none")
        raise ValueError(
            f"the last layer {head} has {has}, and what was fitted has {given}; use --strategy.classifier linear, "
            "which trains the layer as it is."
        )
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)


def head_of(module: nn.Module, head: str) -> nn.Linear | nn.Conv2d:
    """The layer `head`: a linear one, or a convolution of 1x1 pixel, which is one to a single pixel.

    Raises:
        ValueError: It is neither.
    """
    layer = module.get_submodule(head)
    if isinstance(layer, nn.Linear):
        return layer
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        return layer
    raise ValueError(
        f"the last layer {head} is a {type(layer).__name__}; wanted: nn.Linear, or nn.Conv2d with one pixel and one "
        "group. Use --strategy.name linear, which trains the network as it is."
    )
