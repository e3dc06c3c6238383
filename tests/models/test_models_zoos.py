"""One contract for every network of our own and twenty of each zoo; and what the zoos' arguments are checked for."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from model_cases import CASES, HEAVY, OWN, TIMM, TORCHVISION, Case
from torch import Tensor, nn
from torchvision import models

from configs.schema import InputSpec, ModelConfig
from engine.checkpoint import load_weights, save_checkpoint
from models.build import MODELS, build_model, check_model

# read values while they are built, which the meta device does not have
NO_META = {"torchvision/regnet_x_400mf", "torchvision/regnet_y_400mf"}


def build(name: str, *, num_classes: int = 10, channels: int = 3, seed: int = 0) -> nn.Module:
    case = (CASES | HEAVY)[name]
    model = ModelConfig(name=name, args=case.args, stem=case.stem)
    spec = InputSpec(size_px=case.size_px, channels=channels)
    return build_model(model, num_classes=num_classes, spec=spec, seed=seed)


def draw_images(case: Case, *, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, case.size_px, case.size_px, generator=torch.Generator().manual_seed(0))


def test_the_contract_runs_over_all_of_our_own_and_twenty_of_each_zoo() -> None:
    assert set(OWN) == set(MODELS)
    assert (len(OWN), len(TORCHVISION), len(TIMM)) == (6, 20, 20)
    assert set(TORCHVISION) <= set(models.list_models(module=models))
    assert set(TIMM) <= set(timm.list_models())


@pytest.mark.parametrize("name", CASES)
def test_a_network_trains_and_comes_back_from_its_checkpoint_to_the_bit(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    module = build(name)
    images, labels = draw_images(case), torch.tensor([3, 7])
    torch.manual_seed(0)  # dropout and stochastic depth draw from torch's generator
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}

    logits = module(images)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    F.cross_entropy(logits, labels).backward()
    gradients = {key: value.grad for key, value in module.named_parameters() if value.requires_grad}
    missing = [key for key, gradient in gradients.items() if gradient is None]
    assert missing == [], "every parameter takes part"
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())

    optimizer.step()
    changed = [key for key, value in module.named_parameters() if not torch.equal(value, before[key])]
    assert len(changed) > len(before) / 4  # some begin with a zero at the end of each block, and then little moves

    checkpoint = save_checkpoint(
        tmp_path, step=1, best_step=None, weights=module.state_dict(), card={}, training_state={}
    )
    fresh = build(name, seed=1)
    load_weights(fresh, checkpoint)
    with torch.no_grad():
        wanted = module.eval()(images)
        assert wanted.isfinite().all()
        assert torch.equal(fresh.eval()(images), wanted)


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_network_has_logits_and_gradients_of_the_right_shapes(name: str) -> None:
    with torch.device("meta"):
        module = build(name)
        logits = module(torch.zeros(2, 3, HEAVY[name].size_px, HEAVY[name].size_px))
        logits.sum().backward()
    assert logits.shape == (2, 10)
    assert all(one.grad is not None and one.grad.shape == one.shape for one in module.parameters())


@pytest.mark.parametrize("name", [name for name in CASES | HEAVY if "/" in name])
def test_grey_images_and_any_number_of_classes_are_taken(name: str) -> None:
    size_px = (CASES | HEAVY)[name].size_px
    with torch.device("cpu" if name in NO_META else "meta"):
        module = build(name, channels=1, num_classes=3)
        assert module(torch.zeros(2, 1, size_px, size_px)).shape == (2, 3)


@pytest.mark.parametrize("name", ["torchvision/shufflenet_v2_x0_5", "timm/test_vit3"])
def test_the_seed_determines_the_weights_and_the_global_generator_stays(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = build(name).state_dict(), build(name, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def refused(name: str, wanted: str, **args: Any) -> None:
    with pytest.raises(ValueError, match=wanted):
        check_model(ModelConfig(name=name, args=args))


@pytest.mark.parametrize(
    ("name", "argument", "why"),
    [
        ("torchvision/resnet18", "weights", "is not offered: train.py starts from random weights"),
        ("torchvision/resnet18", "pretrained", "is not offered: train.py starts from random weights"),
        ("torchvision/resnet18", "num_classes", "follows from the data"),
        ("torchvision/vit_b_16", "image_size", "follows from the data"),
        ("torchvision/maxvit_t", "input_size", "follows from the data"),
        ("torchvision/googlenet", "aux_logits", "is false here: training takes one tensor of logits"),
        ("torchvision/inception_v3", "init_weights", "is false here"),
        ("timm/resnet18", "pretrained", "is not offered: train.py starts from random weights"),
        ("timm/resnet18", "in_chans", "follows from the data"),
        ("timm/resnet18", "num_classes", "follows from the data"),
        ("timm/test_vit", "img_size", "follows from the data"),
        ("timm/resnet18", "features_only", "is not offered: it makes a network without logits"),
    ],
)
def test_what_is_not_an_option_is_refused_with_the_reason(name: str, argument: str, why: str) -> None:
    refused(name, rf"^model\.args\.{argument} {why}", **{argument: True})


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("torchvision/resnet18", {"zero_init": True}, "has no argument 'zero_init'; nearest: zero_init_residual; "),
        ("torchvision/resnet18", {"norm_layer": "x"}, "has no argument 'norm_layer'; "),
        ("torchvision/resnet18", {"layers": [1]}, "has no argument 'layers'; "),
        ("torchvision/vit_b_16", {"patch_size": 4}, "has no argument 'patch_size'; "),
        ("torchvision/resnet18", {"zero_init_residual": "yes"}, ": zero_init_residual='yes' is of type str; wanted: b"),
        ("torchvision/efficientnet_b0", {"dropout": "a"}, ": dropout='a' is of type str; wanted: float or int."),
        ("torchvision/mobilenet_v2", {"width_mult": [1]}, ": width_mult=[1] is of type list of int; wanted: float or"),
        ("timm/test_vit", {"drop_path": 0.1}, "has no argument 'drop_path'; nearest: drop_path_rate, drop_rate"),
        ("timm/test_vit", {"depth": "deep"}, ": depth='deep' is of type str; wanted: int."),
        ("timm/deit_tiny_distilled_patch16_224", {"dept": 1}, "has no argument 'dept'; nearest: depth, "),
        ("timm/test_mambaout", {"drop": 1}, "has no argument 'drop'; nearest: drop_rate, "),
    ],
)
def test_arguments_are_held_against_the_signature_before_anything_is_built(
    name: str, args: dict[str, Any], wanted: str
) -> None:
    refused(name, "^" + re.escape(name) + " ?" + re.escape(wanted.strip()), **args)


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        (
            "torchvision/densenet121",
            {"growth_rate": 12},
            "^torchvision/densenet121 sets growth_rate itself, so model.args",
        ),
        ("torchvision/swin_t", {"stochastic_depth_prob": 0.0}, "^torchvision/swin_t sets stochastic_depth_prob itself"),
        (
            "torchvision/maxvit_t",
            {},
            r"^torchvision/maxvit_t cannot be built for 10 classes and images of 32 px .* not d",
        ),
        ("torchvision/mobilenet_v2", {"inverted_residual_setting": [[1]]}, "cannot be built .*ValueError: "),
        ("timm/test_byobnet", {"widht": 3}, r"^timm/test_byobnet has no argument 'widht'; "),
        (
            "timm/crossvit_tiny_240",
            {},
            r"^timm/crossvit_tiny_240 fails on a black image of 3 x 32 x 32\. \(RuntimeError",
        ),
        (
            "torchvision/inception_v3",
            {},
            r"does not take images of 32 px, but takes 96: use --input\.size_px 96, or try",
        ),
    ],
)
def test_what_only_building_tells_is_told_in_the_same_words(name: str, args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        build_model(ModelConfig(name=name, args=args), num_classes=10, spec=InputSpec(size_px=32, channels=3), seed=0)


def test_arguments_reach_the_network() -> None:
    spec = InputSpec(size_px=32, channels=3)
    built = build_model(
        ModelConfig(name="timm/test_vit", args={"depth": 2, "patch_size": 8}), num_classes=10, spec=spec, seed=0
    )
    assert (len(built.blocks), built.patch_embed.grid_size) == (2, (4, 4))
    built = build_model(
        ModelConfig(name="torchvision/efficientnet_b0", args={"dropout": 0.7}), num_classes=10, spec=spec, seed=0
    )
    assert built.classifier[0].p == 0.7


@pytest.mark.parametrize(
    ("name", "argument", "kind", "attribute"),
    [
        ("timm/test_resnet", "drop_path_rate", "DropPath", "drop_prob"),
        ("timm/test_convnext", "drop_path_rate", "DropPath", "drop_prob"),
        ("timm/test_vit", "drop_path_rate", "DropPath", "drop_prob"),
        ("torchvision/convnext_tiny", "stochastic_depth_prob", "StochasticDepth", "p"),
        ("torchvision/efficientnet_b0", "stochastic_depth_prob", "StochasticDepth", "p"),
    ],
)
def test_stochastic_depth_of_the_zoos_rises_to_the_rate_that_is_asked_for(
    name: str, argument: str, kind: str, attribute: str
) -> None:
    with torch.device("meta"):
        model = ModelConfig(name=name, args={argument: 0.4})
        module = build_model(model, num_classes=10, spec=InputSpec(size_px=96, channels=3), seed=0)
    rates = [float(getattr(one, attribute)) for one in module.modules() if type(one).__name__ == kind]
    last = 0.4 * 15 / 16 if name == "torchvision/efficientnet_b0" else 0.4  # its rates are 0 to 15 sixteenths
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(last)


def test_timms_blurred_resnet_blurs_the_pool_and_the_three_halvings_between_its_stages() -> None:
    spec = InputSpec(size_px=64, channels=3)
    with torch.device("meta"):
        blurred, plain = (
            build_model(ModelConfig(name=f"timm/{name}"), num_classes=10, spec=spec, seed=0)
            for name in ("resnetblur50", "resnet50")
        )
    blurs = {key: one for key, one in blurred.named_modules() if type(one).__name__ == "BlurPool2d"}
    assert list(blurs) == ["maxpool.1", "layer2.0.aa", "layer3.0.aa", "layer4.0.aa"]
    assert {(one.filt_size, one.stride, one.pad_mode) for one in blurs.values()} == {(3, 2, "reflect")}
    assert [sum(one.numel() for one in module.parameters()) for module in (blurred, plain)] == [23_528_522] * 2


def test_every_name_of_torchvision_and_every_unannotated_one_of_timm_has_its_arguments_found() -> None:
    for name in models.list_models(module=models):
        check_model(ModelConfig(name=f"torchvision/{name}"))
    unannotated = [
        name for name in timm.list_models() if "return" not in timm.models.model_entrypoint(name).__annotations__
    ]
    assert unannotated
    for name in unannotated[::10]:
        refused(f"timm/{name}", "has no argument 'no_such_argument'; .*valid: ", no_such_argument=1)
