"""SIGKILL at random moments, some while a checkpoint is written; the end is as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from programs import ROOT, epoch_rows, succeed
from safetensors.torch import load_file

from engine.checkpoint import load_training_state, newest_checkpoint

NUM_KILLS = int(os.environ.get("EXACTVISION_KILLS", "10"))  # `make kills` has 50


def wait_for(condition, process, *, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            return False  # it came to its end before
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.0005)
    return True


def start_and_kill(command, folder: Path, *, while_writing: bool, delay_s: float) -> str:
    """Starts the run, kills it at a moment of its training; gives what was found half-written, or ''."""
    before = newest_checkpoint(folder / "checkpoints")[0]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    checkpoints = folder / "checkpoints"
    try:
        if wait_for(lambda: newest_checkpoint(checkpoints)[0] not in (None, before), process):
            time.sleep(delay_s)
            if while_writing:
                wait_for(lambda: any(checkpoints.glob("*.tmp")), process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return ", ".join(path.name for path in checkpoints.glob("*.tmp"))


MODEL = {"name": "simple_cnn", "args": {"width": 32, "hidden": 256, "norm": "batch", "dropout": 0.3}}
OFTEN = {"checkpoint_every_steps": 2, "log_every_steps": 3, "trackers": []}
PLAIN = {"optim": {"name": "adamw", "lr": 0.001, "momentum": 0.0}, "train": {"global_batch_size": 60}}
# each with what the other cannot have: an EMA or a SWA, a plateau or a schedule of steps that goes on over phases
WITH_EMA = {
    "optim": {
        "name": "muon", "lr": 0.02, "momentum": 0.9, "nesterov": True, "clip_norm": 1.0,
        "groups": [
            {"match": ["head.*"], "name": "adamw", "lr": 0.002},
            {"only": "vectors", "name": "sgd", "lr": 0.01, "until_epoch": 3},
        ],
    },
    "augment": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "mix_until_epoch": 4.5},
    "schedule": {"name": "plateau", "patience_epochs": 1, "gamma": 0.7, "warmup_epochs": 0.5},
    "train": {
        "global_batch_size": 60, "batch_sizes": [[0, 60], [2, 120]], "batch_lr": "sqrt", "accumulation": 3,
        "early_stop_epochs": 50,
    },
    "average": {"ema_decay": 0.98, "ema_every_steps": 2},
    "loss": {"name": "focal", "label_smoothing": 0.1},
}  # fmt: skip
WITH_SWA = {
    "optim": {"name": "lamb", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.02, "no_decay": "norms_and_biases"},
    "schedule": {"name": "linear", "warmup_epochs": 1, "cooldown_epochs": 2, "final_lr_frac": 0.1},
    "train": {"global_batch_size": 60, "batch_sizes": [[0, 120], [1, 60], [3, 120]], "accumulation": 2},
    "average": {"swa_start_epoch": 2, "swa_lr_frac": 0.2, "bn_images": 300},
    "loss": {"name": "bce", "balance": "inverse"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "num_kills", "epochs"),
    [
        (PLAIN, NUM_KILLS, NUM_KILLS * 6 // 5),
        (WITH_EMA, NUM_KILLS // 2, NUM_KILLS // 2 + 4),
        (WITH_SWA, NUM_KILLS // 2, NUM_KILLS // 2 + 4),
    ],
    ids=["plain", "with_ema", "with_swa"],
)
def test_many_kills_in_a_row_change_no_bit(small_recipe, tmp_path, sections, num_kills, epochs):
    recipe = small_recipe(model=MODEL, run=OFTEN, **{**sections, "train": {**sections["train"], "epochs": epochs}})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    half_written = run_and_kill("train.py", recipe, straight=straight, killed=killed, num_kills=num_kills)
    assert half_written, "no kill met a checkpoint being written"
    assert_same_run(straight, killed, num_files=1 + ("average" in sections))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run to fine-tune: an epoch on digits."""
    folder = tmp_path_factory.mktemp("source")
    sections = {"data": {"dataset": "digits"}, "model": MODEL, "optim": {"name": "adamw", "lr": 0.003}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(sections | {"train": {"epochs": 1, "global_batch_size": 60}}))
    succeed("train.py", "--config", str(recipe), "--run.out", str(folder / "run"), "--run.trackers", "[]")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "linear"},
        {"name": "head_then_all", "head_epochs": 2},
        {"name": "gradual", "head_epochs": 1},
        {"name": "differential"},
        {"name": "all"},
        {"name": "features"},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_kills_change_no_bit_of_a_fine_tuning(small_recipe, source, tmp_path, strategy):
    num_kills = max(NUM_KILLS // 2, 3)
    recipe = small_recipe(
        model={"name": str(source), "args": {}},
        strategy=strategy,
        optim={"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.001},
        train={"epochs": num_kills + 5, "global_batch_size": 60},
        run=OFTEN,
    )
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    trained = "head" if strategy["name"] == "features" else "."
    run_and_kill("finetune.py", recipe, straight=straight, killed=killed, num_kills=num_kills, trained=trained)
    assert_same_run(straight, killed, num_files=1, trained=trained)


def run_and_kill(program, recipe, *, straight, killed, num_kills, trained="."):
    """Runs a recipe to its end, and again with kills, each later than the last; gives what these left half-written.

    trained: the folder in the run folder that holds the checkpoints of training.
    """
    command = [sys.executable, program, "--config", str(recipe), "--run.out", str(killed)]
    succeed(program, "--config", str(recipe), "--run.out", str(straight))
    rng, half_written = random.Random(0), []
    for number in range(num_kills):
        found = start_and_kill(command, killed / trained, while_writing=number % 2 == 1, delay_s=rng.uniform(0, 0.15))
        assert not (killed / "result.json").exists(), "the run was over before it could be killed"
        half_written += [found] if found else []
    print(f"{num_kills} kills, half-written then: {', '.join(half_written)}")
    succeed(program, "--config", str(recipe), "--run.out", str(killed))
    return half_written


def assert_same_run(straight, killed, *, num_files, trained="."):
    """Weights, averages, optimizer, rows and scores of two runs are equal to the bit."""
    paths = [newest_checkpoint(folder / trained / "checkpoints")[0] for folder in (straight, killed)]
    names = {path.name for path in paths[0].glob("*.safetensors")}
    assert len(names) == num_files
    for name in names:
        expected, found = (load_file(path / name) for path in paths)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    states = [load_training_state(path) for path in paths]
    for key in ("loader", "plateau", "num_averaged", "phase", "phase_step", "num_stale_epochs", "best_step"):
        assert states[0][key] == states[1][key], key
    assert all(
        torch.equal(one, other)
        for one, other in zip(*(tensors_of(state["optimizer"]) for state in states), strict=True)
    )
    assert epoch_rows(straight) == epoch_rows(killed)
    assert (straight / "result.json").read_text() == (killed / "result.json").read_text()


def tensors_of(value):
    """The tensors in nested dicts and lists, in their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in parts for tensor in tensors_of(part)]
