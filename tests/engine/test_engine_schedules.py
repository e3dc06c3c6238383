"""Schedules against torch's own, step by step."""

import pytest
import torch

from engine.schedules import (
    Plateau,
    PlateauState,
    constant,
    cosine,
    cosine_restarts,
    cycle_momentum,
    multi_step,
    one_cycle,
    polynomial,
    squeezed,
    step_decay,
    until,
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


@pytest.mark.parametrize("power", [1.0, 2.0, 0.9])
def test_polynomial_is_torchs_polynomial_lr(power):
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=30, power=power), num_steps=40
    )
    factor = polynomial(num_steps=30, power=power, final_frac=0.0)
    assert [factor(step) for step in range(40)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_linear_to_a_part_is_torchs_linear_lr():
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=20), num_steps=30
    )
    factor = polynomial(num_steps=20, power=1.0, final_frac=0.1)
    assert [factor(step) for step in range(30)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mult", [1, 2])
def test_cosine_restarts_are_torchs(mult):
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=mult, eta_min=0.05),
        num_steps=60,
    )
    factor = cosine_restarts(cycle_steps=7, mult=mult, decay=1.0, final_frac=0.05)
    assert [factor(step) for step in range(60)] == pytest.approx(expected, rel=1e-9)


def test_cosine_restarts_that_start_lower_each_time_are_timms():
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = CosineLRScheduler(
        optimizer, t_initial=7, lr_min=0.01, cycle_mul=2.0, cycle_decay=0.5, cycle_limit=9, t_in_epochs=True
    )
    factor = cosine_restarts(cycle_steps=7, mult=2.0, decay=0.5, final_frac=0.01)
    for step in range(45):
        theirs.step(step)
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step


def test_a_warmup_from_a_part_is_torchs_linear_lr():
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.01, total_iters=8), num_steps=20
    )
    factor = with_warmup(constant(), num_steps=8, start_frac=0.01)
    assert [factor(step) for step in range(20)] == pytest.approx(expected, rel=1e-9)


def test_until_changes_over_at_its_step_and_counts_on():
    factor = until(constant(0.5), num_steps=3, after=lambda step: step)
    assert [factor(step) for step in range(5)] == [0.5, 0.5, 0.5, 3, 4]


def test_a_squeezed_schedule_is_airbenchs_for_the_bias_of_its_stem():
    whole = polynomial(num_steps=200, power=1.0, final_frac=0.0)
    factor = squeezed(whole, num_steps=200, into_steps=75)
    assert [factor(step) for step in range(75)] == pytest.approx([1 - step / 75 for step in range(75)])
    assert [factor(step) for step in range(75, 200)] == [0.0] * 125
