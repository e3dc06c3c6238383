"""Fixtures of all tests: generated image folders, and the programs run as people run them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

# what a launcher would set must not leak in from outside
_LAUNCHER_PREFIXES = ("ACCELERATE_", "SLURM_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_", "OMP_NUM_THREADS")


def run_program(*command: str, timeout_s: float = 240, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command from the project's root; a first word such as train.py is run by this Python."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHER_PREFIXES)}
    words = [sys.executable, *command] if command[0].endswith(".py") else [str(BIN / command[0]), *command[1:]]
    return subprocess.run(
        words, cwd=ROOT, env=clean | environ, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def succeed(*command: str, **environ: str) -> str:
    """Runs a command that must succeed; gives what it printed."""
    done = run_program(*command, **environ)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def epoch_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that end an epoch, without what is measured by the clock."""
    timed = ("train/images_per_s", "train/data_wait_frac", "train/epoch_s")
    rows = [row for row in read_rows(folder) if "train/epoch_loss" in row]
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes an image folder whose classes differ in brightness: {split: {class: count}} -> its path."""

    def make(splits: dict[str, dict[str, int]], *, size_px: int = 16, suffix: str = ".png") -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "images"
        for split, classes in splits.items():
            for place, (name, count) in enumerate(classes.items()):
                folder = root / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    noise = rng.normal(60 + 130 * place / max(len(classes) - 1, 1), 30, (size_px, size_px, 3))
                    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}{suffix}")
        return root

    return make


@pytest.fixture
def small_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe that trains within a second or two: overrides by section -> its path."""

    def write(**sections: dict[str, Any]) -> Path:
        recipe: dict[str, dict[str, Any]] = {
            "data": {"dataset": "digits"},
            "augment": {"crop": "pad", "pad_px": 1, "flip": "alternating"},
            "model": {"name": "simple_cnn", "args": {"width": 8, "hidden": 32}},
            "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "schedule": {"name": "cosine", "warmup_epochs": 0.5},
            "train": {"epochs": 2, "global_batch_size": 60},
            "run": {"log_every_steps": 4},
        }
        for section, values in sections.items():
            recipe[section] = recipe.get(section, {}) | values
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write
