"""VGG for small images, against torchvision's convolutions and hand counts."""

import itertools
import re
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torchvision import models

from models.vgg import VGG

DEPTHS: list[Literal[11, 13, 16, 19]] = [11, 13, 16, 19]


def build(**args: Any) -> VGG:
    torch.manual_seed(0)
    return VGG(**{"in_channels": 3, "num_classes": 10, "size_px": 32, **args})


def num_parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(11, 9.2), (13, 9.4), (16, 14.7), (19, 20.0)])
def test_the_convolutions_have_the_weights_counted_by_hand(depth: int, millions: float) -> None:
    """Table 1 of the paper, without its linear layers (whose 123.6 M are the rest of its Table 2)."""
    stages = {
        11: [[64], [128], [256] * 2, [512] * 2, [512] * 2],
        13: [[64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2],
        16: [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3],
        19: [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4],
    }[depth]
    channels = [3, *(one for stage in stages for one in stage)]
    weights = sum(9 * before * after for before, after in itertools.pairwise(channels))
    assert round(weights / 1e6, 1) == millions
    norms = sum(channels[1:])
    assert num_parameters(build(depth=depth)) == weights + 2 * norms + 512 * 10 + 10
    assert num_parameters(build(depth=depth, norm="none")) == weights + norms + 512 * 10 + 10


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_with_the_same_weights_its_features_are_those_of_torchvision(norm: str, depth: int) -> None:
    torch.manual_seed(0)
    theirs = models.vgg.make_layers(
        models.vgg.cfgs[{11: "A", 13: "B", 16: "D", 19: "E"}[depth]], batch_norm=norm == "batch"
    )
    ours = build(depth=depth, norm=norm).features
    sources = [one for one in theirs.modules() if isinstance(one, nn.Conv2d | nn.BatchNorm2d)]
    targets = [one for one in ours.modules() if isinstance(one, nn.Conv2d | nn.BatchNorm2d)]
    for source, target in zip(sources, targets, strict=True):
        state = source.state_dict()
        if isinstance(source, nn.Conv2d) and norm == "batch":
            assert source.bias is not None
            nn.init.zeros_(source.bias)  # ours has none: the norm takes it out again
            del state["bias"]
        target.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size_px", "sizes"),
    [
        (8, [8, 8, 4, 2, 1]),
        (15, [15, 15, 7, 3, 1]),
        (16, [16, 8, 4, 2, 1]),
        (28, [28, 14, 7, 3, 1]),
        (32, [16, 8, 4, 2, 1]),
        (64, [32, 16, 8, 4, 2]),
    ],
)
def test_small_images_are_pooled_less_often_and_the_last_map_keeps_a_pixel(size_px: int, sizes: list[int]) -> None:
    module = build(size_px=size_px, depth=11, width=0.125)
    x = torch.zeros(2, 3, size_px, size_px)
    seen = []
    for stage in module.features:
        x = stage(x)
        seen.append(x.shape[-1])
    assert seen == sizes


def test_width_is_a_factor_that_gives_multiples_of_8() -> None:
    channels = [one.out_channels for one in build(depth=11, width=0.25).modules() if isinstance(one, nn.Conv2d)]
    assert channels == [16, 32, 64, 64, 128, 128, 128, 128]
    assert {one.out_channels for one in build(width=0.001).modules() if isinstance(one, nn.Conv2d)} == {8}


def test_convolutions_begin_normal_with_variance_two_over_fan_out_and_zero_biases() -> None:
    for one in build(norm="none", depth=11).modules():
        if isinstance(one, nn.Conv2d) and one.bias is not None:
            z = one.weight.detach().double() * (9 * one.out_channels / 2) ** 0.5
            count = z.numel()
            assert abs(z.mean()) < 5 / count**0.5
            assert abs(z.var() - 1) < 5 * (2 / count) ** 0.5
            assert not one.bias.any()


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"size_px": 7}, "vgg halves its input at least three times, so size_px=7 is too small; use 8 or more."),
        ({"width": 0}, "vgg: width=0 must be above 0; use 1.0."),
        ({"dropout": -0.5}, "vgg: dropout=-0.5 must be at least 0 and below 1; use 0.5."),
    ],
)
def test_a_number_out_of_range_is_refused_with_one_that_works(args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        build(**args)
