"""Schedules against torch's own, step by step."""

import pytest
import torch

from engine.schedules import (
    Plateau,
    PlateauState,
    constant,
    cosine,
    cycle_momentum,
    multi_step,
    one_cycle,
    step_decay,
    with_warmup,
)


def torch_factors(make_scheduler, *, num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    factors = []
    for _ in range(num_steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_step_decay_is_torchs_step_lr():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=7, gamma=0.3), num_steps=40)
    factor = step_decay(step_size=7, gamma=0.3)
    assert [factor(step) for step in range(40)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("final_frac", [0.0, 0.1])
def test_cosine_is_torchs_cosine_annealing(final_frac):
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50, eta_min=final_frac), num_steps=50
    )
    factor = cosine(num_steps=50, final_frac=final_frac)
    assert [factor(step) for step in range(50)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cosine_stays_at_its_end():
    assert cosine(num_steps=10, final_frac=0.2)(25) == pytest.approx(0.2)


def test_warmup_rises_in_equal_steps_to_one_and_then_starts_the_schedule():
    factor = with_warmup(cosine(num_steps=10, final_frac=0.0), num_steps=4)
    assert [factor(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factor(4 + 5) == pytest.approx(0.5)


def test_no_warmup_is_the_schedule_itself():
    assert with_warmup(constant(), num_steps=0)(0) == 1.0


def test_multi_step_is_torchs_multi_step_lr():
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[5, 6, 20], gamma=0.3), num_steps=30
    )
    factor = multi_step(milestones=[5, 6, 20], gamma=0.3)
    assert [factor(step) for step in range(30)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rise_frac", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [20, 40, 101])
def test_one_cycle_is_torchs_one_cycle_lr_and_its_momentum(rise_frac, num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=num_steps, pct_start=rise_frac, div_factor=20.0, final_div_factor=50.0
    )
    factor = one_cycle(num_steps=num_steps, rise_frac=rise_frac, start_frac=1 / 20, final_frac=1 / 1000)
    momentum = cycle_momentum(num_steps=num_steps, rise_frac=rise_frac, high=0.95, low=0.85)
    for step in range(num_steps):
        (group,) = optimizer.param_groups
        assert 2.0 * factor(step) == pytest.approx(group["lr"], rel=1e-9), step
        assert momentum(step) == pytest.approx(group["momentum"], rel=1e-9), step
        optimizer.step()
        if step + 1 < num_steps:
            scheduler.step()


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.05])
def test_plateau_is_torchs_reduce_lr_on_plateau(patience, threshold):
    generator = torch.Generator().manual_seed(patience)
    losses = (2 / torch.arange(1, 61).sqrt() + 0.1 * torch.rand(60, generator=generator)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, min_lr=0.01
    )
    plateau, state = Plateau(0.5, patience, threshold, min_factor=0.01), PlateauState()
    for loss in losses:
        scheduler.step(loss)
        state = plateau.after_epoch(state, val_loss=loss)
        assert state.factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert state.factor < 0.5, "the test must see several steps down"
