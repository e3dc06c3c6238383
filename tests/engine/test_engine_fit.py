"""The loop against a hand-written one in float64, and against itself after an interruption."""

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.bad_samples import BadSampleLog
from engine.checkpoint import load_training_state, newest_checkpoint, read_manifest
from engine.evaluation import evaluate
from engine.fit import FitSettings, Job, NonFiniteLossError, Phase, fit
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder
from engine.schedules import Plateau, constant, step_decay

NUM_CLASSES = 3


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :NUM_CLASSES].argmax(dim=1)


def make_module(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, NUM_CLASSES)).double()


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def make_job(tmp_path, runtime, make_loader, data):
    def make(name="run", *, val=True, interrupt_after=None, phases=None, bad=(), bad_val=(), **changes) -> Job:
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        progress = Progress(num_epochs=3, is_main=True, stream=io.StringIO())
        bad_log = BadSampleLog(folder, runtime=runtime, progress=progress)
        values = {
            "seed": 0,
            "select": "best",
            "log_every_steps": 2,
            "checkpoint_every_steps": 0,
            "keep_checkpoints": 2,
            "accumulation": 1,
            "epochs": 3,
            "label_smoothing": 0.0,
            "early_stop_epochs": None,
            "plateau": None,
            "momentum_at": None,
            "max_num_bad": 100,
        } | changes
        loss_fn, steps = supervised(label_smoothing=values["label_smoothing"]), []

        def interruptible(module, batch):
            steps.append(1)
            if interrupt_after is not None and len(steps) > interrupt_after:
                raise KilledError
            return loss_fn(module, batch)

        def validate(module, step):
            loader = make_loader(*data, batch_size=7, split="val", bad=bad_val)
            return evaluate(module, loader, num_classes=NUM_CLASSES, runtime=runtime, bad_log=bad_log, step=step)

        default = Phase(
            name="train",
            loader=make_loader(*data, batch_size=6, bad=bad, max_num_bad=values["max_num_bad"]),
            epochs=values["epochs"],
            accumulation=values["accumulation"],
            build_optimizer=lambda module: torch.optim.SGD(trained(module), lr=0.2, momentum=0.9),
            lr_factor=step_decay(step_size=3, gamma=0.5),
            momentum_at=values["momentum_at"],
            plateau=values["plateau"],
        )
        return Job(
            phases=phases or [default],
            loss_fn=interruptible,
            validate=validate if val else None,
            card={"model": {}, "class_names": ["a", "b", "c"], "input": {"size_px": 8}, "data": {"train": "1"}},
            config={"optim": {"lr": 0.2}},
            bad_log=bad_log,
            folder=folder,
            runtime=runtime,
            settings=FitSettings(**{name: values[name] for name in FitSettings._fields}),
            progress=progress,
        )

    return make


def trained(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def rows_of(job):
    rows = job.folder.read_metrics()
    timed = ("train/images_per_s", "train/data_wait_frac", "train/epoch_s")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def assert_same_weights(module, other, *, tolerance=0.0):
    for (name, value), expected in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=tolerance), name


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


def test_accumulation_reports_the_same_metrics(make_job):
    jobs = [make_job("whole"), make_job("parts", accumulation=3)]
    for job in jobs:
        fit(make_module(), job)
    for row, expected in zip(rows_of(jobs[1]), rows_of(jobs[0]), strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            assert value == pytest.approx(expected[key], abs=1e-6), key


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


def test_metrics_are_means_over_the_samples_since_the_last_row(make_job, data):
    job = make_job(epochs=1, log_every_steps=3)
    module = make_module()
    losses = []
    inner = job.loss_fn

    def recording(module, batch):
        output = inner(module, batch)
        losses.append((output.loss.item(), int(output.sums["top1_frac"])))
        return output

    fit(module, job._replace(loss_fn=recording))
    log_row, epoch_row = rows_of(job)
    assert log_row["step"] == 3
    assert log_row["epoch"] == 0.75
    assert log_row["train/loss"] == pytest.approx(sum(loss for loss, _ in losses[:3]) / 3)
    assert log_row["train/top1_frac"] == pytest.approx(sum(right for _, right in losses[:3]) / 18)
    assert epoch_row["train/epoch_loss"] == pytest.approx(sum(loss for loss, _ in losses) / 4)
    assert epoch_row["train/epoch_top1_frac"] == pytest.approx(sum(right for _, right in losses) / 24)


def test_the_ids_hash_tells_other_samples_and_another_order_of_steps(make_job, make_loader, data):
    inputs, labels = data

    def hash_of(name, order):
        loader = make_loader(inputs, labels, batch_size=6)
        shares = [torch.tensor(part) for part in order]
        template = list(loader)

        class Reordered(type(loader)):
            def __iter__(self):
                for batch, ids in zip(template, shares, strict=True):
                    yield batch._replace(ids_N=ids)

        job = make_job(name, epochs=1)
        phase = job.phases[0]._replace(loader=Reordered(inputs, labels, batch_size=6))
        fit(make_module(), job._replace(phases=[phase]))
        return rows_of(job)[-1]["train/ids_hash"]

    straight = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17], [18, 19, 20, 21, 22, 23]]
    within = [[5, 4, 3, 2, 1, 0], *straight[1:]]
    swapped = [[6, 1, 2, 3, 4, 5], [0, 7, 8, 9, 10, 11], *straight[2:]]
    other = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17], [18, 19, 20, 21, 22, 22]]
    expected = hash_of("straight", straight)
    assert hash_of("within", within) == expected
    assert hash_of("swapped", swapped) != expected
    assert hash_of("other", other) != expected


@pytest.mark.parametrize("bad_step", [1, 5, 12])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(make_job, bad_step):
    job = make_job(log_every_steps=4)
    inner, steps = job.loss_fn, []

    def poisoned(module, batch):
        steps.append(1)
        output = inner(module, batch)
        return output._replace(loss=output.loss * float("inf")) if len(steps) == bad_step else output

    with pytest.raises(NonFiniteLossError, match=rf"not finite at step {bad_step} "):
        fit(make_module(), job._replace(loss_fn=poisoned))
    checkpoint, _ = newest_checkpoint(job.folder.checkpoints)
    good_epochs = (bad_step - 1) // 4
    assert (checkpoint is None) == (good_epochs == 0)
    if checkpoint is not None:
        assert read_manifest(checkpoint)["step"] == 4 * good_epochs


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


def two_phases(make_loader, data):
    def phase(name, trains, lr):
        return Phase(
            name=name,
            loader=make_loader(*data, batch_size=6),
            epochs=2,
            accumulation=1,
            build_optimizer=lambda module: torch.optim.AdamW(trained(module), lr=lr),
            lr_factor=constant(),
            trains=trains,
        )

    return [phase("head", lambda name: name.startswith("3."), 0.1), phase("all", lambda name: True, 0.01)]


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
    monkeypatch.setattr(runtime, "average_buffers", lambda module: None)
    with pytest.raises(ValueError, match=r"take no part in its output: spare\.weight, spare\.bias\. With several"):
        fit(module, make_job("two"))
    module.spare.requires_grad_(False)
    fit(module, make_job("frozen"))


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


# --- images that cannot be read

BAD = (2, 3, 13, 23)  # in steps 1, 1, 3 and 4 of each epoch of 4


def met_in(rows):
    return [(row["epoch"], row["step"], row["sample_id"]) for row in rows]


def test_every_bad_image_of_every_epoch_is_written_with_the_steps_done_and_counted(make_job):
    job = make_job(bad=BAD)
    fit(make_module(), job)
    rows = job.folder.read_bad_samples()
    assert met_in(rows) == [(epoch, (0, 0, 2, 3)[number], BAD[number]) for epoch in range(3) for number in range(4)]
    # written at log steps (every second), which the last step of an epoch is not, and at the end of epochs
    assert [row["after_step"] for row in rows] == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12]
    epochs = [row for row in rows_of(job) if "train/epoch_loss" in row]
    assert [row["train/num_bad"] for row in epochs] == [4, 4, 4]


def test_a_run_without_bad_images_says_nothing_of_them(make_job):
    job = make_job()
    fit(make_module(), job)
    assert not (job.folder.path / "bad_samples.jsonl").exists()
    assert not any("train/num_bad" in row for row in rows_of(job))


@pytest.mark.parametrize(("max_num_bad", "after_step", "num_written"), [(0, 2, 2), (1, 2, 2), (2, 4, 4), (3, 4, 4)])
def test_too_many_bad_images_in_an_epoch_stop_the_run_at_the_next_look_and_are_all_written(
    make_job, max_num_bad, after_step, num_written
):
    job = make_job(bad=BAD, max_num_bad=max_num_bad)
    with pytest.raises(ValueError, match=rf"{num_written} of 24 images of this epoch .* allows {max_num_bad}\."):
        fit(make_module(), job)
    rows = job.folder.read_bad_samples()
    assert met_in(rows) == [(0, (0, 0, 2, 3)[number], BAD[number]) for number in range(num_written)]
    assert {row["after_step"] for row in rows} <= {2, after_step}
    assert newest_checkpoint(job.folder.checkpoints)[0] is None, "no epoch was finished with so much amiss"


def test_the_limit_counts_each_epoch_for_itself(make_job):
    job = make_job(bad=BAD, max_num_bad=4)
    fit(make_module(), job)
    assert len(job.folder.read_bad_samples()) == 12


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


def test_bad_images_of_val_are_written_once_however_often_it_is_scored(make_job):
    job = make_job(bad_val=(1, 20))
    fit(make_module(), job)
    rows = job.folder.read_bad_samples()
    assert [(row["split"], row["sample_id"], row["after_step"]) for row in rows] == [("val", 1, 4), ("val", 20, 4)]
    assert [row["val/num_excluded"] for row in rows_of(job) if "val/loss" in row] == [2, 2, 2]


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

    monkeypatch.setattr("engine.fit.load_training_state", load_older)
    module = make_module()
    fit(module, make_job("stopped"))
    assert_same_weights(module, expected)


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
