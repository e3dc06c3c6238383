"""Checkpoints of a `TrainState`: the newest whole one into the state, and the state into a new one.

newest checkpoint -> restore_state -> counters, weights, sums; the rest -> restore_phase -> optimizer, scaler, loader
state, live phase -> save_state    -> snapshot; a thread makes a checkpoint of it, and prunes older ones

A new field of the state is saved and restored here, with a default for the checkpoints that lack it.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import (
    best_checkpoint,
    has_average,
    load_training_state,
    load_weights,
    newest_checkpoint,
    prune_checkpoints,
    read_card,
    save_checkpoint,
)
from engine.runtime import Prepared, Runtime
from engine.schedules import PlateauState
from engine.sharding import gather_tensors, local_part, optimizer_state_like
from engine.state import Job, Live, TrainState
from engine.stopping import Control
from engine.totals import ADVICE, NonFiniteLossError, global_totals, settle_bad
from engine.writer import snapshot
from pipelines.batch import Loader


def restore_state(state: TrainState, job: Job) -> dict[str, Any] | None:
    """Weights and counters of the newest whole checkpoint into `state`; gives the rest for `restore_phase`.

    Raises:
        FileNotFoundError: The best checkpoint is broken or gone.
        ValueError: The newest one belongs to other data or another architecture.
    """
    checkpoint, passed_over = job.runtime.from_main(lambda: newest_checkpoint(job.folder.checkpoints))
    for line in passed_over:
        job.progress.say(f"checkpoint {line}")
    if checkpoint is None:
        num_rows = len(job.folder.read_metrics())
        if num_rows:
            job.progress.say(f"no whole checkpoint: starting from step 0, {num_rows} rows of metrics.jsonl are dropped")
        job.runtime.wait_for_all()
        if job.runtime.is_main:
            job.folder.drop_rows_after(0)
        return None
    job.runtime.from_main(lambda: best_checkpoint(checkpoint))  # that it is broken is found now, not at the end
    _check_card(read_card(checkpoint), job.card, checkpoint=checkpoint)
    load_weights(state.module, checkpoint, weights="raw")
    saved = load_training_state(checkpoint)
    if state.average is not None and has_average(checkpoint):
        load_weights(state.average.module, checkpoint)
        state.average.num_averaged = saved["num_averaged"]
    state.phase, state.step, state.phase_step = saved["phase"], saved["step"], saved["phase_step"]
    state.best_step, state.best_score = saved["best_step"], tuple(saved["best_score"])
    state.logged, state.num_bad_written = saved["logged"], saved.get("num_bad_written", 0)
    state.num_stale_epochs = saved.get("num_stale_epochs", 0)
    state.is_epoch_ending = saved.get("is_epoch_ending", False)
    state.plateau = PlateauState(*saved.get("plateau", PlateauState()))
    if job.runtime.is_main:  # sums are global: one rank carries them on
        state.totals = {name: value.to(job.runtime.device) for name, value in saved["totals"].items()}
        job.folder.drop_rows_after(state.step, is_epoch_ending=state.is_epoch_ending)
    job.progress.say(f"continuing from {checkpoint} (step {state.step})")
    return saved


def _check_card(saved: dict[str, Any], card: dict[str, Any], *, checkpoint: Path) -> None:
    """Checks that a checkpoint was trained on the images, by the teachers and from the weights that are there now."""
    splits = saved["data"] | card["data"]
    differing = [f"{split}/" for split in splits if saved["data"].get(split) != card["data"].get(split)]
    differing += [key for key in ("class_names", "input") if saved[key] != card[key]]
    if differing:
        raise ValueError(
            f"the data has changed since {checkpoint} was written: {', '.join(differing)} (names, labels or "
            "sizes of images or files). Restore it, or start a new run with another --run.out."
        )
    then, now = saved.get("teachers", {}), card.get("teachers", {})
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if changed:
        raise ValueError(
            f"the weights of distill.teachers {', '.join(changed)} have changed since {checkpoint} was written, so the "
            "run would go on learning something else. Restore them, or start a new run with another --run.out."
        )
    began, begins = saved.get("start"), card.get("start")  # of random weights there is none
    if (began and began["sha256"]) != (begins and begins["sha256"]):
        raise ValueError(
            f"the weights that this run started from, {_name(began)}, are others than when {checkpoint} was written "
            f"({_name(begins)} now), and what it has learned belongs to those. Restore them, or start a new run with "
            "another --run.out."
        )


def _name(start: dict[str, Any] | None) -> str:
    return "random ones" if start is None else str(start["name"])


def restore_phase(saved: dict[str, Any], *, prepared: Prepared, loader: Loader, runtime: Runtime) -> None:
    """What `restore_state` gave back into the optimizer, the scaler and the loader of the present phase."""
    optimizer = prepared.optimizer
    groups = [
        kept | _how(live) for kept, live in zip(saved["optimizer"]["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(optimizer_state_like(saved["optimizer"] | {"param_groups": groups}, optimizer))
    runtime.load_scaler_state(saved["scaler"])
    loader.load_state_dict(saved["loader"])


def _how(group: dict[str, Any]) -> dict[str, Any]:
    """How an optimizer computes, which a run may change when it goes on."""
    return {name: group[name] for name in ("fused", "foreach", "capturable") if name in group}


def save_state(state: TrainState, live: Live, job: Job) -> None:
    """Checkpoint of the present state, by the main process, in the background; `live.hands.writer` waits for it.

    Raises:
        NonFiniteLossError: The loss or the weights are not finite; nothing is saved.
        OSError: The checkpoint before could not be written: the disk is full or broken.
        ValueError: More images could not be read than is allowed.
    """
    totals = global_totals(state, job)
    settle_bad(state, live, job, num_bad=int(totals["num_bad"]))
    runtime, settings = job.runtime, job.settings
    _check_weights(state, job)
    average = state.average if state.judged is not state.module else None
    live.hands.orders.note_saved()
    if runtime.is_main:
        live.hands.writer.wait()  # memory holds one snapshot at a time
    weights, optimizer = state.module.state_dict(), live.prepared.optimizer.state_dict()
    if runtime.is_sharding:
        weights, optimizer = gather_tensors([weights, optimizer], keep=runtime.is_main)
    if runtime.is_main:
        tensors = {name: torch.tensor(value, dtype=state.totals[name].dtype) for name, value in totals.items()}
        training_state = {
            "phase": state.phase,
            "step": state.step,
            "phase_step": state.phase_step,
            "best_step": state.best_step,
            "best_score": list(state.best_score),
            "totals": tensors | {"bad_step": torch.tensor(-1)},
            "logged": state.logged,
            "num_bad_written": state.num_bad_written,
            "num_stale_epochs": state.num_stale_epochs,
            "is_epoch_ending": state.is_epoch_ending,
            "plateau": list(state.plateau),
            "num_averaged": 0 if average is None else average.num_averaged,
            "loader": live.phase.loader.state_dict(),
            "optimizer": optimizer,
            "scaler": runtime.scaler_state(),
        }
        write = partial(
            _write,
            job,
            live.hands.control,
            step=state.step,
            best_step=state.best_step if settings.select == "best" else None,
            weights=snapshot(weights),
            average=None if average is None else snapshot(average.module.state_dict()),
            training_state=snapshot(training_state),
        )
        live.hands.writer.submit(write)


def _write(
    job: Job,
    control: Control,
    *,
    step: int,
    best_step: int | None,
    weights: dict[str, Tensor],
    average: dict[str, Tensor] | None,
    training_state: dict[str, Any],
) -> None:
    folder, keep = job.folder.checkpoints, job.settings.keep_checkpoints
    save_checkpoint(
        folder,
        step=step,
        best_step=best_step,
        weights=weights,
        card=job.card,
        training_state=training_state,
        average=average,
    )
    if job.settings.control is not None:  # in the run folder the checkpoints say it
        control.say("saved", f"step {step}")
    prune_checkpoints(folder, step=step, keep=keep, best_step=best_step)


def _check_weights(state: TrainState, job: Job) -> None:
    """Raises NonFiniteLossError on every rank before weights are saved that no run could continue from."""
    modules = (state.module, state.judged)
    values = [local_part(value) for module in modules for value in module.state_dict().values()]
    finite = [value.isfinite().all() for value in values if value.is_floating_point()]
    if job.runtime.sum_over_ranks((~torch.stack(finite)).sum()).item():
        raise NonFiniteLossError(
            f"the weights are not finite after step {state.step}; the run has stopped without saving them. {ADVICE}"
        )
