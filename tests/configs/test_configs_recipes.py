"""Every recipe parses, and its header gives a command that works."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

import configs
from configs.check import check_batch
from configs.load import parse_config
from configs.schema import Config

ROOM = Path(configs.__file__).parent
RECIPES = sorted(ROOM.rglob("*.yaml"))


def parse_recipe(path: Path, parser: ArgumentParser, *, root: Path) -> Config:
    needs_root = yaml.safe_load(path.read_text())["data"]["dataset"] == "folder"
    return parse_config(["--config", str(path), *(["--data.root", str(root)] if needs_root else [])], parser=parser)


def test_the_tests_saw_every_recipe_of_the_tree() -> None:
    walked = [name for _, _, files in os.walk(ROOM) for name in files if not name.endswith((".py", ".pyc"))]
    assert len(RECIPES) == len(walked) >= 2
    assert {path.suffix for path in RECIPES} == {".yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOM)))
def test_a_recipe_parses_and_its_batch_divides_on_one_process(
    path: Path, parser: ArgumentParser, tmp_path: Path
) -> None:
    config = parse_recipe(path, parser, root=tmp_path)
    check_batch(config, world_size=1)
    assert config.run.out is None, "a recipe that names a run folder would let two machines share one"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOM)))
def test_the_command_in_the_header_names_this_recipe_and_parses(
    path: Path, parser: ArgumentParser, tmp_path: Path
) -> None:
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header, f"{path} has no header comment"
    command = re.search(r"^# accelerate launch (?:train|finetune)\.py(.*)$", header[0], flags=re.MULTILINE)
    assert command, f"{path} has no command in its header"
    words = [str(tmp_path) if word == "DIR" else word for word in shlex.split(command[1])]
    given = words[words.index("--config") + 1] if "--config" in words else "configs/digits/simple_cnn.yaml"
    assert given == str(path.relative_to(ROOM.parent))
    argv = ["--config", str(path)] + [word for word in words if word not in ("--config", given)]
    assert parse_config(argv, parser=parser) == parse_recipe(path, parser, root=tmp_path)


# --- figures that a recipe converts from those of its source


def read_recipe(name: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load((ROOM / name).read_text())
    return recipe


def test_airbench96_takes_the_steps_of_its_source_which_sums_the_loss() -> None:
    batch, momentum, lr, weight_decay, bias_scaler = 1024, 0.85, 9.0, 0.012, 64.0  # as the source writes them
    kilostep_scale = 1024 * (1 + 1 / (1 - momentum))
    lr_of_sum, decay_per_step = lr / kilostep_scale, weight_decay * batch / kilostep_scale
    optim = read_recipe("cifar10/speedrun96.yaml")["optim"]
    norms = optim["groups"][0]
    assert optim["lr"] == pytest.approx(lr_of_sum * batch, rel=1e-6)
    assert norms["lr"] == pytest.approx(lr_of_sum * batch * bias_scaler, rel=1e-6)
    for group in (optim, norms):
        assert group["lr"] * group["weight_decay"] == pytest.approx(decay_per_step, rel=1e-5)
    assert read_recipe("cifar10/speedrun96.yaml")["schedule"]["warmup_epochs"] == pytest.approx(0.1 * 37)


@pytest.mark.parametrize(("epochs", "ramp"), [(16, (11, 13)), (40, (29, 34)), (88, (65, 76))])
def test_images_grow_when_those_of_ffcv_do(epochs: int, ramp: tuple[int, int]) -> None:
    recipe = read_recipe(f"imagenet/rn50_{epochs}.yaml")
    steps = recipe["augment"]["sizes_px"]
    for epoch in range(epochs):  # the source: 160 before the ramp, 192 after it, in multiples of 32
        part = min(max((epoch - ramp[0]) / (ramp[1] - ramp[0]), 0), 1)
        wanted = 32 * round((160 + 32 * part) / 32)
        assert [size for start, size in steps if start <= epoch][-1] == wanted, epoch
    assert recipe["train"]["epochs"] == epochs


def test_the_average_of_v2_is_adjusted_as_torchvision_does() -> None:
    recipe = read_recipe("imagenet/rn50_v2.yaml")
    world_size, batch, steps, epochs = 8, 128, 32, 600
    alpha = min(1.0, (1 - 0.99998) * world_size * batch * steps / epochs)
    assert recipe["average"] == {"ema_decay": pytest.approx(1 - alpha, abs=1e-8), "ema_every_steps": steps}
    assert (recipe["train"]["global_batch_size"], recipe["train"]["epochs"]) == (world_size * batch, epochs)
    assert recipe["input"]["crop_frac"] == pytest.approx(224 / 232, abs=1e-7)


def test_the_learning_rates_of_a3_begin_and_end_where_timms_do() -> None:
    recipe = read_recipe("imagenet/rn50_a3.yaml")
    lr, schedule = recipe["optim"]["lr"], recipe["schedule"]
    assert lr * schedule["warmup_start_lr_frac"] == pytest.approx(1e-4)
    assert lr * schedule["final_lr_frac"] == pytest.approx(1e-6)


def test_the_weight_decay_of_nvidia_is_a_power_of_two() -> None:
    assert read_recipe("imagenet/rn50_90.yaml")["optim"]["weight_decay"] == 2**-15


def test_a_recipe_for_imagenet_says_what_its_source_had_and_what_differs() -> None:
    paths = [path for path in RECIPES if path.parent.name == "imagenet"]
    assert len(paths) == 6
    for path in paths:
        header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        for words in ("# Not measured yet.", "# It needs GPUs.\n", "# Source: ", " % on val", "# Differs: "):
            assert words in header, f"{path.name}: {words}"
