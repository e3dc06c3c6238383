"""Fixtures of all tests: generated image folders and small recipes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from engine.watchdog import Watchdog


@pytest.fixture(scope="session", autouse=True)
def _indexes_lie_with_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of image folders are kept in a folder of the tests, by programs that they start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXACTVISION_CACHE", str(tmp_path_factory.mktemp("indexes")))
        yield


@pytest.fixture(autouse=True)
def _no_watchdog_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run that a test has ended by an error leaves its watchdog on, which after ten minutes would end pytest."""
    started: list[Watchdog] = []
    start = Watchdog.start

    def noting(watchdog: Watchdog, **options: Any) -> None:
        started.append(watchdog)
        start(watchdog, **options)

    monkeypatch.setattr(Watchdog, "start", noting)
    yield
    for watchdog in started:
        watchdog.stop()


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
