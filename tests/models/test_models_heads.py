"""Last layers taken out and set: linear ones, and convolutions that are."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads import copy_head, install_linear


def make_network(kind="linear", *, bias=True):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(12, 3, bias=bias))
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 3, 1, bias=bias), nn.Flatten())


HEADS = {"linear": "2", "convolution": "1"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_a_copy_makes_the_logits_of_the_layer_and_put_back_changes_nothing(kind, bias):
    module, head = make_network(kind, bias=bias).double(), HEADS[kind]
    features = torch.randn(4, 12, dtype=torch.float64)
    copied = copy_head(module, head)
    assert type(copied) is nn.Linear
    images = features[:, :, None, None]
    expected = module.get_submodule(head)(images if kind == "convolution" else features).flatten(1)
    assert torch.allclose(copied(features), expected, rtol=0, atol=1e-12)
    before = copy.deepcopy(module.state_dict())
    install_linear(module, head, copied.weight, copied.bias)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    copied.weight.data += 1
    assert torch.equal(module.state_dict()[f"{head}.weight"], before[f"{head}.weight"]), "a copy, not the layer"


@pytest.mark.parametrize("kind", HEADS)
def test_what_is_set_makes_the_logits(kind):
    module, head = make_network(kind), HEADS[kind]
    weight, bias = torch.randn(3, 12), torch.randn(3)
    install_linear(module, head, weight.numpy(), bias.numpy())
    images = torch.randn(4, 12, 1, 1)
    features = images.flatten(1) if kind == "convolution" else images.flatten(1).tanh()
    assert torch.allclose(module(images), features @ weight.T + bias, rtol=0, atol=1e-5)
    assert all(one.requires_grad for one in module.parameters())


def test_what_does_not_fit_is_refused_with_both_shapes():
    module = make_network()
    with pytest.raises(
        ValueError, match=re.escape("the last layer 2 is (3, 12) (classes, features), but what was fit")
    ):
        install_linear(module, "2", torch.zeros(3, 11), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"the last layer 2 has no bias, and what was fitted has one; use --strategy.cla"
    ):
        install_linear(make_network(bias=False), "2", torch.zeros(3, 12), torch.zeros(3))
    with pytest.raises(ValueError, match="the last layer 2 has a bias, and what was fitted has none"):
        install_linear(module, "2", torch.zeros(3, 12), None)


def test_other_layers_are_refused_with_what_to_do():
    with pytest.raises(
        ValueError, match=r"the last layer 1 is a Tanh; wanted: nn.Linear, or .* --strategy.name linear"
    ):
        copy_head(make_network(), "1")
    with pytest.raises(ValueError, match="the last layer 0 is a Conv2d; wanted"):
        copy_head(nn.Sequential(nn.Conv2d(4, 3, 3)), "0")


class Cosine(nn.Linear):
    def forward(self, features_ND):
        return F.linear(F.normalize(features_ND), F.normalize(self.weight), self.bias)


class Plain(nn.Linear):
    """As timm has one, for another reason."""

    def forward(self, features_ND):
        return F.linear(features_ND, self.weight, self.bias)


LIKE_LINEAR = {
    "cosine": lambda: Cosine(12, 3),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(12, 3)),
    "padded": lambda: nn.Conv2d(12, 3, 1, padding=1),
}


@pytest.mark.parametrize("kind", LIKE_LINEAR)
def test_a_layer_that_only_derives_from_a_linear_one_is_refused_and_stays_as_it_was(kind):
    module = nn.Sequential(LIKE_LINEAR[kind]())
    before = copy.deepcopy(module.state_dict())
    for use in (lambda: copy_head(module, "0"), lambda: install_linear(module, "0", torch.ones(3, 12), torch.ones(3))):
        with pytest.raises(
            ValueError, match=r"the last layer 0 .* does more than to multiply .* --strategy.name linear"
        ):
            use()
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_a_layer_that_derives_from_a_linear_one_and_does_the_same_is_one():
    module = nn.Sequential(Plain(12, 3))
    assert torch.equal(copy_head(module, "0").weight, module[0].weight)
    install_linear(module, "0", torch.ones(3, 12), torch.ones(3))
    assert torch.equal(module[0].weight, torch.ones(3, 12))
