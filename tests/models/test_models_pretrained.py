"""Published weights, read from the libraries' own caches: nothing here is downloaded."""

import re

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from configs.schema import InputSpec
from models.build import build_pretrained


@pytest.fixture
def torch_cache(tmp_path, monkeypatch):
    """Puts a state dict where torch.hub looks for the weights of a network; downloads fail."""

    def refuse(url, *args, **kwargs):
        raise OSError(f"no way out to {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)

    def put(name, module):
        url = models.get_model_weights(name)["DEFAULT"].url
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(module.state_dict(), folder / url.rpartition("/")[2])

    return put


@pytest.fixture
def hugging_face_cache(tmp_path, monkeypatch):
    """The same for Hugging Face's hub, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository, module):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        save_file(module.state_dict(), snapshot / "model.safetensors")

    return put


def assert_same_weights(module, other):
    expected = other.state_dict()
    assert module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_torchvisions_weights_come_from_its_cache_with_what_they_take(torch_cache):
    torch.manual_seed(0)
    stored = models.resnet18()
    torch_cache("resnet18", stored)
    module, spec = build_pretrained("torchvision/resnet18", num_classes=1000)
    assert_same_weights(module, stored)
    assert not module.training
    assert spec == InputSpec(
        size_px=224,
        channels=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        crop_frac=224 / 256,
    )


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_resnet"])
def test_timms_weights_come_from_hugging_faces_cache_with_what_they_take(hugging_face_cache, name):
    torch.manual_seed(0)
    stored = timm.create_model("test_resnet", num_classes=1000)
    hugging_face_cache("timm/test_resnet.r160_in1k", stored)
    module, spec = build_pretrained(f"timm/{name}", num_classes=1000)
    assert_same_weights(module, stored)
    assert not module.training
    published = timm.get_pretrained_cfg("test_resnet")
    assert (spec.size_px, spec.channels) == (published.input_size[-1], 3) == (160, 3)
    assert (spec.mean, spec.std) == (published.mean, published.std)
    assert (spec.interpolation, spec.crop_frac) == (published.interpolation, published.crop_pct)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18", "timm/resnet18.a1_in1k"])
def test_a_network_of_other_classes_is_refused_before_its_weights_are_looked_for(torch_cache, hugging_face_cache, name):
    message = f"{name} tells 1000 classes apart, but the data has 10: fine-tune it on the data first, and name the run"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_pretrained(name, num_classes=10)


def test_weights_that_are_not_to_be_had_are_named_with_what_to_do(torch_cache, hugging_face_cache):
    for name in ("torchvision/resnet18", "timm/test_resnet"):
        with pytest.raises(OSError, match=rf"the weights of {name} cannot be had: .*copy its cache \(\$TORCH_HOME"):
            build_pretrained(name, num_classes=1000)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("torchvision/resnet17", "torchvision/resnet"),
        ("timm/resnet17", "timm/resnet"),
        ("timm/resnet18.none_such", "timm/resnet18."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"no network '{name}' with pretrained weights; nearest: {nearest}"):
        build_pretrained(name, num_classes=1000)


def test_every_network_of_torchvision_says_what_its_weights_take():
    names = models.list_models(module=models)
    for name in names:
        weights = models.get_model_weights(name)["DEFAULT"]
        shown = weights.transforms()
        assert len(shown.crop_size) == len(shown.resize_size) == 1, name
        assert shown.interpolation.value in ("bilinear", "bicubic"), name
        assert len(weights.meta["categories"]) == 1000, name
    assert len(names) == 80
