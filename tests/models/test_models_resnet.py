"""ResNets for small images, against torchvision's with the same weights, and against published counts."""

import inspect
import math
import re
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from models.resnet import LAYOUTS, Block, PaddingShortcut, ResNet
from models.stem import make_stem_small


def build(**args: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(**{"in_channels": 3, "num_classes": 10, "size_px": 32, **args})


def num_parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def count_multiply_adds(module: nn.Module, images: Tensor) -> int:
    """Of convolutions and linear layers, for one image."""
    counts: list[int] = []

    def count(one: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(one, nn.Conv2d | nn.Linear)
        counts.append(one.weight.numel() * output[0, 0].numel())

    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.Linear):
            one.register_forward_hook(count)
    module(images)
    return sum(counts)


# 6n + 2 with parameter-free shortcuts: section 4.2 of the paper gives 0.27, 0.46, 0.66, 0.85 and 1.7 M
PUBLISHED = {
    20: (269_722, "0.27"),
    32: (464_154, "0.46"),
    44: (658_586, "0.66"),
    56: (853_018, "0.85"),
    110: (1_727_962, "1.73"),
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_cifar_resnets_have_the_parameters_of_the_paper(depth: int) -> None:
    counted, millions = PUBLISHED[depth]
    assert f"{counted / 1e6:.2f}" == millions
    assert num_parameters(build(depth=depth)) == counted
    n = (depth - 2) // 6
    layers = [one for one in build(depth=depth).modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth == 6 * n + 2


def test_resnet_20_is_counted_by_hand() -> None:
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert convolutions + norms + 64 * 10 + 10 == 269_722


@pytest.mark.parametrize(("depth", "counted"), [(18, 11_173_962), (34, 21_282_122), (50, 23_520_842)])
def test_resnets_of_imagenet_have_the_parameters_of_torchvisions_with_a_small_stem(depth: int, counted: int) -> None:
    with torch.device("meta"):
        theirs = models.get_model(f"resnet{depth}", num_classes=10)
    # a kernel of 3x3 in place of 7x7
    assert num_parameters(theirs) - (49 - 9) * 3 * 64 == counted
    assert num_parameters(build(depth=depth)) == counted


def copy_weights(theirs: nn.Module, ours: ResNet, *, depth: int) -> None:
    """torchvision's weights into ours; both list their layers in the order they are used, shortcuts last."""
    renamed = {}
    for name, value in theirs.state_dict().items():
        stage_block = name.split(".")
        if name.startswith("layer"):
            stage, block, layer, *rest = stage_block
            place = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
            inner = f"shortcut.{rest[0]}.{rest[1]}" if layer == "downsample" else f"residual.{place[layer]}.{rest[0]}"
            renamed[f"stages.{int(stage[5:]) - 1}.{block}.{inner}"] = value
        elif name.startswith("fc"):
            renamed[f"head.3.{stage_block[1]}"] = value
        else:
            renamed[f"stem.{ {'conv1': 0, 'bn1': 1}[stage_block[0]] }.{stage_block[1]}"] = value
    ours.load_state_dict(renamed)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_with_the_same_weights_it_is_torchvisions_with_a_small_stem(depth: int) -> None:
    torch.manual_seed(1)
    theirs = models.get_model(f"resnet{depth}", num_classes=10)
    make_stem_small(theirs, in_channels=3, name="theirs")
    ours = build(depth=depth)
    copy_weights(theirs, ours, depth=depth)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), rtol=1e-5, atol=1e-5)
        if depth == 18:  # and with statistics of the batch
            assert torch.allclose(ours.train()(images), theirs.train()(images), rtol=1e-4, atol=1e-4)


def test_a_padding_shortcut_takes_every_other_pixel_and_adds_zeros() -> None:
    images = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    padded = PaddingShortcut(stride=2, num_new=2)(images)
    assert padded.shape == (2, 5, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(padded[:, :3, row, column], images[:, :, 2 * row, 2 * column])
    assert not padded[:, 3:].any()
    assert num_parameters(PaddingShortcut(stride=2, num_new=2)) == 0


def test_shortcuts_project_or_pad_as_the_depth_says_unless_told() -> None:
    def kinds(**args: Any) -> set[str]:
        return {type(one.shortcut).__name__ for one in build(**args).modules() if isinstance(one, Block)}

    assert kinds(depth=18) == {"Identity", "Sequential"}
    assert kinds(depth=20) == {"Identity", "PaddingShortcut"}
    assert kinds(depth=20, shortcut="projection") == {"Identity", "Sequential"}
    assert kinds(depth=18, shortcut="padding") == {"Identity", "PaddingShortcut"}


@pytest.mark.parametrize("depth", [18, 20, 50])
def test_with_zero_init_each_block_begins_as_its_shortcut(depth: int) -> None:
    module = build(depth=depth, width=0.25, zero_init=True).eval()
    x = F.relu(torch.randn(2, module.stem[0].out_channels, 8, 8))
    for stage in module.stages:
        for block in stage:
            assert torch.equal(block(x), F.relu(block.shortcut(x)))
            x = block(x)
    plain = build(depth=depth, width=0.25)
    assert all(one.weight.eq(1).all() for one in plain.modules() if isinstance(one, nn.BatchNorm2d))


def test_drop_path_leaves_whole_images_to_the_shortcut_and_scales_up_the_others() -> None:
    block = Block(8, 8, kind="basic", stride=1, shortcut="projection", zero_init=False, drop_path=0.4)
    block.residual = nn.Conv2d(8, 8, kernel_size=1)  # without the norm, whose statistics are those of the batch
    images = torch.randn(4000, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    output = block.train()(images)
    kept = F.relu(block.residual(images) / 0.6 + images)
    dropped = F.relu(images)
    is_kept, is_dropped = ((output - one).abs().amax(dim=(1, 2, 3)) < 1e-5 for one in (kept, dropped))
    assert torch.equal(is_kept, ~is_dropped)
    assert abs(is_dropped.double().mean() - 0.4) < 5 * (0.4 * 0.6 / 4000) ** 0.5
    torch.manual_seed(2)
    assert torch.equal(block(images), output), "drawn from torch's generator, which each micro-step seeds"
    assert torch.equal(block.eval()(images), F.relu(block.residual(images) + images)), "never in evaluation"


def test_drop_path_rises_linearly_over_all_blocks_and_adds_no_parameters() -> None:
    module = build(depth=34, width=0.25, drop_path=0.32)
    rates = [block.drop_path.p for block in module.modules() if isinstance(block, Block)]
    assert rates == pytest.approx([0.02 * number for number in range(1, 17)])
    assert {block.drop_path.mode for block in module.modules() if isinstance(block, Block)} == {"row"}
    plain = build(depth=34, width=0.25)
    assert list(module.state_dict()) == list(plain.state_dict())
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(module(images), plain(images))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plain(images)
    assert torch.equal(torch.get_rng_state(), before), "without it nothing is drawn"


def test_blocks_widths_and_stem_make_a_network_for_two_cores() -> None:
    module = build(blocks=[1, 1, 1], widths=[32, 64, 128], stem="pool")
    images = torch.zeros(2, 3, 32, 32)
    stem = 9 * 3 * 32 * 32**2
    first = 2 * 9 * 32 * 32 * 16**2
    second = (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64) * 8**2
    third = (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128) * 4**2
    assert count_multiply_adds(module, images) == stem + first + second + third + 128 * 10 == 12_944_640
    assert module.stem(images).shape == (2, 32, 16, 16)
    assert [len(stage) for stage in module.stages] == [1, 1, 1]


def test_a_pooled_stem_takes_a_quarter_of_the_computation_of_the_stages() -> None:
    images = torch.zeros(2, 3, 32, 32)
    stem = 9 * 3 * 16 * 32**2
    linear = 64 * 10
    full, pooled = (count_multiply_adds(build(depth=20, stem=stem), images) for stem in ("conv", "pool"))
    assert full - stem - linear == 4 * (pooled - stem - linear)
    assert full == 40_551_040  # 41 M multiply-adds: the "0.041 G" that papers give for ResNet-20


def test_width_multiplies_the_channels_of_every_stage() -> None:
    for width, wanted in ((0.5, [32, 64, 128, 256]), (1.5, [96, 192, 384, 768])):
        with torch.device("meta"):
            module = build(width=width)
        assert [stage[-1].num_channels for stage in module.stages] == wanted
    with torch.device("meta"):
        assert [stage[-1].num_channels for stage in build(depth=50).stages] == [256, 512, 1024, 2048]


def test_convolutions_begin_normal_with_variance_two_over_fan_out() -> None:
    for one in build().modules():
        if isinstance(one, nn.Conv2d):
            z = one.weight.detach().double() * (one.kernel_size[0] ** 2 * one.out_channels / 2) ** 0.5
            count = z.numel()
            assert abs(z.mean()) < 5 / math.sqrt(count)
            assert abs(z.var() - 1) < 5 * math.sqrt(2 / count)


def test_the_depths_are_those_of_the_annotation() -> None:
    assert set(get_args(inspect.signature(ResNet).parameters["depth"].annotation)) == set(LAYOUTS)


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"size_px": 7}, "resnet: size_px=7 is too small; use 8 or more."),
        (
            {"blocks": [1, 1]},
            "resnet: blocks=[1, 1] has 2 stages, but widths=[64, 128, 256, 512] has 4; give both, one number per "
            "stage, for example blocks [1, 1, 1] and widths [32, 64, 128].",
        ),
        ({"blocks": [], "widths": []}, "resnet: blocks=[] has 0 stages"),
        ({"blocks": [1, 0], "widths": [8, 8]}, "resnet: blocks=[1, 0] must be numbers of at least 1."),
        ({"blocks": [1, 1], "widths": [8, -8]}, "resnet: widths=[8, -8] must be numbers of at least 1."),
        ({"width": 0.0}, "resnet: width=0.0 must be above 0; use 1.0."),
        ({"dropout": 1.0}, "resnet: dropout=1.0 must be at least 0 and below 1; use 0.5."),
        ({"drop_path": -0.1}, "resnet: drop_path=-0.1 must be at least 0 and below 1; use 0.1."),
    ],
)
def test_a_number_out_of_range_is_refused_with_one_that_works(args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        build(**args)
