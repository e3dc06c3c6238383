"""Parameters shared out among processes: the weights, the checkpoints and the scores of a run without."""

import json
import shutil

import pytest
import torch
from programs import epoch_rows, final_weights, run_program, succeed

from engine.checkpoint import load_training_state, newest_checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TWO = ("torchrun", "--nproc-per-node", "2", "train.py")
SHARD = ("--speed.shard", "true")


def train(command, recipe, out, *options):
    return succeed(*command, "--config", str(recipe), "--run.out", str(out), *options, ACCELERATE_USE_CPU="true")


def grad_norms(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/grad_norm"] for row in rows if "train/grad_norm" in row]


def assert_same_weights(folder, expected):
    wanted = final_weights(expected)
    assert final_weights(folder).keys() == wanted.keys()
    for name, value in final_weights(folder).items():
        assert torch.allclose(value, wanted[name], rtol=0, atol=1e-9), name


def test_two_sharing_processes_train_the_weights_and_statistics_of_two_that_do_not(small_recipe, tmp_path):
    recipe = small_recipe(
        model={"name": "resnet", "args": {"blocks": [1, 1], "widths": [8, 12]}},
        train={"epochs": 2, "global_batch_size": 60, "precision": "fp64", "accumulation": 2},
        optim={"name": "sgd", "lr": 0.05, "momentum": 0.9, "clip_norm": 0.5},
        run={"checkpoint_every_steps": 10, "trackers": []},
    )
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    train(TWO, recipe, plain)
    output = train(TWO, recipe, sharded, *SHARD, "--speed.gradient_checkpointing", "true")
    assert "parameters shared out among 2" in output
    assert_same_weights(sharded, plain)
    assert [row["train/ids_hash"] for row in epoch_rows(sharded)] == [
        row["train/ids_hash"] for row in epoch_rows(plain)
    ]
    results = [json.loads((folder / "result.json").read_text()) for folder in (plain, sharded)]
    assert results[1] == pytest.approx(results[0], abs=2e-6)
    norms = [grad_norms(folder) for folder in (plain, sharded)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-9)
    assert max(norms[0]) > 0.5, "some were clipped"
    states = [load_training_state(newest_checkpoint(one / "checkpoints")[0])["optimizer"] for one in (plain, sharded)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, values in states[0]["state"].items():
        assert torch.allclose(values["momentum_buffer"], states[1]["state"][index]["momentum_buffer"], atol=1e-9)


def test_a_sharded_run_goes_on_in_one_process_and_the_other_way_round(small_recipe, tmp_path):
    recipe = small_recipe(
        optim={"name": "adamw", "lr": 0.003, "momentum": 0.0},
        train={"epochs": 2, "global_batch_size": 60, "precision": "fp64"},
        run={"trackers": []},
    )
    straight, starts = tmp_path / "straight", {"one": ("train.py",), "two": (*TWO,)}
    train(("train.py",), recipe, straight)
    for first, second in (("one", "two"), ("two", "one")):
        folder = tmp_path / first
        folder.mkdir()
        (folder / "stop").touch()
        output = train(starts[first], recipe, folder, *SHARD * (first == "two"))
        assert "stopped by a file called stop: saved at step" in output
        output = train(starts[second], recipe, folder, *SHARD * (second == "two"))
        assert "continuing from" in output
        assert_same_weights(folder, straight)
    finished = tmp_path / "again"
    shutil.copytree(straight, finished)
    (finished / "result.json").unlink()
    train(TWO, recipe, finished, *SHARD)  # trains no step: the first forward pass is an evaluation's
    results = [json.loads((one / "result.json").read_text()) for one in (straight, finished)]
    assert results[1] == pytest.approx(results[0], abs=2e-6)


def test_one_process_has_nobody_to_share_with(small_recipe, tmp_path):
    done = run_program("train.py", "--config", str(small_recipe()), "--run.out", str(tmp_path / "run"), *SHARD)
    assert done.returncode == 1
    assert "speed.shard=true shares parameters out among the processes, and there is only one" in done.stderr
    assert not (tmp_path / "run").exists()
