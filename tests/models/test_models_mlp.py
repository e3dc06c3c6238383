"""The linear network, against its formula written out."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from models.mlp import MLP, Activation, Norm

EPS = 1e-5  # of every norm in torch
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}
AXES = {"batch": 0, "layer": 1}


def build(**args: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(**{"in_channels": 3, "num_classes": 10, "size_px": 8, **args})


def by_hand(module: MLP, images: Tensor, *, norm: str, activation: str) -> Tensor:
    """The forward pass of a fresh network (norms not yet scaled) without dropout."""
    weights = dict(module.named_parameters())
    x = images.reshape(len(images), -1)
    for layer in range(1, len(module.hidden)):
        x = x @ weights[f"hidden.{layer}.0.weight"].T + weights[f"hidden.{layer}.0.bias"]
        if norm != "none":
            mean = x.mean(dim=AXES[norm], keepdim=True)
            variance = ((x - mean) ** 2).mean(dim=AXES[norm], keepdim=True)
            x = (x - mean) / (variance + EPS).sqrt()
        x = ACTIVATIONS[activation](x)
    return x @ weights["head.weight"].T + weights["head.bias"]


def test_the_tests_know_every_norm_and_activation() -> None:
    assert set(get_args(Norm)) == {"none", *AXES}
    assert set(get_args(Activation)) == set(ACTIVATIONS)


@pytest.mark.parametrize("hidden", [[], [7], [20, 5, 11]])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", get_args(Norm))
def test_the_forward_pass_equals_the_formula_written_out_in_float64(
    norm: Norm, activation: Activation, hidden: list[int]
) -> None:
    module = build(norm=norm, activation=activation, hidden=hidden).double()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = by_hand(module, images, norm=norm, activation=activation)
    assert torch.allclose(module(images), wanted, rtol=0, atol=1e-10)


def test_the_parameters_on_mnist_are_those_counted_by_hand() -> None:
    counted = (784 * 512 + 512) + (512 * 256 + 256) + (256 * 10 + 10)
    assert counted == 535_818
    assert sum(one.numel() for one in build(in_channels=1, size_px=28).parameters()) == counted


def test_no_hidden_layer_makes_a_linear_classifier() -> None:
    module = build(hidden=[])
    assert [tuple(one.shape) for one in module.parameters()] == [(10, 192), (10,)]
    images = torch.randn(2, 3, 8, 8)
    between = module(images.mean(dim=0, keepdim=True))
    assert torch.allclose(module(images).mean(dim=0, keepdim=True), between, rtol=0, atol=1e-6)


def test_dropout_drops_hidden_units_in_training_only() -> None:
    module = build(hidden=[8000], dropout=0.25, activation="sigmoid")
    images = torch.randn(1, 3, 8, 8)
    dropped = float((module.hidden(images) == 0).double().mean())
    assert abs(dropped - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 8000)
    assert (module.eval().hidden(images) > 0).all(), "a sigmoid is never 0"


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"hidden": [64, 0]}, r"^mlp: hidden=\[64, 0\] must be widths of at least 1; use \[512, 256\]\.$"),
        ({"hidden": [-1]}, r"^mlp: hidden=\[-1\] must be"),
        ({"dropout": 1.0}, r"^mlp: dropout=1\.0 must be at least 0 and below 1; use 0\.5\.$"),
        ({"dropout": float("nan")}, r"^mlp: dropout=nan must be"),
    ],
)
def test_a_number_out_of_range_is_refused_with_one_that_works(args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        build(**args)


def test_it_takes_images_of_one_size_only() -> None:
    with pytest.raises(RuntimeError):
        build(size_px=8)(torch.zeros(1, 3, 9, 9))
    assert isinstance(build(size_px=1), nn.Module)
