"""Configuration into optimizer, schedule and momentum."""

import pytest
import torch
from torch import nn

from configs.load import replace_section
from configs.schema import Config, DataConfig, GroupConfig, ModelConfig, OptimConfig, TrainConfig
from engine.build import micro_batch_size
from engine.build_phases import (
    build_group_schedules,
    build_momentum,
    build_optimizer,
    build_phases,
    build_plateau,
    build_schedule,
)
from engine.schedules import Plateau

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn", args={"width": 8}),
    optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    train=TrainConfig(epochs=10, global_batch_size=60),
)


def quadratic_path(optimizer_of):
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    optimizer = optimizer_of(module)
    path = []
    for _ in range(5):
        optimizer.zero_grad()
        (weight**2 * torch.tensor([1.0, 3.0])).sum().backward()
        optimizer.step()
        path.append(weight.detach().clone())
    return torch.stack(path)


def test_sgd_is_nesterov_momentum_with_weight_decay():
    path = quadratic_path(lambda module: build_optimizer(CONFIG.optim, module))
    weight, velocity = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(5):
        gradient = 2 * weight * torch.tensor([1.0, 3.0]) + 0.01 * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.1 * (gradient + 0.9 * velocity)
        assert torch.allclose(path[step], weight, rtol=1e-12)


def test_adamw_is_written_out_by_hand():
    optim = OptimConfig(name="adamw", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6)
    path = quadratic_path(lambda module: build_optimizer(optim, module))
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    first = second = torch.zeros(2, dtype=torch.float64)
    for step in range(1, 6):
        gradient = 2 * weight * torch.tensor([1.0, 3.0])
        weight = weight * (1 - 0.1 * 0.2)
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        weight = weight - 0.1 * (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-6)
        assert torch.allclose(path[step - 1], weight, rtol=1e-10)


def test_adam_adds_weight_decay_to_the_gradient():
    optim = OptimConfig(name="adam", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6)
    path = quadratic_path(lambda module: build_optimizer(optim, module))
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    first = second = torch.zeros(2, dtype=torch.float64)
    for step in range(1, 6):
        gradient = 2 * weight * torch.tensor([1.0, 3.0]) + 0.2 * weight
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        weight = weight - 0.1 * (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-6)
        assert torch.allclose(path[step - 1], weight, rtol=1e-10)


def test_rmsprop_is_written_out_by_hand():
    optim = OptimConfig(name="rmsprop", lr=0.1, weight_decay=0.2, alpha=0.8, momentum=0.7, eps=1e-6)
    path = quadratic_path(lambda module: build_optimizer(optim, module))
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    square = velocity = torch.zeros(2, dtype=torch.float64)
    for step in range(5):
        gradient = 2 * weight * torch.tensor([1.0, 3.0]) + 0.2 * weight
        square = 0.8 * square + 0.2 * gradient**2
        velocity = 0.7 * velocity + gradient / (square.sqrt() + 1e-6)
        weight = weight - 0.1 * velocity
        assert torch.allclose(path[step], weight, rtol=1e-10)


def test_frozen_parameters_get_no_optimizer_state():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    (group,) = build_optimizer(CONFIG.optim, module).param_groups
    assert len(group["params"]) == 2


def test_schedules_count_in_epochs_of_the_loader():
    config = replace_section(CONFIG, "schedule", name="step", step_epochs=4, gamma=0.1)
    factor = build_schedule(config, steps_per_epoch=21)
    assert factor(4 * 21 - 1) == 1.0
    assert factor(4 * 21) == pytest.approx(0.1)
    config = replace_section(CONFIG, "schedule", name="cosine", warmup_epochs=2.0, final_lr_frac=0.0)
    factor = build_schedule(config, steps_per_epoch=21)
    assert factor(0) == pytest.approx(1 / 42)
    assert factor(42) == 1.0
    assert factor(42 + 84) == pytest.approx(0.5)
    assert factor(210) == pytest.approx(0.0)
    assert build_schedule(CONFIG, steps_per_epoch=21)(200) == 1.0
    config = replace_section(CONFIG, "schedule", name="exponential", gamma=0.9)
    factor = build_schedule(config, steps_per_epoch=21)
    assert [factor(20), factor(21), factor(209)] == pytest.approx([1.0, 0.9, 0.9**9])
    config = replace_section(CONFIG, "schedule", name="multi_step", milestones_epochs=(2.0, 4.5), warmup_epochs=1.0)
    factor = build_schedule(config, steps_per_epoch=20)
    assert [factor(19), factor(39), factor(40), factor(89), factor(90)] == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])
    config = replace_section(CONFIG, "schedule", name="one_cycle", momentum_range=(0.95, 0.85), rise_frac=0.5)
    factor, momentum = build_schedule(config, steps_per_epoch=20), build_momentum(config, steps_per_epoch=20)
    assert [factor(0), factor(99), factor(199)] == pytest.approx([0.04, 1.0, 0.0])
    assert momentum is not None
    assert [momentum(0), momentum(99), momentum(199)] == pytest.approx([0.95, 0.85, 0.95])
    assert build_momentum(CONFIG, steps_per_epoch=20) is None


def test_only_schedule_plateau_goes_by_val():
    assert build_plateau(CONFIG.schedule) is None
    config = replace_section(CONFIG, "schedule", name="plateau", gamma=0.2, patience_epochs=3, min_lr_frac=0.01)
    assert build_plateau(config.schedule) == Plateau(0.2, 3, 1e-4, 0.01)
    assert build_schedule(config, steps_per_epoch=21)(200) == 1.0


def test_a_network_with_nothing_to_train_is_refused():
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: 2 parameters, all with requires_grad=False; leave some"):
        build_optimizer(CONFIG.optim, frozen)
    with pytest.raises(ValueError, match="nothing to train: it has no parameters; give it a layer"):
        build_optimizer(CONFIG.optim, torch.nn.ReLU())


def schedule_of(steps_per_epoch=10, *, average=None, **changes):
    config = replace_section(CONFIG, "schedule", **changes)
    config = replace_section(config, "average", **(average or {}))
    factor = build_schedule(config, steps_per_epoch=steps_per_epoch)
    return [factor(step) for step in range(10 * steps_per_epoch)]


def test_a_cool_down_keeps_the_end_of_the_schedule():
    factors = schedule_of(name="linear", final_lr_frac=0.2, warmup_epochs=1, cooldown_epochs=2)
    assert factors[9:11] == [1.0, 1.0]
    assert factors[10:80] == pytest.approx([1 - 0.8 * step / 70 for step in range(70)])
    assert factors[80:] == [0.2] * 20


def test_the_swa_has_a_learning_rate_of_its_own_from_its_epoch_on():
    factors = schedule_of(name="cosine", average={"swa_start_epoch": 7, "swa_lr_frac": 0.3})
    assert factors[:70] == schedule_of(name="cosine")[:70]
    assert factors[70:] == [0.3] * 30


@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine", "cosine_restarts"])
def test_schedules_that_fall_end_near_their_end_and_do_not_know_the_number_of_ranks(name):
    """The only thing a schedule is told of the run is its steps per epoch, the same on one rank and on many."""
    factors = schedule_of(name=name, final_lr_frac=0.01, cycle_epochs=10)
    assert factors[0] == 1.0
    assert factors[-1] < 0.04
    finer = schedule_of(20, name=name, final_lr_frac=0.01, cycle_epochs=10)
    assert finer[::2] == pytest.approx(factors)


def test_a_group_that_ends_sooner_has_the_schedule_squeezed():
    config = replace_section(CONFIG, "schedule", name="linear")
    config = replace_section(config, "optim", groups=(GroupConfig(until_epoch=2.5), GroupConfig(until_epoch=4.0)))
    factors = build_group_schedules(config, steps_per_epoch=10)
    assert set(factors) == {2.5, 4.0}
    assert [factors[2.5](step) for step in range(30)] == pytest.approx(
        [1 - step / 25 for step in range(25)] + [0.0] * 5
    )


def test_batch_sizes_over_time_are_phases(make_loader, data, runtime):
    config = replace_section(
        CONFIG, "train", epochs=5, global_batch_size=8, accumulation=2, batch_sizes=((0, 6), (3, 12)), batch_lr="linear"
    )
    first, second = build_phases(
        config, make_loader(*data, batch_size=6), lambda size: make_loader(*data, batch_size=size)
    )
    assert [(phase.epochs, phase.loader.batch_size, phase.accumulation) for phase in (first, second)] == [
        (3, 6, 2),
        (2, 12, 2),
    ]
    assert second.loader.state_dict()["epoch"] == 3
    assert (first.lr_factor(0), second.lr_factor(0)) == (6 / 8, 12 / 8)
    assert micro_batch_size(config, runtime) == 6
    plain = replace_section(config, "train", batch_sizes=())
    (whole,) = build_phases(plain, make_loader(*data, batch_size=8))
    assert (whole.epochs, whole.keeps_optimizer, micro_batch_size(plain, runtime)) == (5, False, 4)


def test_a_group_that_ends_before_its_first_step_is_refused():
    config = replace_section(CONFIG, "optim", groups=(GroupConfig(until_epoch=0.04),))
    with pytest.raises(ValueError, match=r"until_epoch=0\.04, which is no step of an epoch of 10; use 0\.1 or more"):
        build_group_schedules(config, steps_per_epoch=10)
