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


@pytest.mark.slow
def test_many_kills_in_a_row_change_no_bit(small_recipe, tmp_path):
    recipe = small_recipe(
        model={"name": "simple_cnn", "args": {"width": 64, "hidden": 512, "norm": "batch", "dropout": 0.3}},
        train={"epochs": NUM_KILLS * 6 // 5, "global_batch_size": 60},
        optim={"name": "adamw", "lr": 0.001, "momentum": 0.0},
        run={"checkpoint_every_steps": 2, "log_every_steps": 3, "trackers": []},
    )
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    command = [sys.executable, "train.py", "--config", str(recipe), "--run.out", str(killed)]
    succeed("train.py", "--config", str(recipe), "--run.out", str(straight))
    rng, half_written, kills = random.Random(0), [], 0
    for number in range(NUM_KILLS):
        found = start_and_kill(command, killed, while_writing=number % 2 == 1, delay_s=rng.uniform(0, 0.15))
        assert not (killed / "result.json").exists(), "the run was over before it could be killed"
        kills += 1
        half_written += [found] if found else []
    assert kills == NUM_KILLS
    assert half_written, "no kill met a checkpoint being written"
    print(f"{kills} kills, half-written then: {', '.join(half_written)}")
    succeed("train.py", "--config", str(recipe), "--run.out", str(killed))
    paths = [newest_checkpoint(folder / "checkpoints")[0] for folder in (straight, killed)]
    expected, found = (load_file(path / "model.safetensors") for path in paths)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    states = [load_training_state(path) for path in paths]
    assert states[0]["loader"] == states[1]["loader"]
    assert torch.equal(
        states[0]["optimizer"]["state"][0]["exp_avg_sq"], states[1]["optimizer"]["state"][0]["exp_avg_sq"]
    )
    assert epoch_rows(straight) == epoch_rows(killed)
    assert (straight / "result.json").read_text() == (killed / "result.json").read_text()
