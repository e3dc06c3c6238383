"""What fine-tuning starts from, and whether the images are what its weights expect."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from configs.load import replace_section
from configs.schema import Config, DataConfig, InputSpec, ModelConfig, OptimConfig, TrainConfig
from engine.build import build_card
from engine.build_start import build_start, describe_images, describe_input, with_weights_input
from engine.checkpoint import save_checkpoint

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn"),
    optim=OptimConfig(name="sgd", lr=0.1),
    train=TrainConfig(epochs=2, global_batch_size=10),
)
IMAGENET = InputSpec(
    size_px=224,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    crop_frac=0.95,
)


def with_input(**values):
    return replace_section(CONFIG, "input", **values)


def test_the_input_is_that_of_the_weights():
    assert with_weights_input(CONFIG, IMAGENET).input == IMAGENET


def test_size_and_fit_are_the_recipes_where_it_gives_them():
    spec = with_weights_input(with_input(size_px=160, fit="letterbox"), IMAGENET).input
    assert (spec.size_px, spec.fit, spec.mean) == (160, "letterbox", IMAGENET.mean)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"mean": (0.5, 0.5, 0.5)},
            "input.mean=[0.5, 0.5, 0.5], but the weights were trained with [0.485, 0.456, 0.406]",
        ),
        ({"channels": 1}, "input.channels=1, but the weights were trained with 3"),
        ({"crop_frac": 0.5}, "input.crop_frac=0.5, but the weights were trained with 0.95"),
    ],
)
def test_a_recipe_that_says_otherwise_is_refused_unless_it_says_that_it_knows_better(values, told):
    config = with_input(**values)
    with pytest.raises(ValueError, match=re.escape(told) + ".*weights.input recipe"):
        with_weights_input(config, IMAGENET)
    assert with_weights_input(replace_section(config, "weights", input="recipe"), IMAGENET).input == config.input


def test_a_rounded_mean_is_no_other_mean():
    assert with_weights_input(with_input(mean=(0.4851, 0.4559, 0.406)), IMAGENET).input == IMAGENET


def test_nobody_says_what_a_file_of_weights_takes():
    assert with_weights_input(CONFIG, None) == CONFIG
    assert "nothing says" in describe_input(IMAGENET, given=None, is_grey=False)


def test_what_differs_is_said():
    spec = InputSpec(**{**vars(IMAGENET), "size_px": 160})
    assert describe_input(IMAGENET, given=IMAGENET, is_grey=False) == "input: as the weights were trained"
    line = "input: as the weights were trained, but for size_px 160 (weights: 224)"
    assert describe_input(spec, given=IMAGENET, is_grey=False) == line
    grey = "all images are grey: they are shown in three equal channels"
    assert describe_input(spec, given=IMAGENET, is_grey=True) == f"{line}\n{grey}"


def normalised(pixels_NCHW):
    return (pixels_NCHW - torch.tensor(IMAGENET.mean).view(3, 1, 1)) / torch.tensor(IMAGENET.std).view(3, 1, 1)


def test_images_like_those_of_the_weights_are_described_and_no_more():
    generator = torch.Generator().manual_seed(0)
    pixels = 0.45 + 0.22 * torch.randn(4, 3, 32, 32, generator=generator)
    line = describe_images(normalised(pixels), IMAGENET)
    assert re.fullmatch(r"images as the network sees them: mean \(\S+, \S+, \S+\), std \(\S+, \S+, \S+\)", line)


@pytest.mark.parametrize("pixels", [torch.full((2, 3, 8, 8), 0.9), torch.rand(2, 3, 8, 8) * 0.05 + 0.4])
def test_images_that_look_unlike_are_said_to(pixels):
    assert "look unlike" in describe_images(normalised(pixels), IMAGENET)


def test_images_on_the_wrong_scale_are_refused():
    pixels = torch.rand(2, 3, 8, 8) / 255  # stored as 0 and 1 of 255
    with pytest.raises(ValueError, match=r"the images are black.*Multiply by 255"):
        describe_images(normalised(pixels), IMAGENET)


def published(name):
    assert name.startswith("timm/")
    return IMAGENET


def with_model(name, **values):
    return replace_section(CONFIG, "model", name=name, **values)


def test_published_weights_bring_their_input():
    config, start = build_start(with_model("timm/resnet18"), spec_of=published)
    assert start == ("timm/resnet18", IMAGENET, None)
    assert config.input == IMAGENET


def test_a_file_of_weights_of_a_published_network_has_its_input_and_of_ours_none(tmp_path):
    config = replace_section(with_model("timm/resnet18"), "weights", file="w.pth")
    assert build_start(config, spec_of=published)[1] == ("w.pth", IMAGENET, Path("w.pth"))
    config, start = build_start(replace_section(CONFIG, "weights", file="w.pth"), spec_of=published)
    assert start == ("w.pth", None, Path("w.pth"))
    assert config.input == InputSpec()


def test_a_network_without_weights_is_refused_unless_it_starts_from_scratch():
    with pytest.raises(
        ValueError, match=r"there are no pretrained weights of model.name=simple_cnn; give a run folder"
    ):
        build_start(CONFIG, spec_of=published)
    config = replace_section(CONFIG, "strategy", name="scratch")
    assert build_start(config, spec_of=published) == (config, ("random weights", None, None))


def test_a_run_folder_that_is_not_there_is_told():
    with pytest.raises(ValueError, match=r"model.name=runs/typo \(there is no folder runs/typo in .*\); give a run"):
        build_start(with_model("runs/typo"), spec_of=published)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        build_start(with_model(str(tmp_path)), spec_of=published)


def test_a_run_folder_and_what_it_decides_are_not_both_given(tmp_path):
    config = with_model(str(tmp_path), args={"width": 8})
    with pytest.raises(ValueError, match=r"is a run folder, whose network is as that run has it; drop model.args"):
        build_start(config, spec_of=published)
    config = replace_section(with_model(str(tmp_path)), "weights", file="w.pth")
    with pytest.raises(ValueError, match=r"weights.file=w.pth is set: a network starts from one of them"):
        build_start(config, spec_of=published)


def test_a_run_brings_its_network_its_input_and_the_weights_that_it_is_judged_by(tmp_path):
    spec = InputSpec(size_px=8, channels=1, mean=(0.3,), std=(0.4,))
    model = ModelConfig(name="simple_cnn", args={"width": 8})
    card = build_card(
        dataclasses.replace(CONFIG, model=model), class_names=("a", "b"), spec=spec, fingerprints={"train": "f"}
    )
    tensors = {"weight": torch.ones(2)}
    save_checkpoint(
        tmp_path / "checkpoints",
        step=4,
        best_step=None,
        weights=tensors,
        card=card,
        training_state={},
        average={"weight": torch.zeros(2)},
    )
    config, start = build_start(with_model(str(tmp_path)), spec_of=published)
    assert (config.model, config.weights.run, config.input) == (model, str(tmp_path), spec)
    assert start == (str(tmp_path), spec, tmp_path / "checkpoints" / "step_00000004" / "average.safetensors")
    assert build_start(config, spec_of=published) == (config, start)  # as config.yaml has it


def test_nearest_neighbours_are_no_last_layer_to_keep(tmp_path):
    card = build_card(CONFIG, class_names=("a", "b"), spec=IMAGENET, fingerprints={"train": "f"})
    save_checkpoint(
        tmp_path / "checkpoints",
        step=0,
        best_step=None,
        weights={"weight": torch.ones(2)},
        card=card | {"knn": {"num_images": 4, "width": 2, "k": 1}},
        training_state={},
    )
    config = with_model(str(tmp_path))
    assert build_start(config, spec_of=published)[1].spec == IMAGENET
    with pytest.raises(ValueError, match=r"weights.head=keep, but the last layer of .* are nearest neighbours"):
        build_start(replace_section(config, "weights", head="keep"), spec_of=published)
