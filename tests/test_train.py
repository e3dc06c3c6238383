"""train.py as people run it: what it leaves, and what it says when something is wrong."""

import json
import re
import shutil

import pytest
import yaml
from PIL import Image
from programs import epoch_rows, read_rows, run_program, succeed
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.load import DEFAULT_RECIPE
from engine.record import RunFolder

TWO_CLASSES = {"train": {"dark": 24, "light": 24}, "test": {"dark": 7, "light": 6}}


def fail(*command, code=1, **environ):
    """Runs a command that must stop with a clear error; gives the message."""
    done = run_program(*command, **environ)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert "epoch " not in done.stdout, "work had started"
    return done.stderr


@pytest.fixture
def folder_recipe(make_folder, small_recipe):
    """A recipe for an image folder of two classes: (splits, overrides) -> its path."""

    def make(splits=None, *, root=None, **sections):
        root = root or make_folder(splits or TWO_CLASSES)
        changes = {
            "data": {"dataset": "folder", "root": str(root), "val_frac": 0.25},
            "train": {"epochs": 2, "global_batch_size": 12},
        }
        for section, values in sections.items():
            changes[section] = changes.get(section, {}) | values
        return small_recipe(**changes)

    return make


@pytest.mark.slow
def test_the_default_job_learns_the_digits(tmp_path):
    output = succeed("accelerate", "launch", "train.py", "--run.out", str(tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test/top1_frac"] >= 0.98
    assert result["test/num_samples"] == 360
    assert f"test: top-1 {100 * result['test/top1_frac']:.2f} %" in output
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    recipe = yaml.safe_load(DEFAULT_RECIPE.read_text())
    assert config["model"].items() >= recipe["model"].items()


def test_a_run_on_a_folder_leaves_every_file(folder_recipe, tmp_path):
    recipe, out = folder_recipe(), tmp_path / "run"
    output = succeed("train.py", "--config", str(recipe), "--run.out", str(out), "--optim.lr", "0.02")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["optim"]["lr"] == 0.02
    assert config["train"]["precision"] == "fp32"
    assert json.loads((out / "environment.json").read_text())["world_size"] == 1
    result = json.loads((out / "result.json").read_text())
    assert (result["val/num_samples"], result["test/num_samples"]) == (12, 13)
    assert {"test/top1_frac", "test/loss", "test/top1_frac/dark", "test/top1_frac/light"} <= result.keys()
    with Image.open(out / "curves.png") as curves:
        assert curves.width > 500
    assert "test" in (out / "report.html").read_text()
    folder = RunFolder(out)
    assert folder.read_environment()["class_names"] == ["dark", "light"]
    assert {split: counts.sum() for split, counts in folder.read_confusions().items()} == {"val": 12, "test": 13}
    assert folder.read_confusions()["test"].trace() == round(13 * result["test/top1_frac"])
    samples, schedule = folder.read_samples(), folder.read_schedule()
    assert samples.images_NHWC.shape == (12, 16, 16, 3)
    assert samples.images_NHWC[samples.labels_N == 0].mean() < 128 < samples.images_NHWC[samples.labels_N == 1].mean()
    assert schedule["epoch"] == [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]
    lr_of_step = {row["step"]: row["lr"] for row in read_rows(out) if "lr" in row}
    assert schedule["lr"][3] == pytest.approx(lr_of_step[4]), "the rate that was planned is the one that was used"
    rows = read_rows(out)
    pace = {"train/images_per_s", "train/images_per_s_per_rank", "train/data_wait_frac"}
    logged = {"step", "epoch", "train/loss", "train/top1_frac", "train/grad_norm", "lr", *pace}
    assert [row["step"] for row in rows if row.keys() == logged] == [4]
    assert len(epoch_rows(out)) == 2
    checkpoint = max((out / "checkpoints").iterdir())
    assert "head.5.weight" in load_file(checkpoint / "model.safetensors")
    card = json.loads((checkpoint / "model.json").read_text())
    assert card["class_names"] == ["dark", "light"]
    assert card["input"]["size_px"] == 16
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/top1_frac")] == [3, 6]
    for part in ("36 train, 12 val, 13 test; 2 classes", "0 images left out", "resident", "test: top-1", str(out)):
        assert part in output


def test_a_dry_run_draws_and_trains_nothing_and_stands_in_no_runs_way(small_recipe, tmp_path):
    out = tmp_path / "run"
    command = ("train.py", "--config", str(small_recipe()), "--run.out", str(out))
    output = succeed(*command, "--dry-run")
    assert "dry run: nothing was trained" in output
    assert "epoch  " not in output
    assert [path.name for path in out.iterdir()] == ["dry_run"]
    left = {path.name for path in (out / "dry_run").iterdir()}
    assert {"report.html", "schedule.json", "samples.npz", "config.yaml", "environment.json"} <= left
    assert not left & {"checkpoints", "metrics.jsonl", "result.json", "tensorboard"}
    schedule = RunFolder(out / "dry_run").read_schedule()
    succeed(*command, "--resume", "never", "--optim.name", "rmsprop", "--optim.lr", "0.01", "--run.trackers", "[]")
    assert not (out / "tensorboard").exists()
    assert RunFolder(out).read_schedule() != schedule
    again = succeed(*command, "--dry-run", "--schedule.name", "one_cycle", "--schedule.warmup_epochs", "0")
    assert "dry run: nothing was trained" in again, "another configuration, beside a finished run"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--optim.groups", "[{match: [heads.*]}]", "optim.groups[0] matches no trained parameter"),
        ("--train.bn_images", "20", "has no BatchNorm with running statistics"),
    ],
)
def test_what_the_network_cannot_do_is_refused_before_there_is_a_run(small_recipe, tmp_path, option, value, message):
    """Else the command, mended, would be taken for that of another run."""
    recipe = small_recipe()
    done = run_program("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"), option, value)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_early_stopping_ends_a_run_and_its_result_says_when(small_recipe, tmp_path):
    recipe = small_recipe(train={"epochs": 40, "early_stop_epochs": 2}, optim={"lr": 0.5})
    output = succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"))
    epochs = len(epoch_rows(tmp_path / "run"))
    assert epochs < 40
    assert f"stopped early after {epochs} epochs: no better score on val for 2 of them" in output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epoch"] == epochs
    assert "stopped early: no better score on val for 2 epochs" in (tmp_path / "run" / "report.html").read_text()


def test_a_finished_run_says_so_and_changes_nothing(small_recipe, tmp_path):
    command = ("train.py", "--config", str(small_recipe()), "--run.out", str(tmp_path / "run"))
    succeed(*command)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    output = succeed(*command)
    assert re.search(r"run is finished: trained on digits, test top-1 \d+\.\d\d %; use another --run\.out", output)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert "already holds a run and resume=never" in fail(*command, "--resume", "never")


def test_a_folder_whose_configuration_differs_stops_and_lists_the_keys(small_recipe, tmp_path):
    command = ("train.py", "--config", str(small_recipe()), "--run.out", str(tmp_path / "run"))
    succeed(*command)
    message = fail(*command, "--optim.lr", "0.5", "--run.seed", "3")
    assert "optim.lr: 0.05 -> 0.5" in message
    assert "run.seed: 0 -> 3" in message


def test_a_run_is_known_by_what_its_own_pipeline_does_wherever_the_file_lies(small_recipe, tmp_path):
    def write(name, prob):
        flip = {"__class_fullname__": "HorizontalFlip", "p": prob}
        saved = {"__version__": "2.0.8", "transform": {"__class_fullname__": "Compose", "transforms": [flip], "p": 1.0}}
        (tmp_path / name).write_text(json.dumps(saved) if name.endswith("json") else yaml.safe_dump(saved))
        return "--augment.albumentations", str(tmp_path / name)

    out = tmp_path / "run"
    command = ("train.py", "--config", str(small_recipe()), "--run.out", str(out), "--train.epochs", "1")
    mine = write("mine.yaml", 0.5)
    succeed(*command, *mine)
    assert "is finished" in succeed(*command, *write("moved.json", 0.5))
    write("mine.yaml", 0.25)
    message = fail(*command, *mine)
    assert re.search(r"augment\.albumentations_hash: [0-9a-f]{16} -> [0-9a-f]{16}\n", message)
    assert f"to have it: --augment.albumentations {out}/albumentations.json\n" in message
    (out / "result.json").unlink()
    assert "augment.albumentations_hash" in fail(*command), "without it"
    assert "continuing from" in succeed(*command, "--augment.albumentations", str(out / "albumentations.json"))


def test_the_executors_train_the_same_weights(folder_recipe, tmp_path):
    recipe = folder_recipe()
    for backend in ("resident", "reference"):
        out = str(tmp_path / backend)
        succeed("train.py", "--config", str(recipe), "--run.out", out, "--loader.backend", backend)
    assert epoch_rows(tmp_path / "resident") == epoch_rows(tmp_path / "reference")


def test_random_resized_crops_of_photographs_of_any_size_train(folder_recipe, make_folder, tmp_path):
    root = make_folder({"train": {"dark": 8, "light": 8}}, size_px=20)
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        with Image.open(path) as image:
            resized = image.resize((20 + number, 30))
        resized.save(path)
    recipe = folder_recipe(
        root=root,
        input={"size_px": 16},
        augment={"crop": "rrc", "pad_px": 4, "flip": "random"},
        train={"epochs": 1, "global_batch_size": 4},
    )
    output = succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"))
    assert "loader: threads (windows or sizes are drawn, from images of several sizes)" in output
    assert "test" not in json.loads((tmp_path / "run" / "result.json").read_text())


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp64", 1e-3)])
def test_other_precisions_train_alike_but_not_the_same(small_recipe, tmp_path, precision, tolerance):
    recipe = str(small_recipe(train={"epochs": 1, "global_batch_size": 60}))
    losses = {}
    for name in ("fp32", precision):
        succeed("train.py", "--config", recipe, "--run.out", str(tmp_path / name), "--train.precision", name)
        losses[name] = epoch_rows(tmp_path / name)[0]["train/epoch_loss"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=tolerance)
    assert losses[precision] != losses["fp32"]
    weights = load_file(max((tmp_path / precision / "checkpoints").iterdir()) / "model.safetensors")
    dtype = "torch.float64" if precision == "fp64" else "torch.float32"
    assert {str(value.dtype) for value in weights.values()} == {dtype}


def test_without_val_the_last_checkpoint_is_scored(small_recipe, tmp_path):
    recipe = small_recipe(data={"dataset": "digits", "val_frac": 0.0}, run={"select": "last"})
    output = succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"))
    assert "val:" not in output
    assert "test: top-1" in output


def test_a_missing_folder_is_named(folder_recipe, tmp_path):
    message = fail("train.py", "--config", str(folder_recipe(root=tmp_path / "nowhere")))
    assert f"data.root={tmp_path / 'nowhere'} does not exist" in message


def test_an_empty_class_is_named(folder_recipe, make_folder):
    root = make_folder(TWO_CLASSES)
    (root / "train" / "nothing").mkdir()
    shutil.copytree(root / "test" / "dark", root / "test" / "nothing")
    assert "class folders without images: nothing" in fail("train.py", "--config", str(folder_recipe(root=root)))


def test_classes_that_differ_between_splits_are_listed(folder_recipe):
    splits = {"train": {"cat": 4, "dog": 4}, "val": {"cat": 4, "eel": 4}}
    message = fail("train.py", "--config", str(folder_recipe(splits)))
    assert "- dog (in train/, not in val/)" in message
    assert "+ eel (in val/, not in train/)" in message


@pytest.mark.parametrize("backend", ["resident", "reference"])
def test_one_unreadable_image_is_named(folder_recipe, make_folder, backend, tmp_path):
    root = make_folder(TWO_CLASSES, suffix=".jpg", size_px=64)
    broken = root / "train" / "light" / "003.jpg"
    broken.write_bytes(broken.read_bytes()[:-500])  # the header is whole, the pixels are not
    done = run_program(
        "train.py",
        "--config",
        str(folder_recipe(root=root)),
        "--loader.backend",
        backend,
        "--run.out",
        str(tmp_path / "r"),
    )
    assert done.returncode == 1
    assert str(broken) in done.stderr
    assert "Premature end of JPEG file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_image_is_named_before_any_work(folder_recipe, make_folder):
    root = make_folder(TWO_CLASSES)
    (root / "train" / "dark" / "page.jpg").write_text("<html>not found</html>")
    message = fail("train.py", "--config", str(folder_recipe(root=root)))
    assert "1 of 36 images cannot be read" in message  # a quarter of train is set aside as val
    assert "page.jpg: not an image in any format that Pillow reads" in message


@pytest.fixture
def folder_with_cut_images(make_folder):
    """Train, val and test, with an image of train and one of test cut behind their headers."""
    root = make_folder(TWO_CLASSES | {"val": {"dark": 6, "light": 6}})
    for name in ("train/light/003.png", "test/dark/002.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    return root


def test_a_cut_image_stops_the_run_before_it_begins(folder_recipe, folder_with_cut_images, tmp_path):
    recipe = folder_recipe(root=folder_with_cut_images, input={"mean": [0.5] * 3, "std": [0.25] * 3})
    message = fail("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "run"))
    assert "1 of 48 images cannot be read:" in message
    assert f"{folder_with_cut_images / 'train/light/003.png'}: " in message
    assert "--data.on_bad_sample replace (in training), --data.on_bad_eval_sample exclude (in evaluation)" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_goes_on_without_cut_images_and_lists_them(folder_recipe, folder_with_cut_images, tmp_path):
    root, out = folder_with_cut_images, tmp_path / "run"
    policy = ("--data.on_bad_sample", "replace", "--data.on_bad_eval_sample", "exclude", "--data.max_bad_frac", "0.5")
    output = succeed("train.py", "--config", str(folder_recipe(root=root)), "--run.out", str(out), *policy)
    rows = RunFolder(out).read_bad_samples()
    told = [(row["split"], row["epoch"], row["name"]) for row in rows]
    cut, cut_test = str(root / "train/light/003.png"), str(root / "test/dark/002.png")
    assert told == [("train", 0, cut), ("train", 1, cut), ("test", 0, cut_test)]
    assert all("train/light/" in row["replaced_by_name"] != cut for row in rows[:2])
    assert rows[2]["replaced_by"] is None
    assert all("truncated" in row["reason"] for row in rows)
    result = json.loads((out / "result.json").read_text())
    assert (result["test/num_samples"], result["test/num_excluded"]) == (12, 1)
    assert "val/num_excluded" not in result
    assert re.search(r"test: top-1 .*; 1 not counted: they could not be read", output)
    assert [row["train/num_bad"] for row in epoch_rows(out)] == [1, 1]
    again = succeed("evaluate.py", "--run", str(out))
    assert f"not counted: {cut_test}: " in again
    assert f"test/top1_frac {result['test/top1_frac']}" in again
    assert "test/num_excluded 1" in again


def test_an_unknown_model_is_answered_with_the_nearest(small_recipe):
    message = fail("train.py", "--config", str(small_recipe()), "--model.name", "simpel_cnn")
    assert "unknown model 'simpel_cnn'; nearest: simple_cnn" in message


MYNET = """from torch import nn


class MyNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images):
        logits = self.net(images)
        return logits[:, :-1] if self.training else logits
"""


def test_a_network_with_fewer_logits_in_training_than_in_evaluation_is_told_so(small_recipe, tmp_path):
    (tmp_path / "mynet.py").write_text(MYNET)
    command = ("train.py", "--config", str(small_recipe()), "--run.out", str(tmp_path / "run"))
    done = run_program(*command, "--model.name", "mynet:MyNet", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "in training the network gives shape (60, 9) for 60 images of 10 classes; wanted: one tensor" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("key", "nearest"), [("--model.nam", "model.name"), ("--optim.learning_rate", "optim.lr")])
def test_unknown_and_abbreviated_keys_are_answered_with_the_nearest(small_recipe, key, nearest):
    message = fail("train.py", "--config", str(small_recipe()), key, "x", code=2)
    assert f"unknown option '{key[2:]}'" in message
    assert nearest in message


def test_a_batch_that_does_not_divide_offers_its_neighbours(small_recipe):
    message = fail("train.py", "--config", str(small_recipe()), "--train.accumulation", "7")
    assert "global_batch_size=60 is not divisible by world_size*accumulation = 1*7 = 7; use 56 or 63" in message


def test_a_batch_larger_than_the_data_offers_the_largest(small_recipe):
    message = fail("train.py", "--config", str(small_recipe()), "--train.global_batch_size", "2000")
    assert "more than the 1293 training images; use at most 1293" in message


def test_a_batch_too_large_for_memory_is_refused_with_one_that_fits(small_recipe):
    large = ("--input.size_px", "2048", "--loader.backend", "reference", "--augment.crop", "none")
    message = fail(
        "train.py", "--config", str(small_recipe(augment={"pad_px": 4})), "--train.global_batch_size", "1290", *large
    )
    assert "out of memory (lower train.global_batch_size or input.size_px, or raise train.accumulation)" in message
    assert re.search(r"1,290 images at a time need at least [\d.]+ GiB .* about \d+ at a time are safe", message)


def test_images_of_several_sizes_need_a_size(folder_recipe, make_folder):
    root = make_folder(TWO_CLASSES)
    Image.new("RGB", (40, 50)).save(root / "train" / "dark" / "large.png")
    assert "--input.size_px 32" in fail("train.py", "--config", str(folder_recipe(root=root)))


def test_a_crop_larger_than_the_image_is_refused(small_recipe):
    message = fail("train.py", "--config", str(small_recipe()), "--input.crop_frac", "1.25", code=2)
    assert "would crop 1.25 times the short side" in message
    message = fail("train.py", "--config", str(small_recipe()), "--augment.pad_px", "8")
    assert "pad_px=8 shifts the crop beyond an image of input.size_px=8" in message


def test_a_learning_rate_that_explodes_stops_and_names_the_step(small_recipe, tmp_path):
    recipe, out = small_recipe(), tmp_path / "run"
    done = run_program("train.py", "--config", str(recipe), "--run.out", str(out), "--optim.lr", "1e30")
    assert done.returncode == 1
    assert re.search(r"error: the loss is not finite at step \d+ ", done.stderr)
    assert not (out / "result.json").exists()


@pytest.mark.parametrize("change", ["rename in train", "remove from test", "edit in val"])
def test_any_change_of_the_images_is_noticed_when_a_run_goes_on(folder_recipe, make_folder, tmp_path, change):
    root = make_folder(TWO_CLASSES | {"val": {"dark": 6, "light": 6}})
    command = ("train.py", "--config", str(folder_recipe(root=root)), "--run.out", str(tmp_path / "run"))
    succeed(*command)
    (tmp_path / "run" / "result.json").unlink()  # as if it had been stopped before the end
    match change:
        case "rename in train":
            (root / "train" / "dark" / "000.png").rename(root / "train" / "dark" / "renamed.png")
        case "remove from test":
            (root / "test" / "dark" / "000.png").unlink()
        case "edit in val":  # which changes no folder: the index looks into files only when it is told to
            Image.new("RGB", (16, 16)).save(root / "val" / "dark" / "000.png")
            command += ("--data.rescan", "true")
    message = run_program(*command).stderr
    assert "the data has changed since" in message
    assert f"{change.split()[-1]}/" in message


def test_a_recipe_after_overrides_is_refused(small_recipe):
    message = fail("train.py", "--optim.lr", "0.7", "--config", str(small_recipe()), code=2)
    assert "--config must come once and first" in message
