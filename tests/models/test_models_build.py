"""What a mistyped network or argument is answered with."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from configs.schema import InputSpec, ModelConfig
from models.build import build_model, check_model

OWN = "width, hidden, norm, activation, dropout, init"


def check(name: str = "simple_cnn", **args: Any) -> None:
    check_model(ModelConfig(name=name, args=args))


def refused(wanted: str, name: str = "simple_cnn", **args: Any) -> None:
    """The configuration is refused with exactly this message, by the check and by the building."""
    with pytest.raises(ValueError, match=re.escape(wanted) + "$"):
        check(name, **args)
    model = ModelConfig(name=name, args=args)
    with pytest.raises(ValueError, match=re.escape(wanted) + "$"):
        build_model(model, num_classes=2, spec=InputSpec(size_px=32, channels=3), seed=0)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("simple_cn", ["simple_cnn"]),
        ("simpel_cnn", ["simple_cnn"]),
        ("SimpleCNN", ["simple_cnn"]),
        ("simple-cnn", ["simple_cnn"]),
        ("ResNet", ["resnet"]),
        ("resnet8", ["torchvision/resnet18", "resnet"]),
        ("resnet18", ["torchvision/resnet18", "timm/resnet18"]),
        ("TIMM/resnet18", ["torchvision/resnet18", "timm/resnet18"]),
        ("torchvision/resnt18", ["torchvision/resnet18"]),
        ("torchvision/convnextv2_tiny", ["timm/convnextv2_tiny", "torchvision/convnext_tiny"]),
        ("timm/convnext_tny", ["timm/convnext_tiny"]),
        ("timm/resnet18.a1_in2k", ["timm/resnet18.a1_in1k"]),
        ("timm/resnt18.a1_in1k", ["timm/resnet18.a1_in1k"]),
        ("torchvision/resnet50.imagenet1k_v1", ["torchvision/resnet50.IMAGENET1K_V1"]),
        ("torchvision/resnet50.a1_in1k", ["timm/resnet50.a1_in1k"]),
        ("resnet18.a1_in1k", ["timm/resnet18.a1_in1k"]),
        ("torchvision/resnet", ["resnet"]),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_ones_of_every_kind(name: str, wanted: list[str]) -> None:
    with pytest.raises(ValueError, match=f"^unknown model {name!r}; nearest: ") as caught:
        check(name)
    nearest = str(caught.value).split("; ")[1].removeprefix("nearest: ").split(", ")
    assert nearest[: len(wanted)] == wanted
    assert len(nearest) <= 5


@pytest.mark.parametrize(
    ("name", "untagged"),
    [
        ("timm/test_vit.r160_in1k", "timm/test_vit"),
        ("torchvision/shufflenet_v2_x0_5.IMAGENET1K_V1", "torchvision/shufflenet_v2_x0_5"),
    ],
)
def test_a_tag_names_weights_and_leaves_the_network_as_it_is(name: str, untagged: str) -> None:
    spec = InputSpec(size_px=32, channels=1)
    first, second = (
        build_model(ModelConfig(name=one), num_classes=3, spec=spec, seed=0).state_dict() for one in (name, untagged)
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["timm/resnet18.", "torchvision/resnet18.", "simple_cnn.a", "timm/resnet18.a1_in1k.b"])
def test_a_tag_that_names_no_weights_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown model {name!r}; nearest: "):
        check(name)


def test_a_network_unlike_any_is_refused_with_our_own_and_where_the_others_are_listed() -> None:
    refused(
        "unknown model 'xyz'; our own: mlp, simple_cnn, alexnet, vgg, resnet, airbench; `python -m models.list` lists "
        "and searches torchvision's and timm's.",
        "xyz",
    )


def test_timm_is_imported_only_where_one_of_its_names_is_used() -> None:
    program = """
import sys
from configs.schema import InputSpec, ModelConfig
from models.build import build_model
for name in ("simple_cnn", "torchvision/shufflenet_v2_x0_5"):
    build_model(ModelConfig(name=name), num_classes=2, spec=InputSpec(size_px=32, channels=3), seed=0)
sys.exit("timm" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(models.__file__).parent.parent).returncode == 0


def test_an_unknown_argument_is_refused_with_the_nearest_one_and_all_there_are() -> None:
    refused(f"simple_cnn has no argument 'nrom'; nearest: norm; valid: {OWN}", nrom="batch")
    refused(f"simple_cnn has no argument 'drop_out'; nearest: dropout; valid: {OWN}", drop_out=0.1)


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "size_px"])
def test_an_argument_that_follows_from_the_data_is_refused(name: str) -> None:
    wanted = rf"^model\.args\.{name} follows from the data and is not an option; .*valid: {OWN}$"
    with pytest.raises(ValueError, match=wanted):
        check(**{name: 3})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("width", "wide", "width='wide' is of type str; wanted: int."),
        ("width", 32.0, "width=32.0 is of type float; wanted: int."),
        ("width", True, "width=True is of type bool; wanted: int."),
        ("hidden", [256], "hidden=[256] is of type list of int; wanted: int."),
        ("hidden", [], "hidden=[] is of type list; wanted: int."),
        ("dropout", "half", "dropout='half' is of type str; wanted: float or int."),
        ("dropout", False, "dropout=False is of type bool; wanted: float or int."),
        ("dropout", None, "dropout=None is of type NoneType; wanted: float or int."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_type_that_is_wanted(name: str, value: Any, wanted: str) -> None:
    refused(f"simple_cnn: {wanted}", **{name: value})


def test_an_integer_will_do_for_a_float() -> None:
    check(dropout=0)


LIST = "wanted: a list of int."
LIST_OR_NULL = "wanted: a list of int or null."


@pytest.mark.parametrize(
    ("model", "name", "value", "wanted"),
    [
        ("mlp", "hidden", 256, f"hidden=256 is of type int; {LIST}"),
        ("mlp", "hidden", "512,256", f"hidden='512,256' is of type str; {LIST}"),
        ("mlp", "hidden", [512, "256"], f"hidden=[512, '256'] is of type list of int and str; {LIST}"),
        ("mlp", "hidden", [True], f"hidden=[True] is of type list of bool; {LIST}"),
        ("mlp", "hidden", [1.5], f"hidden=[1.5] is of type list of float; {LIST}"),
        ("mlp", "hidden", None, f"hidden=None is of type NoneType; {LIST}"),
        ("resnet", "blocks", 2, f"blocks=2 is of type int; {LIST_OR_NULL}"),
        ("resnet", "depth", 19, "depth=19 is not a choice; nearest: 18, 110; valid: 18, 34, 50, 20, 32, 44, 56, 110"),
        (
            "resnet",
            "depth",
            "18",
            "depth='18' is not a choice; nearest: 18, 110; valid: 18, 34, 50, 20, 32, 44, 56, 110",
        ),
    ],
)
def test_a_list_of_numbers_is_asked_for_where_one_is_wanted(model: str, name: str, value: Any, wanted: str) -> None:
    refused(f"{model}: {wanted}", model, **{name: value})


def test_a_list_may_be_empty_a_tuple_or_null_where_the_network_says_so() -> None:
    check("mlp", hidden=[])
    check("mlp", hidden=(3, 4))
    check("resnet", blocks=None, widths=None)
    check("resnet", blocks=[1, 1], widths=[8, 16])


@pytest.mark.parametrize("name", ["simple_cnn", "mlp", "alexnet", "vgg", "resnet", "airbench"])
def test_our_own_networks_have_no_stem_to_make_small(name: str) -> None:
    wanted = (
        rf"^model\.stem=small is for networks of torchvision and timm; {name} is made for its images by its own arg"
    )
    with pytest.raises(ValueError, match=wanted):
        check_model(ModelConfig(name=name, stem="small"))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("norm", "btach", "nearest: batch, instance; valid: none, batch, layer, instance, group"),
        ("activation", "rleu", "nearest: relu, gelu; valid: relu, gelu, sigmoid"),
        ("init", "kaimnig", "nearest: kaiming; valid: default, kaiming"),
        ("norm", 3, "valid: none, batch, layer, instance, group"),
    ],
)
def test_a_value_that_is_no_choice_is_refused_with_the_nearest_one(name: str, value: Any, wanted: str) -> None:
    refused(f"simple_cnn: {name}={value!r} is not a choice; {wanted}", **{name: value})


@pytest.mark.parametrize("size_px", [1, 4, 7])
def test_images_too_small_to_be_halved_three_times_are_refused(size_px: int) -> None:
    wanted = f"simple_cnn halves its input three times, so size_px={size_px} is too small; use 8 or more."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build_model(ModelConfig(name="simple_cnn"), num_classes=2, spec=InputSpec(size_px=size_px, channels=1), seed=0)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("width", 12, "width=12 must be a multiple of 8; use 32."),
        ("width", 0, "width=0 must be a multiple of 8; use 32."),
        ("width", -8, "width=-8 must be a multiple of 8; use 32."),
        ("hidden", 0, "hidden=0 must be at least 1; use 256."),
        ("dropout", 1.0, "dropout=1.0 must be at least 0 and below 1; use 0.5."),
        ("dropout", -0.1, "dropout=-0.1 must be at least 0 and below 1; use 0.5."),
        ("dropout", float("nan"), "dropout=nan must be at least 0 and below 1; use 0.5."),
    ],
)
def test_a_number_out_of_range_is_refused_with_one_that_works(name: str, value: float, wanted: str) -> None:
    spec = InputSpec(size_px=8, channels=1)
    with pytest.raises(ValueError, match=re.escape(f"simple_cnn: {wanted}")):
        build_model(ModelConfig(name="simple_cnn", args={name: value}), num_classes=2, spec=spec, seed=0)
    offer = float(wanted.rstrip(".").rsplit(" ", 1)[1])
    offered = {name: type(value)(offer)}
    build_model(ModelConfig(name="simple_cnn", args=offered), num_classes=2, spec=spec, seed=0)
