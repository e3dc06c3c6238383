"""Surgery on the first layers: what changes, what stays, and where it is refused."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from configs.schema import InputSpec, ModelConfig
from models.build import build_model
from models.stem import make_grey, make_stem_small


def build(name: str, *, stem: Any = "small", channels: int = 3, size_px: int = 32, **args: Any) -> nn.Module:
    model = ModelConfig(name=name, args=args, stem=stem)
    return build_model(model, num_classes=10, spec=InputSpec(size_px=size_px, channels=channels), seed=0)


def num_parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def sizes_before(module: nn.Module, kind: type[nn.Module], *, size_px: int = 32) -> list[int]:
    """Height of what each layer of a kind is given, in the order in which they run."""
    seen: list[int] = []
    for one in module.modules():
        if isinstance(one, kind):
            one.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, size_px, size_px))
    return seen


def test_resnet_18_with_a_small_stem_is_that_of_cifar() -> None:
    module = build("torchvision/resnet18")
    assert num_parameters(module) == 11_173_962
    assert module.conv1.weight.shape == (64, 3, 3, 3)
    assert (module.conv1.stride, module.conv1.padding) == ((1, 1), (1, 1))
    assert isinstance(module.maxpool, nn.Identity)
    stages = [[size_px, size_px // 2, size_px, size_px // 2, size_px // 2] for size_px in (32, 16, 8)]
    assert sizes_before(module, nn.Conv2d) == [32, *[32] * 4, *stages[0], *stages[1], *stages[2]]


# name -> height of the image, divided by that which the second convolution sees
SMALL = {
    "torchvision/alexnet": 1,
    "torchvision/resnet50": 1,
    "torchvision/densenet121": 1,
    "torchvision/squeezenet1_0": 1,
    "torchvision/squeezenet1_1": 1,
    "torchvision/mobilenet_v2": 1,
    "torchvision/shufflenet_v2_x0_5": 1,
    "torchvision/googlenet": 1,
    "torchvision/convnext_tiny": 2,
    "timm/resnet10t": 1,
    "timm/test_nfnet": 1,
    "timm/tf_mobilenetv3_small_minimal_100": 1,
    "timm/test_convnext": 2,
}


@pytest.mark.parametrize(("name", "factor"), SMALL.items())
def test_the_second_convolution_sees_the_image_at_its_size_or_in_patches_of_2(name: str, factor: int) -> None:
    sizes = sizes_before(build(name), nn.Conv2d)
    assert sizes[:2] == [32, 32 // factor]
    published = build(name, stem="default", size_px=64)
    assert sizes_before(published, nn.Conv2d, size_px=64)[1] < 64 // factor


def test_patches_become_2x2_where_the_grid_may_change() -> None:
    patches = build("torchvision/swin_t").features[0][0]
    assert (patches.kernel_size, patches.stride, patches.padding) == ((2, 2), (2, 2), (0, 0))


def test_a_stem_of_three_convolutions_keeps_the_size_until_the_first_stage() -> None:
    assert sizes_before(build("timm/resnet26d"), nn.Conv2d)[:5] == [32] * 5
    assert sizes_before(build("torchvision/inception_v3"), nn.Conv2d)[:3] == [32, 32, 30]  # its second has no padding


def test_the_variance_of_what_the_stem_gives_stays_that_of_the_authors() -> None:
    torch.manual_seed(0)
    module = models.resnet18()
    images = torch.randn(8, 3, 64, 64)
    before = module.conv1(images)[:, :, 4:-4, 4:-4].var()
    make_stem_small(module, in_channels=3, name="resnet18")
    after = module.conv1(images)[:, :, 4:-4, 4:-4].var()
    assert abs(after / before - 1) < 0.15  # of 64 filters with 27 weights each: sqrt(2 / 1728) = 3.4 %
    make_grey(module, name="resnet18")
    grey = module.conv1(images[:, :1])[:, :, 4:-4, 4:-4].var()
    assert abs(grey / after - 1) < 0.3  # 9 weights each: sqrt(2 / 576) = 5.9 %


def test_the_weights_that_stay_are_the_middle_of_those_drawn() -> None:
    drawn = build("torchvision/resnet18", stem="default").state_dict()
    small = build("torchvision/resnet18").state_dict()
    assert torch.allclose(small["conv1.weight"], drawn["conv1.weight"][:, :, 2:5, 2:5] * 7 / 3, rtol=1e-6, atol=0)
    assert all(torch.equal(small[key], drawn[key]) for key in drawn if key != "conv1.weight")
    grey = build("torchvision/resnet18", stem="default", channels=1).state_dict()
    assert torch.allclose(grey["conv1.weight"], drawn["conv1.weight"][:, :1] * math.sqrt(3), rtol=1e-6, atol=0)


def test_a_convolution_that_pads_by_itself_keeps_the_size_too() -> None:
    module = build("timm/tf_mobilenetv3_small_minimal_100")
    assert module.conv_stem.padding == (0, 0)
    assert module.conv_stem(torch.zeros(1, 3, 32, 32)).shape[2:] == (32, 32)


def test_a_weight_standardised_convolution_keeps_its_gain() -> None:
    """timm's ScaledStdConv2d divides by the root of its fan-in, which it counts when it is built."""
    conv = build("timm/nf_resnet26").stem.conv
    assert conv.kernel_size == (3, 3)
    wide = build("timm/nf_resnet26", stem="default").stem.conv
    assert math.isclose(conv.scale * math.sqrt(9), wide.scale * math.sqrt(49))


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        (
            "torchvision/vgg11",
            {},
            r"the first convolution of torchvision/vgg11 has stride 1 as it is; leave model\.stem",
        ),
        (
            "timm/vit_tiny_patch16_224",
            {"depth": 1},
            r"fixed grid of patches of 16 pixels; .* --model\.args\.patch_size 4",
        ),
        ("timm/test_coatnet", {}, r"is built for one image size and does not work with model\.stem=small; leave it at"),
        ("timm/tresnet_m", {}, "does not begin with a convolution that reads 3 channels"),
    ],
)
def test_where_it_cannot_be_done_that_is_said(name: str, args: dict[str, Any], wanted: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=wanted):
        build(name, **args)
