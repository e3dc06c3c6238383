"""One contract for every network in models.build.MODELS."""

import inspect
import itertools
import pkgutil
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import configs
import models
from configs.schema import InputSpec, ModelConfig
from models.build import _GIVEN_BY_DATA, MODELS, build_model, check_model

SIZES = [8, 28, 32, 64, 96]
# arguments that make a network small enough to be run often, and what is drawn in training off
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [32, 16]},
    "simple_cnn": {},
    "alexnet": {"width": 0.25, "hidden": 64, "dropout": 0.0},
    "vgg": {"width": 0.125},
    "resnet": {"width": 0.125},
    "airbench": {"widths": [8, 16, 16]},
}
NOT_NETWORKS = {
    "arguments",
    "build",
    "checkpointing",
    "classifiers",
    "heads",
    "imported",
    "knn",
    "list",
    "names",
    "pretrained",
    "start",
    "stem",
    "surgery",
    "timm_zoo",
    "torchvision_zoo",
    "trial",
    "weights",
}
RECIPES = sorted(Path(configs.__file__).parent.rglob("*.yaml"))


def build(
    name: str, *, size_px: int = 32, channels: int = 3, num_classes: int = 10, seed: int = 0, **args: Any
) -> nn.Module:
    spec = InputSpec(size_px=size_px, channels=channels)
    return build_model(ModelConfig(name=name, args=args), num_classes=num_classes, spec=spec, seed=seed)


def draw_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def own_arguments(name: str) -> dict[str, inspect.Parameter]:
    return {key: one for key, one in inspect.signature(MODELS[name]).parameters.items() if key not in _GIVEN_BY_DATA}


def test_the_contract_runs_over_every_network_there_is() -> None:
    files = {module.name for module in pkgutil.iter_modules(models.__path__)}
    assert len(files) == 23
    assert files - NOT_NETWORKS == set(MODELS) == set(SMALL)
    assert list(MODELS) == ["mlp", "simple_cnn", "alexnet", "vgg", "resnet", "airbench"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_images_of_any_size_and_channels_become_finite_logits_per_class(name: str, size_px: int, channels: int) -> None:
    for num_classes in (2, 10):
        module = build(name, size_px=size_px, channels=channels, num_classes=num_classes, **SMALL[name])
        logits = module(draw_images(3, channels, size_px, size_px))
        assert logits.shape == (3, num_classes)
        assert logits.isfinite().all()


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name: str, size_px: int) -> None:
    module = build(name, size_px=size_px, **SMALL[name])
    F.cross_entropy(module(draw_images(8, 3, size_px, size_px)), torch.arange(8)).backward()
    without = [
        key for key, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == frozen_in(name, module)


def frozen_in(name: str, module: nn.Module) -> list[str]:
    """What a network freezes on purpose: airbench its whitened stem, and the scale of its norms."""
    norms = [f"{key}.weight" for key, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    frozen = ["stem.0.weight", *norms] if name == "airbench" else []
    assert [key for key, parameter in module.named_parameters() if not parameter.requires_grad] == frozen
    return frozen


def is_identity(weight: Tensor) -> bool:
    """Whether filters hand their channels on as they are, and so are not drawn (airbench's second ones)."""
    return weight.ndim == 4 and torch.equal(weight, nn.init.dirac_(torch.empty_like(weight)))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights_and_another_one_others(name: str) -> None:
    first, again, other = (build(name, seed=seed, **SMALL[name]).state_dict() for seed in (1, 1, 2))
    assert list(first) == list(again) == list(other)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim > 1 and not is_identity(first[key])]
    assert len(drawn) > 2
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", MODELS)
def test_building_leaves_the_global_random_numbers_alone_and_does_not_depend_on_them(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(name, seed=1, **SMALL[name]).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build(name, seed=1, **SMALL[name]).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_is_built_on_the_cpu_in_float32_and_in_training_mode(name: str) -> None:
    module = build(name)
    tensors = [*module.parameters(), *(one for one in module.buffers() if one.is_floating_point())]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("cpu", torch.float32)}
    assert module.training


@pytest.mark.parametrize("name", MODELS)
def test_in_evaluation_an_image_gets_the_same_logits_alone_and_in_a_batch(name: str) -> None:
    module = build(name).double().eval()
    images = draw_images(5, 3, 32, 32, dtype=torch.float64)
    alone = torch.cat([module(image[None]) for image in images])
    assert torch.allclose(module(images), alone, rtol=0, atol=1e-10)
    assert torch.equal(module(images), module(images))


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_changes_nothing_but_speed(name: str) -> None:
    module = build(name).double().eval()
    images = draw_images(4, 3, 32, 32, dtype=torch.float64)
    plain = module(images)
    last = module.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_a_small_network_of_its_kind_learns_four_images_by_heart(name: str) -> None:
    module = build(name, size_px=16, num_classes=4, **SMALL[name])
    images, labels = draw_images(4, 3, 16, 16), torch.arange(4)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(60):
        loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert module(images).argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", MODELS)
def test_size_channels_and_classes_are_given_by_the_data_and_everything_else_has_a_default(name: str) -> None:
    parameters = inspect.signature(MODELS[name]).parameters
    assert set(_GIVEN_BY_DATA) <= set(parameters)
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in parameters.values())
    assert all(one.default is not inspect.Parameter.empty for one in own_arguments(name).values())


@pytest.mark.parametrize("name", MODELS)
def test_every_argument_is_documented_and_checked(name: str) -> None:
    documentation = MODELS[name].__doc__ or ""
    for key, parameter in own_arguments(name).items():
        assert f"\n        {key}: " in documentation
        check_model(ModelConfig(name=name, args={key: parameter.default}))
        takes_none = type(None) in get_args(parameter.annotation)
        for wrong in ([{}], {"a": 1}, *([] if takes_none else [None])):
            with pytest.raises(ValueError, match=f"{name}: {key}="):
                check_model(ModelConfig(name=name, args={key: wrong}))


@pytest.mark.parametrize("name", MODELS)
def test_every_combination_of_choices_can_be_built_and_trained(name: str) -> None:
    choices = {
        key: get_args(one.annotation)
        for key, one in own_arguments(name).items()
        if get_origin(one.annotation) is Literal
    }
    assert choices
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        module = build(name, size_px=8, num_classes=3, **SMALL[name] | chosen)
        F.cross_entropy(module(draw_images(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
        assert len(gradients) > 1
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients), values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_network_of_every_recipe_is_known_and_takes_its_arguments(path: Path) -> None:
    model = ModelConfig(**yaml.safe_load(path.read_text())["model"])
    check_model(model)
    assert isinstance(build(model.name, **model.args), nn.Module)


def test_there_are_recipes_to_check() -> None:
    assert len(RECIPES) >= 2
