"""The training loop: phases of epochs, and a state small enough to be saved whole.

for each phase -> for each epoch -> for each global batch: accumulate gradients, one optimizer step
                                 -> validate -> checkpoint (last, best)

Nothing random is remembered: every micro-step seeds torch from (seed, step, micro-step, rank), the learning rate is a
function of the step, and the loader's position is two numbers. So a run that continues equals one that never stopped.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.bad_samples import BadSampleLog, check_num_bad
from engine.checkpoint import (
    load_training_state,
    load_weights,
    newest_checkpoint,
    prune_checkpoints,
    read_card,
    save_checkpoint,
    scored_checkpoint,
)
from engine.clock import Clock, Pace
from engine.evaluation import Evaluation, to_metrics
from engine.losses import LossFn
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Prepared, Runtime
from engine.schedules import LrFactor, Plateau, PlateauState
from pipelines.batch import BadSample, Batch, Loader, split_batch

_ADVICE = (
    "Start again with another --run.out and a lower optim.lr or a longer schedule.warmup_epochs; "
    "if it was fp16, bf16 may help."
)
_NUM_LISTED = 10  # parameters that an error names before it only counts them
_ID_MULTIPLIER = 0x1E3779B97F4A7C15  # odd, so that no id is lost in the product modulo 2^64


class Phase(NamedTuple):
    """A stretch of training with one optimizer, one schedule and one loader (and so one image and batch size).

    name: for messages. loader: training batches. epochs: how often to pass over it. accumulation: micro-batches per
    optimizer step. build_optimizer: makes the optimizer for a module. lr_factor: optimizer step of this phase -> factor
    of each group's learning rate. momentum_at: optimizer step -> momentum (or first beta), None to leave it. plateau:
    lowers the learning rate by the loss on val. trains: parameter name -> whether it is trained; None leaves each as it
    is, so that what a network of your own freezes stays frozen.
    """

    name: str
    loader: Loader
    epochs: int
    accumulation: int
    build_optimizer: Callable[[nn.Module], Optimizer]
    lr_factor: LrFactor
    momentum_at: Callable[[int], float] | None = None
    plateau: Plateau | None = None
    trains: Callable[[str], bool] | None = None

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.epochs * self.loader.steps_per_epoch


class FitSettings(NamedTuple):
    """How `fit` behaves; the fields are those of configs.schema.RunConfig and TrainConfig."""

    seed: int
    select: Literal["best", "last"]
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    early_stop_epochs: int | None = None


class Job(NamedTuple):
    """What stays the same throughout a fit.

    phases: in their order. loss_fn: what is learned. validate: (module, step) -> score on val, None without val. card:
    what the weights are, kept in each checkpoint. config: the configuration as nested dicts, for trackers. bad_log:
    where images that cannot be read are written. folder, runtime, settings, progress: where, with whom, how, what is
    shown.
    """

    phases: list[Phase]
    loss_fn: LossFn
    validate: Callable[[nn.Module, int], Evaluation] | None
    card: dict[str, Any]
    config: dict[str, Any]
    bad_log: BadSampleLog
    folder: RunFolder
    runtime: Runtime
    settings: FitSettings
    progress: Progress


@dataclasses.dataclass
class TrainState:
    """Where training stands. `step` counts optimizer steps over all phases, `phase_step` within the present one.

    totals: sums over this rank's samples of the present epoch, on the device. logged: their global values at the last
    log step. bad_met: this rank's images that could not be read and are not written down yet; num_bad_written: those
    of the epoch that are, over all ranks. best_score: (val top-1, -val loss) of `best_step`; num_stale_epochs: epochs
    since. plateau: of the present phase.
    """

    module: nn.Module
    phase: int = 0
    step: int = 0
    phase_step: int = 0
    totals: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    logged: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_met: list[BadSample] = dataclasses.field(default_factory=list)
    num_bad_written: int = 0
    best_step: int | None = None
    best_score: tuple[float, float] = (-1.0, 0.0)
    num_stale_epochs: int = 0
    plateau: PlateauState = dataclasses.field(default_factory=PlateauState)


class NonFiniteLossError(FloatingPointError):
    """The training loss or the weights became infinite or not a number."""


class _Live(NamedTuple):
    """The present phase at work."""

    phase: Phase
    prepared: Prepared
    peak_lrs: list[float]
    clock: Clock


def fit(module: nn.Module, job: Job) -> TrainState:
    """Trains the module through all phases, continuing from the newest whole checkpoint of the folder.

    Args:
        module: images (N, C, H, W) -> whatever `job.loss_fn` takes, placed on the device; trained in place.
        job: Everything else.

    Returns:
        The final state; the last checkpoint holds the same.

    Raises:
        NonFiniteLossError: The loss or the weights are not finite; the message names the step. No checkpoint holds
            weights that are not finite.
        FloatingPointError: The loss of an image of val is not finite.
        OSError: A checkpoint cannot be written (earlier ones are whole), or the best one is broken.
        ValueError: The checkpoint to continue from belongs to other data or another architecture; early stopping or
            plateau are asked for without val; or among several processes a parameter takes no part in the loss.
    """
    _check_val(job)
    state = TrainState(module)
    saved = _restore(state, job)
    job.runtime.start_trackers(job.folder.path, first_step=state.step, config=job.config)
    for number in range(state.phase, len(job.phases)):
        if number != state.phase:
            state.phase, state.phase_step, state.plateau = number, 0, PlateauState()
        live = _begin_phase(state, job, saved=saved)
        saved = None
        while state.phase_step < live.phase.num_steps:
            if _is_stale(state, job):
                return state
            _train_epoch(state, live, job)
            _end_epoch(state, live, job)
    return state


def _check_val(job: Job) -> None:
    needs = [f"phase {phase.name}: schedule.name=plateau" for phase in job.phases if phase.plateau is not None]
    needs += ["train.early_stop_epochs"] if job.settings.early_stop_epochs is not None else []
    if needs and job.validate is None:
        raise ValueError(
            f"{' and '.join(needs)} go by the scores on val, but there is no val: data.val_frac=0 and the data has "
            "no val/; use --data.val_frac 0.1, or leave them out."
        )


def _is_stale(state: TrainState, job: Job) -> bool:
    """Whether early stopping ends the training here; says so."""
    patience = job.settings.early_stop_epochs
    if patience is None or state.num_stale_epochs < patience or state.phase_step % _steps_per_epoch(state, job):
        return False
    job.progress.say(
        f"stopped early after {count_epochs(state, job)} epochs: no better score on val for {state.num_stale_epochs} "
        f"of them (train.early_stop_epochs={patience})"
    )
    return True


def _restore(state: TrainState, job: Job) -> dict[str, Any] | None:
    """Weights and counters of the newest whole checkpoint into `state`; gives the rest for `_begin_phase`."""
    checkpoint, passed_over = newest_checkpoint(job.folder.checkpoints)
    for line in passed_over:
        job.progress.say(f"checkpoint {line}")
    job.runtime.wait_for_all()  # all ranks have looked before the main one changes anything
    if checkpoint is None:
        num_rows = len(job.folder.read_metrics())
        if num_rows:
            job.progress.say(f"no whole checkpoint: starting from step 0, {num_rows} rows of metrics.jsonl are dropped")
        job.runtime.wait_for_all()
        if job.runtime.is_main:
            job.folder.drop_rows_after(0)
        return None
    scored_checkpoint(job.folder.checkpoints)  # a best one that is broken is found now, not at the end
    _check_card(read_card(checkpoint), job.card, checkpoint=checkpoint)
    load_weights(state.module, checkpoint)
    saved = load_training_state(checkpoint)
    state.phase, state.step, state.phase_step = saved["phase"], saved["step"], saved["phase_step"]
    state.best_step, state.best_score = saved["best_step"], tuple(saved["best_score"])
    state.logged, state.num_bad_written = saved["logged"], saved.get("num_bad_written", 0)
    state.num_stale_epochs = saved.get("num_stale_epochs", 0)
    state.plateau = PlateauState(*saved.get("plateau", PlateauState()))
    if job.runtime.is_main:  # sums are global: one rank carries them on
        state.totals = {name: value.to(job.runtime.device) for name, value in saved["totals"].items()}
        job.folder.drop_rows_after(state.step)
    job.progress.say(f"continuing from {checkpoint} (step {state.step})")
    return saved


def _check_card(saved: dict[str, Any], card: dict[str, Any], *, checkpoint: Path) -> None:
    """Checks that a checkpoint was trained on the images that are there now."""
    splits = saved["data"] | card["data"]
    differing = [f"{split}/" for split in splits if saved["data"].get(split) != card["data"].get(split)]
    differing += [key for key in ("class_names", "input") if saved[key] != card[key]]
    if differing:
        raise ValueError(
            f"the data has changed since {checkpoint} was written: {', '.join(differing)} (names, labels or "
            "sizes of images or files). Restore it, or start a new run with another --run.out."
        )


def _begin_phase(state: TrainState, job: Job, *, saved: dict[str, Any] | None) -> _Live:
    phase = job.phases[state.phase]
    if phase.trains is not None:
        for name, parameter in state.module.named_parameters():
            parameter.requires_grad_(phase.trains(name))
    optimizer = phase.build_optimizer(state.module)
    prepared = job.runtime.prepare(state.module, optimizer)
    peak_lrs = [float(group["lr"]) for group in optimizer.param_groups]
    if saved is not None:
        prepared.optimizer.load_state_dict(saved["optimizer"])
        job.runtime.load_scaler_state(saved["scaler"])
        phase.loader.load_state_dict(saved["loader"])
    return _Live(phase, prepared, peak_lrs, Clock())


def _train_epoch(state: TrainState, live: _Live, job: Job) -> None:
    """Trains to the end of the present epoch."""
    phase, settings = live.phase, job.settings
    first_step = state.phase_step % phase.loader.steps_per_epoch
    last_step = state.phase_step - first_step + phase.loader.steps_per_epoch
    job.progress.start_epoch(
        count_epochs(state, job) + 1, num_steps=phase.loader.steps_per_epoch, first_step=first_step
    )
    if first_step == 0:
        state.totals, state.logged, state.num_bad_written = {}, {}, 0
    live.prepared.module.train()
    for batch in live.clock.watch(phase.loader):
        _optimizer_step(state, live, job, batch)
        _count_bad(state, phase.loader.take_bad_samples())
        job.progress.step()
        if state.step % settings.log_every_steps == 0 and state.phase_step < last_step:
            _log_step(state, live, job)
        due = settings.checkpoint_every_steps and state.step % settings.checkpoint_every_steps == 0
        if due and state.phase_step < last_step:
            _save(state, live, job)


def _optimizer_step(state: TrainState, live: _Live, job: Job, batch: Batch) -> None:
    """One step on a global batch; each micro-batch weighs as much as it has samples."""
    module, optimizer = live.prepared
    num_samples = len(batch.labels_N)
    parts = split_batch(batch, live.phase.accumulation)
    for index, part in enumerate(parts):
        torch.manual_seed(_micro_seed(job.settings.seed, state.step, index, job.runtime.rank))
        is_last = index == len(parts) - 1
        with contextlib.nullcontext() if is_last else job.runtime.no_sync(module):
            with job.runtime.autocast():
                output = job.loss_fn(module, part)
            job.runtime.backward(output.loss * (len(part.labels_N) / num_samples))
        sums = {name: value.long() for name, value in output.sums.items()}
        _add_to_totals(state, part, loss=output.loss.detach(), sums=sums)
    if job.runtime.world_size > 1:
        _check_gradients(state.module)
    _set_rates(live, step=state.phase_step, plateau=state.plateau)
    optimizer.step()
    optimizer.zero_grad()
    state.step += 1
    state.phase_step += 1


def _check_gradients(module: nn.Module) -> None:
    """Raises ValueError where a parameter took no part in the loss; DDP would fail a step later, with no name."""
    idle = [name for name, one in module.named_parameters() if one.requires_grad and one.grad is None]
    if idle:
        shown = ", ".join(idle[:_NUM_LISTED]) + (f" and {len(idle) - _NUM_LISTED} more" * (len(idle) > _NUM_LISTED))
        raise ValueError(
            f"these parameters of the network take no part in its output: {shown}. With several processes each must: "
            "remove their layers, set requires_grad=False on them, or train with one process."
        )


def _add_to_totals(state: TrainState, batch: Batch, *, loss: Tensor, sums: dict[str, Tensor]) -> None:
    """Adds a micro-batch to the epoch's sums, on the device: nothing here waits for it."""
    num_samples = len(batch.labels_N)
    never = torch.full_like(loss, -1, dtype=torch.int64)
    additions = {
        "loss": loss.double() * num_samples,
        "num_samples": torch.full_like(never, num_samples),
        "ids_hash": _hash_ids(batch.ids_N, step=state.step),
        **sums,
    }
    for name, value in additions.items():
        state.totals[name] = state.totals[name] + value if name in state.totals else value
    bad_step = state.totals.get("bad_step", never)
    is_new = ~loss.isfinite() & (bad_step < 0)
    state.totals["bad_step"] = torch.where(is_new, state.step + 1, bad_step)


def _log_step(state: TrainState, live: _Live, job: Job) -> None:
    """Writes the metrics since the last log step; the only place within an epoch that waits for the device."""
    now = _global_totals(state, job)
    _settle_bad(state, live, job, num_bad=int(now["num_bad"]))
    count = now["num_samples"] - state.logged.get("num_samples", 0)
    metrics = {f"train/{name}": (now[name] - state.logged.get(name, 0)) / count for name in _means(now)}
    row = {
        "step": state.step,
        "epoch": _progress_in_epochs(state, job),
        **metrics,
        **_pace_metrics(live.clock.lap(), live, job),
    }
    state.logged = now
    job.progress.show(row, step=state.step, num_steps=sum(phase.num_steps for phase in job.phases))
    _write_row(row, job)


def _end_epoch(state: TrainState, live: _Live, job: Job) -> None:
    """Validates, writes the metrics of the epoch, and saves a checkpoint."""
    totals = _global_totals(state, job)  # waits for the device, so the pace that follows is of finished work
    _settle_bad(state, live, job, num_bad=int(totals["num_bad"]))
    pace = live.clock.epoch()
    metrics: dict[str, Any] = {f"train/epoch_{name}": totals[name] / totals["num_samples"] for name in _means(totals)}
    metrics |= {"train/ids_hash": f"{int(totals['ids_hash']) % 2**64:016x}", **_pace_metrics(pace, live, job)}
    if totals["num_bad"]:
        metrics["train/num_bad"] = int(totals["num_bad"])
    job.runtime.average_buffers(state.module)
    if job.validate is not None:
        score = job.validate(state.module, state.step)
        metrics |= to_metrics(score, split="val")
        state.num_stale_epochs += 1
        if (score.top1_frac, -score.loss) > state.best_score:
            state.best_score, state.best_step = (score.top1_frac, -score.loss), state.step
            state.num_stale_epochs = 0
        if live.phase.plateau is not None:
            state.plateau = live.phase.plateau.after_epoch(state.plateau, val_loss=score.loss)
    epoch = round(_progress_in_epochs(state, job))
    row = {"step": state.step, "epoch": epoch, **metrics, "train/epoch_s": round(pace.seconds, 3)}
    job.progress.end_epoch(epoch, row)
    _write_row(row, job)
    _save(state, live, job)


def _count_bad(state: TrainState, met: list[BadSample]) -> None:
    state.bad_met += met
    num_bad = state.totals.get("num_bad", torch.zeros_like(state.totals["num_samples"]))
    state.totals["num_bad"] = num_bad + len(met)


def _settle_bad(state: TrainState, live: _Live, job: Job, *, num_bad: int) -> None:
    """Writes down the images that could not be read, and stops if they are too many; `num_bad` is of all ranks."""
    if num_bad > state.num_bad_written:
        job.bad_log.write(state.bad_met, step=state.step)
        state.bad_met, state.num_bad_written = [], num_bad
        check_num_bad(num_bad, live.phase.loader)


def _global_totals(state: TrainState, job: Job) -> dict[str, float]:
    """The sums over all ranks. Raises NonFiniteLossError on every rank if the loss of any is not finite."""
    names = sorted(state.totals)
    floats = [name for name in names if state.totals[name].is_floating_point()]
    integers = [name for name in names if name not in floats and name != "bad_step"]
    sums: dict[str, float] = {}
    for group in (floats, integers):
        values = job.runtime.sum_over_ranks(torch.stack([state.totals[name] for name in group]))
        sums |= dict(zip(group, values.tolist(), strict=True))
    if not math.isfinite(sums["loss"]):
        bad_steps = job.runtime.gather(state.totals["bad_step"].reshape(1)).tolist()
        step = min((step for step in bad_steps if step >= 0), default=state.step)
        raise NonFiniteLossError(
            f"the loss is not finite at step {step} (optimizer steps count from 1); the run has stopped. {_ADVICE}"
        )
    return sums


def _check_weights(state: TrainState, job: Job) -> None:
    """Raises NonFiniteLossError on every rank before weights are saved that no run could continue from."""
    finite = [value.isfinite().all() for value in state.module.state_dict().values() if value.is_floating_point()]
    if job.runtime.sum_over_ranks((~torch.stack(finite)).sum()).item():
        raise NonFiniteLossError(
            f"the weights are not finite after step {state.step}; the run has stopped without saving them. {_ADVICE}"
        )


def _save(state: TrainState, live: _Live, job: Job) -> None:
    """Checkpoint of the present state, by the main process; the others wait."""
    totals = _global_totals(state, job)
    _settle_bad(state, live, job, num_bad=int(totals["num_bad"]))
    runtime, settings = job.runtime, job.settings
    best_step = state.best_step if settings.select == "best" else None
    _check_weights(state, job)
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
            "plateau": list(state.plateau),
            "loader": live.phase.loader.state_dict(),
            "optimizer": live.prepared.optimizer.state_dict(),
            "scaler": runtime.scaler_state(),
        }
        save_checkpoint(
            job.folder.checkpoints,
            step=state.step,
            best_step=best_step,
            weights=state.module.state_dict(),
            card=job.card,
            training_state=training_state,
        )
        prune_checkpoints(job.folder.checkpoints, step=state.step, keep=settings.keep_checkpoints, best_step=best_step)
    runtime.wait_for_all()


def _means(totals: dict[str, float]) -> list[str]:
    """The totals that are reported divided by the number of samples."""
    return [name for name in totals if name not in ("num_samples", "num_bad", "ids_hash")]


def _write_row(row: dict[str, Any], job: Job) -> None:
    if job.runtime.is_main:
        job.folder.append_metrics(row)
        job.runtime.log(row, step=row["step"])


def _pace_metrics(pace: Pace, live: _Live, job: Job) -> dict[str, float]:
    """Learning rate, global speed and data wait."""
    return {
        "lr": max(group["lr"] for group in live.prepared.optimizer.param_groups),
        "train/images_per_s": round(pace.images_per_s * job.runtime.world_size, 1),
        "train/data_wait_frac": round(pace.wait_frac, 4),
    }


def _set_rates(live: _Live, *, step: int, plateau: PlateauState) -> None:
    """Learning rate and momentum of an optimizer step."""
    factor = live.phase.lr_factor(step) * plateau.factor
    momentum = live.phase.momentum_at and live.phase.momentum_at(step)
    for group, peak_lr in zip(live.prepared.optimizer.param_groups, live.peak_lrs, strict=True):
        group["lr"] = peak_lr * factor
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def count_epochs(state: TrainState, job: Job) -> int:
    """Whole epochs done, over all phases."""
    return math.floor(_progress_in_epochs(state, job))


def _progress_in_epochs(state: TrainState, job: Job) -> float:
    before = sum(phase.epochs for phase in job.phases[: state.phase])
    return before + state.phase_step / _steps_per_epoch(state, job)


def _steps_per_epoch(state: TrainState, job: Job) -> int:
    return job.phases[state.phase].loader.steps_per_epoch


def _micro_seed(*parts: int) -> int:
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _hash_ids(ids_N: Tensor, *, step: int) -> Tensor:
    """A number for "these samples in this step" that does not depend on how ranks share them; int64, modulo 2^64."""
    mixed = (ids_N + 1) * _ID_MULTIPLIER
    mixed = (mixed ^ (mixed >> 29)) * (2 * step + 1)
    return (mixed ^ (mixed >> 32)).sum()
