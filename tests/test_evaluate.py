"""evaluate.py gives the number of the run again, on any number of processes."""

import hashlib
import json

import pytest
import yaml
from programs import ROOT, run_program, succeed

from configs.load import config_keys
from evaluate import check_overrides


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


def test_a_pipeline_that_training_images_went_through_need_not_be_there_any_more(small_recipe, tmp_path):
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text("transform: {__class_fullname__: Compose, p: 1.0, transforms: []}")
    recipe = small_recipe(augment={"albumentations": str(pipeline)}, train={"epochs": 1})
    succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"))
    pipeline.unlink()
    assert "test/num_samples 360" in succeed("evaluate.py", "--run", str(tmp_path / "run"))


@pytest.mark.parametrize("option", ["--model.args.width", "--input.size_px", "--config"])
def test_the_checkpoints_own_model_and_input_cannot_be_overridden(run_folder, option):
    done = run_program("evaluate.py", "--run", str(run_folder), option, "16")
    assert done.returncode == 1
    assert f"{option}: model and input are those of the checkpoint" in done.stderr


READ = [
    *(key for key in config_keys() if key.startswith(("data.", "evaluation.", "loader."))),
    "run.num_threads",
    "train.precision",
]
UNREAD_DATA = ["data.sampling", "data.class_weights"]


def test_every_option_of_train_is_read_refused_or_the_checkpoints_own():
    num_read = num_refused = num_own = 0
    for key in config_keys():
        if key in READ and key not in UNREAD_DATA:
            check_overrides([f"--{key}", "1"])
            check_overrides([f"--{key}=1"])
            num_read += 1
        elif key.startswith(("model.", "input.")):
            with pytest.raises(ValueError, match=rf"^--{key}: model and input are those of the checkpoint"):
                check_overrides(["--data.root", "x", f"--{key}=1"])
            num_own += 1
        else:
            with pytest.raises(ValueError, match=rf"^--{key}: evaluation does not read it.*; leave it out\. Of train"):
                check_overrides(["--data.root", "x", f"--{key}=1"])
            num_refused += 1
    assert num_read + num_refused + num_own == len(config_keys())
    assert min(num_read, num_refused, num_own) > 5


@pytest.mark.parametrize("words", [["--data.class_weights.cat", "2"], ["--run", "{}"], ["--dry_run"]])
def test_sections_and_parts_of_options_are_refused_likewise(words):
    with pytest.raises(ValueError, match=rf"^{words[0]}: evaluation does not read it"):
        check_overrides(words)


@pytest.mark.parametrize("option", ["--data", "--evaluation", "--loader"])
def test_a_section_that_is_read_is_set_field_by_field(option):
    with pytest.raises(ValueError, match=rf"^{option}: set single fields of it here, as in --data.root DIR"):
        check_overrides([option, "{}"])


def test_other_images_than_the_runs_are_said_to_be_others(run_folder):
    other = "(these are not the images that were val when the run was trained)"
    assert other not in succeed("evaluate.py", "--run", str(run_folder), "--split", "val")
    assert other in succeed("evaluate.py", "--run", str(run_folder), "--split", "val", "--data.val_frac", "0.2")


def test_a_run_on_a_manifest_is_scored_on_a_folder_without_the_manifests_options(make_folder, tmp_path):
    root = make_folder({split: {"dark": 12, "light": 12} for split in ("train", "test")})
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted((root / "train").rglob("*.png"))]
    (tmp_path / "table.csv").write_text("file,kind\n" + "\n".join(rows) + "\n")
    recipe = ROOT / "configs" / "cifar10" / "simple_cnn.yaml"
    options = ("--data.dataset", "manifest", "--data.root", str(tmp_path / "table.csv"), "--data.image_root", str(root))
    options += ("--data.path_column", "file", "--data.label_column", "kind", "--data.val_frac", "0.25")
    sizes = ("--train.epochs", "1", "--train.global_batch_size", "4", "--run.out", str(tmp_path / "run"))
    succeed("train.py", "--config", str(recipe), *options, *sizes)
    folder = ("--data.dataset", "folder", "--data.root", str(root))
    assert "test/num_samples 24" in succeed("evaluate.py", "--run", str(tmp_path / "run"), *folder)


@pytest.mark.parametrize("words", [["--dry-run"], ["--train.epochs", "3"], ["--resume=never"]])
def test_an_option_that_is_not_read_is_refused_before_any_work(tmp_path, words):
    done = run_program("evaluate.py", "--run", str(tmp_path / "nowhere"), *words)
    assert done.returncode == 1
    assert f"error: {words[0].partition('=')[0]}: evaluation does not read it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_is_no_option_is_answered_with_the_nearest(run_folder):
    for word, nearest in (("--data.rot", "data.root"), ("--rot", "root")):
        done = run_program("evaluate.py", "--run", str(run_folder), word, "x")
        assert done.returncode == 2
        assert f"unknown option '{word[2:]}'; nearest: " in done.stderr
        assert nearest in done.stderr


def test_loader_and_precision_can_be_set(run_folder):
    result = json.loads((run_folder / "result.json").read_text())
    plain = ("--loader.backend", "reference", "--loader.num_workers=0", "--run.num_threads", "1")
    output = succeed("evaluate.py", "--run", str(run_folder), *plain, "--train.precision", "bf16")
    assert f"test/num_samples {result['test/num_samples']}" in output
    assert f"test/loss {result['test/loss']}\n" not in output, "it was computed in another precision"
    done = run_program(
        "evaluate.py", "--run", str(run_folder), "--loader.backend", "threads", "--loader.num_threads", "0"
    )
    assert done.returncode != 0, "the loader's options are read"
    assert "loader.num_threads=0" in done.stderr


def test_what_a_run_trained_by_need_not_hold_where_it_is_scored(run_folder):
    path = run_folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["run"] |= {"world_size": 3, "trackers": ["a tracker that is not installed"]}
    config["train"] |= {"early_stop_epochs": 5, "accumulation": 4}
    config["data"] |= {"sampling": "balanced", "class_weights": {"a class that is not there": 2.0}}
    config["schedule"] |= {"name": "plateau", "patience_epochs": 3}
    path.write_text(yaml.safe_dump(config))
    options = ("--split", "train", "--data.val_frac", "0")  # no val, which run.select=best needs
    environ = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    assert "train/num_samples 1437" in succeed("evaluate.py", "--run", str(run_folder), *options, **environ)
