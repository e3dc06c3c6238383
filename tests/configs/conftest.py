"""Configurations to begin with, and a parser for the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from configs.load import build_parser, parse_config
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

RECIPE = """
data:
  dataset: digits
model:
  name: simple_cnn
optim:
  name: adamw
  lr: 0.001
train:
  epochs: 4
  global_batch_size: 60
"""


@pytest.fixture
def config() -> Config:
    """What RECIPE says."""
    return Config(
        data=DataConfig(dataset="digits"),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="adamw", lr=0.001),
        train=TrainConfig(epochs=4, global_batch_size=60),
    )


@pytest.fixture(scope="session")
def parser() -> ArgumentParser:
    return build_parser(prog="train.py", description="Trains.")


@pytest.fixture
def parse(parser: ArgumentParser, tmp_path: Path) -> Callable[..., Config]:
    """parse("--optim.lr", "1", recipe=text): the configuration of a recipe and options."""

    def parse(*options: str, recipe: str = RECIPE) -> Config:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe)
        return parse_config(["--config", str(path), *options], parser=parser)

    return parse


@pytest.fixture
def recipe() -> str:
    return RECIPE
