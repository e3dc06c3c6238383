"""Checkpoints that are whole or not there.

step_00000120.tmp/ -> files written and synced -> manifest with their sha256 -> renamed to step_00000120/

model.safetensors   weights and buffers, from which training goes on
average.safetensors their average, by which the run is judged; there where it has one
model.json          what they are: model name and arguments, classes, input specification
training_state.pt   optimizer, loader, step and sums; loads with weights_only
manifest.json       step, best step, sha256 of the others
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.sharding import like

Weights = Literal["judged", "raw"]

_FILES = ("model.safetensors", "model.json", "training_state.pt")
_AVERAGE = "average.safetensors"
_NAME = re.compile(r"step_(\d{8,})(?:\.tmp|\.old)?")
_NUM_LISTED = 10  # keys of a mismatch that an error lists before it only counts them


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    best_step: int | None,
    weights: Mapping[str, Tensor],
    card: Mapping[str, Any],
    training_state: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes `folder/step_<step>`; until it is whole, it is called .tmp, and nothing else is touched.

    Args:
        folder: The checkpoints of a run.
        step: Optimizer steps taken.
        best_step: The step of the best checkpoint so far, None if there is no choice to make.
        weights: A state dict, each tensor in memory of its own (`engine.writer.snapshot`).
        card: What the weights are, plain values.
        training_state: Tensors and plain values, what training needs to go on.
        average: A state dict of averaged weights, like `weights`; None where there is no average.

    Returns:
        The new checkpoint.

    Raises:
        OSError: The disk is full or broken. Earlier checkpoints are as they were.
    """
    final = folder / f"step_{step:08d}"
    temporary = final.with_suffix(".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a kill
        temporary.mkdir(parents=True)
        tensors = {_FILES[0]: weights} | ({} if average is None else {_AVERAGE: average})
        for name, values in tensors.items():
            save_file({key: value.contiguous() for key, value in values.items()}, temporary / name)
        (temporary / _FILES[1]).write_text(json.dumps(card, indent=2) + "\n")
        torch.save(dict(training_state), temporary / _FILES[2])
        digests = {name: _sync_and_hash(temporary / name) for name in (*_FILES, *tensors.keys() - _FILES)}
        manifest = {"step": step, "best_step": best_step, "sha256": digests}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        _sync_and_hash(temporary / "manifest.json")
        _sync_folder(temporary)
        leaving = _set_aside(final)  # left by an earlier start that found it broken, or of this step before validation
        os.rename(temporary, final)
        _sync_folder(folder)
    except Exception as error:  # safetensors and torch.save report a full disk as errors of their own
        shutil.rmtree(temporary, ignore_errors=True)
        free_mib = shutil.disk_usage(folder if folder.exists() else folder.parent).free / 2**20
        raise OSError(
            f"could not write checkpoint {final} ({free_mib:.0f} MiB free there): {error}. Earlier checkpoints are "
            "whole: free some space and start the same command again, it continues from the newest."
        ) from error
    shutil.rmtree(leaving, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, or None, and a line on each newer one that was passed over."""
    passed_over: list[str] = []
    numbered = _numbered(folder)
    for _, path in sorted(numbered, key=lambda one: one[1].suffix == ".old"):  # whole, if a kill came in between
        reason = "half-written" if path.suffix == ".tmp" else _find_damage(path)
        if reason is None:
            return path, passed_over
        if path.suffix != ".old":  # else it was being removed
            passed_over.append(f"{path.name}: {reason}, passed over")
    return None, passed_over


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """step, best_step and sha256 of a whole checkpoint."""
    manifest: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text())
    return manifest


def read_card(checkpoint: Path) -> dict[str, Any]:
    """What the weights of a whole checkpoint are."""
    card: dict[str, Any] = json.loads((checkpoint / "model.json").read_text())
    return card


def scored_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run is judged by: the best so far, or the newest where none is chosen.

    Raises:
        FileNotFoundError: There is no whole checkpoint, or the best one is gone.
    """
    newest, _ = newest_checkpoint(folder)
    if newest is None:
        raise FileNotFoundError(f"{folder} holds no whole checkpoint; train first, or give another run.")
    return best_checkpoint(newest)


def best_checkpoint(newest: Path) -> Path:
    """The best checkpoint so far, which the newest, a whole one, names; the newest itself where none is chosen.

    Raises:
        FileNotFoundError: The best one is broken or gone.
    """
    best_step = read_manifest(newest)["best_step"]
    chosen = newest if best_step is None else newest.with_name(f"step_{best_step:08d}")
    damage = None if chosen == newest else _find_damage(chosen)
    if damage is not None:
        raise FileNotFoundError(
            f"{chosen}, the best checkpoint so far, is {damage}. Put it back, or start a new run with another "
            "--run.out."
        )
    return chosen


def prune_checkpoints(folder: Path, *, step: int, keep: int, best_step: int | None) -> None:
    """Removes all but the `keep` newest up to `step`, the one just written, and the best of each of these.

    A run that finds the newest one broken continues from the one before, which may name another best one. What lies
    beyond `step` was found broken when the run was continued, and would be taken for newer.
    """
    numbered = _numbered(folder)
    written = [path for number, path in numbered if number <= step and not path.suffix]
    best_steps = {best_step, *(_read_best_step(path) for path in written[:keep])}
    best = {f"step_{number:08d}" for number in best_steps if number is not None}
    for _, path in numbered:
        if path not in written[:keep] and path.name not in best:
            _remove(path)


def _read_best_step(checkpoint: Path) -> int | None:
    """The best step that a checkpoint names; None where it names none, or is broken."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        best_step: int | None = read_manifest(checkpoint)["best_step"]
        return best_step
    return None


def newest_card(folder: Path) -> dict[str, Any] | None:
    """The card of the newest checkpoint whose card is whole, without looking at its weights; None where there is none.

    All checkpoints of a run have the same card.
    """
    for _, path in _numbered(folder):
        if not path.suffix and _find_damage(path, names=("model.json",)) is None:
            return read_card(path)
    return None


def has_average(checkpoint: Path) -> bool:
    """Whether a whole checkpoint holds averaged weights beside those of training."""
    return _AVERAGE in read_manifest(checkpoint)["sha256"]


def weights_file(checkpoint: Path, *, weights: Weights = "judged") -> Path:
    """The file of a whole checkpoint that holds its weights; `weights` as in `load_weights`."""
    return checkpoint / (_AVERAGE if weights == "judged" and has_average(checkpoint) else _FILES[0])


def load_weights(module: nn.Module, checkpoint: Path, *, weights: Weights = "judged") -> None:
    """Loads the weights of a checkpoint into a module of the same architecture.

    Args:
        module: Where to.
        checkpoint: A whole one.
        weights: judged = the averaged ones where there are some, by which the run is judged; raw = those from which
            training goes on.

    Raises:
        ValueError: Names or shapes differ; `-` lists what the module misses, `+` what the checkpoint has beyond it.
    """
    loaded = load_file(weights_file(checkpoint, weights=weights))
    wanted = module.state_dict()
    lines = [f"  - {name} {_shape(wanted[name])}" for name in wanted if name not in loaded]
    lines += [f"  + {name} {_shape(loaded[name])}" for name in loaded if name not in wanted]
    for name in wanted.keys() & loaded.keys():
        if wanted[name].shape != loaded[name].shape:
            lines += [f"  - {name} {_shape(wanted[name])}", f"  + {name} {_shape(loaded[name])}"]
    if lines:
        shown = lines[:_NUM_LISTED] + ([f"  ... {len(lines)} lines in all"] if len(lines) > _NUM_LISTED else [])
        raise ValueError(
            f"{checkpoint} holds another architecture (- the model has, + the checkpoint has):\n"
            + "\n".join(shown)
            + "\n"
            "Give the model.name and model.args that it was trained with (its model.json says them)."
        )
    loaded = {name: like(value, wanted[name]) for name, value in loaded.items()}
    wanted.update(loaded)  # and not `loaded` itself, which lacks the versions that some modules ask for (MNASNet)
    module.load_state_dict(wanted)


def load_training_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a whole checkpoint, tensors on the CPU; nothing in it can run code."""
    state: dict[str, Any] = torch.load(checkpoint / "training_state.pt", map_location="cpu", weights_only=True)
    return state


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of what is called as a checkpoint, whole or not, newest first."""
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; while that is under way it is called .old, so that a kill leaves none that looks damaged.

    Where a file of it is open on another machine, NFS keeps the folder; then the next `prune_checkpoints` removes it.
    """
    shutil.rmtree(_set_aside(checkpoint), ignore_errors=True)


def _set_aside(checkpoint: Path) -> Path:
    """Calls a checkpoint .old, if it is there, and gives that name."""
    leaving = checkpoint.with_suffix(".old")
    if checkpoint != leaving and checkpoint.exists():
        shutil.rmtree(leaving, ignore_errors=True)
        os.rename(checkpoint, leaving)
    return leaving


def _find_damage(checkpoint: Path, *, names: tuple[str, ...] = (*_FILES, _AVERAGE)) -> str | None:
    try:
        digests = read_manifest(checkpoint)["sha256"]
        present = [name for name in names if name != _AVERAGE or name in digests]
        broken = [name for name in present if _hash(checkpoint / name) != digests[name]]
    except FileNotFoundError as error:
        return f"incomplete ({Path(error.filename).name} is missing)"
    except (ValueError, KeyError, TypeError):
        return "incomplete (its manifest.json cannot be read)"
    return f"damaged ({', '.join(broken)} changed since it was written)" if broken else None


def _sync_and_hash(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _hash(path)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"
