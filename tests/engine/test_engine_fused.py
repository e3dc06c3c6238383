"""When the optimizer is fused, and that a run may change it when it goes on."""

import pytest
import torch
from small_fits import KilledError, assert_same_weights, make_module, trained

from configs.schema import OptimConfig
from engine.build_phases import build_optimizer
from engine.fit import fit
from engine.fused import fused_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "lamb", "lars", "muon"])
def test_auto_is_on_a_gpu_where_torch_has_one(name):
    has_one = name in ("sgd", "adam", "adamw")
    assert fused_of("auto", name=name, device=GPU) == has_one
    assert not fused_of("auto", name=name, device=CPU)
    assert not fused_of("off", name=name, device=GPU)
    if has_one:
        assert fused_of("on", name=name, device=CPU)
        return
    with pytest.raises(ValueError, match=f"torch has no fused {name}; it has sgd, adam, adamw"):
        fused_of("on", name=name, device=GPU)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_optimizer_takes_the_same_steps(name):
    modules = [make_module() for _ in range(2)]
    for module, fused in zip(modules, ("on", "off"), strict=True):
        optimizer = build_optimizer(OptimConfig(name=name, lr=0.1), module, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) == (fused == "on")
        for step in range(3):
            inputs = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            module(inputs).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(*modules, tolerance=1e-12)


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_run_that_goes_on_computes_as_it_is_told_now(make_job, order):
    expected = make_module()
    made = []

    def job_of(name, *, fused, **options):
        def build(module):
            made.append(torch.optim.AdamW(trained(module), lr=0.01, fused=fused))
            return made[-1]

        job = make_job(name, **options)
        return job._replace(phases=[job.phases[0]._replace(build_optimizer=build)])

    fit(expected, job_of("straight", fused=False))
    with pytest.raises(KilledError):
        fit(make_module(), job_of("changed", fused=order[0], interrupt_after=6))
    module = make_module()
    fit(module, job_of("changed", fused=order[1]))
    assert made[-1].param_groups[0]["fused"] is order[1]
    assert_same_weights(module, expected, tolerance=1e-12)
