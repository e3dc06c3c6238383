"""The run folder: what a run leaves for people, for `report/` and for its own continuation. No torch here.

config.yaml         what was asked for, every field resolved
environment.json    versions, hardware, commit, command, launcher
albumentations.json the pipeline of augment.albumentations, as its file had it; there where the run has one
metrics.jsonl       a line per log step and per epoch; keys are split/quantity_unit
bad_samples.jsonl   a line per image that could not be read; there when there was one
schedule.json       the learning rate that is planned: lists "epoch", "lr" and, where it moves, "momentum"
samples.npz         training images as the network sees them, with their labels
confusion.npz       per split, how often each true class (rows) was taken for each class (columns)
result.json         the end: flat keys such as test/top1_frac; there once the run is finished
curves.png          drawn by report/
report.html         the run on one page, by report/
checkpoints/        written by engine/checkpoint.py
stop, stopped       makes the run save and end; says that it has (engine/stopping.py)
tensorboard/        events
profile/            summary.txt and trace.json.gz, by engine/profile.py; there where run.profile asks for them
"""

import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from configs.load import differing_keys

_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow", "scikit-learn", "safetensors")


class Samples(NamedTuple):
    """Training images as the network sees them, normalisation undone.

    images_NHWC: uint8 (N, H, W, 1 or 3), 0..255. labels_N: int64, places in the list of class names. partner_labels_N:
    int64, the labels of the images mixed in. weight_N: float32, the weight of the own label, 1 where none is mixed in.
    """

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    partner_labels_N: NDArray[np.int64]
    weight_N: NDArray[np.float32]


class RunFolder:
    """One run's folder; every file is replaced whole or appended a line at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return any(
            (self.path / name).exists() for name in ("config.yaml", "metrics.jsonl", "result.json", "checkpoints")
        )

    def holds_anything(self) -> bool:
        """Whether a run was started here or a dry run has drawn here, so that there is something to show."""
        return self.holds_run() or any((self.path / name).exists() for name in ("schedule.json", "samples.npz"))

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run that was started here, as nested dicts.

        Raises:
            FileNotFoundError: No run was started here, or its config.yaml is gone.
            ValueError: config.yaml cannot be read.
        """
        path = self.path / "config.yaml"
        if not path.exists():
            raise FileNotFoundError(
                f"{self.path} is not a run folder: it has no config.yaml; give a folder of train.py."
            )
        try:
            plain = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(plain, dict):
            raise ValueError(f"{path} cannot be read: it holds no sections; put it back, or use another --run.out.")
        return plain

    def read_result(self) -> dict[str, Any] | None:
        """result.json, or None while the run is not finished.

        Raises:
            ValueError: result.json cannot be read.
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        return _parse_names(path.read_text(), place=str(path))

    def check_continues(self, config: dict[str, Any]) -> None:
        """Checks that the run here, if any, is the one that `config` asks for.

        Raises:
            FileExistsError: `config` says resume never, and a run is here.
            FileNotFoundError: A run is here, but its config.yaml is gone.
            ValueError: The configurations differ in what determines the result; the keys are listed.
        """
        if not self.holds_run():
            return
        if config["resume"] == "never":
            raise FileExistsError(
                f"{self.path} already holds a run and resume=never; use another --run.out, or --resume auto."
            )
        differing = differing_keys(config, self.read_config())
        if differing:
            raise ValueError(
                f"{self.path} holds a run with another configuration (there -> asked for):\n  "
                + "\n  ".join(differing)
                + self._explain_pipeline(differing)
                + "\nSet these as they were to continue it, or use another --run.out for a new run."
            )

    def _explain_pipeline(self, differing: list[str]) -> str:
        """A line on pipelines of the user's own that differ, and where to find the run's."""
        if not any(line.startswith("augment.albumentations_hash:") for line in differing):
            return ""
        path = self.path / "albumentations.json"
        if not path.exists():
            return "\nThe run has no pipeline in augment.albumentations; leave it out."
        return f"\nThe run's own pipeline is another one; to have it: --augment.albumentations {path}"

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Makes the folder and holds it for this process, so that no second run writes into it.

        Raises:
            OSError: The folder cannot be made or written, or another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+")  # noqa: SIM115  # closed below
        except OSError as error:
            raise OSError(f"the run folder {self.path} cannot be written ({error}); use another --run.out.") from error
        with lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by loader workers
            except (BlockingIOError, PermissionError) as error:
                lock.seek(0)
                raise OSError(
                    f"another process is training in {self.path} ({lock.read().strip()}); wait for it, stop it, or use "
                    "another --run.out."
                ) from error
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield

    def save_start(
        self, config: dict[str, Any], environment: dict[str, Any], *, pipeline: dict[str, Any] | None = None
    ) -> None:
        """Writes config.yaml, environment.json and, where the user has a pipeline of their own, albumentations.json."""
        if pipeline is not None:
            self._replace("albumentations.json", json.dumps(pipeline, indent=2) + "\n")
        self._replace("environment.json", json.dumps(environment, indent=2) + "\n")
        self._replace("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def save_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, which says that the run is finished."""
        self._replace("result.json", json.dumps(result, indent=2) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """environment.json; {} where there is none.

        Raises:
            ValueError: environment.json cannot be read.
        """
        path = self.path / "environment.json"
        if not path.exists():
            return {}
        return _parse_names(path.read_text(), place=str(path))

    def save_schedule(self, schedule: Mapping[str, list[float]]) -> None:
        """Writes schedule.json.

        Args:
            schedule: "epoch", "lr" and, where it moves, "momentum": lists of one length.
        """
        assert len({len(values) for values in schedule.values()}) == 1, "lists of one length"
        self._replace("schedule.json", json.dumps(dict(schedule)) + "\n")

    def read_schedule(self) -> dict[str, list[float]] | None:
        """schedule.json, or None where there is none.

        Raises:
            ValueError: schedule.json cannot be read, or its lists differ in length.
        """
        path = self.path / "schedule.json"
        if not path.exists():
            return None
        schedule = _parse_json(path.read_text(), place=str(path))
        is_table = isinstance(schedule, dict) and all(isinstance(values, list) for values in schedule.values())
        if not is_table or not {"epoch", "lr"} <= schedule.keys() or len({len(v) for v in schedule.values()}) != 1:
            raise ValueError(f"{path} cannot be read: it should hold lists of one length, epoch and lr; delete it.")
        return {name: [float(value) for value in values] for name, values in schedule.items()}

    def save_samples(self, samples: Samples) -> None:
        """Writes samples.npz."""
        self._replace_arrays("samples.npz", samples._asdict())

    def read_samples(self) -> Samples | None:
        """samples.npz, or None where there is none.

        Raises:
            ValueError: samples.npz cannot be read.
        """
        arrays = self._read_arrays("samples.npz")
        if not arrays:
            return None
        if arrays.keys() != set(Samples._fields) or len({len(values) for values in arrays.values()}) != 1:
            raise ValueError(f"{self.path / 'samples.npz'} cannot be read: it holds {sorted(arrays)}; delete it.")
        return Samples(**arrays)

    def save_confusions(self, confusions: Mapping[str, NDArray[np.int64]]) -> None:
        """Writes confusion.npz.

        Args:
            confusions: Split -> int64 (K, K), samples of each true class (rows) taken for each class (columns).
        """
        self._replace_arrays("confusion.npz", confusions)

    def read_confusions(self) -> dict[str, NDArray[np.int64]]:
        """confusion.npz: split -> counts [true, predicted]; {} where there is none.

        Raises:
            ValueError: confusion.npz cannot be read.
        """
        confusions = self._read_arrays("confusion.npz")
        for split, counts in confusions.items():
            if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
                raise ValueError(
                    f"{self.path / 'confusion.npz'} cannot be read: {split} has shape {counts.shape}, not (K, K); "
                    "delete it."
                )
        return confusions

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        with _telling(path), open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut short by a kill is left out.

        Raises:
            ValueError: Another line cannot be read.
        """
        return self._read_lines("metrics.jsonl")

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text().split("\n")
        return [_parse_names(line, place=f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]

    def append_bad_samples(self, rows: list[dict[str, Any]]) -> None:
        """Adds lines to bad_samples.jsonl; each has `after_step`, the optimizer steps done when it was written."""
        path = self.path / "bad_samples.jsonl"
        with _telling(path), open(path, "a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def read_bad_samples(self) -> list[dict[str, Any]]:
        """The rows of bad_samples.jsonl; a last line cut short by a kill is left out.

        Raises:
            ValueError: Another line cannot be read.
        """
        return self._read_lines("bad_samples.jsonl")

    def drop_rows_after(self, step: int, *, is_epoch_ending: bool = False) -> None:
        """Removes the rows that a continued run will write again.

        Args:
            step: Optimizer steps that it will have done.
            is_epoch_ending: Whether it begins with the end of an epoch, and so with the row of `step` itself.
        """
        rows = [row for row in self.read_metrics() if row["step"] <= step - is_epoch_ending]
        self._replace("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        bad = [row for row in self.read_bad_samples() if row["after_step"] <= step]
        if (self.path / "bad_samples.jsonl").exists():
            self._replace("bad_samples.jsonl", "".join(json.dumps(row) + "\n" for row in bad))

    def drop_all_rows(self) -> None:
        """Removes metrics.jsonl and bad_samples.jsonl, for a run that writes all of them again."""
        for name in ("metrics.jsonl", "bad_samples.jsonl"):
            (self.path / name).unlink(missing_ok=True)

    def _replace(self, name: str, text: str) -> None:
        replace_file(self.path / name, text.encode())

    def _replace_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        replace_file(self.path / name, content.getvalue())

    def _read_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        path = self.path / name
        if not path.exists():
            return {}
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it.") from error


def _parse_json(text: str, *, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} cannot be read ({error}); put it back, or use another --run.out.") from error


def _parse_names(text: str, *, place: str) -> dict[str, Any]:
    value = _parse_json(text, place=place)
    if not isinstance(value, dict):
        raise ValueError(f"{place} cannot be read: it holds no names; put it back, or use another --run.out.")
    return value


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a run after a kill, finds the old one or the new one, never a part.

    Raises:
        OSError: It cannot be written; the message says where, and what to do.
    """
    temporary = path.with_name(path.name + ".tmp")
    with _telling(path):
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Within, an error of the system's says which file it was, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"could not write {path} ({error.strerror or error}). Free some space there, or make it writable, and "
            "start the same command again: it continues from the newest checkpoint."
        ) from error


def describe_environment(extra: dict[str, Any]) -> dict[str, Any]:
    """What the run depends on beside its configuration: versions, machine, commit, command line, and `extra`."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "git_commit": _git_commit(),
        **extra,
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or installed from an archive
    return commit.stdout.strip()
