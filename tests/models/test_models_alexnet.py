"""AlexNet for small images, against torchvision's where they agree, and against hand counts."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.alexnet import AlexNet


def build(**args: Any) -> AlexNet:
    torch.manual_seed(0)
    return AlexNet(**{"in_channels": 3, "num_classes": 10, "size_px": 32, **args})


def num_parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def test_its_channels_are_those_of_torchvisions() -> None:
    from torchvision import models

    with torch.device("meta"):
        theirs = models.alexnet()
    wanted = [one.out_channels for one in theirs.modules() if isinstance(one, nn.Conv2d)]
    assert [one.out_channels for one in build().modules() if isinstance(one, nn.Conv2d)] == wanted


def test_the_parameters_at_32_pixels_are_those_counted_by_hand() -> None:
    convolutions = 25 * (3 * 64 + 64 * 192) + 9 * (192 * 384 + 384 * 256 + 256 * 256)
    biases = 64 + 192 + 384 + 256 + 256
    linear = (256 * 16 * 1024 + 1024) + (1024 * 1024 + 1024) + (1024 * 10 + 10)
    assert num_parameters(build()) == convolutions + biases + linear == 7_706_442
    assert num_parameters(build(norm="batch")) == convolutions + 2 * biases + linear


def by_hand(module: AlexNet, images: Tensor) -> Tensor:
    """The forward pass in evaluation, without norm, on images of 32 pixels."""
    weights = dict(module.named_parameters())
    x = images
    for block, (pad, has_pool) in enumerate([(2, True), (2, True), (1, False), (1, False), (1, True)]):
        x = F.conv2d(x, weights[f"features.{block}.0.weight"], weights[f"features.{block}.0.bias"], padding=pad)
        x = x.clamp(min=0)
        if has_pool:
            count, channels, height, width = x.shape
            x = x.reshape(count, channels, height // 2, 2, width // 2, 2).amax(dim=(3, 5))
    assert x.shape[2:] == (4, 4)
    x = x.flatten(1)
    for place in (3, 6, 8):
        x = x @ weights[f"head.{place}.weight"].T + weights[f"head.{place}.bias"]
        x = x.clamp(min=0) if place < 8 else x
    return x


def test_the_forward_pass_equals_the_formula_written_out_in_float64() -> None:
    module = build(width=0.25, hidden=20).double().eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(module(images), by_hand(module, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("width", "channels"), [(0.01, [8] * 5), (0.5, [32, 96, 192, 128, 128]), (2, [128, 384, 768])])
def test_width_is_a_factor_that_gives_multiples_of_8(width: float, channels: list[int]) -> None:
    with torch.device("meta"):
        module = build(width=width)
    built = [one.out_channels for one in module.modules() if isinstance(one, nn.Conv2d)]
    assert built[: len(channels)] == channels


def test_dropout_drops_inputs_of_both_hidden_layers_in_training_only() -> None:
    module = build(width=0.25, hidden=4000, dropout=0.25)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    for place in (2, 5):
        module.head[place].register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    module(images)
    for before, after in (seen[:2], seen[2:]):
        alive = before != 0
        dropped = float((after[alive] == 0).double().mean())
        assert abs(dropped - 0.25) < 5 * math.sqrt(0.25 * 0.75 / int(alive.sum()))
    module.eval()
    assert torch.equal(module(images), module(images))


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"size_px": 7}, "alexnet halves its input three times, so size_px=7 is too small; use 8 or more."),
        ({"width": 0.0}, "alexnet: width=0.0 must be above 0; use 1.0."),
        ({"width": float("nan")}, "alexnet: width=nan must be above 0"),
        ({"hidden": 0}, "alexnet: hidden=0 must be at least 1; use 1024."),
        ({"dropout": 1.0}, "alexnet: dropout=1.0 must be at least 0 and below 1; use 0.5."),
    ],
)
def test_a_number_out_of_range_is_refused_with_one_that_works(args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        build(**args)
