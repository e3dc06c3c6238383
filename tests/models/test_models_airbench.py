"""The network of airbench: against the formula written out, and against hand counts."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.airbench import Airbench, whitening_filters


def build(**args: Any) -> Airbench:
    torch.manual_seed(0)
    return Airbench(**{"in_channels": 3, "num_classes": 10, "size_px": 32, **args})


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [one for one in module.modules() if isinstance(one, nn.Conv2d)]


def test_the_parameters_of_the_default_are_those_counted_by_hand() -> None:
    stem = 3 * 24 * 4 + 24
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    norms = 2 * 2 * (64 + 256 + 256)
    counted = sum(one.numel() for one in build().parameters())
    assert counted == stem + filters + norms + 256 * 10 == 1_972_792


def test_the_parameters_of_airbench96_are_those_counted_by_hand() -> None:
    stem = 3 * 24 * 4 + 24
    filters = 9 * (24 * 128 + 2 * 128**2 + 128 * 384 + 2 * 384**2 + 384 * 512 + 2 * 512**2)
    norms = 3 * 2 * (128 + 384 + 512)
    module = build(widths=[128, 384, 512], depth=3)
    counted = sum(one.numel() for one in module.parameters())
    assert counted == stem + filters + norms + 512 * 10 == 9_918_776
    assert len(convolutions(module)) == 10, "ten, as the source says"


def by_hand(module: Airbench, images: Tensor) -> Tensor:
    """The forward pass in training: every norm takes the statistics of its batch, and begins with scale 1, shift 0."""
    weights = dict(module.named_parameters())
    x = F.conv2d(images, weights["stem.0.weight"], weights["stem.0.bias"]).clamp(min=0)
    for group in range(3):
        for place, has_pool in ((0, True), (4, False)):
            x = F.conv2d(x, weights[f"groups.{group}.{place}.weight"], padding=1)
            if has_pool:
                half = x.shape[-1] // 2
                x = x[..., : 2 * half, : 2 * half].unflatten(3, (half, 2)).unflatten(2, (half, 2)).amax(dim=(3, 5))
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
            x = ((x - mean) / (variance + 1e-12).sqrt()).clamp(min=0)
    return x.amax(dim=(2, 3)) @ weights["head.2.weight"].T / 9


def test_the_forward_pass_equals_the_formula_written_out_in_float64() -> None:
    module = build(widths=[8, 16, 24], activation="relu").double()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(module(images), by_hand(module, images), rtol=0, atol=1e-11)


def normalised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-12).sqrt()


def test_of_three_convolutions_the_last_two_have_a_residual_connection_around_them() -> None:
    module = build(widths=[8, 16, 24], activation="relu", depth=3).double()
    weights = dict(module.named_parameters())
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = F.conv2d(images, weights["stem.0.weight"], weights["stem.0.bias"]).clamp(min=0)
    for group in range(3):
        x = F.max_pool2d(F.conv2d(x, weights[f"groups.{group}.0.weight"], padding=1), 2)
        x = kept = normalised(x).clamp(min=0)
        x = normalised(F.conv2d(x, weights[f"groups.{group}.4.layers.0.weight"], padding=1)).clamp(min=0)
        x = normalised(F.conv2d(x, weights[f"groups.{group}.4.layers.3.weight"], padding=1))
        x = (x + kept).clamp(min=0)
    wanted = x.amax(dim=(2, 3)) @ weights["head.2.weight"].T / 9
    assert torch.allclose(module(images), wanted, rtol=0, atol=1e-11)


def test_norms_have_the_momentum_that_is_asked_for() -> None:
    for depth in (2, 3):
        norms = [
            one
            for one in build(widths=[4, 4], depth=depth, norm_momentum=0.1).modules()
            if isinstance(one, nn.BatchNorm2d)
        ]
        assert [one.momentum for one in norms] == [0.1] * 2 * depth
    assert {one.momentum for one in build().modules() if isinstance(one, nn.BatchNorm2d)} == {0.4}


def test_the_last_layer_begins_with_the_standard_deviation_that_is_asked_for() -> None:
    plain, scaled = (build(head_std=std).head[2].weight.detach() for std in (None, 1.0))
    assert scaled.std().item() == pytest.approx(1.0, rel=1e-5)
    assert torch.allclose(scaled, plain / plain.std(), rtol=1e-5, atol=0)
    assert plain.std().item() == pytest.approx((3 * 256) ** -0.5, rel=0.05), "torch draws within 1 / sqrt(256)"


def test_the_scale_of_norms_stays_at_one_and_their_shift_is_trained() -> None:
    norms = [one for one in build(widths=[4, 4]).modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(norms) == 4
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones(4))
        assert (norm.weight.requires_grad, norm.bias.requires_grad) == (False, True)


def test_logits_are_multiplied_by_their_scale() -> None:
    images = torch.randn(2, 3, 8, 8)
    plain, scaled = (build(size_px=8, widths=[4], logit_scale=scale)(images) for scale in (1.0, 1 / 9))
    assert torch.allclose(scaled, plain / 9, rtol=1e-5, atol=1e-7)


def test_the_last_layer_gives_the_logits_and_is_trained_as_if_they_were_multiplied_after_it() -> None:
    images, labels = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.arange(6)
    module = build(size_px=16, widths=[4, 8], logit_scale=0.1).double()
    linear, features = module.head[2], []
    linear.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
    logits = module(images)
    assert torch.equal(F.linear(features[0], linear.weight), logits)
    F.cross_entropy(logits, labels).backward()
    trained = [one for one in module.parameters() if one.requires_grad]
    after = F.cross_entropy(module.head(module.groups(module.stem(images))) * 0.1, labels)
    for gradient, one in zip(torch.autograd.grad(after, trained), trained, strict=True):
        assert torch.allclose(one.grad, gradient, rtol=1e-9, atol=1e-12)


def test_maps_have_the_sizes_of_the_docstring() -> None:
    sizes: list[int] = []
    module = build(widths=[4, 4, 4])
    for part in (module.stem, *module.groups):
        part.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    module(torch.randn(2, 3, 32, 32))
    assert sizes == [31, 15, 7, 3]


@pytest.mark.parametrize(("size_px", "wanted"), [(8, 2), (9, 3), (15, 3), (16, 3), (17, 4), (32, 4)])
def test_small_images_are_halved_as_often_as_leaves_a_pixel(size_px: int, wanted: int) -> None:
    module = build(size_px=size_px, widths=[4] * 6)
    pooled = [isinstance(group[1], nn.MaxPool2d) for group in module.groups]
    assert pooled == [False] * (6 - wanted) + [True] * wanted, "the first groups go without"
    assert module(torch.randn(2, 3, size_px, size_px)).shape == (2, 10)


def test_the_first_filters_hand_on_a_channel_each() -> None:
    threes = [one for one in convolutions(build(widths=[32, 16])) if one.kernel_size == (3, 3)]
    images = torch.randn(2, 24, 9, 9, generator=torch.Generator().manual_seed(1))
    assert [(one.in_channels, one.out_channels) for one in threes] == [(24, 32), (32, 32), (32, 16), (16, 16)]
    with torch.no_grad():
        output = threes[0](images)
    assert torch.equal(output[:, :24], images)
    assert not torch.equal(output[:, 24:], images[:, :8]), "the others are drawn"
    assert threes[0].weight[24:].std() > 0.01
    assert torch.equal(threes[2].weight[:, :, 1, 1], torch.eye(16, 32)), "fewer filters than channels: all of them"


def correlated_images(*, num_images: int, channels: int, size_px: int) -> Tensor:
    """Smooth images whose channels go together, as photographs' do."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(num_images, channels, size_px, size_px, generator=generator)
    images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1) * 3
    return images + images.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(("channels", "size_px"), [(3, 32), (1, 9)])
def test_a_whitened_stem_makes_patches_uncorrelated_and_of_variance_one(channels: int, size_px: int) -> None:
    images = correlated_images(num_images=230, channels=channels, size_px=size_px)
    filters = whitening_filters(images, patch_px=2, eps=0.0)
    half = 4 * channels
    assert filters.shape == (2 * half, channels, 2, 2)
    assert torch.equal(filters[half:], -filters[:half])
    outputs_DP = F.conv2d(images.double(), filters[:half].double()).transpose(0, 1).flatten(1)
    moments_DD = outputs_DP @ outputs_DP.T / outputs_DP.shape[1]
    assert torch.allclose(moments_DD, torch.eye(half, dtype=torch.float64), atol=1e-4)
    raw_DP = F.unfold(images.double(), 2).transpose(0, 1).flatten(1)
    assert not torch.allclose(raw_DP @ raw_DP.T / raw_DP.shape[1], torch.eye(half, dtype=torch.float64), atol=0.5)


def test_directions_in_which_nothing_varies_are_held_down_by_eps() -> None:
    images = torch.randn(20, 1, 16, 16, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)  # grey as RGB
    filters = whitening_filters(images, patch_px=2, eps=5e-4)
    assert filters.isfinite().all()
    lengths = filters.flatten(1).norm(dim=1)
    assert lengths.max() == pytest.approx(5e-4**-0.5, rel=1e-3), "one divided by the root of eps"


def test_a_whitened_stem_is_set_once_and_stays() -> None:
    module = build(widths=[4, 4, 4])
    images = correlated_images(num_images=40, channels=3, size_px=32)
    module.start_from(images)
    conv = convolutions(module)[0]
    assert torch.equal(conv.weight, whitening_filters(images, patch_px=2))
    assert not conv.bias.any()
    frozen = [name for name, one in module.named_parameters() if not one.requires_grad]
    scales = [f"groups.{group}.{place}.weight" for group in range(3) for place in (2, 5)]
    assert frozen == ["stem.0.weight", *scales]
    before = module.state_dict()["stem.0.weight"].clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1)
    F.cross_entropy(module(images), torch.zeros(40, dtype=torch.int64)).backward()
    optimizer.step()
    assert torch.equal(conv.weight, before)
    assert conv.bias.any()


def test_a_drawn_stem_asks_for_no_images_and_a_whitened_one_for_as_many_patches_at_any_size() -> None:
    assert build(stem="drawn").num_start_images == 0
    assert build().num_start_images == 5000
    assert build(size_px=64).num_start_images == 1250
    with torch.device("meta"):
        assert build(size_px=4096).num_start_images == 1


def test_activations_are_those_asked_for() -> None:
    for name, kind in (("gelu", nn.GELU), ("relu", nn.ReLU)):
        module = build(widths=[4, 4], activation=name)
        assert sum(isinstance(one, kind) for one in module.modules()) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"size_px": 7}, "size_px=7 is too small; use 8 or more"),
        ({"widths": []}, "widths=[] must be one number of at least 1 per group; use [64, 256, 256]"),
        ({"logit_scale": 0.0}, "logit_scale=0.0 must be a positive number; use 0.111"),
        ({"norm_momentum": 0.0}, "norm_momentum=0.0 must be above 0 and at most 1; use 0.4"),
        ({"head_std": 0.0}, "head_std=0.0 must be a positive number; use 1.0, or leave it out"),
        ({"widths": [8, 0]}, "widths=[8, 0] must be one number of at least 1 per group; use [64, 256, 256]"),
    ],
)
def test_a_number_out_of_range_is_refused_with_one_that_works(args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build(**args)
