"""The four classic mistakes of fine-tuning: what each costs, and that it cannot be made here, or is told."""

import json
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from patterns import CLASSES, save_patterns
from safetensors.torch import load_file

import evaluate
import finetune
import train
from configs.load import load_config, replace_section
from engine.build import with_card
from engine.checkpoint import load_weights, read_card, scored_checkpoint
from engine.evaluation import logits_of_views
from models.build import build_model
from pipelines.build import Place, build_data, build_evaluation_loader, build_training_loader

_CALM = (
    "--train.epochs",
    "4",
    "--train.global_batch_size",
    "24",
    "--schedule.warmup_epochs",
    "0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of four classes."""
    return save_patterns(tmp_path_factory.mktemp("patterns"), num_train=60, num_test=25)


@pytest.fixture
def run(monkeypatch):
    """Runs one of the programs within this process."""

    def start(program, *words):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        monkeypatch.setattr("engine.runtime.keep_freed_memory", lambda: None)
        quiet = [] if program is evaluate else ["--run.trackers", "[]"]
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *words, *quiet])
        program.main()

    yield start
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory):
    """A trained network with BatchNorm, as a run folder."""
    out = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr("engine.runtime.keep_freed_memory", lambda: None)
        words = [
            "--data.dataset",
            "folder",
            "--data.root",
            str(folder),
            "--model.args",
            '{"width": 8, "norm": "batch"}',
        ]
        words += [
            "--train.epochs",
            "8",
            "--train.global_batch_size",
            "24",
            "--optim.lr",
            "0.003",
            "--run.trackers",
            "[]",
        ]
        patch.setattr(sys, "argv", ["train.py", *words, "--run.out", str(out)])
        train.main()
    AcceleratorState._reset_state()
    assert json.loads((out / "result.json").read_text())["test/top1_frac"] > 0.9
    return out


def load_source(source, folder, *options):
    """The configuration, the data and the network of the run."""
    checkpoint = scored_checkpoint(source / "checkpoints")
    config = load_config(["--config", str(source / "config.yaml"), *options], prog="test", description="")
    config = with_card(config, read_card(checkpoint))
    data = build_data(config, show_progress=False)
    module = build_model(config.model, num_classes=len(CLASSES), spec=data.spec, seed=0)
    load_weights(module, checkpoint)
    return config, data, module


PLACE = Place(torch.device("cpu"), torch.float32, 0, 1, 1)


def top1_frac(module, loader):
    """Top-1 of a network in the mode it is in."""
    right = total = 0
    with torch.no_grad():
        for batch in loader:
            logits_NK = logits_of_views(module, batch.inputs, tta="none")
            right += int(((logits_NK.argmax(1) == batch.labels_N) & batch.valid_N).sum())
            total += int(batch.valid_N.sum())
    return right / total


def evaluation_loader(config, data, *, batch_size=256):
    config = replace_section(config, "loader", eval_batch_size_per_rank=batch_size)
    return build_evaluation_loader(config, data, "test", place=PLACE, show_progress=False)


@pytest.mark.slow
def test_eval_mode_forgotten_spoils_batches_of_one_class_and_evaluation_does_not_forget_it(source, folder, run, capsys):
    config, data, module = load_source(source, folder)
    loader = evaluation_loader(config, data, batch_size=25)  # a class each: folders are read in order
    right = top1_frac(module.eval(), loader)
    assert right > 0.9
    assert top1_frac(module.train(), loader) < right - 0.2  # what it costs
    capsys.readouterr()
    run(evaluate, "--run", str(source), "--loader.eval_batch_size_per_rank", "25")
    assert f"test/top1_frac {right}\n" in capsys.readouterr().out


def norms_of(path):
    """BatchNorm's running statistics in a file of weights."""
    return {key: value for key, value in load_file(path).items() if "running_" in key}


@pytest.mark.slow
def test_statistics_drift_under_frozen_weights_only_where_the_recipe_says_so(source, folder, run, tmp_path):
    def tune(frozen_bn):
        out = tmp_path / frozen_bn
        words = ["--model.name", str(source), "--data.root", str(folder), "--strategy.name", "linear", *_CALM]
        run(finetune, *words, "--strategy.frozen_bn", frozen_bn, "--augment.noise_std", "0.5", "--run.out", str(out))
        return scored_checkpoint(out / "checkpoints") / "model.safetensors"

    _, data, module = load_source(source, folder)
    before = norms_of(scored_checkpoint(source / "checkpoints") / "model.safetensors")
    kept, moved = norms_of(tune("eval")), norms_of(tune("train"))
    assert len(before) == 6
    assert all(torch.equal(value, kept[key]) for key, value in before.items())
    assert not any(torch.equal(value, moved[key]) for key, value in before.items())
    config, _, _ = load_source(source, folder)
    loader = evaluation_loader(config, data)
    right = top1_frac(module.eval(), loader)
    module.load_state_dict(module.state_dict() | moved)  # what it costs: the network is no longer what it was
    assert top1_frac(module.eval(), loader) < right


@pytest.mark.slow
def test_augmentation_reaches_no_image_of_test(source, folder):
    config, data, module = load_source(source, folder)
    strong = [
        "--augment.crop",
        "rrc",
        "--augment.pad_px",
        "4",
        "--augment.cutout_px",
        "8",
        "--augment.noise_std",
        "0.3",
        "--augment.flip",
        "random",
    ]
    augmented, _, _ = load_source(source, folder, *strong)
    plain, other = (
        list(build_evaluation_loader(one, data, "test", place=PLACE, show_progress=False))
        for one in (config, augmented)
    )
    for batch, again in zip(plain, other, strict=True):
        assert torch.equal(batch.inputs[0], again.inputs[0])
        assert torch.equal(batch.ids_N, again.ids_N)
    # what it costs: the same network on images as training shows them
    test_as_train = data._replace(train=data.test)
    augmented = replace_section(augmented, "train", global_batch_size=100)
    shown = build_training_loader(augmented, test_as_train, place=PLACE, show_progress=False)
    assert top1_frac(module.eval(), shown) < top1_frac(module, plain) - 0.2


@pytest.mark.slow
def test_a_wrong_normalisation_is_refused_and_the_right_one_comes_by_itself(source, folder, run, tmp_path, capsys):
    config, data, module = load_source(source, folder)
    right = top1_frac(module.eval(), evaluation_loader(config, data))
    wrong = data._replace(spec=replace_section(config, "input", mean=(0.0,) * 3, std=(1.0,) * 3).input)
    assert top1_frac(module, evaluation_loader(config, wrong)) < right - 0.2  # what it costs
    words = ["--model.name", str(source), "--data.root", str(folder), "--strategy.name", "linear", *_CALM]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(finetune, *words, "--input.mean", "[0, 0, 0]", "--input.std", "[1, 1, 1]", "--run.out", str(tmp_path / "a"))
    told = capsys.readouterr().err
    assert "input.mean=[0.0, 0.0, 0.0], but the weights were trained with [" in told
    assert not (tmp_path / "a").exists()
    run(finetune, *words, "--run.out", str(tmp_path / "b"))
    card = read_card(scored_checkpoint(tmp_path / "b" / "checkpoints"))
    assert card["input"] == read_card(scored_checkpoint(source / "checkpoints"))["input"]
