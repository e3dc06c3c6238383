"""train.py with teachers, as docs/losses.md says it: two runs, one learning from the other."""

import json
import re
import shlex
import shutil

import pytest
import torch
from programs import ROOT, epoch_rows, final_weights, run_program, succeed
from safetensors.torch import load_file

from engine.checkpoint import (
    load_training_state,
    load_weights,
    newest_checkpoint,
    read_card,
    read_manifest,
    save_checkpoint,
    scored_checkpoint,
)
from engine.teachers import hash_weights
from models.simple_cnn import SimpleCNN

COMMANDS = re.findall(
    r"^    accelerate launch (train\.py .*)$", (ROOT / "docs" / "losses.md").read_text(), re.MULTILINE
)
QUICK = ("--run.trackers", "[]", "--run.num_threads", "1", "--train.epochs", "2")


def words_of(command, folder):
    """A command of the page as words, its run folders in `folder`."""
    return [re.sub(r"\bruns/", f"{folder}/", word) for word in shlex.split(command)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with the runs of the page's commands: teacher and student."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("teacher", "student"):
        (command,) = [one for one in COMMANDS if f"--run.out runs/{name}" in one]
        succeed(*words_of(command, folder), *QUICK)
    return folder


@pytest.fixture
def unfinished(runs, tmp_path):
    """A copy of the student's run without its last checkpoint and result: the command that continues it."""
    folder = tmp_path / "again"
    shutil.copytree(runs / "student", folder)
    (folder / "result.json").unlink()
    newest, _ = newest_checkpoint(folder / "checkpoints")
    shutil.rmtree(newest)
    (command,) = [one for one in COMMANDS if "--run.out runs/student" in one]
    words = words_of(command, runs)
    words[words.index("--run.out") + 1] = str(folder)
    return [*words, *QUICK]


@pytest.mark.slow
def test_the_commands_of_the_page_train_a_student_on_its_teacher(runs):
    rows = epoch_rows(runs / "student")
    assert len(rows) == 2
    for row in rows:
        parts = 0.1 * row["train/epoch_label_loss"] + 0.9 * row["train/epoch_distill_loss"]
        assert row["train/epoch_loss"] == pytest.approx(parts, rel=1e-6)
    assert rows[1]["train/epoch_teacher_agreement_frac"] > rows[0]["train/epoch_teacher_agreement_frac"]
    result = json.loads((runs / "student" / "result.json").read_text())
    assert result["test/num_samples"] == 360
    teacher = scored_checkpoint(runs / "teacher" / "checkpoints")
    module = SimpleCNN(in_channels=1, num_classes=10, size_px=8, norm="batch", dropout=0.2)
    load_weights(module, teacher)
    card = read_card(scored_checkpoint(runs / "student" / "checkpoints"))
    assert card["teachers"] == {str(runs / "teacher"): hash_weights(module)}
    student = SimpleCNN(in_channels=1, num_classes=10, size_px=8, norm="batch", width=8, hidden=64)
    assert final_weights(runs / "student").keys() == student.state_dict().keys(), "none of the teacher's"
    num_parameters = sum(parameter.numel() for parameter in student.parameters())
    environment = json.loads((runs / "student" / "environment.json").read_text())
    assert environment["num_parameters"] == num_parameters
    assert sum(parameter.numel() for parameter in module.parameters()) // num_parameters == 14  # a fifteenth


@pytest.mark.slow
def test_a_student_that_continues_ends_with_the_same_weights(runs, unfinished, tmp_path):
    expected = final_weights(runs / "student")
    assert "continuing from" in succeed(*unfinished)
    for name, value in final_weights(tmp_path / "again").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_a_student_whose_teacher_has_changed_is_not_continued(runs, unfinished, tmp_path):
    shutil.copytree(runs / "teacher", tmp_path / "kept")
    checkpoints = runs / "teacher" / "checkpoints"
    chosen = scored_checkpoint(checkpoints)
    weights = load_file(chosen / "model.safetensors")
    weights["head.5.bias"] += 0.5
    manifest = read_manifest(chosen)
    save_checkpoint(
        checkpoints,
        step=manifest["step"],
        best_step=manifest["best_step"],
        weights=weights,
        card=read_card(chosen),
        training_state=load_training_state(chosen),
    )
    try:
        done = run_program(*unfinished)
    finally:
        shutil.rmtree(runs / "teacher")
        shutil.move(tmp_path / "kept", runs / "teacher")
    assert done.returncode == 1
    assert f"the weights of distill.teachers {runs}/teacher have changed since" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_teacher_of_other_classes_stops_the_run_before_it_begins(tmp_path):
    options = ("--distill.teachers", "[torchvision/resnet18]", "--run.out", str(tmp_path / "run"))
    done = run_program("train.py", *options)
    assert done.returncode == 1
    assert "torchvision/resnet18 tells 1000 classes apart, but the data has 10: fine-tune it on the data" in done.stderr
    assert "epoch " not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_what_one_does(runs, small_recipe, tmp_path):
    recipe = small_recipe(
        augment={"mixup_alpha": 0.4},
        train={"epochs": 1, "global_batch_size": 60, "precision": "fp64", "accumulation": 3},
        loss={"name": "focal", "balance": "inverse", "label_smoothing": 0.1},
        distill={
            "teachers": [str(runs / "teacher")],
            "features": {"features.0": "features.0"},
            "features_weight": 100.0,
        },
        run={"trackers": [], "num_threads": 1},
    )
    launch = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "train.py")
    succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "one"))
    succeed(*launch, "--config", str(recipe), "--run.out", str(tmp_path / "two"), ACCELERATE_USE_CPU="true")
    expected = final_weights(tmp_path / "one")
    for name, value in final_weights(tmp_path / "two").items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-9), name
    for row, wanted in zip(epoch_rows(tmp_path / "two"), epoch_rows(tmp_path / "one"), strict=True):
        for part in ("loss", "label_loss", "distill_loss", "attention_loss", "teacher_agreement_frac", "top1_frac"):
            assert row[f"train/epoch_{part}"] == pytest.approx(wanted[f"train/epoch_{part}"], abs=1e-9), part
