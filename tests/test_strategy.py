"""Strategies of fine-tuning on several processes: the same images, the same weights, and what is frozen to the bit."""

import pytest
import torch
from programs import epoch_rows, succeed

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STRATEGIES = ("all", "linear", "head_then_all", "gradual", "differential")
TRAIN = {"epochs": 6, "global_batch_size": 60, "precision": "fp64"}
MODEL = {"name": "simple_cnn", "args": {"width": 8, "hidden": 32}}


def states_of(num_processes, recipe, out, strategies):
    """What each rank began and ended with, by strategy: `tests/strategies_of_ranks.py`."""
    for name in strategies:
        (out / name).mkdir(parents=True)
    words = ("tests/strategies_of_ranks.py", str(out), str(recipe), *strategies)
    succeed("torchrun", "--nproc-per-node", str(num_processes), *words)
    return [torch.load(out / f"states_{rank}.pt", weights_only=True) for rank in range(num_processes)]


def changed(state):
    return {name for name, value in state["after"].items() if not torch.equal(value, state["before"][name])}


def test_two_processes_train_the_weights_of_one_by_every_strategy(small_recipe, tmp_path):
    recipe = small_recipe(model=MODEL, train=TRAIN, run={"trackers": []}, optim={"lr": 0.02})
    (alone,) = states_of(1, recipe, tmp_path / "one", STRATEGIES)
    together = states_of(2, recipe, tmp_path / "two", STRATEGIES)
    hashes = {}
    for name in STRATEGIES:
        for state in together:
            for key, value in alone[name]["after"].items():
                assert torch.allclose(state[name]["after"][key], value, rtol=0, atol=1e-9), (name, key)
            assert changed(state[name]) == changed(alone[name])
        for out in ("one", "two"):
            hashes[out, name] = [row["train/ids_hash"] for row in epoch_rows(tmp_path / out / name)]
    assert changed(alone["linear"]) == {"head.5.weight", "head.5.bias"}
    assert all(len(changed(alone[name])) == len(alone[name]["after"]) for name in STRATEGIES if name != "linear")
    assert len(set(hashes["one", "all"])) == 6
    for each in hashes.values():
        assert each == hashes["one", "all"], "each phase goes on with the order of its own epochs"


def test_on_three_processes_what_is_frozen_stays_to_the_bit_on_each(small_recipe, tmp_path):
    args = MODEL["args"] | {"norm": "batch"}
    recipe = small_recipe(
        model=MODEL | {"args": args},
        train=TRAIN | {"epochs": 2},
        average={"ema_decay": 0.9},
        run={"trackers": []},
    )
    states = states_of(3, recipe, tmp_path / "three", ("linear", "head_then_all"))
    before_norms = {f"features.{block}.0.bias" for block in range(3)}  # their gradients are rounding errors
    for state in states:
        assert changed(state["linear"]) == {"head.5.weight", "head.5.bias"}
        assert changed(state["head_then_all"]) | before_norms == set(state["head_then_all"]["after"])
        for name, value in state["head_then_all"]["after"].items():
            assert torch.equal(value, states[0]["head_then_all"]["after"][name]), name
