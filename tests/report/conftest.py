"""A fixture that makes run folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import CONFIG, epoch_row, make_confusion

from configs.load import config_to_dict, replace_section
from engine.record import RunFolder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes a run: name -> its folder; `sections` are changes of the configuration by section."""

    def make(
        name: str = "run",
        *,
        names: tuple[str, ...] = ("cat", "dog", "eel"),
        splits: tuple[str, ...] = ("val", "test"),
        result: dict[str, Any] | None = None,
        finished: bool = True,
        rows: list[dict[str, Any]] | None = None,
        **sections: dict[str, Any],
    ) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(parents=True)
        config = CONFIG
        for section, changes in ({"run": {"out": str(folder.path)}} | sections).items():
            config = replace_section(config, section, **changes)
        environment = {
            "command": ["train.py", "--run.out", str(folder.path)],
            "machine": "CPU",
            "packages": {"torch": "2.11"},
            "git_commit": "0123abc-dirty",
            "world_size": 2,
            "class_names": list(names),
            "num_parameters": 12345,
        }
        folder.save_start(config_to_dict(config), environment)
        for row in rows if rows is not None else [epoch_row(epoch) for epoch in range(1, 7)]:
            folder.append_metrics({key: value for key, value in row.items() if "val" in splits or "val/" not in key})
        if finished:
            confusions = {split: make_confusion(len(names), per_class=200) for split in splits}
            if len(names) <= 1000:
                folder.save_confusions(confusions)
            scores: dict[str, Any] = {"step": 6, "epoch": 6}
            for split, counts_KK in confusions.items():
                scores[f"{split}/top1_frac"] = float(counts_KK.trace() / counts_KK.sum())
                scores[f"{split}/loss"] = 1.25
                scores[f"{split}/num_samples"] = int(counts_KK.sum())
            folder.save_result(scores | (result or {}))
        return folder

    return make
