"""From augment.* to what is drawn, who carries operations out, and what is refused."""

from typing import Any

import pytest
import torch

from configs.load import replace_section
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from pipelines.build import Place, build_data, build_training_loader
from pipelines.build_augment import build_augmentation, build_effect_settings, build_operate, home_of_operations
from pipelines.kernels import compiled
from pipelines.operations import kernels, reference
from pipelines.operations.drawing import Step

ALONE = Place(device=torch.device("cpu"), dtype=torch.float32, rank=0, world_size=1, num_cores=1)
NATIVE = ({"color_jitter": {"brightness": 0.4, "contrast": 0.4}}, {"affine": {"degrees": 5}})


def make_config(*operations: object, **augment: object) -> Config:
    config = Config(
        data=DataConfig(dataset="digits"),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="adamw", lr=0.001),
        train=TrainConfig(epochs=1, global_batch_size=6),
    )
    return replace_section(config, "augment", operations=operations, **augment)


def test_every_field_of_augmentation_and_effects_comes_from_the_configuration() -> None:
    config = make_config({"invert": {"prob": 0.25}}, crop="pad", pad_px=2, flip="alternating", cutout_px=3)
    augmentation = build_augmentation(config)
    assert augmentation.operations == (Step("invert", {"prob": 0.25}),)
    assert (augmentation.crop, augmentation.pad_px, augmentation.flip) == ("pad", 2, "alternating")
    assert build_effect_settings(config, num_images=1).cutout_px == 3


@pytest.mark.parametrize(
    ("backend", "on_gpu", "config", "home"),
    [
        ("threads", False, make_config("equalize"), "executor"),
        ("threads", True, make_config("equalize"), "executor"),
        ("processes", False, make_config("equalize"), "executor"),
        ("reference", False, make_config("equalize"), "executor"),
        ("resident", False, make_config(*NATIVE), "tail"),
        ("dali", False, make_config(*NATIVE), "tail"),
        ("dali", True, make_config(*NATIVE), "executor"),
        ("dali", True, make_config(*NATIVE, "equalize"), "tail"),
        ("dali", True, make_config("randaugment"), "tail"),
        ("dali", True, make_config(*NATIVE, crop="pad"), "tail"),
    ],
)
def test_operations_have_one_home(backend: str, on_gpu: bool, config: Config, home: str) -> None:
    assert home_of_operations(config, backend=backend, on_gpu=on_gpu) == home


def test_threads_operate_by_kernels_and_the_others_by_torchvision() -> None:
    assert build_operate("threads") is build_operate("processes") is kernels.operate
    assert build_operate("reference") is build_operate("dali") is reference.operate


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_are_compiled_before_there_are_workers_and_not_again_for_any_image(
    monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    fresh: Any = compiled(kernels._operate.py_func)  # read from disk, where another test has compiled it
    monkeypatch.setattr(kernels, "_operate", fresh)
    build_operate("processes")
    assert len(fresh.signatures) == 1
    config = make_config("randaugment", {"color_jitter": {"brightness": 0.4, "prob": 0.5}}, crop="pad")
    config = replace_section(config, "input", channels=channels)
    config = replace_section(config, "loader", backend="threads", workers="processes", num_workers=0)
    loader = build_training_loader(config, build_data(config, show_progress=False), place=ALONE, show_progress=False)
    next(iter(loader))
    assert len(fresh.signatures) == 1


def test_colour_shifts_of_grey_images_are_refused() -> None:
    config = make_config("grayscale", "rgb_shift")
    data = build_data(config, show_progress=False)
    with pytest.raises(ValueError, match="rgb_shift, which needs three channels, but the images are grey"):
        build_training_loader(config, data, place=ALONE, show_progress=False)
    in_colour = replace_section(config, "input", channels=3)
    build_training_loader(in_colour, build_data(in_colour, show_progress=False), place=ALONE, show_progress=False)


def test_evaluation_and_a_run_without_operations_are_left_alone() -> None:
    """Every backend sees the operations in training: its images differ from those without."""
    for backend in ("resident", "reference"):
        images = []
        for config in (make_config(), make_config({"invert": {}})):
            config = replace_section(config, "loader", backend=backend, num_workers=0)
            config = replace_section(config, "input", mean=(0.5,), std=(0.25,))
            loader = build_training_loader(
                config, build_data(config, show_progress=False), place=ALONE, show_progress=False
            )
            images.append(next(iter(loader)).inputs[0])
        torch.testing.assert_close(images[1], -images[0], atol=1e-5, rtol=0)
