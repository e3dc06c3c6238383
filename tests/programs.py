"""The programs, run as people run them, and what they leave."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from engine.checkpoint import newest_checkpoint

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

# what a launcher would set must not leak in from outside
_LAUNCHER_PREFIXES = ("ACCELERATE_", "SLURM_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_", "OMP_NUM_THREADS")

_LAUNCHERS = ("accelerate", "torchrun")
PORT_LOCK = Path(tempfile.gettempdir()) / "exactvision-tests-port-29500.lock"  # both listen there


def clean_environ() -> dict[str, str]:
    """The environment without what a launcher would set."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHER_PREFIXES)}


def run_program(*command: str, timeout_s: float = 240, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command from the project's root; a first word such as train.py is run by this Python.

    Launchers run one at a time, for tests of several processes of pytest.
    """
    words = [sys.executable, *command] if command[0].endswith(".py") else [str(BIN / command[0]), *command[1:]]
    with FileLock(PORT_LOCK) if command[0] in _LAUNCHERS else contextlib.nullcontext():
        return subprocess.run(
            words,
            cwd=ROOT,
            env=clean_environ() | environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
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
    timed = ("train/images_per_s", "train/images_per_s_per_rank", "train/data_wait_frac", "train/epoch_s")
    rows = [row for row in read_rows(folder) if "train/epoch_loss" in row]
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def final_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the newest checkpoint of a run."""
    newest, passed_over = newest_checkpoint(folder / "checkpoints")
    assert newest is not None, passed_over
    return load_file(newest / "model.safetensors")
