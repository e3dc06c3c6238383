"""The training loop: phases of epochs over a `TrainState`.

for each phase -> for each epoch -> for each global batch: accumulate gradients, one optimizer step; go on, save or stop
                                 -> validate -> checkpoint (last, best)

Nothing random is remembered: every micro-step seeds torch from (seed, step, micro-step, rank), the learning rate is a
function of the step, and the loader's position is two numbers. So a run that continues equals one that never stopped.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from engine.averages import Average, Ema, Swa
from engine.batchnorm import measure_bn
from engine.clock import Clock, Pace
from engine.evaluation import Evaluation, to_metrics
from engine.freezing import describe_trained, find_frozen_norms, freeze, hold_norms, trained_names
from engine.optimizers import main_lr
from engine.profile import Profiler
from engine.resume import restore_phase, restore_state, save_state
from engine.schedules import PlateauState
from engine.state import Hands, Job, Live, TrainState, count_epochs, progress_in_epochs, steps_per_epoch
from engine.stopping import Agreement, Control, Order, Orders, Signals, deadlines
from engine.totals import add_to_totals, count_bad, global_totals, mean_names, settle_bad
from engine.writer import Writer
from pipelines.batch import Batch, split_batch

_NUM_LISTED = 10  # parameters that an error names before it only counts them


def fit(module: nn.Module, job: Job) -> TrainState:
    """Trains the module through all phases, continuing from the newest whole checkpoint of the folder.

    Args:
        module: images (N, C, H, W) -> whatever `job.loss_fn` takes, placed on the device; trained in place. What a
            phase freezes of it is not frozen afterwards.
        job: Everything else.

    Returns:
        The final state, or, where `stopped_by` says so, the one at which training was told to stop; the newest
        checkpoint holds the same.

    Raises:
        LostRankError: Another process is gone; the message names it.
        NonFiniteLossError: The loss or the weights are not finite; the message names the step. No checkpoint holds
            weights that are not finite.
        FloatingPointError: The loss of an image of val is not finite.
        OSError: A checkpoint cannot be written (earlier ones are whole), or the best one is broken.
        ValueError: The checkpoint to continue from belongs to other data or another architecture; early stopping or
            plateau are asked for without val; or among several processes a parameter takes no part in the loss.
    """
    _check_val(job)
    average = None if job.average is None else Average(module)
    state = TrainState(module, average=average, own_trained=trained_names(module))
    runtime = job.runtime
    saved = restore_state(state, job)
    runtime.start_trackers(job.folder.path, first_step=state.step, config=job.config)
    runtime.watch(stall_s=60 * job.settings.stall_minutes)
    with Signals().heeded() as signals:
        hands = _build_hands(job, signals)
        try:
            with runtime.naming_lost_ranks():  # while its launcher's SIGTERM does not yet end this process
                _train_phases(state, job, hands, saved=saved)
                hands.writer.wait()
                runtime.wait_for_all()  # the newest checkpoint is there for all
        finally:
            freeze(module, None, own=state.own_trained)
            hands.writer.close()
    if state.stopped_by is not None:
        job.progress.say(f"stopped by {state.stopped_by}: saved at step {state.step}; the same command goes on")
        if runtime.is_main:
            hands.control.say("stopped", f"{state.stopped_by}, step {state.step}")
    return state


def _build_hands(job: Job, signals: Signals) -> Hands:
    runtime, settings = job.runtime, job.settings
    control = Control(Path(settings.control or job.folder.path))
    if runtime.is_main:
        control.forget()
    writer = Writer(runtime.watchdog.wait_on)
    orders = Orders(
        control,
        signals,
        Agreement(runtime.world_size),
        is_main=runtime.is_main,
        save_every_s=60 * settings.checkpoint_every_minutes,
        deadlines_s=deadlines(
            started_s=runtime.started_s, max_minutes=settings.max_minutes, slurm_end_s=settings.slurm_end_s
        ),
        writing_s=lambda: writer.longest_s,
    )
    profiler = Profiler(job.folder.path, is_on=settings.profile, runtime=runtime, progress=job.progress)
    return Hands(orders, control, writer, profiler)


def _train_phases(state: TrainState, job: Job, hands: Hands, *, saved: dict[str, Any] | None) -> None:
    """Trains to the end, or until it is told to stop, or no longer learns."""
    live: Live | None = None
    for number in range(state.phase, len(job.phases)):
        if number != state.phase:
            state.phase, state.phase_step = number, 0
        live = _begin_phase(state, job, hands, saved=saved, before=live)
        saved = None
        while state.is_epoch_ending or state.phase_step < live.phase.num_steps:
            if not state.is_epoch_ending:
                if _is_stale(state, job):
                    return
                _train_epoch(state, live, job)
            if state.stopped_by is not None:
                return
            _end_epoch(state, live, job)


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
    if patience is None or state.num_stale_epochs < patience or state.phase_step % steps_per_epoch(state, job):
        return False
    job.progress.say(
        f"stopped early after {count_epochs(state, job)} epochs: no better score on val for {state.num_stale_epochs} "
        f"of them (train.early_stop_epochs={patience})"
    )
    return True


def _begin_phase(
    state: TrainState, job: Job, hands: Hands, *, saved: dict[str, Any] | None, before: Live | None
) -> Live:
    phase = job.phases[state.phase]
    if phase.keeps_optimizer and before is not None:
        lr_factors = [phase.lr_factor_of(group) for group in before.prepared.optimizer.param_groups]
        return before._replace(phase=phase, lr_factors=lr_factors, clock=Clock())
    if saved is None:
        state.plateau = PlateauState()
    freeze(state.module, phase.trains, own=state.own_trained)
    job.runtime.shape(state.module)
    frozen_norms = find_frozen_norms(state.module) if phase.frozen_bn == "eval" else frozenset()
    if phase.trains is not None:
        job.progress.say(
            f"phase {state.phase + 1} of {len(job.phases)}, {phase.name}: "
            f"{describe_trained(state.module, frozen_norms=frozen_norms)}"
        )
    optimizer = phase.build_optimizer(state.module)
    prepared = job.runtime.prepare(state.module, optimizer)
    peak_lrs = [float(group["lr"]) for group in optimizer.param_groups]
    if saved is not None:
        restore_phase(saved, prepared=prepared, loader=phase.loader, runtime=job.runtime)
    lr_factors = [phase.lr_factor_of(group) for group in optimizer.param_groups]
    return Live(phase, prepared, peak_lrs, lr_factors, Clock(), hands, frozen_norms)


def _train_epoch(state: TrainState, live: Live, job: Job) -> None:
    """Trains to the end of the present epoch, or until it is told to stop."""
    phase, settings = live.phase, job.settings
    first_step = state.phase_step % phase.loader.steps_per_epoch
    last_step = state.phase_step - first_step + phase.loader.steps_per_epoch
    job.progress.start_epoch(
        count_epochs(state, job) + 1, num_steps=phase.loader.steps_per_epoch, first_step=first_step
    )
    if first_step == 0:
        state.totals, state.logged, state.num_bad_written = {}, {}, 0
    live.prepared.module.train()
    hold_norms(state.module, live.frozen_norms)
    for batch in live.clock.watch(live.hands.profiler.watch(phase.loader, num_steps=last_step - state.phase_step)):
        job.runtime.watchdog.beat("computing", step=state.step)
        _optimizer_step(state, live, job, batch)
        count_bad(state, phase.loader.take_bad_samples())
        job.progress.step()
        job.runtime.watchdog.beat("loading a batch", step=state.step)
        state.is_epoch_ending = state.phase_step == last_step
        if state.is_epoch_ending:  # before anything is saved: who goes on from that has one rank's buffers
            job.runtime.average_buffers(state.module, frozen_norms=live.frozen_norms)
        if state.step % settings.log_every_steps == 0 and not state.is_epoch_ending:
            _log_step(state, live, job)
        live.hands.writer.check()
        order = live.hands.orders.after_step()
        due = settings.checkpoint_every_steps and state.step % settings.checkpoint_every_steps == 0
        if order is Order.STOP or ((due or order is Order.SAVE) and not state.is_epoch_ending):
            save_state(state, live, job)
        if order is Order.STOP:
            state.stopped_by = _agree_on_reason(live.hands.orders.reason, job)
            return
    job.runtime.watchdog.beat("validating")


def _agree_on_reason(reason: str | None, job: Job) -> str:
    """The first reason that a rank has, on every rank."""
    return next(str(said) for said in job.runtime.gather_objects([reason]) if said is not None)


def _optimizer_step(state: TrainState, live: Live, job: Job, batch: Batch) -> None:
    """One step on a global batch; each micro-batch weighs as much as it has samples."""
    parts = split_batch(batch, live.phase.accumulation)
    for index, part in enumerate(parts):
        job.runtime.seed(_micro_seed(job.settings.seed, state.step, index, job.runtime.rank))
        is_last = index == len(parts) - 1
        with contextlib.nullcontext() if is_last else job.runtime.no_sync(live.prepared.module):
            _micro_step(state, live, job, part, weight=len(part.labels_N) / len(batch.labels_N))
    if job.runtime.world_size > 1:
        _check_gradients(state.module)
    with live.hands.profiler.range("optimizer"):
        _update_weights(state, live, job)
    state.step += 1
    state.phase_step += 1
    if state.average is not None and isinstance(job.average, Ema) and state.step % job.average.every_steps == 0:
        state.average.add(state.module, job.average)


def _micro_step(state: TrainState, live: Live, job: Job, part: Batch, *, weight: float) -> None:
    """Adds the gradients of a micro-batch, times `weight`, to those that there are."""
    profiler = live.hands.profiler
    with profiler.range("forward"), job.runtime.autocast():
        output = job.loss_fn(live.prepared.module, part)
    with profiler.range("backward"):
        job.runtime.backward(output.loss * weight)
    sums = {name: value.double() if value.is_floating_point() else value.long() for name, value in output.sums.items()}
    add_to_totals(state, part, loss=output.loss.detach(), sums=sums)


def _update_weights(state: TrainState, live: Live, job: Job) -> None:
    """Clips the gradients, if they are to be, and takes the step."""
    settings, optimizer = job.settings, live.prepared.optimizer
    norm = job.runtime.treat_gradients(
        state.module,
        clip_norm=settings.clip_norm,
        clip_value=settings.clip_value,
        measure=(state.step + 1) % settings.log_every_steps == 0,
    )
    state.grad_norm = state.grad_norm if norm is None else norm
    _set_rates(live, step=state.phase_step, plateau=state.plateau)
    optimizer.step()
    optimizer.zero_grad()


def _check_gradients(module: nn.Module) -> None:
    """Raises ValueError where a parameter took no part in the loss; DDP would fail a step later, with no name."""
    idle = [name for name, one in module.named_parameters() if one.requires_grad and one.grad is None]
    if idle:
        shown = ", ".join(idle[:_NUM_LISTED]) + (f" and {len(idle) - _NUM_LISTED} more" * (len(idle) > _NUM_LISTED))
        raise ValueError(
            f"these parameters of the network take no part in its output: {shown}. With several processes each must: "
            "remove their layers, set requires_grad=False on them, or train with one process."
        )


def _log_step(state: TrainState, live: Live, job: Job) -> None:
    """Writes the metrics since the last log step; the only place within an epoch that waits for the device."""
    now = global_totals(state, job)
    settle_bad(state, live, job, num_bad=int(now["num_bad"]))
    count = now["num_samples"] - state.logged.get("num_samples", 0)
    metrics = {f"train/{name}": (now[name] - state.logged.get(name, 0)) / count for name in mean_names(now)}
    row = {
        "step": state.step,
        "epoch": progress_in_epochs(state, job),
        **metrics,
        **_pace_metrics(live.clock.lap(), live, job),
    }
    if state.grad_norm is not None and state.grad_norm.isfinite():  # it is not where fp16 skipped the step
        row["train/grad_norm"] = float(state.grad_norm)
    state.logged = now
    job.progress.show(row, step=state.step, num_steps=sum(phase.num_steps for phase in job.phases))
    _write_row(row, job)


def _end_epoch(state: TrainState, live: Live, job: Job) -> None:
    """Validates, writes the metrics of the epoch, and saves a checkpoint."""
    totals = global_totals(state, job)  # waits for the device, so the pace that follows is of finished work
    settle_bad(state, live, job, num_bad=int(totals["num_bad"]))
    pace = live.clock.epoch()
    metrics: dict[str, Any] = {
        f"train/epoch_{name}": totals[name] / totals["num_samples"] for name in mean_names(totals)
    }
    metrics |= {"train/ids_hash": f"{int(totals['ids_hash']) % 2**64:016x}", **_pace_metrics(pace, live, job)}
    if totals["num_bad"]:
        metrics["train/num_bad"] = int(totals["num_bad"])
    epoch = round(progress_in_epochs(state, job))
    _settle_weights(state, live, job, epoch=epoch)
    if job.validate is not None:
        metrics |= _validate(state, live, job, validate=job.validate)
    state.is_epoch_ending = False
    row = {"step": state.step, "epoch": epoch, **metrics, "train/epoch_s": round(pace.seconds, 3)}
    job.progress.end_epoch(epoch, row)
    _write_row(row, job)
    save_state(state, live, job)


def _settle_weights(state: TrainState, live: Live, job: Job, *, epoch: int) -> None:
    """After `epoch` epochs: the weights, and their average, as they are scored and saved, the same on every rank."""
    runtime, average, frozen_norms = job.runtime, state.average, live.frozen_norms
    if average is not None and isinstance(job.average, Swa) and epoch > job.average.start_epoch:
        average.add(state.module, job.average)
        if job.average.bn_loader is not None:
            measure_bn(average.module, job.average.bn_loader, runtime=runtime, frozen_norms=frozen_norms)
    if average is not None and isinstance(job.average, Ema):
        runtime.take_buffers_of_main(average.module)
    if job.bn_loader is not None and epoch == sum(phase.epochs for phase in job.phases):
        measure_bn(state.module, job.bn_loader, runtime=runtime, frozen_norms=frozen_norms)
        if average is not None and isinstance(job.average, Ema):
            measure_bn(average.module, job.bn_loader, runtime=runtime, frozen_norms=frozen_norms)


def _validate(
    state: TrainState, live: Live, job: Job, *, validate: Callable[..., Evaluation]
) -> dict[str, float | int]:
    """The metrics of val, `val_raw` of the weights beside their average; what goes by the scores goes by `val`."""
    score = validate(state.judged, step=state.step)
    metrics = to_metrics(score, split="val")
    if state.judged is not state.module:
        metrics |= to_metrics(validate(state.module, step=state.step), split="val_raw")
    state.num_stale_epochs += int(live.phase.may_stop_early)
    if (score.top1_frac, -score.loss) > state.best_score:
        state.best_score, state.best_step = (score.top1_frac, -score.loss), state.step
        state.num_stale_epochs = 0
    if live.phase.plateau is not None:
        state.plateau = live.phase.plateau.after_epoch(state.plateau, val_loss=score.loss)
    return metrics


def _write_row(row: dict[str, Any], job: Job) -> None:
    if job.runtime.is_main:
        job.folder.append_metrics(row)
        job.runtime.log(row, step=row["step"])


def _pace_metrics(pace: Pace, live: Live, job: Job) -> dict[str, float]:
    """Learning rate, speed over all ranks and of each, data wait, and the memory of rank 0's GPU."""
    memory_gib = job.runtime.take_peak_memory_gib()
    return {
        "lr": main_lr(live.prepared.optimizer.param_groups),
        "train/images_per_s": round(pace.images_per_s * job.runtime.world_size, 1),
        "train/images_per_s_per_rank": round(pace.images_per_s, 1),
        "train/data_wait_frac": round(pace.wait_frac, 4),
    } | ({} if memory_gib is None else {"train/gpu_memory_gib": round(memory_gib, 3)})


def _set_rates(live: Live, *, step: int, plateau: PlateauState) -> None:
    """Learning rate and momentum of an optimizer step."""
    momentum = live.phase.momentum_at and live.phase.momentum_at(step)
    groups = live.prepared.optimizer.param_groups
    for group, peak_lr, lr_factor in zip(groups, live.peak_lrs, live.lr_factors, strict=True):
        group["lr"] = peak_lr * lr_factor(step) * plateau.factor
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def _micro_seed(*parts: int) -> int:
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")
