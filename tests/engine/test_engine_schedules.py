"""Schedules against torch's own, step by step."""

import pytest
import torch

from engine.schedules import constant, cosine, step_decay, with_warmup


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
