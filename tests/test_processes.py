"""Several processes: the same samples, the same weights, every sample counted."""

import json
import shutil

import pytest
import torch
from programs import epoch_rows, final_weights, read_rows, run_program, succeed

from configs.load import load_config
from engine.record import RunFolder
from models.airbench import whitening_filters
from pipelines.build import build_data, read_training_images

pytestmark = [pytest.mark.dist, pytest.mark.slow]

LAUNCHERS = {
    1: (("train.py",), {}),
    2: (("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "train.py"), {"ACCELERATE_USE_CPU": "true"}),
    3: (("torchrun", "--nproc-per-node", "3", "train.py"), {}),
}


@pytest.fixture
def train_on(tmp_path):
    """Trains a recipe with a number of processes; gives the run folder."""

    def train(recipe, num_processes, *options, name=""):
        command, environ = LAUNCHERS[num_processes]
        out = tmp_path / f"{name}{num_processes}"
        succeed(*command, "--config", str(recipe), "--run.out", str(out), *options, **environ)
        return out

    return train


def test_two_and_three_processes_train_the_weights_of_one(small_recipe, train_on):
    recipe = small_recipe(
        train={"epochs": 3, "global_batch_size": 60, "precision": "fp64", "accumulation": 2},
        loss={"label_smoothing": 0.1},
        run={"checkpoint_every_steps": 10},
    )
    folders = {count: train_on(recipe, count) for count in LAUNCHERS}
    expected = final_weights(folders[1])
    hashes = [row["train/ids_hash"] for row in epoch_rows(folders[1])]
    assert len(set(hashes)) == 3
    for count in (2, 3):
        assert json.loads((folders[count] / "environment.json").read_text())["world_size"] == count
        assert [row["train/ids_hash"] for row in epoch_rows(folders[count])] == hashes
        for name, value in final_weights(folders[count]).items():
            assert torch.allclose(value, expected[name], rtol=0, atol=1e-9), name
        for row, wanted in zip(read_rows(folders[count]), read_rows(folders[1]), strict=True):
            assert row["step"] == wanted["step"]
            for key in ("train/loss", "train/top1_frac", "train/epoch_loss", "train/epoch_top1_frac", "val/loss"):
                assert row.get(key) == pytest.approx(wanted.get(key), abs=2e-6), key
        result = json.loads((folders[count] / "result.json").read_text())
        assert result["test/num_samples"] == 360  # 360 = 256 + 104: the last batches are filled up
        assert result == pytest.approx(json.loads((folders[1] / "result.json").read_text()), abs=2e-6)


def test_two_processes_mix_replace_and_list_what_one_does(make_folder, small_recipe, train_on):
    root = make_folder({"train": {"dark": 24, "light": 24}, "test": {"dark": 7, "light": 6}})
    for name in ("train/dark/001.png", "train/light/003.png", "train/light/020.png", "test/dark/002.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    recipe = small_recipe(
        data={
            "dataset": "folder",
            "root": str(root),
            "val_frac": 0.0,
            "on_bad_sample": "replace",
            "on_bad_eval_sample": "exclude",
            "max_bad_frac": 0.5,
        },
        augment={"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "erase_prob": 0.5, "noise_std": 0.05},
        train={"epochs": 2, "global_batch_size": 18, "precision": "fp64"},  # 9 for each of two: a pair is divided
        run={"select": "last", "log_every_steps": 1},
    )
    folders = {1: train_on(recipe, 1), 2: train_on(recipe, 2, "--loader.backend", "threads")}
    expected = final_weights(folders[1])
    for name, value in final_weights(folders[2]).items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-9), name
    lists = [RunFolder(folder).read_bad_samples() for folder in folders.values()]
    assert lists[0] == lists[1]
    assert [row["name"] for row in lists[0]].count(str(root / "test/dark/002.png")) == 1
    assert len(lists[0]) >= 5
    results = [json.loads((folder / "result.json").read_text()) for folder in folders.values()]
    assert [(result["test/num_samples"], result["test/num_excluded"]) for result in results] == [(12, 1)] * 2


def test_a_network_starts_from_the_same_images_on_two_processes_and_when_it_continues(small_recipe, train_on):
    recipe = small_recipe(model={"name": "airbench", "args": {"widths": [8, 8]}}, run={"keep_checkpoints": 9})
    folders = {count: train_on(recipe, count) for count in (1, 2)}
    config = load_config(["--config", str(recipe)], prog="train.py", description="")
    data = build_data(config, show_progress=False)
    images = read_training_images(config, data, num_images=5000 * 32**2 // 8**2, show_progress=False)
    assert len(images) == len(data.train.labels_N)
    for folder in folders.values():
        assert torch.equal(final_weights(folder)["stem.0.weight"], whitening_filters(images, patch_px=2))
    expected = final_weights(folders[1])
    (folders[1] / "result.json").unlink()
    shutil.rmtree(max((folders[1] / "checkpoints").iterdir()))
    assert "stem.0.weight" in final_weights(folders[1]), "there is an earlier checkpoint"
    continued = final_weights(train_on(recipe, 1))
    assert all(torch.equal(continued[name], value) for name, value in expected.items())


def test_a_run_continues_at_another_number_of_processes(small_recipe, train_on):
    recipe = small_recipe(train={"epochs": 3, "global_batch_size": 60, "precision": "fp64"})
    expected = train_on(recipe, 1, name="straight")
    folder = train_on(recipe, 1, "--run.keep_checkpoints", "9")
    (folder / "result.json").unlink()
    for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    command, environ = LAUNCHERS[2]
    output = succeed(*command, "--config", str(recipe), "--run.out", str(folder), **environ)
    assert "continuing from" in output
    for name, value in final_weights(folder).items():
        assert torch.allclose(value, final_weights(expected)[name], rtol=0, atol=1e-9), name
    assert [row["train/ids_hash"] for row in epoch_rows(folder)] == [
        row["train/ids_hash"] for row in epoch_rows(expected)
    ]


def test_a_run_of_four_processes_that_was_stopped_goes_on_with_one_two_or_three(small_recipe, train_on, tmp_path):
    recipe = small_recipe(train={"epochs": 2, "global_batch_size": 48, "precision": "fp64"}, run={"trackers": []})
    expected = train_on(recipe, 1, name="straight")
    hashes = [row["train/ids_hash"] for row in epoch_rows(expected)]
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "stop").touch()
    output = succeed(
        "torchrun", "--nproc-per-node", "4", "train.py", "--config", str(recipe), "--run.out", str(stopped)
    )
    assert "stopped by a file called stop: saved at step 2" in output, "two of 26 steps of its first epoch"
    for count in LAUNCHERS:
        shutil.copytree(stopped, tmp_path / f"on{count}")
        folder = train_on(recipe, count, name="on")
        assert [row["train/ids_hash"] for row in epoch_rows(folder)] == hashes
        for name, value in final_weights(folder).items():
            assert torch.allclose(value, final_weights(expected)[name], rtol=0, atol=1e-9), name


def test_batch_norm_statistics_are_averaged_before_they_are_saved(small_recipe, train_on):
    recipe = small_recipe(model={"name": "simple_cnn", "args": {"width": 8, "hidden": 32, "norm": "batch"}})
    folder = train_on(recipe, 2)
    result = json.loads((folder / "result.json").read_text())
    command, environ = LAUNCHERS[2]
    output = succeed(*command[:-1], "evaluate.py", "--run", str(folder), **environ)
    assert f"test/top1_frac {result['test/top1_frac']}" in output


def states_of(num_processes, recipes, out):
    """What each rank ended with, a dict for each recipe: `tests/averages_of_ranks.py`."""
    out.mkdir()
    for number in range(len(recipes)):
        (out / str(number)).mkdir()
    words = ("tests/averages_of_ranks.py", str(out), *map(str, recipes))
    succeed("torchrun", "--nproc-per-node", str(num_processes), *words)
    return [torch.load(out / f"states_{rank}.pt", weights_only=True) for rank in range(num_processes)]


def test_two_processes_agree_on_averages_batch_norm_and_early_stopping(small_recipe, tmp_path):
    """With BatchNorm the ranks compute statistics of their own batches, and need not equal one process."""
    recipes = []
    average = {"average": {"ema_decay": 0.9, "ema_every_steps": 2}, "train": {"early_stop_epochs": 2, "epochs": 9}}
    swa = {"average": {"swa_start_epoch": 1, "bn_images": 600}, "train": {"bn_images": 700}}
    norm = {"model": {"name": "simple_cnn", "args": {"width": 8, "hidden": 32, "norm": "batch"}}}
    for sections in (average | {"optim": {"lr": 0.5}}, swa | norm):
        sections["train"] = {"precision": "fp64"} | sections["train"]
        recipes.append(small_recipe(**sections, run={"trackers": []}).rename(tmp_path / f"{len(recipes)}.yaml"))
    ((alone,),) = states_of(1, recipes[:1], tmp_path / "one")
    (ema, measured), (other_ema, other_measured) = states_of(2, recipes, tmp_path / "two")
    for state in (ema, other_ema):
        for kind in ("raw", "average"):
            for name, value in alone[kind].items():
                assert torch.allclose(state[kind][name], value, rtol=0, atol=1e-9), (kind, name)
        for name in ("step", "best_step", "num_stale_epochs"):
            assert state[name] == alone[name]
    assert ema["num_stale_epochs"] == 2, "it must stop early"
    for kind in ("raw", "average"):
        for name, value in measured[kind].items():
            assert torch.equal(other_measured[kind][name], value), (kind, name)
    assert any(name.endswith("running_var") for name in measured["raw"])


def test_accelerate_on_cpu_without_multi_gpu_stops_and_says_what_to_type(small_recipe, tmp_path):
    command = ("accelerate", "launch", "--cpu", "--num_processes", "2", "train.py", "--config", str(small_recipe()))
    done = run_program(*command, "--run.out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "error: several processes were asked for, but this process was started alone" in done.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N train.py" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_wrong_world_size_stops_every_rank(small_recipe, tmp_path):
    command, environ = LAUNCHERS[2]
    options = ("--config", str(small_recipe()), "--run.out", str(tmp_path / "run"), "--run.world_size", "4")
    done = run_program(*command, *options, **environ)
    assert done.returncode != 0
    assert "run.world_size=4, but there are 2" in done.stderr
    assert done.stderr.count("error: several processes") == 1


def test_an_error_of_one_rank_alone_is_told(make_folder, small_recipe, tmp_path):
    root = make_folder({"train": {"dark": 24, "light": 24}}, size_px=64, suffix=".jpg")
    broken = root / "train" / "light" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:-500])
    recipe = small_recipe(
        data={"dataset": "folder", "root": str(root), "val_frac": 0.0},
        train={"epochs": 2, "global_batch_size": 12},
        run={"select": "last"},
        input={"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    )
    command, environ = LAUNCHERS[2]
    options = ("--config", str(recipe), "--run.out", str(tmp_path / "run"), "--loader.backend", "reference")
    done = run_program(*command, *options, **environ)
    assert done.returncode != 0
    assert str(broken) in done.stderr
