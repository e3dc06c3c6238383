"""Every recipe parses, and its header gives a command that works."""

import os
import re
import shlex
from pathlib import Path

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
    command = re.search(r"^# accelerate launch train\.py(.*)$", header[0], flags=re.MULTILINE)
    assert command, f"{path} has no command in its header"
    words = [str(tmp_path) if word == "DIR" else word for word in shlex.split(command[1])]
    given = words[words.index("--config") + 1] if "--config" in words else "configs/digits/simple_cnn.yaml"
    assert given == str(path.relative_to(ROOM.parent))
    argv = ["--config", str(path)] + [word for word in words if word not in ("--config", given)]
    assert parse_config(argv, parser=parser) == parse_recipe(path, parser, root=tmp_path)
