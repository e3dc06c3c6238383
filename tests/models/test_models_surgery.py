"""A network's layers and stages, in order, each parameter once, and its head."""

import pytest
import timm
import torch
import torchvision
from model_cases import CASES, HEAVY, Case
from torch import nn

from configs.schema import InputSpec, ModelConfig
from models.build import MODELS, build_model
from models.surgery import find_head, list_head, list_layers, list_stages

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


def test_layers_begin_with_what_has_parameters():
    module = nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 2))
    assert list_layers(module) == [["1.weight", "1.bias"], ["2.weight", "2.bias"], ["3.weight", "3.bias"]]


OWN = {name: case for name, case in CASES.items() if "/" not in name}
# the last layers of those of the zoos that the contract of networks runs over, and of more
HEADS = {
    "torchvision/densenet121": "classifier",
    "torchvision/efficientnet_b0": "classifier.1",
    "torchvision/googlenet": "fc",
    "torchvision/inception_v3": "fc",
    "torchvision/mnasnet0_5": "classifier.1",
    "torchvision/mobilenet_v2": "classifier.1",
    "torchvision/mobilenet_v3_small": "classifier.3",
    "torchvision/regnet_x_400mf": "fc",
    "torchvision/resnet18": "fc",
    "torchvision/resnet50": "fc",
    "torchvision/shufflenet_v2_x0_5": "fc",
    "torchvision/squeezenet1_0": "classifier.1",
    "torchvision/swin_t": "head",
    "torchvision/alexnet": "classifier.6",
    "torchvision/vgg11_bn": "classifier.6",
    "torchvision/convnext_tiny": "classifier.2",
    "torchvision/vit_b_16": "heads.head",
    "torchvision/maxvit_t": "classifier.5",
    "timm/test_byobnet": "head.fc",
    "timm/test_coatnet": "head.fc",
    "timm/test_convnext": "head.fc",
    "timm/test_efficientnet": "classifier",
    "timm/test_mambaout": "head.fc",
    "timm/test_maxvit": "head.fc",
    "timm/test_nfnet": "head.fc",
    "timm/test_resnet": "fc",
    "timm/test_vit": "head",
    "timm/test_vit_relpos": "head",
    "timm/resnet50": "fc",
    "timm/convnext_tiny": "head.fc",
    "timm/vit_base_patch16_224": "head",
    "timm/efficientnet_b0": "classifier",
    "timm/mobilenetv3_small_100": "classifier",
    "timm/regnetx_002": "head.fc",
    "timm/edgenext_xx_small": "head.fc",
    "timm/pvt_v2_b0": "head",
    "timm/efficientvit_b0": "head.classifier.4",
    "timm/swin_tiny_patch4_window7_224": "head.fc",
    "timm/deit3_small_patch16_224": "head",
    "timm/caformer_s18": "head.fc.fc2",
    "timm/rdnet_tiny": "head.fc",
}
ZOOS = {name: (CASES | HEAVY).get(name, Case(224)) for name in HEADS}
NO_META = {"torchvision/regnet_x_400mf"}  # reads values while it is built


def build_case(name, case, *, num_classes=7):
    model = ModelConfig(name=name, args=case.args, stem=case.stem)
    with torch.device("cpu" if name in NO_META or "/" not in name else "meta"):
        return build_model(model, num_classes=num_classes, spec=InputSpec(size_px=case.size_px, channels=3), seed=0)


def test_heads_are_found_over_all_of_our_own_and_over_forty_of_the_zoos():
    assert set(OWN) == set(MODELS)
    assert len(HEADS) == 41


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_layer_with_an_output_for_each_class(name):
    module = build_case(name, ZOOS[name])
    head = find_head(module, num_classes=7)
    assert head == HEADS[name]
    assert {len(module.get_parameter(one)) for one in list_head(module, head)} == {7}


@pytest.mark.parametrize("name", [*OWN, *HEADS])
def test_every_parameter_is_in_one_stage_and_the_head_is_the_last_alone(name):
    module = build_case(name, (OWN | ZOOS)[name])
    head = find_head(module, num_classes=7)
    stages = list_stages(module, head=head)
    listed = [parameter for stage in stages for parameter in stage]
    assert len(listed) == len(set(listed))
    assert set(listed) == {parameter for parameter, _ in module.named_parameters()}
    assert stages[-1] == list_head(module, head)
    assert 3 <= len(stages) <= 8
    parameters = dict(module.named_parameters())
    assert all(any(parameters[one].dim() > 1 for one in stage) for stage in stages)
    first_parts = [names for names in list_layers(module) if set(names) & set(stages[0])]
    assert first_parts[0] == list_layers(module)[0], "the first stage begins with the first layer"


STAGES = {
    "torchvision/resnet18": ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1", "fc"],
    "timm/resnet50": ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1", "fc"],
    "resnet": ["stem.0", "stages.0.0.residual.0", "stages.1.0.residual.0", "stages.2.0.residual.0",
               "stages.3.0.residual.0", "head.3"],
    "torchvision/vgg11_bn": ["features.0", "features.4", "features.11", "features.18", "features.25", "classifier.6"],
    "vgg": ["features.0.0", "features.1.0", "features.2.0", "features.3.0", "features.4.0", "head.3"],
    "torchvision/convnext_tiny": ["features.0.0", "features.1.0", "features.2.1", "features.4.1", "features.6.1",
                                  "classifier.2"],
    "timm/convnext_tiny": ["stem.0", "stages.0.blocks.0", "stages.1.downsample.0", "stages.2.downsample.0",
                           "stages.3.downsample.0", "head.fc"],
    "torchvision/densenet121": ["features.conv0", "features.denseblock1", "features.transition1.conv",
                                "features.transition2.conv", "features.transition3.conv", "classifier"],
    "torchvision/vit_b_16": ["class_token", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_3",
                             "encoder.layers.encoder_layer_6", "encoder.layers.encoder_layer_9", "heads.head"],
    "timm/vit_base_patch16_224": ["cls_token", "blocks.0", "blocks.3", "blocks.6", "blocks.9", "head"],
    "simple_cnn": ["features.0.0", "features.1.0", "features.2.0", "head.2", "head.5"],
    "airbench": ["stem.0", "groups.0.0", "groups.1.0", "groups.2.0", "head.2"],
    "alexnet": ["features.0.0", "features.1.0", "features.2.0", "features.3.0", "features.4.0", "head.3", "head.6",
                "head.8"],
    "mlp": ["hidden.1.0", "hidden.2.0", "head"],
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_that_a_reader_of_the_network_would_name(name):
    module = build_case(name, (OWN | ZOOS)[name])
    stages = list_stages(module, head=find_head(module, num_classes=7))
    assert len(stages) == len(STAGES[name])
    for names, start in zip(stages, STAGES[name], strict=True):
        assert names[0] == start or names[0].startswith(f"{start}."), names[0]


@pytest.mark.parametrize("name", ["timm/levit_128s", "timm/crossvit_tiny_240", "timm/deit_tiny_distilled_patch16_224"])
def test_a_network_with_two_heads_is_refused(name):
    module = build_case(name, Case(240 if "cross" in name else 224))
    with pytest.raises(ValueError, match=r" has 2 last layers \(head.*, head.*\), whose logits are put together; "):
        find_head(module, num_classes=7)


def test_a_convolution_can_be_a_head_and_so_can_the_whole_network():
    module = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 7, 1), nn.Flatten())
    assert find_head(module, num_classes=7) == "1"
    linear = nn.Linear(4, 7)
    assert find_head(linear, num_classes=7) == ""
    assert list_stages(linear, head="") == [["weight", "bias"]]


def test_a_network_without_a_head_is_refused_with_what_one_is():
    wanted = r"^Sequential has no last layer to train anew: no nn\.Linear, and no nn\.Conv2d of 1x1, with 7 outputs; l"
    with pytest.raises(ValueError, match=wanted):
        find_head(nn.Sequential(nn.Conv2d(3, 7, 3), nn.Linear(7, 8)), num_classes=7)
    with pytest.raises(ValueError, match=r"^ResNet has no last layer .* with 8 outputs in fc; "):
        find_head(build_case("timm/resnet50", Case(64)), num_classes=8)
