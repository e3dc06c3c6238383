"""The loop against a hand-written one in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_fits import assert_same_weights, make_module, rows_of, trained, two_phases
from torch import nn

from engine.checkpoint import newest_checkpoint, read_manifest
from engine.fit import fit
from engine.schedules import Plateau
from engine.stopping import Agreement


def test_fit_is_the_hand_written_loop(make_job, data):
    job, module = make_job(label_smoothing=0.1), make_module()
    reference = copy.deepcopy(module)
    fit(module, job)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.9)
    inputs, labels = data
    for step in range(12):
        rows = slice(step % 4 * 6, step % 4 * 6 + 6)
        optimizer.param_groups[0]["lr"] = 0.2 * 0.5 ** (step // 3)
        optimizer.zero_grad()
        F.cross_entropy(reference(inputs[rows]), labels[rows], label_smoothing=0.1).backward()
        optimizer.step()
    assert_same_weights(module, reference, tolerance=1e-12)


@pytest.mark.parametrize("accumulation", [2, 3, 4])  # 4 micro-batches of 6 samples are of 1, 2, 1 and 2
def test_accumulation_gives_the_gradients_of_the_whole_batch(make_job, accumulation):
    whole, parts = make_module(), make_module()
    fit(whole, make_job("whole"))
    fit(parts, make_job("parts", accumulation=accumulation))
    assert_same_weights(parts, whole, tolerance=1e-9)


def test_the_best_checkpoint_is_the_one_with_the_highest_val_accuracy(make_job):
    job = make_job(keep_checkpoints=1)
    state = fit(make_module(), job)
    epochs = [row for row in rows_of(job) if "val/top1_frac" in row]
    best = max(epochs, key=lambda row: (row["val/top1_frac"], -row["val/loss"]))
    assert state.best_step == best["step"]
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    assert read_manifest(newest)["best_step"] == best["step"]
    kept = {f"step_{best['step']:08d}", "step_00000012"}
    assert {path.name for path in job.folder.checkpoints.iterdir()} == kept


def test_without_val_the_last_checkpoint_counts(make_job):
    job = make_job(val=False, select="last")
    fit(make_module(), job)
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    assert read_manifest(newest)["best_step"] is None
    assert "val/loss" not in rows_of(job)[-1]


def test_a_phase_trains_only_what_it_says(make_job, make_loader, data):
    module, before = make_module(), make_module()
    fit(module, make_job(phases=two_phases(make_loader, data)[:1]))
    assert torch.equal(module[0].weight, before[0].weight)
    assert not torch.equal(module[3].weight, before[3].weight)
    fit(module, make_job("all", phases=two_phases(make_loader, data)))
    assert not torch.equal(module[0].weight, before[0].weight)


def test_what_a_network_freezes_itself_stays_frozen(make_job):
    module, before = make_module(), make_module()
    module[0].requires_grad_(False)
    fit(module, make_job())
    assert torch.equal(module[0].weight, before[0].weight)
    assert not torch.equal(module[3].weight, before[3].weight)


def test_among_several_processes_a_parameter_without_a_gradient_is_named(make_job, runtime, monkeypatch):
    module = make_module()
    module.register_module("spare", nn.Linear(2, 2).double())
    module.forward = lambda inputs: module[3](module[1](module[0](inputs)))
    fit(module, make_job("one"))  # alone it does no harm
    monkeypatch.setattr(runtime, "world_size", 2)
    monkeypatch.setattr(runtime, "average_buffers", lambda module, frozen_norms: None)
    monkeypatch.setattr("engine.fit.Agreement", lambda world_size: Agreement(1))
    with pytest.raises(ValueError, match=r"take no part in its output: spare\.weight, spare\.bias\. With several"):
        fit(module, make_job("two"))
    module.spare.requires_grad_(False)
    fit(module, make_job("frozen"))


def test_bad_images_of_val_are_written_once_however_often_it_is_scored(make_job):
    job = make_job(bad_val=(1, 20))
    fit(make_module(), job)
    rows = job.folder.read_bad_samples()
    assert [(row["split"], row["sample_id"], row["after_step"]) for row in rows] == [("val", 1, 4), ("val", 20, 4)]
    assert [row["val/num_excluded"] for row in rows_of(job) if "val/loss" in row] == [2, 2, 2]


def test_momentum_follows_its_schedule(make_job, data):
    job, module = make_job(momentum_at=lambda step: 0.5 + step / 100), make_module()
    reference = copy.deepcopy(module)
    fit(module, job)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.9)
    inputs, labels = data
    for step in range(12):
        rows = slice(step % 4 * 6, step % 4 * 6 + 6)
        optimizer.param_groups[0].update(lr=0.2 * 0.5 ** (step // 3), momentum=0.5 + step / 100)
        optimizer.zero_grad()
        F.cross_entropy(reference(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    assert_same_weights(module, reference, tolerance=1e-12)


def val_losses(job):
    return [row["val/loss"] for row in job.folder.read_metrics() if "val/loss" in row]


def test_plateau_lowers_the_rate_by_the_loss_on_val(make_job):
    """Nothing counts as lower, so every second epoch without progress halves the rate."""
    job = make_job(epochs=8, plateau=Plateau(0.5, patience_epochs=1, threshold_frac=1.0, min_factor=0.1))
    fit(make_module(), job)
    rates = [row["lr"] for row in job.folder.read_metrics() if "val/loss" in row]
    decay = [0.2 * 0.5 ** ((4 * epoch - 1) // 3) for epoch in range(1, 9)]
    assert [rate / base for rate, base in zip(rates, decay, strict=True)] == pytest.approx(
        [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    )
    assert len(val_losses(job)) == 8


def test_early_stopping_waits_for_so_many_epochs_without_a_better_score(make_job):
    job = make_job(epochs=30, early_stop_epochs=4)
    state = fit(make_module(), job)
    rows = [row for row in job.folder.read_metrics() if "val/loss" in row]
    scores = [(row["val/top1_frac"], -row["val/loss"]) for row in rows]
    best = scores.index(max(scores))
    assert len(rows) == best + 1 + 4 < 30
    assert state.best_step == rows[best]["step"]
    assert "stopped early after" in job.progress._stream.getvalue()


@pytest.mark.parametrize(
    "options", [{"early_stop_epochs": 2}, {"plateau": Plateau(0.5, 1, 0.0, 0.0)}], ids=["early_stop", "plateau"]
)
def test_without_val_early_stopping_and_plateau_are_refused_before_any_step(make_job, options):
    job = make_job(val=False, **options)
    with pytest.raises(ValueError, match="there is no val"):
        fit(make_module(), job)
    assert not job.folder.read_metrics()


def gradients_of(job, module):
    """Gradients as the optimizer met them, at each step of a fit."""
    met = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            met.append([parameter.grad.clone() for group in self.param_groups for parameter in group["params"]])
            super().step()

    phase = job.phases[0]._replace(build_optimizer=lambda module: Spy(trained(module), lr=0.2))
    fit(module, job._replace(phases=[phase]))
    return met


def lengths(met):
    return [torch.cat([one.flatten() for one in step]).norm().item() for step in met]


def test_gradients_are_shortened_to_clip_norm_and_their_length_before_is_logged(make_job):
    """After the first step the weights differ, so it is the first that is compared."""
    free = gradients_of(make_job("free"), make_module())
    job = make_job("clipped", clip_norm=0.05, log_every_steps=1)
    clipped = gradients_of(job, make_module())
    assert lengths(free)[0] > 0.05
    assert lengths(clipped) == pytest.approx([min(0.05, length) for length in lengths(clipped)], rel=1e-4)
    scale = lengths(free)[0] / 0.05
    for one, other in zip(clipped[0], free[0], strict=True):
        torch.testing.assert_close(one * scale, other, rtol=1e-4, atol=0)
    logged = [row["train/grad_norm"] for row in job.folder.read_metrics() if "train/grad_norm" in row]
    assert logged[0] == pytest.approx(lengths(free)[0], rel=1e-9)
    assert len(logged) == 9, "at each step but the last of each epoch"


def test_gradients_are_clamped_to_clip_value(make_job):
    free = gradients_of(make_job("free"), make_module())[0]
    clamped = gradients_of(make_job("clamped", clip_value=0.01), make_module())[0]
    assert any(one.abs().max() > 0.01 for one in free)
    for one, other in zip(clamped, free, strict=True):
        assert torch.equal(one, other.clamp(-0.01, 0.01))


def test_the_length_of_gradients_is_measured_at_log_steps_and_changes_nothing(make_job):
    seldom, often = make_job("seldom", log_every_steps=100), make_job("often", log_every_steps=2)
    modules = [make_module(), make_module()]
    met = gradients_of(often, modules[0])
    fit(
        modules[1],
        seldom._replace(
            phases=[seldom.phases[0]._replace(build_optimizer=lambda m: torch.optim.SGD(trained(m), lr=0.2))]
        ),
    )
    assert_same_weights(*modules)
    logged = {row["step"]: row["train/grad_norm"] for row in often.folder.read_metrics() if "train/grad_norm" in row}
    assert logged == {step: pytest.approx(lengths(met)[step - 1]) for step in (2, 6, 10)}


def test_a_group_that_ends_sooner_stands_still_from_then_on(make_job):
    job, module = make_job(), make_module()
    until = {"until_epoch": 1.0}

    def build(module):
        head = list(module[3].parameters())
        return torch.optim.SGD([{"params": list(module[0].parameters())}, {"params": head, **until}], lr=0.2)

    phase = job.phases[0]._replace(build_optimizer=build, lr_factors={1.0: lambda step: float(step < 4)})
    heads = []
    watched = job._replace(
        phases=[phase],
        validate=lambda module, step: heads.append(module[3].weight.clone()) or job.validate(module, step),
    )
    start = module[3].weight.clone()
    fit(module, watched)
    assert not torch.equal(start, heads[0])
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])
