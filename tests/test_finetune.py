"""finetune.py: every strategy from a run folder, scored again by evaluate.py; files of weights; cross-validation."""

import json
import re
import shutil
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from patterns import save_patterns
from safetensors.torch import load_file

import evaluate
import finetune
import train
from engine.checkpoint import read_card, save_checkpoint, scored_checkpoint
from engine.choose_strategy import SIMILAR_FROM
from engine.record import RunFolder

THREE = ("blocks", "columns", "dots")
QUICK = (
    "--train.epochs",
    "6",
    "--train.global_batch_size",
    "12",
    "--schedule.warmup_epochs",
    "0",
)
STRATEGIES = ("linear", "features", "head_then_all", "all", "gradual", "differential", "scratch", "auto")


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("engine.runtime.keep_freed_memory", lambda: None)
    yield
    AcceleratorState._reset_state()


def start(program, *words):
    """Runs one of the programs within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, words)])
        program.main()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A network with BatchNorm, trained on four classes of patterns."""
    root = save_patterns(tmp_path_factory.mktemp("four"), num_train=40, num_test=10)
    out = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr("engine.runtime.keep_freed_memory", lambda: None)
        words = ["--data.dataset", "folder", "--data.root", root, "--model.args", '{"width": 8, "norm": "batch"}']
        words += ["--train.epochs", "6", "--train.global_batch_size", "16", "--optim.lr", "0.003"]
        start(train, *words, "--run.trackers", "[]", "--run.out", out)
    AcceleratorState._reset_state()
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A few images of three of these classes, light and dark exchanged."""
    return save_patterns(tmp_path_factory.mktemp("three"), num_train=12, num_test=10, classes=THREE, contrast=-60)


@pytest.fixture
def tune(source, few, tmp_path, capsys):
    """Fine-tunes the source on these images; gives the run folder and what was printed."""

    def run(*options, name="run"):
        out = tmp_path / name
        capsys.readouterr()
        words = ["--model.name", source, "--data.root", few, *QUICK, "--run.trackers", "[]", "--run.out", out]
        start(finetune, *words, *options)
        return out, capsys.readouterr().out

    return run


def result_of(out):
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_evaluate_finds_the_score_of_each_strategy_again(name, tune, capsys):
    out, said = tune("--strategy.name", name)
    result = result_of(out)
    assert result["test/num_samples"] == 30
    assert ("weights: random" if name == "scratch" else "tensors loaded; new: head.5.weight, head.5.bias") in said
    assert "input: as the weights were trained\n" in said
    assert ("start" in read_card(scored_checkpoint(out / "checkpoints"))) == (name != "scratch")
    assert_scored_again(out, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["logistic", "svm", "knn"])
def test_evaluate_finds_the_score_of_each_classifier_again(classifier, tune, capsys):
    options = ("--strategy.name", "features", "--strategy.cv_folds", "3", "--loss.label_smoothing", "0")
    out, said = tune(*options, "--strategy.classifier", classifier)
    assert re.search(r"(logistic regression|linear SVM|neighbours).*: [Ck]=\S+.* by cross-validation in 3 parts", said)
    assert result_of(out)["test/top1_frac"] > 0.5  # of three classes
    assert_scored_again(out, capsys)


def assert_scored_again(out, capsys):
    result = result_of(out)
    capsys.readouterr()
    start(evaluate, "--run", out)
    printed = dict(re.findall(r"^(test/\S+|test/top1_frac/\w+) (\S+)$", capsys.readouterr().out, re.MULTILINE))
    assert printed == {key: str(value) for key, value in result.items() if key.startswith("test/")}


@pytest.mark.slow
def test_auto_says_what_it_chose_and_by_what(tune):
    out, said = tune("--strategy.name", "auto")
    assert re.search(r"strategy: (linear|differential): \d+ images per class are few .*nearest neighbours", said)
    assert read_card(scored_checkpoint(out / "checkpoints"))["strategy"] in ("linear", "differential")
    _, said = tune("--strategy.name", "auto", "--strategy.similarity", "different", name="told")
    assert "strategy: differential: " in said


@pytest.mark.slow
def test_auto_does_not_choose_by_images_that_cannot_be_read(tune, few, tmp_path, monkeypatch, capsys):
    root = tmp_path / "damaged"
    shutil.copytree(few, root)
    damaged = root / "train" / "columns" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    monkeypatch.setattr("finetune._NUM_SHOWN", 1)  # of many images, those that are looked at first can all be read
    with pytest.raises(SystemExit):
        tune("--data.root", root, "--strategy.name", "auto", "--loader.backend", "threads")
    told = capsys.readouterr()
    assert f"{damaged}: OSError: image file is truncated" in told.err
    assert "strategy:" not in told.out


@pytest.mark.slow
def test_auto_goes_on_with_the_strategy_that_it_began_with(tune, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    monkeypatch.setattr("engine.build_strategy.measure_knowing", lambda *_: SIMILAR_FROM)
    assert "strategy: linear: " in tune("--strategy.name", "auto")[1]
    monkeypatch.setattr("engine.build_strategy.measure_knowing", lambda *_: SIMILAR_FROM - 1e-4)
    out, said = tune("--strategy.name", "auto")
    assert "strategy: linear, with which this run began" in said
    assert result_of(out)["test/num_samples"] == 30


@pytest.mark.slow
def test_a_dry_run_trains_nothing(tune):
    for name in ("gradual", "features"):
        out, said = tune("--strategy.name", name, "--dry-run", name=name)
        assert "dry run: nothing was" in said
        assert ("augmentation: none, for features are" in said) == (name == "features")  # the recipe asks for it
        assert not (out / "checkpoints").exists()
        assert not (out / "result.json").exists()


@pytest.mark.slow
def test_a_fine_tuned_network_is_fine_tuned_again(tune):
    first, _ = tune("--strategy.name", "linear", name="first")
    _, said = tune("--strategy.name", "all", "--model.name", first, "--weights.head", "keep", name="second")
    assert "new:" not in said


@pytest.mark.slow
def test_a_file_of_weights_must_fit(tune, source, tmp_path):
    weights = scored_checkpoint(source / "checkpoints") / "model.safetensors"
    model = ("--model", '{"name": "simple_cnn", "args": {"width": 8, "norm": "batch"}}', "--weights.file", weights)
    size = ("--input.size_px", "16")
    _, said = tune(*model, *size, "--strategy.name", "linear", name="file")
    assert "nothing says what these weights were trained with" in said
    other = ("--model", '{"name": "simple_cnn", "args": {"width": 8, "hidden": 64, "norm": "batch"}}', *model[2:])
    with pytest.raises(SystemExit):
        tune(*other, *size, "--strategy.name", "linear", name="other")
    assert not (tmp_path / "other" / "config.yaml").exists()
    _, said = tune(*other, *size, "--strategy.name", "linear", "--weights.partial", "true", name="partial")
    assert "~ reshaped head.2.weight (256, 128) != (64, 128)" in said


@pytest.mark.slow
@pytest.mark.parametrize(("head", "changed"), [("new", "features.0.0.bias"), ("keep", "head.5.bias")])
def test_other_weights_than_a_run_began_with_are_refused(head, changed, tune, source, tmp_path, capsys):
    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    data = RunFolder(source).read_config()["data"]["root"]  # its classes
    options = ("--model.name", moved, "--strategy.name", "linear", "--weights.head", head, "--data.root", data)
    out, _ = tune(*options)
    (out / "result.json").unlink()
    checkpoint = scored_checkpoint(moved / "checkpoints")
    weights = load_file(checkpoint / "model.safetensors")
    weights[changed] += 1
    shutil.rmtree(moved / "checkpoints")
    card = read_card(source / "checkpoints" / checkpoint.name)
    save_checkpoint(moved / "checkpoints", step=1, best_step=None, weights=weights, card=card, training_state={})
    with pytest.raises(SystemExit):
        tune(*options)
    assert "and what it has learned belongs to those" in capsys.readouterr().err


@pytest.mark.slow
def test_cross_validation_gives_mean_and_spread_and_goes_on_after_a_part(tune, tmp_path):
    options = ("--strategy.name", "features", "--strategy.classifier", "svm", "--strategy.cv_folds", "2")
    options += ("--loss.label_smoothing", "0", "--run.select", "last", "--folds", "3", "--repeats", "2")
    out, said = tune(*options)
    summary = json.loads((out / "folds.json").read_text())
    assert len(summary["folds"]) == 6
    assert {result_of(folder)["val/num_samples"] for folder in out.glob("repeat_*_fold_*")} == {12}
    assert re.search(r"3 folds, 2 repeat\(s\): val top-1 \d+\.\d\d % \(standard deviation of parts", said)
    (out / "repeat_1_fold_2" / "result.json").unlink()
    (out / "folds.json").unlink()
    _, said = tune(*options)
    assert said.count("is finished") == 5
    assert json.loads((out / "folds.json").read_text()) == summary


@pytest.mark.slow
def test_train_refuses_a_recipe_of_fine_tuning(few, capsys):
    with pytest.raises(SystemExit):
        start(train, "--config", "configs/finetune/few_images.yaml", "--data.root", few)
    assert "use finetune.py" in capsys.readouterr().err


@pytest.mark.slow
def test_frozen_weights_and_statistics_stay_to_the_bit(tune, source):
    out, _ = tune("--strategy.name", "linear")
    before = load_file(scored_checkpoint(source / "checkpoints") / "model.safetensors")
    after = load_file(scored_checkpoint(out / "checkpoints") / "model.safetensors")
    changed = {
        key for key, value in before.items() if value.shape != after[key].shape or not torch.equal(value, after[key])
    }
    assert changed == {"head.5.weight", "head.5.bias"}


@pytest.mark.slow
def test_features_follow_files_that_are_edited_in_place(tune, few, tmp_path):
    root = tmp_path / "edited"
    shutil.copytree(few, root)
    options = ("--strategy.name", "features", "--strategy.classifier", "svm", "--loss.label_smoothing", "0")
    tune("--data.root", root, *options, name="before")
    for path in (root / "train" / "columns").iterdir():
        path.write_bytes((root / "train" / "dots" / path.name).read_bytes())
    out, said = tune("--data.root", root, *options, name="after")
    assert "12 files have been edited" in said
    assert result_of(out)["test/top1_frac"] < 0.9, "columns are not learned from images of dots"


@pytest.mark.slow
def test_an_image_of_train_that_features_cannot_be_made_of_goes_by_on_bad_sample_and_is_told_once(
    tune, few, tmp_path, capsys
):
    root = tmp_path / "damaged"
    shutil.copytree(few, root)
    damaged = root / "train" / "columns" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    options = ("--data.root", root, "--data.max_bad_frac", "0.2", "--strategy.name", "features")
    for classifier in (("linear",), ("svm", "--loss.label_smoothing", "0")):
        words = (*options, "--strategy.classifier", *classifier)
        out, _ = tune(*words, "--data.on_bad_sample", "replace", name=classifier[0])
        assert (out / "bad_samples.jsonl").read_text().count(str(damaged)) == 1
        rows = (out / "metrics.jsonl").read_text().splitlines()
        (out / "result.json").unlink()
        tune(*words, "--data.on_bad_sample", "replace", name=classifier[0])
        assert (out / "bad_samples.jsonl").read_text().count(str(damaged)) == 1
        assert len((out / "metrics.jsonl").read_text().splitlines()) == len(rows)
    with pytest.raises(SystemExit):
        tune(*options, "--data.on_bad_eval_sample", "exclude", name="raised")
    assert f"{damaged}: OSError: image file is truncated" in capsys.readouterr().err


OWN_NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.first, self.head = nn.Conv2d(in_channels, 8, 3, padding=1), nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(SIGN * self.first(images).amax((2, 3)))
"""


@pytest.mark.slow
def test_features_of_a_network_of_the_users_own_follow_its_code(few, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_net.py").write_text(OWN_NETWORK + "\n\nSIGN = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = ("--data.dataset", "folder", "--data.root", few, "--run.trackers", "[]")
    start(train, "--model.name", "own_net:Net", *data, *QUICK, "--run.out", tmp_path / "source")
    options = ("--strategy.name", "features", "--strategy.classifier", "svm", "--loss.label_smoothing", "0")
    scores = []
    for sign in (1, -1):
        monkeypatch.setattr("own_net.SIGN", sign)
        AcceleratorState._reset_state()
        start(finetune, "--model.name", tmp_path / "source", *data, *QUICK, *options, "--run.out", tmp_path / f"{sign}")
        scores.append(result_of(tmp_path / f"{sign}")["test/top1_frac"])
    assert scores[0] == scores[1] > 0.5, "of features of the other sign the same can be learned"
    assert "features: kept" not in capsys.readouterr().out
