"""train.py and evaluate.py fed by DALI, on the CPU and, where there is one, on a GPU: the same tests."""

import json
import re
import sys

import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from programs import epoch_rows, final_weights, read_rows, succeed
from test_kill import start_and_kill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system"),
]
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]
NUM_TEST = 37  # no multiple of a batch
MODEL = {"name": "simple_cnn", "args": {"width": 16, "hidden": 64, "norm": "batch"}}
RUN = {"checkpoint_every_steps": 2, "log_every_steps": 3, "trackers": []}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def environ(request, monkeypatch):
    """What keeps programs off a GPU, which they take where there is one; nothing, to let them."""
    environ = {"ACCELERATE_USE_CPU": "true"} if request.param == "cpu" else {}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return environ


@pytest.fixture
def recipe(make_folder, small_recipe):
    classes = {"a": 60, "b": 60}
    root = make_folder(
        {"train": classes, "val": {"a": 20, "b": 21}, "test": {"a": 18, "b": 19}}, size_px=56, suffix=".jpg"
    )
    return small_recipe(
        data={"dataset": "folder", "root": str(root)},
        input={"size_px": 40, "channels": 3},
        augment={"crop": "rrc", "pad_px": 4, "flip": "random", "sizes_px": [[0, 32], [2, 40]]},
        loader={"backend": "dali", "num_threads": 2, "eval_batch_size_per_rank": 16},
        model=MODEL,
        train={"epochs": 4, "global_batch_size": 20},
        run=RUN,
    )


def test_a_run_that_was_killed_in_mid_epoch_goes_on_with_the_batches_that_were_next(recipe, tmp_path, environ):
    on_gpu, straight, killed = not environ, tmp_path / "straight", tmp_path / "killed"
    command = [sys.executable, "train.py", "--config", str(recipe), "--run.out", str(killed)]
    printed = succeed("train.py", "--config", str(recipe), "--run.out", str(straight), **environ)
    assert "loader: dali (as configured)" in printed
    start_and_kill(command, killed, while_writing=False, delay_s=0.0)
    assert not (killed / "result.json").exists(), "the run was over before it could be killed"
    succeed("train.py", "--config", str(recipe), "--run.out", str(killed), **environ)
    wanted, found = epoch_rows(straight), epoch_rows(killed)
    assert len(wanted) == len(found) == 4
    assert [row["train/ids_hash"] for row in found] == [row["train/ids_hash"] for row in wanted]
    assert {row["val/num_samples"] for row in found} == {41}
    assert any(row.get("train/gpu_memory_gib", 0) > 0 for row in read_rows(killed)) == on_gpu
    weights = final_weights(killed)
    for name, value in final_weights(straight).items():  # a GPU adds up in an order of its own each time
        assert torch.allclose(weights[name].double(), value.double(), rtol=0, atol=0.05 if on_gpu else 0), name
    if not on_gpu:
        assert found == wanted


def test_evaluation_counts_every_image_once_and_predicts_as_on_the_cpu_path(recipe, tmp_path, environ):
    out = tmp_path / "run"
    succeed("train.py", "--config", str(recipe), "--run.out", str(out), **environ)
    scores = {}
    for backend in ("dali", "threads"):
        printed = succeed("evaluate.py", "--run", str(out), "--loader.backend", backend, **environ)
        scores[backend] = dict(re.findall(r"^test/(\S+) (\S+)$", printed, flags=re.MULTILINE))
        assert scores[backend]["num_samples"] == str(NUM_TEST)
    assert json.loads((out / "result.json").read_text())["test/num_samples"] == NUM_TEST
    tops = [float(score["top1_frac"]) for score in scores.values()]
    assert tops[0] == pytest.approx(tops[1], abs=2 / NUM_TEST)
    losses = [float(score["loss"]) for score in scores.values()]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
