"""Optimizers step by step against torch's own, timm's, and updates written out by hand in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from configs.schema import GroupConfig, OptimConfig
from engine.build_phases import build_optimizer
from engine.optimizers import Joined, Muon, main_lr

NUM_STEPS = 6
COEFFICIENTS = (3.4445, -4.775, 2.0315)


def make_network(*, channels_last=True):
    """A convolution with fewer filters than inputs, one with more, and a matrix; float64."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 60, 3), nn.Flatten(), nn.Linear(60 * 16, 5, bias=False)
    ).double()
    return module.to(memory_format=torch.channels_last) if channels_last else module


def gradients(module, step):
    """Gradients that depend on the weights and on the step."""
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    module.zero_grad()
    module(images).square().mean().backward()


def train(module, optimizer, *, num_steps=NUM_STEPS, first_step=0):
    for step in range(first_step, first_step + num_steps):
        gradients(module, step)
        optimizer.step()
    return module


def assert_equal_weights(module, reference, *, rtol=0.0, atol=0.0):
    for (name, one), other in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def orthogonalised(matrix, *, num_steps, dtype=torch.float64):
    """Newton-Schulz steps, written out; torch does them in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm()
    for _ in range(num_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).double()


def muon_by_hand(module, *, lr, momentum, weight_decay, num_ns_steps, scale, fix_norm, num_steps=NUM_STEPS):
    buffers = [torch.zeros_like(one) for one in module.parameters()]
    for step in range(num_steps):
        gradients(module, step)
        with torch.no_grad():
            for weight, buffer in zip(module.parameters(), buffers, strict=True):
                if fix_norm:
                    weight.mul_(math.sqrt(len(weight)) / weight.norm())
                buffer.mul_(momentum).add_(weight.grad, alpha=1 - momentum)
                update = (weight.grad * (1 - momentum) + buffer * momentum).flatten(1)
                rows, columns = update.shape
                factor = (
                    math.sqrt(max(1, rows / columns)) if scale == "original" else 0.2 * math.sqrt(max(rows, columns))
                )
                weight.mul_(1 - lr * weight_decay)
                weight.sub_(lr * factor * orthogonalised(update, num_steps=num_ns_steps).view_as(weight))
    return module


MUON_GROUP = GroupConfig(only="vectors", name="sgd", lr=0.0001)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("scale", "weight_decay"), [("original", 0.0), ("match_adamw", 0.1)])
@pytest.mark.parametrize("fix_norm", [False, True])
def test_muon_is_its_update_written_out(channels_last, scale, weight_decay, fix_norm):
    """torch's bfloat16 is seen: within 6 % of how far the weights have moved."""
    optim = OptimConfig(
        name="muon", lr=0.02, momentum=0.6, nesterov=True, ns_steps=3, weight_decay=weight_decay, muon_scale=scale,
        fix_filter_norm=fix_norm,
    )  # fmt: skip
    start = make_network(channels_last=channels_last)
    start[2].bias = None
    trained = copy.deepcopy(start)
    train(trained, build_optimizer(optim, trained))
    expected = muon_by_hand(
        copy.deepcopy(start), lr=0.02, momentum=0.6, weight_decay=weight_decay, num_ns_steps=3, scale=scale,
        fix_norm=fix_norm,
    )  # fmt: skip
    for one, other, before in zip(trained.parameters(), expected.parameters(), start.parameters(), strict=True):
        assert (one - other).norm() < 0.06 * (other - before).norm()


def test_muon_of_matrices_is_torchs_to_the_bit():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 9, bias=False), nn.Tanh(), nn.Linear(9, 4, bias=False)).double()
    reference = copy.deepcopy(module)
    optim = OptimConfig(name="muon", lr=0.02, momentum=0.9, weight_decay=0.1)
    ours = build_optimizer(optim, module)
    theirs = torch.optim.Muon(reference.parameters(), lr=0.02, momentum=0.9, nesterov=False, weight_decay=0.1)
    inputs = torch.randn(7, 6, dtype=torch.float64)
    for _ in range(NUM_STEPS):
        for network, optimizer in ((module, ours), (reference, theirs)):
            network.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    assert_equal_weights(module, reference)


def test_how_weights_lie_in_memory_does_not_change_what_muon_does():
    optim = OptimConfig(name="muon", lr=0.02, momentum=0.6, nesterov=True, groups=(MUON_GROUP,))
    networks = [make_network(channels_last=channels_last) for channels_last in (True, False)]
    for network in networks:
        train(network, build_optimizer(optim, network), num_steps=1)
    assert networks[0][0].weight.stride() != networks[1][0].weight.stride()
    assert_equal_weights(*networks, rtol=0.02, atol=2e-3)  # the order of sums, in bfloat16


def test_lamb_is_timms_without_its_own_clipping():
    from timm.optim import Lamb

    module = make_network()
    reference = copy.deepcopy(module)
    optim = OptimConfig(name="lamb", lr=0.01, weight_decay=0.02, betas=(0.8, 0.95), eps=1e-6)
    train(module, build_optimizer(optim, module))
    train(reference, Lamb(reference.parameters(), lr=0.01, weight_decay=0.02, betas=(0.8, 0.95), max_grad_norm=None))
    assert_equal_weights(module, reference)


def test_lamb_is_written_out_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer(OptimConfig(name="lamb", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6), module)
    expected = weight.detach().clone()
    first = second = torch.zeros_like(expected)
    for step in range(1, NUM_STEPS):
        optimizer.zero_grad()
        (weight**2 * torch.tensor([1.0, 3.0])).sum().backward()
        optimizer.step()
        gradient = 2 * expected * torch.tensor([1.0, 3.0])
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        update = (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-6) + 0.2 * expected
        expected = expected - 0.1 * expected.norm() / update.norm() * update
        assert torch.allclose(weight, expected, rtol=1e-10)


def test_lars_is_written_out_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    optim = OptimConfig(name="lars", lr=0.5, weight_decay=0.01, momentum=0.9, trust_coefficient=0.02)
    optimizer = build_optimizer(optim, module)
    expected, velocity = weight.detach().clone(), torch.zeros(1, 2, dtype=torch.float64)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        (weight**2 * torch.tensor([1.0, 3.0])).sum().backward()
        optimizer.step()
        gradient = 2 * expected * torch.tensor([1.0, 3.0])
        trust = 0.02 * expected.norm() / (gradient.norm() + 0.01 * expected.norm())
        velocity = 0.9 * velocity + trust * (gradient + 0.01 * expected)
        expected = expected - 0.5 * velocity
        assert torch.allclose(weight, expected, rtol=1e-7)  # timm adds 1e-8 to a norm


JOINED = OptimConfig(
    name="muon",
    lr=0.02,
    momentum=0.6,
    nesterov=True,
    groups=(
        GroupConfig(match=("4.*",), name="adamw", lr=0.003, weight_decay=0.1),
        GroupConfig(only="vectors", name="sgd", lr=0.01, momentum=0.9),
    ),
)


def test_optimizers_joined_do_what_each_does_alone():
    module = make_network()
    reference = copy.deepcopy(module)
    optimizer = build_optimizer(JOINED, module)
    assert isinstance(optimizer, Joined)
    matrices = [{"params": [reference[0].weight, reference[2].weight], "lr": 0.02, "momentum": 0.6, "nesterov": True}]
    muon = Muon(
        [matrices[0] | {"weight_decay": 0.0}],
        ns_steps=5, ns_coefficients=COEFFICIENTS, adjust_lr_fn="original", fix_filter_norm=False,
    )  # fmt: skip
    alone = [
        muon,
        torch.optim.AdamW([reference[4].weight], lr=0.003, weight_decay=0.1),
        torch.optim.SGD([reference[2].bias], lr=0.01, momentum=0.9, nesterov=True),
    ]
    for step in range(NUM_STEPS):
        gradients(module, step)
        optimizer.step()
        gradients(reference, step)
        for one in alone:
            one.step()
    assert_equal_weights(module, reference)


@pytest.mark.parametrize(
    "optim", [JOINED, OptimConfig(name="lamb", lr=0.01), OptimConfig(name="lars", lr=0.1, momentum=0.9)]
)
def test_state_goes_through_a_dict_and_training_goes_on_to_the_bit(optim):
    module = make_network()
    optimizer = build_optimizer(optim, module)
    train(module, optimizer, num_steps=3)
    restored = copy.deepcopy(module)
    other = build_optimizer(optim, restored)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(module, optimizer, first_step=3)
    train(restored, other, first_step=3)
    assert_equal_weights(module, restored)
    assert set(other.state) == set(restored.parameters())


def test_the_state_of_joined_optimizers_has_the_form_of_every_other():
    module = make_network()
    optimizer = build_optimizer(JOINED, module)
    train(module, optimizer, num_steps=1)
    saved = optimizer.state_dict()
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    assert numbers == list(range(len(list(module.parameters()))))
    assert sorted(saved["state"]) == numbers
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for number, parameter in enumerate(parameters):
        assert all(torch.equal(saved["state"][number][key], value) for key, value in optimizer.state[parameter].items())


def test_a_rate_set_in_the_groups_is_that_of_the_next_step_after_a_restart_too():
    module = make_network()
    optimizer = build_optimizer(JOINED, module)
    train(module, optimizer, num_steps=2)
    optimizer.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(module)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(module, optimizer, num_steps=1)
    assert_equal_weights(module, before)


def test_the_learning_rate_that_is_shown_is_that_of_the_recipe():
    optimizer = build_optimizer(JOINED, make_network())
    assert main_lr(optimizer.param_groups) == 0.02
    own = OptimConfig(name="sgd", lr=0.1, groups=(GroupConfig(lr=0.3),))
    assert main_lr(build_optimizer(own, make_network()).param_groups) == 0.3


def test_frozen_parameters_have_no_state():
    module = make_network()
    module[0].weight.requires_grad_(False)
    optimizer = build_optimizer(JOINED, module)
    train(module, optimizer, num_steps=1)
    assert module[0].weight not in optimizer.state
    assert module[2].weight in optimizer.state
