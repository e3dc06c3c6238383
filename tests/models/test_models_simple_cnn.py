"""The three-convolution network, against its formula written out."""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.simple_cnn import Activation, Norm, SimpleCNN

EPS = 1e-5  # of every norm in torch
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}
# the axes, of (N, G, C / G, H, W), over which each norm takes mean and variance
NORMS: dict[str, tuple[int, tuple[int, ...]]] = {
    "batch": (1, (0, 3, 4)),
    "layer": (1, (2, 3, 4)),
    "instance": (1, (3, 4)),
    "group": (8, (2, 3, 4)),
}


def build(**args: Any) -> SimpleCNN:
    torch.manual_seed(0)
    return SimpleCNN(**{"in_channels": 3, "num_classes": 10, "size_px": 32, **args})


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def normalised(values: Tensor, norm: str) -> Tensor:
    if norm == "none":
        return values
    groups, axes = NORMS[norm]
    array: npt.NDArray[np.float64] = values.detach().numpy().reshape(len(values), groups, -1, *values.shape[2:])
    mean, variance = array.mean(axis=axes, keepdims=True), array.var(axis=axes, keepdims=True)
    return torch.from_numpy(((array - mean) / np.sqrt(variance + EPS)).reshape(values.shape))


def by_hand(module: SimpleCNN, images: Tensor, *, norm: str, activation: str) -> Tensor:
    """The forward pass of a fresh network (norms not yet scaled) without dropout."""
    weights = dict(module.named_parameters())
    x = images
    for block in range(3):
        x = F.conv2d(x, weights[f"features.{block}.0.weight"], weights[f"features.{block}.0.bias"], padding=1)
        x = ACTIVATIONS[activation](normalised(x, norm))
        count, channels, height, width = x.shape
        x = x[:, :, : height // 2 * 2, : width // 2 * 2]
        x = x.reshape(count, channels, height // 2, 2, width // 2, 2).amax(dim=(3, 5))
    if x.shape[2] > 4:
        assert x.shape[2] % 4 == 0
        part = x.shape[2] // 4
        x = x.reshape(*x.shape[:2], 4, part, 4, part).mean(dim=(3, 5))
    x = x.flatten(1) @ weights["head.2.weight"].T + weights["head.2.bias"]
    return ACTIVATIONS[activation](x) @ weights["head.5.weight"].T + weights["head.5.bias"]


def test_the_tests_know_every_norm_and_activation() -> None:
    assert set(get_args(Norm)) == {"none", *NORMS}
    assert set(get_args(Activation)) == set(ACTIVATIONS)


@pytest.mark.parametrize("size_px", [8, 32, 64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", get_args(Norm))
def test_the_forward_pass_equals_the_formula_written_out_in_float64(
    norm: Norm, activation: Activation, size_px: int
) -> None:
    module = build(norm=norm, activation=activation, size_px=size_px, width=16, hidden=20).double()
    images = torch.randn(4, 3, size_px, size_px, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = by_hand(module, images, norm=norm, activation=activation)
    assert torch.allclose(module(images), wanted, rtol=0, atol=1e-10)


def test_the_parameters_at_32_pixels_are_those_counted_by_hand() -> None:
    convolutions = (3 * 32 + 32 * 64 + 64 * 128) * 9 + 32 + 64 + 128
    linear = 128 * 4 * 4 * 256 + 256 + 256 * 10 + 10
    assert convolutions + linear == 620_362
    assert num_parameters(build()) == 620_362
    assert num_parameters(build(norm="none", activation="gelu", dropout=0.5, init="kaiming")) == 620_362


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_has_a_scale_and_an_offset_per_channel(norm: Norm) -> None:
    assert num_parameters(build(norm=norm)) == 620_362 + 2 * (32 + 64 + 128)


@pytest.mark.parametrize(("size_px", "grid"), [(8, 1), (15, 1), (16, 2), (28, 3), (32, 4), (64, 4), (96, 4), (224, 4)])
def test_the_grid_before_the_linear_layers_is_at_most_4_by_4(size_px: int, grid: int) -> None:
    module = build(size_px=size_px, width=8, hidden=5)
    assert module.head[2].in_features == 32 * grid * grid


def test_width_and_hidden_set_the_channels() -> None:
    module = build(width=24, hidden=7, in_channels=1, num_classes=3)
    assert [tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")] == [
        (24, 1, 3, 3),
        (48, 24, 3, 3),
        (96, 48, 3, 3),
        (7, 96 * 16),
        (3, 7),
    ]


def fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def matrices(module: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters() if parameter.ndim > 1]


def test_kaiming_draws_normal_weights_of_variance_two_over_fan_in_and_zero_biases() -> None:
    module = build(init="kaiming")
    assert len(matrices(module)) == 5
    for weight in matrices(module):
        z = weight.double() / math.sqrt(2 / fan_in(weight))
        count = weight.numel()
        assert abs(z.mean()) < 5 / math.sqrt(count)  # five standard deviations of a mean of normals
        assert abs(z.var() - 1) < 5 * math.sqrt(2 / count)  # and of their variance
        beyond = float((z.abs() > 2).double().mean())
        assert abs(beyond - 0.0455) < 5 * math.sqrt(0.0455 / count)  # of a normal, 4.55 % lie beyond two sigma
    biases = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    assert len(biases) == 5
    assert not any(bias.any() for bias in biases)


def test_kaiming_leaves_scale_and_offset_of_a_norm_at_one_and_zero() -> None:
    module = build(init="kaiming", norm="batch")
    for block in module.features:
        assert block[1].weight.tolist() == [1.0] * len(block[1].weight)
        assert block[1].bias.tolist() == [0.0] * len(block[1].bias)


def test_the_default_init_is_uniform_within_one_over_root_fan_in() -> None:
    module = build(init="default")
    for weight in matrices(module):
        bound = 1 / math.sqrt(fan_in(weight))
        assert weight.abs().max() <= bound * (1 + 1e-6)
        assert abs(weight.double().var() * 3 / bound**2 - 1) < 5 * math.sqrt(0.8 / weight.numel())


def test_dropout_drops_hidden_units_in_training_only() -> None:
    module = build(dropout=0.25, size_px=8, hidden=4000, width=8, norm="none", activation="sigmoid")
    seen: list[Tensor] = []
    module.head[5].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    module(images)
    dropped = float((seen[0] == 0).double().mean())
    assert abs(dropped - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 8000)
    module.eval()
    module(images)
    assert (seen[1] > 0).all(), "a sigmoid is never 0"
    kept = seen[0] != 0
    assert torch.allclose(seen[0][kept], seen[1][kept] / 0.75, rtol=1e-6, atol=0)


def test_batch_norm_uses_running_statistics_in_evaluation() -> None:
    module = build(norm="batch", size_px=8).double()
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(200):
        module(images)
    training = module(images)
    evaluation = module.eval()(images)
    # the running variance is the unbiased one: of 16 * 8 * 8 values in the first block, 16 * 2 * 2 in the last
    assert torch.allclose(training, evaluation, rtol=0, atol=0.02)
    assert not torch.allclose(training, evaluation, rtol=0, atol=1e-6)
