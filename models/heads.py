"""The last layer of a network: taken out as a linear layer, and set to what was fitted elsewhere.

network -> copy_head    -> nn.Linear on its own, to be trained on features
weights -> install_linear -> the network, with these in its last layer

Legend of shape letters: D width of what goes in, K classes.
"""

import copy

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOLERANCE = 0.01  # of the largest logit: what TF32 may make of a product


def copy_head(module: nn.Module, head: str) -> nn.Linear:
    """A linear layer of its own with the weights of the layer `head`, features (N, D) -> logits (N, K).

    Raises:
        ValueError: That is no linear layer, and no convolution that is one; or it only derives from one.
    """
    layer = _linear_of(module, head)
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
        ValueError: As `copy_head`; or it has other numbers of classes or features, or no bias where one is given.
    """
    layer = _linear_of(module, head)
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


def _linear_of(module: nn.Module, head: str) -> nn.Linear | nn.Conv2d:
    """The layer `head`, whose logits are its weight times the features and its bias.

    Raises:
        ValueError: They are not: it normalises features or weight, say, or has its weight made anew in each step.
    """
    layer = head_of(module, head)
    if not _multiplies_by_weight(layer):
        raise ValueError(
            f"the last layer {head} ({type(layer).__name__}) does more than to multiply by a weight and to add a bias, "
            "as layers do that normalise their weight or what they are given, so weights from elsewhere would not make "
            "the logits they are meant to. Use --strategy.name linear, which trains the network as it is, or "
            "--strategy.classifier knn."
        )
    return layer


def _multiplies_by_weight(layer: nn.Linear | nn.Conv2d) -> bool:
    if "weight" not in dict(layer.named_parameters(recurse=False)):  # weight_norm and its like compute it from others
        return False
    weight_KD, bias_K = layer.weight.detach().flatten(1), None if layer.bias is None else layer.bias.detach()
    width = weight_KD.shape[1]
    features_ND = torch.linspace(-1, 1, 2 * width, device=weight_KD.device, dtype=weight_KD.dtype).reshape(2, width)
    with torch.no_grad():
        alone = copy.deepcopy(layer).eval()
        given = features_ND if isinstance(layer, nn.Linear) else features_ND[:, :, None, None]
        logits_NK, expected_NK = alone(given).flatten(1), F.linear(features_ND, weight_KD, bias_K)
    atol = _TOLERANCE * float(expected_NK.abs().max())
    return logits_NK.shape == expected_NK.shape and torch.allclose(logits_NK, expected_NK, rtol=0, atol=atol)
