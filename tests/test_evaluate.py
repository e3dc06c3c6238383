"""evaluate.py gives the number of the run again, on any number of processes."""

import hashlib
import json

import pytest
from programs import run_program, succeed


@pytest.fixture
def run_folder(small_recipe, tmp_path):
    succeed("train.py", "--config", str(small_recipe()), "--run.out", str(tmp_path / "run"))
    return tmp_path / "run"


def metric_lines(output):
    return sorted(line for line in output.splitlines() if line.startswith(("test", "val", "train")))


@pytest.mark.dist
@pytest.mark.slow
def test_the_score_is_the_runs_own_to_the_last_digit_on_one_two_and_three_processes(run_folder):
    result = json.loads((run_folder / "result.json").read_text())
    alone = metric_lines(succeed("evaluate.py", "--run", str(run_folder)))
    for key, value in result.items():
        if key.startswith("test/"):
            assert f"{key} {value}" in alone
    for count in ("2", "3"):
        # without the --, torchrun takes --run for an abbreviation of an option of its own
        together = succeed("torchrun", "--nproc-per-node", count, "--", "evaluate.py", "--run", str(run_folder))
        assert metric_lines(together) == alone


def test_another_split_can_be_scored(run_folder):
    result = json.loads((run_folder / "result.json").read_text())
    assert f"val/top1_frac {result['val/top1_frac']}" in succeed(
        "evaluate.py", "--run", str(run_folder), "--split", "val"
    )
    assert "train/num_samples 1293" in succeed("evaluate.py", "--run", str(run_folder), "--split", "train")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    done = run_program("evaluate.py", "--run", str(tmp_path))
    assert done.returncode == 1
    assert "is not a run folder" in done.stderr


def test_a_checkpoint_of_another_architecture_is_refused_with_the_keys(run_folder):
    for checkpoint in (run_folder / "checkpoints").iterdir():
        card = json.loads((checkpoint / "model.json").read_text())
        card["model"]["args"]["norm"] = "batch"
        (checkpoint / "model.json").write_text(json.dumps(card))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["sha256"]["model.json"] = hashlib.sha256((checkpoint / "model.json").read_bytes()).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    done = run_program("evaluate.py", "--run", str(run_folder))
    assert done.returncode == 1
    assert "holds another architecture" in done.stderr
    assert "- features.0.1.weight 8" in done.stderr


def test_a_damaged_checkpoint_is_not_scored(run_folder):
    for checkpoint in (run_folder / "checkpoints").iterdir():
        (checkpoint / "model.safetensors").write_bytes(b"")
    done = run_program("evaluate.py", "--run", str(run_folder))
    assert done.returncode == 1
    assert "no whole checkpoint" in done.stderr


def test_any_number_of_processes_scores_a_run_of_another(small_recipe, tmp_path):
    recipe = small_recipe(run={"world_size": 1})
    succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"))
    succeed("torchrun", "--nproc-per-node", "2", "--", "evaluate.py", "--run", str(tmp_path / "run"))


@pytest.mark.parametrize("option", ["--model.args.width", "--input.size_px", "--config"])
def test_the_checkpoints_own_model_and_input_cannot_be_overridden(run_folder, option):
    done = run_program("evaluate.py", "--run", str(run_folder), option, "16")
    assert done.returncode == 1
    assert f"{option}: model and input are those of the checkpoint" in done.stderr
