"""Parameters sorted into groups: patterns, what has no weight decay, layer decay, and errors."""

import re

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision.models import resnet18

from configs.schema import GroupConfig, OptimConfig
from engine.build_phases import build_optimizer
from engine.groups import sort_parameters
from models.surgery import list_layers


def make_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2))


def by_name(module, optim, **options):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: group.settings
        for group in sort_parameters(module, optim, **options)
        for parameter in group.parameters
    }


@pytest.mark.parametrize(
    ("no_decay", "without"),
    [
        ("none", set()),
        ("norms", {"1.weight", "1.bias", "3.weight", "3.bias"}),
        ("norms_and_biases", {"0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "4.bias"}),
    ],
)
def test_what_has_no_weight_decay(no_decay, without):
    settings = by_name(make_network(), OptimConfig(name="sgd", lr=0.1, weight_decay=0.01, no_decay=no_decay))
    assert {name for name, one in settings.items() if one.weight_decay == 0} == without
    assert {one.weight_decay for name, one in settings.items() if name not in without} == {0.01}


def test_norms_and_biases_of_a_resnet_are_what_timm_finds():
    from timm.optim import param_groups_weight_decay

    module = resnet18()
    theirs = param_groups_weight_decay(module, weight_decay=0.01)
    ours = sort_parameters(module, OptimConfig(name="sgd", lr=0.1, weight_decay=0.01, no_decay="norms_and_biases"))
    assert {id(one) for group in ours if group.settings.weight_decay == 0 for one in group.parameters} == {
        id(one) for one in theirs[0]["params"]
    }


def test_the_first_group_that_matches_counts_and_the_rest_is_as_the_optimizer_has_it():
    groups = (
        GroupConfig(match=("4.bias", "0.*"), lr=0.5),
        GroupConfig(only="vectors", weight_decay=0.0),
        GroupConfig(match=("4.*",), name="adamw", betas=(0.8, 0.9), until_epoch=2.5),
    )
    optim = OptimConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, groups=groups)
    settings = by_name(make_network(), optim)
    assert {name for name, one in settings.items() if one.lr == 0.5} == {"4.bias", "0.weight", "0.bias"}
    assert {name for name, one in settings.items() if one.weight_decay == 0} == {
        "1.weight", "1.bias", "3.weight", "3.bias",
    }  # fmt: skip
    last = settings["4.weight"]
    assert (last.name, last.betas, last.until_epoch, last.lr, last.has_own_lr) == ("adamw", (0.8, 0.9), 2.5, 0.1, False)


def test_a_groups_own_weight_decay_holds_for_its_norms_too():
    groups = (GroupConfig(match=("1.*",), weight_decay=0.3),)
    optim = OptimConfig(name="sgd", lr=0.1, weight_decay=0.01, no_decay="norms_and_biases", groups=groups)
    assert by_name(make_network(), optim)["1.weight"].weight_decay == 0.3


def test_only_matrices_and_only_vectors_share_a_network_between_them():
    groups = (GroupConfig(only="matrices", lr=1.0), GroupConfig(only="vectors", lr=2.0))
    settings = by_name(make_network(), OptimConfig(name="sgd", lr=0.1, groups=groups))
    assert {name for name, one in settings.items() if one.lr == 1.0} == {"0.weight", "4.weight"}
    assert len(settings) == 8


def test_frozen_parameters_are_in_no_group():
    module = make_network()
    module[0].requires_grad_(False)
    assert set(by_name(module, OptimConfig(name="sgd", lr=0.1))) == {
        "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias",
    }  # fmt: skip


def test_a_group_that_matches_nothing_is_named_with_the_nearest_parameters():
    optim = OptimConfig(name="sgd", lr=0.1, groups=(GroupConfig(match=("4.wieght",)),))
    wanted = "optim.groups[0] matches no trained parameter that no earlier group has: ['4.wieght']; nearest: 4.weight,"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        sort_parameters(make_network(), optim)


def test_a_group_whose_parameters_an_earlier_one_has_is_named():
    optim = OptimConfig(name="sgd", lr=0.1, groups=(GroupConfig(), GroupConfig(only="vectors")))
    with pytest.raises(ValueError, match=r"optim\.groups\[1\] matches no trained parameter among the vectors"):
        sort_parameters(make_network(), optim)


def test_muon_refuses_a_bias_and_the_offer_works():
    optim = OptimConfig(name="muon", lr=0.1)
    with pytest.raises(ValueError, match=r"0\.bias has one dimension.*\{only: vectors, name: adamw, lr: 0\.001\}"):
        sort_parameters(make_network(), optim)
    offered = OptimConfig(name="muon", lr=0.1, groups=(GroupConfig(only="vectors", name="adamw", lr=0.001),))
    assert len(sort_parameters(make_network(), offered)) == 2


def test_layer_decay_of_a_timm_network_is_timms():
    import timm

    module = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=4)
    optim = OptimConfig(name="adamw", lr=0.01, weight_decay=0.05, no_decay="norms_and_biases", layer_decay=0.75)
    theirs = {
        id(parameter): (group["lr_scale"] * 0.01, group["weight_decay"])
        for group in param_groups_layer_decay(module, weight_decay=0.05, layer_decay=0.75)
        for parameter in group["params"]
    }
    ours = {
        id(parameter): (group.settings.lr, group.settings.weight_decay)
        for group in sort_parameters(module, optim, layers=list_layers(module))
        for parameter in group.parameters
    }
    assert ours.keys() == theirs.keys()
    for name, parameter in module.named_parameters():
        assert ours[id(parameter)][0] == pytest.approx(theirs[id(parameter)][0], rel=1e-12), name


def test_each_layer_below_the_last_learns_more_slowly_by_the_factor():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    settings = by_name(module, OptimConfig(name="sgd", lr=1.0, layer_decay=0.5), layers=list_layers(module))
    assert [settings[f"{place}.weight"].lr for place in range(3)] == [0.25, 0.5, 1.0]
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=1.0, layer_decay=0.5), module, layers=list_layers(module))
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.25, 0.5, 1.0]
    assert torch.is_tensor(optimizer.param_groups[0]["params"][0])
