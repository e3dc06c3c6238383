"""Averages of the weights against torch's own and hand-written ones, and fits with them."""

import pytest
import torch
from safetensors.torch import load_file
from small_fits import KilledError, assert_same_weights, make_module, rows_of
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.averages import Average, Ema, Swa
from engine.checkpoint import has_average, load_weights, newest_checkpoint, read_manifest, save_checkpoint
from engine.fit import fit
from engine.schedules import Plateau
from engine.writer import snapshot

KINDS = {
    "ema": Ema(0.9, warmup=True, every_steps=1),
    "ema every 3 steps": Ema(0.9, warmup=False, every_steps=3),
    "swa": Swa(1, bn_loader=None),
}


def walk(module, num_steps=30):
    """The weights on a random walk: (step, module)."""
    generator = torch.Generator().manual_seed(0)
    for step in range(num_steps):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        yield step


def test_ema_without_warm_up_is_torchs():
    module = make_module()
    average, reference = Average(module), AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in walk(module):
        average.add(module, Ema(0.9, warmup=False, every_steps=1))
        reference.update_parameters(module)
    assert_same_weights(average.module, reference.module)
    assert average.num_averaged == 30


def test_ema_warms_up_by_one_plus_t_over_ten_plus_t():
    module = make_module()
    average, expected = Average(module), None
    for step in walk(module):
        average.add(module, Ema(0.7, warmup=True, every_steps=1))
        weight = module[0].weight.detach()
        decay = min(0.7, (1 + step) / (10 + step))
        expected = weight.clone() if expected is None else decay * expected + (1 - decay) * weight
        assert torch.allclose(average.module[0].weight, expected, rtol=0, atol=1e-13)
    assert (1 + 29) / (10 + 29) > 0.7, "the walk must come to the end of the warm-up"


def test_swa_is_the_equal_mean_and_torchs_to_its_float32_of_one_over_n():
    module = make_module()
    average, reference, seen = Average(module), AveragedModel(module), []
    for _ in walk(module):
        average.add(module, Swa(0, bn_loader=None))
        reference.update_parameters(module)
        seen.append(module[3].weight.detach().clone())
    assert_same_weights(average.module, reference.module, tolerance=1e-6)
    assert torch.allclose(average.module[3].weight, torch.stack(seen).mean(0), rtol=0, atol=1e-13)


def test_floating_point_buffers_are_averaged_and_counters_copied():
    module = nn.BatchNorm1d(3).double()
    average = Average(module)
    means = []
    for _ in range(4):
        module(torch.randn(8, 3, dtype=torch.float64))
        means.append(module.running_mean.clone())
        average.add(module, Swa(0, bn_loader=None))
    assert torch.allclose(average.module.running_mean, torch.stack(means).mean(0), rtol=0, atol=1e-14)
    assert average.module.num_batches_tracked == 4


def test_an_average_is_a_network_of_its_own_in_evaluation_mode_without_gradients():
    module = make_module(dropout=0.5).float()
    average = Average(module)
    average.add(module, KINDS["ema"])
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert average.module[0].weight.dtype == torch.float32
    before = average.module[0].weight.clone()
    next(walk(module))
    assert torch.equal(average.module[0].weight, before)


def weights_of_steps(make_job, module, **settings):
    """Fits; gives the weights after each step, seen by the loss of the next."""
    job, seen = make_job("seen", **settings), []
    inner = job.loss_fn

    def looking(network, batch):
        seen.append(module[0].weight.detach().clone())
        return inner(network, batch)

    fit(module, job._replace(loss_fn=looking))
    return [*seen[1:], module[0].weight.detach().clone()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_averages_the_weights_of_its_steps_or_epochs(make_job, kind):
    seen = weights_of_steps(make_job, make_module())
    job = make_job(average=KINDS[kind])
    state = fit(make_module(), job)
    match kind:
        case "ema":
            expected = seen[0]
            for step in range(1, 12):
                decay = min(0.9, (1 + step) / (10 + step))
                expected = decay * expected + (1 - decay) * seen[step]
        case "ema every 3 steps":
            expected = seen[2]
            for step in (5, 8, 11):
                expected = 0.9 * expected + 0.1 * seen[step]
        case _:
            expected = (seen[7] + seen[11]) / 2  # after epochs 1 and 2, counted from 0, of 4 steps
    assert state.average is not None
    assert torch.allclose(state.average.module[0].weight, expected, rtol=0, atol=1e-13)
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    saved = load_file(newest / "average.safetensors")
    assert torch.equal(saved["0.weight"], state.average.module[0].weight)
    assert torch.equal(load_file(newest / "model.safetensors")["0.weight"], state.module[0].weight)
    judged, raw = make_module(), make_module()
    load_weights(judged, newest)
    load_weights(raw, newest, weights="raw")
    assert_same_weights(judged, state.average.module)
    assert_same_weights(raw, state.module)


def test_training_itself_is_not_changed_by_an_average(make_job):
    plain, averaged = make_module(dropout=0.5), make_module(dropout=0.5)
    fit(plain, make_job("plain"))
    job = make_job("averaged", average=KINDS["ema"])
    fit(averaged, job)
    assert_same_weights(averaged, plain)


def test_a_run_is_judged_by_its_average_and_the_weights_are_scored_beside_it(make_job):
    plain, job = make_job("plain"), make_job("averaged", average=Ema(0.99, warmup=False, every_steps=1))
    fit(make_module(), plain)
    state = fit(make_module(), job)
    of_plain = [row for row in rows_of(plain) if "val/loss" in row]
    rows = [row for row in rows_of(job) if "val/loss" in row]
    for row, wanted in zip(rows, of_plain, strict=True):
        assert (row["val_raw/top1_frac"], row["val_raw/loss"]) == (wanted["val/top1_frac"], wanted["val/loss"])
        assert row["val/loss"] != row["val_raw/loss"]
    assert "val_raw/loss" not in of_plain[0]
    best = max(rows, key=lambda row: (row["val/top1_frac"], -row["val/loss"]))
    assert (state.best_step, state.best_score) == (best["step"], (best["val/top1_frac"], -best["val/loss"]))


def test_until_swa_begins_a_run_is_judged_by_its_weights(make_job):
    job = make_job(average=Swa(1, bn_loader=None), keep_checkpoints=9)
    fit(make_module(), job)
    rows = [row for row in rows_of(job) if "val/loss" in row]
    assert ["val_raw/loss" in row for row in rows] == [False, True, True]
    assert rows[1]["val/loss"] == rows[1]["val_raw/loss"], "one epoch is its own mean"
    assert rows[2]["val/loss"] != rows[2]["val_raw/loss"]
    checkpoints = sorted(job.folder.checkpoints.iterdir())
    assert [has_average(path) for path in checkpoints] == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interrupt_after", [1, 4, 7, 8, 9, 17])
@pytest.mark.parametrize("checkpoint_every_steps", [0, 1])
def test_a_run_with_an_average_continues_as_if_never_stopped(make_job, kind, interrupt_after, checkpoint_every_steps):
    """Micro-batches are counted, two to a step: 4 and 8 are ends of steps, 8 of an epoch, 7 and 9 lie within a step."""
    settings = {
        "average": KINDS[kind],
        "accumulation": 2,
        "checkpoint_every_steps": checkpoint_every_steps,
        "plateau": Plateau(0.5, patience_epochs=0, threshold_frac=0.5, min_factor=0.0),
        "early_stop_epochs": 2,
    }
    straight, expected = make_job("straight", **settings), make_module(dropout=0.5)
    wanted = fit(expected, straight)
    with pytest.raises(KilledError):
        fit(make_module(dropout=0.5), make_job("stopped", interrupt_after=interrupt_after, **settings))
    torch.manual_seed(123)
    module, continued = make_module(dropout=0.5), make_job("stopped", **settings)
    state = fit(module, continued)
    assert_same_weights(module, expected)
    assert_same_weights(state.average.module, wanted.average.module)
    assert rows_of(continued) == rows_of(straight)
    for name in ("step", "best_step", "plateau", "num_stale_epochs"):
        assert getattr(state, name) == getattr(wanted, name)
    assert state.average.num_averaged == wanted.average.num_averaged > 1


@pytest.fixture
def checkpoint(tmp_path):
    module, other = make_module(), make_module()
    next(walk(other))
    weights, average = (snapshot(each.state_dict()) for each in (module, other))
    return save_checkpoint(
        tmp_path, step=1, best_step=None, weights=weights, card={}, training_state={}, average=average
    )


def test_an_average_is_in_the_manifest_and_damage_to_it_is_found(checkpoint):
    assert sorted(read_manifest(checkpoint)["sha256"]) == [
        "average.safetensors",
        "model.json",
        "model.safetensors",
        "training_state.pt",
    ]
    assert newest_checkpoint(checkpoint.parent) == (checkpoint, [])
    with open(checkpoint / "average.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert newest_checkpoint(checkpoint.parent) == (
        None,
        ["step_00000001: damaged (average.safetensors changed since it was written), passed over"],
    )
    (checkpoint / "average.safetensors").unlink()
    _, passed_over = newest_checkpoint(checkpoint.parent)
    assert passed_over == ["step_00000001: incomplete (average.safetensors is missing), passed over"]


def test_an_average_that_is_not_finite_is_not_saved(make_job):
    job, module = make_job(average=KINDS["ema"]), make_module()
    inner = job.validate

    def spoil(network, step):
        score = inner(network, step)
        if not network[0].weight.requires_grad:
            network[0].weight.fill_(float("nan"))
        return score

    with pytest.raises(FloatingPointError, match="weights are not finite after step 4"):
        fit(module, job._replace(validate=spoil))
    assert torch.isfinite(module[0].weight).all(), "the average alone was spoilt"
