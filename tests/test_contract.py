"""Every network and every recipe goes through the programs: train.py, then evaluate.py, which finds the same score."""

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from model_cases import CASES, OWN, TIMM, TORCHVISION

import configs
import evaluate
import train
from models.build import MODELS

RECIPES = [path for path in sorted(Path(configs.__file__).parent.rglob("*.yaml")) if path.parent.name != "finetune"]
TWO_CLASSES = {"train": {"dark": 8, "light": 8}, "test": {"dark": 5, "light": 4}}
TEN_CLASSES = {"train": {f"class {k}": 8 for k in range(10)}, "test": {f"class {k}": 2 for k in range(10)}}


@pytest.fixture
def run_both(monkeypatch, capsys, tmp_path):
    """train.py and then evaluate.py, within this process; asserts that they agree, and gives the result."""
    out = tmp_path / "run"

    def run(*options):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        monkeypatch.setattr("engine.runtime.keep_freed_memory", lambda: None)  # 45 networks' memory would add up
        monkeypatch.setattr(sys, "argv", ["train.py", *options, "--run.out", str(out), "--run.trackers", "[]"])
        train.main()
        result = json.loads((out / "result.json").read_text())
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(out)])
        evaluate.main()
        printed = dict(re.findall(r"^(test/\S+|test/top1_frac/class \d) (\S+)$", capsys.readouterr().out, re.MULTILINE))
        wanted = {key: str(value) for key, value in result.items() if key.startswith("test/")}
        assert printed == wanted
        return result

    yield run
    AcceleratorState._reset_state()  # a process has one precision until then, and the next recipe may have another
    shutil.rmtree(out, ignore_errors=True)  # pytest would keep hundreds of megabytes


def test_the_contract_sees_every_network_of_our_own_and_twenty_of_each_zoo():
    assert set(OWN) == set(MODELS)
    assert len(CASES) == len(OWN) + 20 + 20
    assert len(TORCHVISION) == len(TIMM) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_evaluate_finds_the_score_of_training_again(name, run_both, make_folder):
    case = CASES[name]
    root = make_folder(TWO_CLASSES)
    recipe = Path(configs.__file__).parent / "cifar10" / "simple_cnn.yaml"
    model = {"name": name, "args": case.args, "stem": case.stem}
    result = run_both(
        *("--config", str(recipe), "--data.root", str(root), "--data.val_frac", "0.25"),
        *("--model", json.dumps(model), "--input.size_px", str(case.size_px)),
        *("--optim", json.dumps({"name": "sgd", "lr": 0.001})),
        *("--train.epochs", "1", "--train.global_batch_size", "4", "--run.keep_checkpoints", "1"),
        *("--loader.eval_batch_size_per_rank", "4"),
    )
    assert result["test/num_samples"] == 9


def test_the_contract_sees_every_recipe():
    assert len(RECIPES) == 16


def shrink(recipe, *, root):
    """The recipe on a few images: 2 epochs, all times in proportion, though no shorter than a step; batches of 20,
    learning rates too; photographs of a quarter of their height and width.
    """
    small, times = copy.deepcopy(recipe), 2 / recipe["train"]["epochs"]
    small["train"]["epochs"] = 2
    small["run"] = small.get("run", {}) | {"num_threads": 1}
    for section in (small.get("schedule", {}), small.get("augment", {}), *small["optim"].get("groups", [])):
        timed = ("warmup_epochs", "cooldown_epochs", "cycle_epochs", "mix_until_epoch", "until_epoch")
        section |= {key: max(round(section[key] * times, 4), 20 / 60) for key in timed if section.get(key)}
    if recipe["data"]["dataset"] == "folder":
        small["data"] |= {"root": str(root), "val_frac": 0.25}
        small["train"]["global_batch_size"] = 20
        for section in (small["optim"], *small["optim"].get("groups", [])):
            section |= {"lr": section["lr"] * 20 / recipe["train"]["global_batch_size"]} if "lr" in section else {}
    if "size_px" in small.get("input", {}):
        small["input"]["size_px"] //= 4
        sizes_px = small["augment"].get("sizes_px", [])
        small["augment"]["sizes_px"] = [[round(start * times, 4), size_px // 4] for start, size_px in sizes_px]
    return small


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_trains_on_a_shrunken_copy_of_its_data(path, run_both, make_folder, tmp_path):
    recipe = yaml.safe_load(path.read_text())
    is_folder = recipe["data"]["dataset"] == "folder"
    root = make_folder(TEN_CLASSES, size_px=32, suffix=".jpg") if is_folder else None
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shrink(recipe, root=root)))
    result = run_both("--config", str(tmp_path / "small.yaml"))
    assert result["epoch"] == 2
    assert result["test/num_samples"] == (20 if is_folder else 360)
    assert result["step"] == (2 * (60 // 20) if is_folder else 2 * 21)
