"""A network of one's own by import path: what it is given, and what is said of one that does not fit."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.load import load_config
from configs.schema import InputSpec, ModelConfig
from models.build import build_model, check_model

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "own_model.md").read_text()

NETWORKS = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, in_chans, num_classes, image_size, *, width: int = 4, sizes: tuple[int, ...] = ()):
        super().__init__()
        self.seen = (in_chans, num_classes, image_size, width, sizes)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * image_size**2, num_classes))
    def forward(self, images):
        return self.layers(images)

class Both(nn.Module):
    def __init__(self, num_channels: int = 5, in_channels=1, num_classes=1):
        super().__init__()
        self.seen = (num_channels, in_channels)
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
    def forward(self, images):
        return self.layers(images)

class Child(Linear):
    def __init__(self, depth=3, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth

def build(num_classes, depth, kind="a"):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(num_classes))

def build_any(**arguments):
    return Linear(arguments["in_channels"], arguments["num_classes"], arguments["size_px"])

class Deep(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 7), nn.MaxPool2d(4), nn.Conv2d(4, 4, 7), nn.Flatten(), nn.LazyLinear(num_classes)
        )
    def forward(self, images):
        return self.layers(images)

class Colour(nn.Sequential):
    def __init__(self, num_classes=10, channels=3):
        super().__init__(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

class Grey(Colour):
    def __init__(self, num_classes):
        super().__init__(num_classes, 1)

class Fixed(Colour):
    def __init__(self):
        super().__init__(1000)

class Tuple(Colour):
    def forward(self, images):
        return super().forward(images), None

class Argmax(Colour):
    def forward(self, images):
        return super().forward(images).round().long()

class Broken(nn.Module):
    def forward(self, images):
        return self.layers(images)

class Raises(nn.Module):
    def __init__(self, width=3):
        raise RuntimeError("width must be even")

class Frozen(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(3).eval()
        self.head = nn.Linear(3, num_classes)
    def forward(self, images):
        return self.head(self.norm(images).mean(dim=(2, 3)))

class NoModule:
    pass

def build_nothing():
    return None

def only_by_place(num_classes, /):
    return nn.Linear(1, num_classes)

built = nn.Linear(3, 3)
number = 3
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    (tmp_path / "mynet.py").write_text(re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield
    for name in ("own_networks", "mynet"):
        sys.modules.pop(name, None)


def build(name: str, *, channels: int = 3, size_px: int = 8, num_classes: int = 10, **args: Any) -> nn.Module:
    model = ModelConfig(name=name if ":" in name else f"own_networks:{name}", args=args)
    return build_model(model, num_classes=num_classes, spec=InputSpec(size_px=size_px, channels=channels), seed=0)


def test_a_network_is_given_what_its_signature_has_under_the_names_it_has() -> None:
    assert build("Linear", channels=1, size_px=6, num_classes=4).seen == (1, 4, 6, 4, ())
    assert build("Linear", width=7, sizes=[1, 2]).seen == (3, 10, 8, 7, [1, 2])
    assert isinstance(build("Colour"), nn.Sequential)
    assert build("Both").seen == (5, 3)
    assert build("Both", num_channels=7).seen == (7, 3), "of two names, the first means the images"


def test_arguments_that_go_on_to_a_parent_class_are_known() -> None:
    child = build("Child", depth=5, width=9)
    assert (child.depth, child.seen) == (5, (3, 10, 8, 9, ()))
    with pytest.raises(ValueError, match="has no argument 'widht'; nearest: width, depth; valid: width, sizes, depth"):
        build("Child", widht=9)


def test_a_function_will_do_and_lazy_layers_are_ready_for_training() -> None:
    module = build("build", depth=2)
    assert not any(isinstance(one, nn.LazyLinear) for one in module.modules())
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(one.grad is not None for one in module.parameters())


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("Linear", {"widht": 3}, "has no argument 'widht'; nearest: width; valid: width, sizes"),
        ("Linear", {"width": "wide"}, ": width='wide' is of type str; wanted: int."),
        ("Linear", {"sizes": [1, "2"]}, ": sizes=[1, '2'] is of type list of int and str; wanted: a list of int."),
        ("build", {}, " needs depth; add --model.args.depth VALUE."),
        ("Fixed", {"width": 3}, "has no argument 'width'; it takes no arguments"),
    ],
)
def test_arguments_are_checked_before_anything_is_built(name: str, args: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match="^own_networks:" + name + r"\s?" + re.escape(wanted.strip()) + "$"):
        check_model(ModelConfig(name=f"own_networks:{name}", args=args))


@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "img_size"])
def test_what_follows_from_the_data_cannot_be_given(argument: str) -> None:
    with pytest.raises(ValueError, match=f"^model.args.{argument} follows from the data and is not an option; "):
        check_model(ModelConfig(name="own_networks:Linear", args={argument: 3}))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Fixed", "own_networks:Fixed gives (1, 1000) for one image, but the data has 10 classes; wanted: (1, 10)."),
        ("Tuple", "own_networks:Tuple gives a tuple; wanted: one tensor of logits (images, classes)."),
        ("Argmax", "own_networks:Argmax gives torch.int64; wanted: logits in floating point, without argmax"),
        ("build_nothing", "model.name=own_networks:build_nothing returned an object of type NoneType, not a torch.nn"),
        ("NoModule", "model.name=own_networks:NoModule is the class NoModule; name a class of torch.nn.Module"),
        ("built", "model.name=own_networks:built is a network already built; name its class"),
        ("number", "model.name=own_networks:number is an object of type int; name a class"),
        ("Nothing", "model.name=own_networks:Nothing: own_networks has no 'Nothing'; "),
        ("Grey", "own_networks:Grey takes grey images only (1 channel), and the data is in colour (3 channels); "),
        ("Deep", "own_networks:Deep does not take images of 8 px, but takes 64: use --input.size_px 64. (RuntimeError"),
        ("Broken", "own_networks:Broken fails on a black image of 3 x 8 x 8. (AttributeError: 'Broken' object has no"),
        (
            "only_by_place",
            "own_networks:only_by_place cannot be built for 10 classes and images of 8 px with 3 channel",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_reason(name: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        build(name)


def test_a_colour_network_on_grey_images_is_refused_with_what_to_do() -> None:
    wanted = (
        "own_networks:Colour takes colour images only (3 channels), and the data is grey (1 channel); --input.channels "
        "3 shows grey images as colour. (RuntimeError: "
    )
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        build("Colour", channels=1)


def test_an_error_in_the_constructor_is_told_with_file_and_line() -> None:
    line = NETWORKS.splitlines().index('        raise RuntimeError("width must be even")') + 1
    wanted = (
        rf"^own_networks:Raises cannot be built for 10 classes and images of 8 px with 3 channel\(s\), width=5: "
        rf"RuntimeError: width must be even at .*own_networks\.py:{line}$"
    )
    with pytest.raises(ValueError, match=wanted):
        build("Raises", width=5)


def test_arguments_behind_two_stars_are_found_out_by_building() -> None:
    with pytest.raises(ValueError, match=r"images of 8 px with 3 channel\(s\), other=3: KeyError: 'in_channels' at "):
        build("build_any", other=3)


def test_the_black_image_leaves_a_network_as_it_was() -> None:
    module = build("Frozen")
    assert module.training
    assert module.head.training
    assert not module.norm.training, "frozen by its author"
    assert module.norm.num_batches_tracked == 0


def test_the_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("Linear").state_dict()
    torch.manual_seed(2)
    second = build("Linear").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_example_of_the_document_is_built_and_trains() -> None:
    module = build("mynet:MyNet", channels=1, size_px=28, num_classes=7, width=32)
    images = torch.randn(4, 1, 28, 28)
    assert module(images).shape == (4, 7)
    module(images).sum().backward()
    assert all(one.grad is not None for one in module.parameters())


MESSAGES: dict[str, Callable[[], object]] = {
    "unknown model 'resnt'; nearest: resnet, ...": lambda: check_model(ModelConfig(name="resnt")),
    "mynet:MyNet has no argument 'widht'; nearest: width; valid: width, dropout": lambda: build("mynet:MyNet", widht=3),
    "mynet:MyNet: width='wide' is of type str; wanted: int.": lambda: build("mynet:MyNet", width="wide"),
    "torchvision/alexnet does not take images of 32 px, but takes 64: use --input.size_px 64, or try --model.stem "
    "small.": lambda: build_model(
        ModelConfig(name="torchvision/alexnet"), num_classes=2, spec=InputSpec(size_px=32, channels=3), seed=0
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_document_are_those_that_are_printed(message: str) -> None:
    assert f"`{message}`" in DOCUMENT
    with pytest.raises(ValueError, match="^" + re.escape(message.removesuffix("..."))):
        MESSAGES[message]()


@pytest.mark.parametrize("command", re.findall(r"^    accelerate launch train\.py (.*)$", DOCUMENT, flags=re.MULTILINE))
def test_commands_of_the_document_are_accepted(command: str) -> None:
    recipe = ["--config", str(ROOT / "configs/digits/simple_cnn.yaml")]
    config = load_config([*recipe, *shlex.split(command)], prog="train.py", description="")
    check_model(config.model)
