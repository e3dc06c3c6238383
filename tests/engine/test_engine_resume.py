"""A fit against itself after an interruption, and what it refuses to continue from."""

import json

import pytest
import torch
from small_fits import BAD, KilledError, assert_same_weights, make_module, rows_of, two_phases

from engine.checkpoint import load_training_state, newest_checkpoint, read_manifest
from engine.fit import fit
from engine.schedules import Plateau
from engine.totals import NonFiniteLossError


@pytest.mark.parametrize("interrupt_after", [1, 3, 4, 5, 9, 11])
@pytest.mark.parametrize("checkpoint_every_steps", [0, 1, 3])
def test_a_run_that_continues_equals_one_that_never_stopped(make_job, interrupt_after, checkpoint_every_steps):
    settings = {"checkpoint_every_steps": checkpoint_every_steps}
    expected = make_module(dropout=0.5)
    straight = make_job("straight", **settings)
    fit(expected, straight)
    with pytest.raises(KilledError):
        fit(make_module(dropout=0.5), make_job("stopped", interrupt_after=interrupt_after, **settings))
    torch.manual_seed(123)  # no generator's state is carried over
    module = make_module(dropout=0.5)
    continued = make_job("stopped", **settings)
    state = fit(module, continued)
    assert_same_weights(module, expected)
    assert rows_of(continued) == rows_of(straight)
    assert state.step == 12


def test_a_finished_fit_does_nothing_more(make_job):
    module = make_module()
    fit(module, make_job())
    again, job = make_module(), make_job(interrupt_after=0)
    assert fit(again, job).step == 12
    assert_same_weights(again, module)


@pytest.mark.parametrize("interrupt_after", [2, 7, 8, 9, 13])  # a phase has 8 steps
def test_an_interruption_in_any_phase_changes_nothing(make_job, make_loader, data, interrupt_after):
    expected, settings = make_module(), {"checkpoint_every_steps": 1}
    straight = make_job("straight", phases=two_phases(make_loader, data), **settings)
    fit(expected, straight)
    stopped = make_job("stopped", phases=two_phases(make_loader, data), interrupt_after=interrupt_after, **settings)
    with pytest.raises(KilledError):
        fit(make_module(), stopped)
    module, continued = make_module(), make_job("stopped", phases=two_phases(make_loader, data), **settings)
    fit(module, continued)
    assert_same_weights(module, expected)
    assert rows_of(continued) == rows_of(straight)


def test_metrics_after_the_checkpoint_are_written_once(make_job):
    with pytest.raises(KilledError):
        fit(make_module(), make_job(interrupt_after=7))  # rows of steps 2, 4 and 6; the checkpoint is of step 4
    with open(make_job().folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/lo')  # a kill cut this line
    job = make_job()
    fit(make_module(), job)
    steps = [json.loads(line)["step"] for line in (job.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_weights_that_are_not_finite_are_never_saved(make_job):
    job = make_job(checkpoint_every_steps=1)
    inner, steps = job.loss_fn, []

    def exploding(module, batch):
        steps.append(1)
        output = inner(module, batch)
        if len(steps) == 3:  # a finite loss whose gradient is not
            parameter = next(module.parameters())
            parameter.register_hook(lambda gradient: gradient * float("inf"))
        return output

    with pytest.raises(NonFiniteLossError, match="weights are not finite after step 3"):
        fit(make_module(), job._replace(loss_fn=exploding))
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    assert read_manifest(newest)["step"] == 2


def test_other_data_than_the_checkpoints_is_refused_before_training(make_job):
    with pytest.raises(KilledError):
        fit(make_module(), make_job(interrupt_after=6))
    job = make_job(interrupt_after=0)
    card = job.card | {"data": {"train": "1", "test": "2"}, "input": {"size_px": 9}}
    with pytest.raises(ValueError, match=r"the data has changed since .*step_00000004 was written: test/, input"):
        fit(make_module(), job._replace(card=card))


def test_a_broken_best_checkpoint_is_found_before_training(make_job):
    job = make_job(val=True)
    state = fit(make_module(), job)
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    manifest = read_manifest(newest)
    assert state.best_step is not None
    (newest / "manifest.json").write_text(json.dumps(manifest | {"best_step": 1}))
    with pytest.raises(FileNotFoundError, match="step_00000001, the best checkpoint so far, is incomplete"):
        fit(make_module(), make_job(interrupt_after=0))


def test_starting_again_without_a_checkpoint_is_said(make_job):
    job = make_job()
    fit(make_module(), job)
    for path in job.folder.checkpoints.iterdir():
        (path / "manifest.json").unlink()
    again = make_job()
    fit(make_module(), again)
    said = again.progress._stream.getvalue()
    assert "no whole checkpoint: starting from step 0, 6 rows of metrics.jsonl are dropped" in said
    assert len(rows_of(again)) == 6


@pytest.mark.parametrize("steps", [4, 9, 12, 17])
def test_plateau_and_early_stopping_continue_as_if_never_stopped(make_job, steps):
    options = {
        "epochs": 30,
        # upwards, so that training soon diverges and stops early
        "plateau": Plateau(30.0, patience_epochs=0, threshold_frac=0.5, min_factor=0.0),
        "early_stop_epochs": 3,
        "checkpoint_every_steps": 3,
    }
    whole, parts = make_module(), make_module()
    whole_job = make_job("whole", **options)
    wanted = fit(whole, whole_job)
    assert 17 < wanted.step < 120, "the test must see an early stop"
    with pytest.raises(KilledError):
        fit(parts, make_job("parts", interrupt_after=steps, **options))
    parts, job = make_module(), make_job("parts", **options)
    state = fit(parts, job)
    assert_same_weights(parts, whole)
    assert (state.step, state.best_step, state.plateau) == (wanted.step, wanted.best_step, wanted.plateau)
    assert rows_of(job) == rows_of(whole_job)
    again = fit(make_module(), make_job("parts", **options))
    assert again.step == wanted.step, "a run that stopped early does not train on"


@pytest.mark.parametrize("interrupt_after", [1, 3, 7])
@pytest.mark.parametrize("checkpoint_every_steps", [0, 1, 3])
def test_a_run_that_continues_lists_each_bad_image_as_one_that_never_stopped(
    make_job, interrupt_after, checkpoint_every_steps
):
    settings = {"bad": BAD, "checkpoint_every_steps": checkpoint_every_steps, "max_num_bad": 4}
    straight = make_job("straight", **settings)
    expected = make_module()
    fit(expected, straight)
    with pytest.raises(KilledError):
        fit(make_module(), make_job("stopped", interrupt_after=interrupt_after, **settings))
    module, continued = make_module(), make_job("stopped", **settings)
    fit(module, continued)
    assert_same_weights(module, expected)
    assert rows_of(continued) == rows_of(straight)
    assert continued.folder.read_bad_samples() == straight.folder.read_bad_samples()


def test_the_limit_counts_what_was_met_before_an_interruption(make_job):
    settings = {"bad": BAD, "checkpoint_every_steps": 3, "max_num_bad": 3}
    with pytest.raises(KilledError):
        fit(make_module(), make_job(interrupt_after=3, **settings))  # two of four are met
    with pytest.raises(ValueError, match="4 of 24 images of this epoch"):
        fit(make_module(), make_job(**settings))


@pytest.mark.parametrize("interrupt_after", [5, 9])
def test_bad_images_of_val_are_written_once_over_an_interruption_too(make_job, interrupt_after):
    straight = make_job("straight", bad_val=(1, 20))
    fit(make_module(), straight)
    with pytest.raises(KilledError):
        fit(make_module(), make_job("stopped", bad_val=(1, 20), interrupt_after=interrupt_after))
    continued = make_job("stopped", bad_val=(1, 20))
    fit(make_module(), continued)
    assert continued.folder.read_bad_samples() == straight.folder.read_bad_samples()


def test_a_run_from_before_bad_images_were_counted_goes_on(make_job, monkeypatch):
    expected = make_module()
    fit(expected, make_job("straight"))
    with pytest.raises(KilledError):
        fit(make_module(), make_job("stopped", interrupt_after=5))

    def load_older(checkpoint):
        saved = load_training_state(checkpoint)
        del saved["num_bad_written"], saved["totals"]["num_bad"]
        return saved

    monkeypatch.setattr("engine.resume.load_training_state", load_older)
    module = make_module()
    fit(module, make_job("stopped"))
    assert_same_weights(module, expected)


START = {"name": "timm/resnet18.a1_in1k", "sha256": "ab12"}


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (START, START | {"sha256": "cd34"}, r"timm/resnet18\.a1_in1k, are .*\(timm/resnet18\.a1_in1k now\)"),
        (START, None, r"timm/resnet18\.a1_in1k, are others .*\(random ones now\)"),
        (None, START, r"random ones, are others .*\(timm/resnet18\.a1_in1k now\)"),  # train.py's, then finetune.py
    ],
)
def test_a_run_does_not_go_on_from_other_start_weights(make_job, then, now, told):
    job = make_job(interrupt_after=6)
    with pytest.raises(KilledError):
        fit(make_module(), job._replace(card=job.card | ({} if then is None else {"start": then})))
    again = make_job(interrupt_after=0)
    with pytest.raises(ValueError, match=rf"this run started from, {told}"):
        fit(make_module(), again._replace(card=again.card | ({} if now is None else {"start": now})))


def test_the_same_start_weights_elsewhere_go_on(make_job):
    job, expected = make_job("straight"), make_module()
    fit(expected, job)
    stopped = make_job("stopped", interrupt_after=6)
    with pytest.raises(KilledError):
        fit(make_module(), stopped._replace(card=stopped.card | {"start": START}))
    module, again = make_module(), make_job("stopped")
    fit(module, again._replace(card=again.card | {"start": START | {"name": "runs/moved"}}))
    assert_same_weights(module, expected)
