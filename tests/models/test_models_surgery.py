"""A network's layers, in order, each parameter once."""

import pytest
import timm
import torchvision
from torch import nn

from models.build import MODELS
from models.surgery import list_layers

NETWORKS = {
    "torchvision/resnet18": torchvision.models.resnet18,
    "torchvision/resnet50": torchvision.models.resnet50,
    "torchvision/vit_b_16": lambda: torchvision.models.vit_b_16(image_size=32),
    "torchvision/convnext_tiny": torchvision.models.convnext_tiny,
    "torchvision/efficientnet_b0": torchvision.models.efficientnet_b0,
    "torchvision/vgg11_bn": torchvision.models.vgg11_bn,
    "timm/resnet18": lambda: timm.create_model("resnet18"),
    "timm/vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224"),
    "ours/resnet": lambda: MODELS["resnet"](in_channels=3, num_classes=10, size_px=32),
    "ours/simple_cnn": lambda: MODELS["simple_cnn"](in_channels=3, num_classes=10, size_px=32),
    "ours/airbench": lambda: MODELS["airbench"](in_channels=3, num_classes=10, size_px=32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_in_one_layer_in_the_order_of_the_network(name):
    module = NETWORKS[name]()
    layers = list_layers(module)
    listed = [parameter for layer in layers for parameter in layer]
    assert sorted(listed) == sorted(parameter for parameter, _ in module.named_parameters())
    assert all(layers)
    parameters = dict(module.named_parameters())
    assert all(any(parameters[one].dim() > 1 for one in layer) for layer in layers)


def test_there_are_eleven_networks_here():
    assert len(NETWORKS) == 11


def test_layers_of_a_resnet_are_its_stem_its_blocks_and_its_head():
    layers = list_layers(torchvision.models.resnet18())
    assert [layer[0].rsplit(".", 1)[0] for layer in layers] == [
        "conv1", *(f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2)), "fc",
    ]  # fmt: skip
    assert layers[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert "layer2.0.downsample.0.weight" in layers[3]


def test_layers_of_a_vision_transformer_are_its_embeddings_its_blocks_and_its_head():
    layers = list_layers(torchvision.models.vit_b_16(image_size=32))
    assert len(layers) == 1 + 12 + 1
    assert set(layers[0]) == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert layers[1][0] == "encoder.layers.encoder_layer_0.ln_1.weight"
    assert layers[-1] == ["heads.head.weight", "heads.head.bias"]


def test_a_norm_belongs_to_the_layer_before_it():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2))
    assert list_layers(module) == [["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight", "3.bias"]]
