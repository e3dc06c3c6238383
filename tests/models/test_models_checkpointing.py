"""Networks that compute activations again against those that keep them: to the bit, in less memory."""

import copy

import pytest
import torch
from model_cases import CASES
from torch import nn

from configs.schema import InputSpec, ModelConfig
from engine.memory import activation_bytes
from models.build import build_model
from models.checkpointing import checkpoint_blocks, find_blocks

# own networks; torchvision's with BatchNorm, with stochastic depth, without BatchNorm; timm's, which switch themselves
NAMES = ["resnet", "airbench", "torchvision/resnet18", "torchvision/efficientnet_b0", "torchvision/swin_t"]
NAMES += ["timm/test_resnet", "timm/test_vit", "timm/test_efficientnet"]


def build(name, **changes):
    case = CASES[name]
    spec = InputSpec(size_px=case.size_px, channels=3)
    model = ModelConfig(name=name, args=case.args, stem=case.stem)
    return build_model(model, num_classes=3, spec=spec, seed=0, **changes).train(), case.size_px


def train_two_steps(module, size_px):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for step in range(2):
        torch.manual_seed(step)
        module(torch.randn(2, 3, size_px, size_px)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same_state(module, expected):
    assert list(module.state_dict()) == list(expected.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_the_cases_are_eight():
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_statistics_are_the_same_to_the_bit_and_less_is_kept(name):
    (expected, size_px), (module, _) = build(name), build(name, has_checkpointing=True)
    train_two_steps(expected, size_px)
    train_two_steps(module, size_px)
    assert_same_state(module, expected)
    kept, wanted = (
        activation_bytes(one, (3, size_px, size_px), device=torch.device("cpu")).per_image for one in (module, expected)
    )
    assert kept < 0.5 * wanted


def test_a_copy_computes_with_its_own_weights():
    module, size_px = build("resnet", has_checkpointing=True)
    copied, expected = copy.deepcopy(module), copy.deepcopy(module)
    nn.init.zeros_(module.stages[0][0].residual[0].weight)
    train_two_steps(copied, size_px)
    train_two_steps(expected, size_px)
    assert_same_state(copied, expected)
    plain, _ = build("resnet")
    train_two_steps(plain, size_px)
    assert_same_state(copied, plain)


def test_statistics_would_be_counted_twice_without_care(monkeypatch):
    """The trap itself: if torch or timm take care of it one day, the hooks can go."""
    monkeypatch.setattr("models.checkpointing._put_aside", lambda norm, inputs: None)
    (expected, size_px), (module, _) = build("timm/test_resnet"), build("timm/test_resnet", has_checkpointing=True)
    train_two_steps(expected, size_px)
    train_two_steps(module, size_px)
    counted = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    assert any(not torch.equal(value, expected.state_dict()[name]) for name, value in counted.items())


def test_blocks_are_the_members_of_sequences_outer_ones_first():
    module, _ = build("torchvision/resnet18")
    assert find_blocks(module) == [block for number in (1, 2, 3, 4) for block in getattr(module, f"layer{number}")]
    module, _ = build("torchvision/efficientnet_b0")
    assert module.features[1][0] in find_blocks(module)
    assert module.features[1][0].block[0] not in find_blocks(module)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="but Sequential has no blocks whose activations could be computed again"):
        checkpoint_blocks(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


@pytest.mark.slow
def test_compiled_it_is_one_graph_with_the_same_statistics():
    (expected, size_px), (module, _) = build("resnet"), build("resnet", has_checkpointing=True)
    train_two_steps(expected, size_px)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(module, dynamic=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for step in range(2):
        torch.manual_seed(step)
        compiled(torch.randn(2, 3, size_px, size_px)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    counters = torch._dynamo.utils.counters
    assert (counters["stats"]["unique_graphs"], dict(counters["graph_break"])) == (1, {})
    for name, value in module.state_dict().items():
        assert torch.allclose(value.double(), expected.state_dict()[name].double(), rtol=1e-3, atol=1e-5), name
