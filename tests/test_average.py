"""Averages, batch sizes and image sizes over time through train.py and evaluate.py, within this process."""

import json
import re
import shlex
import sys

import pytest
import torch
from programs import ROOT, epoch_rows, final_weights
from safetensors.torch import load_file

import evaluate
import train
from engine.checkpoint import has_average, newest_checkpoint, scored_checkpoint
from engine.fit import fit

SMALL = {"name": "resnet", "args": {"blocks": [1, 1], "widths": [4, 8]}}
ARGS = ("--model.args.blocks", "[1, 1]", "--model.args.widths", "[4, 8]")


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def run_train(monkeypatch, tmp_path):
    """run_train("name", "--option", ..., recipe=path): the run folder; `kill_in_step` ends it in that step."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(name, *options, recipe, kill_in_step=None):
        words = ["--config", str(recipe), "--run.out", str(tmp_path / name), "--run.num_threads", "1", *options]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["train.py", *words])
            if kill_in_step is None:
                train.main()
            else:
                patch.setattr("engine.run.fit", lambda module, job: fit(module, dying(job, in_step=kill_in_step)))
                with pytest.raises(KilledError):
                    train.main()
        return tmp_path / name

    return run


def dying(job, *, in_step):
    """The job, ended by its loss in that step; of one micro-batch each."""
    loss_fn, steps = job.loss_fn, []

    def loss_until(module, batch):
        steps.append(1)
        if len(steps) == in_step:
            raise KilledError
        return loss_fn(module, batch)

    return job._replace(loss_fn=loss_until)


def assert_same_run(folder, expected):
    newest = [newest_checkpoint(path / "checkpoints")[0] for path in (folder, expected)]
    assert has_average(newest[0]) == has_average(newest[1])
    files = ["model.safetensors", *["average.safetensors"] * has_average(newest[0])]
    for file in files:
        found, wanted = (load_file(path / file) for path in newest)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items()), file
    assert epoch_rows(folder) == epoch_rows(expected)
    assert (folder / "result.json").read_text() == (expected / "result.json").read_text()


@pytest.fixture
def growing(make_folder, small_recipe):
    """A recipe whose images grow from 16 to 24 pixels, and are scored at 32."""
    counts = {"dark": 12, "light": 12}
    root = make_folder({"train": counts, "val": counts, "test": counts}, size_px=40)
    return small_recipe(
        data={"dataset": "folder", "root": str(root)},
        input={"size_px": 32},
        augment={"crop": "rrc", "pad_px": 4, "flip": "random", "sizes_px": [[0, 16], [2, 24]]},
        model=SMALL,
        schedule={"name": "constant", "warmup_epochs": 0.0},
        train={"epochs": 4, "global_batch_size": 8, "bn_images": 24},
        run={"trackers": [], "checkpoint_every_steps": 1},
    )


def test_growing_images_and_statistics_measured_at_the_end_go_on_bit_for_bit(run_train, growing):
    straight = run_train("straight", recipe=growing)
    for step in (6, 7, 8):  # an epoch has 3 steps: the last at 16 pixels, the first and second at 24
        run_train(f"stopped{step}", recipe=growing, kill_in_step=step)
        assert_same_run(run_train(f"stopped{step}", recipe=growing), straight)
    plain = run_train("plain", "--train.bn_images", "0", recipe=growing)
    before, after = final_weights(plain), final_weights(straight)
    differing = {name for name, value in before.items() if not torch.equal(value, after[name])}
    of_bn = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert differing == of_bn, "nothing but the statistics is measured anew"
    losses = [[row["val/loss"] for row in epoch_rows(folder)] for folder in (plain, straight)]
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3] != losses[1][3]


def test_batch_sizes_over_time_go_on_bit_for_bit_and_show_in_the_schedule(run_train, small_recipe):
    recipe = small_recipe(
        optim={"name": "adamw", "lr": 0.003, "momentum": 0.0},
        train={"epochs": 3, "batch_sizes": [[0, 60], [1, 240]], "batch_lr": "sqrt"},
        average={"ema_decay": 0.9},
        evaluation={"tta": "flip"},
        run={"trackers": [], "checkpoint_every_steps": 1},
    )
    straight = run_train("straight", recipe=recipe)
    for step in (21, 22, 23):  # 1293 images: 21 steps of 60, then 5 of 240
        run_train(f"stopped{step}", recipe=recipe, kill_in_step=step)
        assert_same_run(run_train(f"stopped{step}", recipe=recipe), straight)
    assert [row["step"] for row in epoch_rows(straight)] == [21, 26, 31]
    schedule = json.loads((straight / "schedule.json").read_text())
    assert len(schedule["lr"]) == 31
    place = schedule["epoch"].index(1.0)
    assert schedule["lr"][place] / schedule["lr"][place - 1] == pytest.approx(2, rel=0.05), "root of 4"
    result = json.loads((straight / "result.json").read_text())
    names = {key.partition("/")[0] for key in result} - {"step", "epoch"}
    assert names == {"val", "test", "val_raw", "test_raw", "val_single", "test_single"}
    page = (straight / "report.html").read_text()
    assert f"test {100 * result['test_raw/top1_frac']:.2f} % by the weights themselves" in page
    assert f"test {100 * result['test_single/top1_frac']:.2f} % without test-time augmentation" in page


def test_the_commands_of_the_page_on_progressive_resizing_train(run_train, make_folder, tmp_path):
    """On other images, and smaller."""
    counts = {"dark": 8, "light": 8}
    root = make_folder({"train": counts, "val": counts, "test": counts}, size_px=40)
    page = (ROOT / "docs" / "averages.md").read_text()
    commands = re.findall(r"^    accelerate launch train\.py (--config .*sizes_px.*)$", page, flags=re.MULTILINE)
    assert len(commands) == 2
    for number, command in enumerate(commands):
        _, recipe, *options = shlex.split(command)
        smaller = ("--data.root", str(root), "--train.epochs", "2", "--train.global_batch_size", "8")
        smaller += ("--augment.sizes_px", "[[0, 16], [1, 24]]", "--input.size_px", "32", "--run.trackers", "[]")
        folder = run_train(f"run{number}", *options, *smaller, *ARGS, recipe=ROOT / recipe)
        assert has_average(scored_checkpoint(folder / "checkpoints")) == ("ema_decay" in command)


def evaluated(capsys, monkeypatch, folder, *options):
    """The numbers that evaluate.py prints."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(folder), "--run.num_threads", "1", *options])
    capsys.readouterr()
    evaluate.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test/")]
    return {key: float(value) for key, value in lines if key.count("/") == 1}


def test_evaluate_scores_the_average_or_the_weights_with_and_without_views(
    run_train, small_recipe, capsys, monkeypatch
):
    recipe = small_recipe(
        model=SMALL,
        average={"swa_start_epoch": 1, "bn_images": 300},
        evaluation={"tta": "flip_shift"},
        run={"trackers": [], "select": "last"},
    )
    folder = run_train("run", recipe=recipe)
    assert has_average(scored_checkpoint(folder / "checkpoints"))
    result = json.loads((folder / "result.json").read_text())
    ways = {"test": (), "test_raw": ("--weights", "raw"), "test_single": ("--evaluation.tta", "none")}
    losses = set()
    for name, options in ways.items():
        found = evaluated(capsys, monkeypatch, folder, *options)
        assert found == {
            key.replace(name, "test"): result[key]
            for key in result
            if key.startswith(f"{name}/") and key.count("/") == 1
        }
        losses.add(found["test/loss"])
    assert len(losses) == 3
