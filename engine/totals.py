"""What an epoch adds up to: loss, right answers, samples and bad images, over micro-batches and ranks.

micro-batch -> add_to_totals -> sums on the device, of this rank -> global_totals -> numbers, of all ranks

Nothing is waited for until the sums are asked for.
"""

import math

import torch
from torch import Tensor

from engine.bad_samples import check_num_bad
from engine.state import Job, Live, TrainState
from pipelines.batch import BadSample, Batch

ADVICE = (
    "Start again with another --run.out and a lower optim.lr or a longer schedule.warmup_epochs; "
    "if it was fp16, bf16 may help."
)
_ID_MULTIPLIER = 0x1E3779B97F4A7C15  # odd, so that no id is lost in the product modulo 2^64


class NonFiniteLossError(FloatingPointError):
    """The training loss or the weights became infinite or not a number."""


def add_to_totals(state: TrainState, batch: Batch, *, loss: Tensor, sums: dict[str, Tensor]) -> None:
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


def count_bad(state: TrainState, met: list[BadSample]) -> None:
    """Adds the images of this rank that could not be read in a step, for `settle_bad` to write down."""
    state.bad_met += met
    num_bad = state.totals.get("num_bad", torch.zeros_like(state.totals["num_samples"]))
    state.totals["num_bad"] = num_bad + len(met)


def settle_bad(state: TrainState, live: Live, job: Job, *, num_bad: int) -> None:
    """Writes down the images that could not be read; `num_bad` is of all ranks.

    Raises:
        ValueError: They are more than the loader allows in an epoch.
    """
    if num_bad > state.num_bad_written:
        job.bad_log.write(state.bad_met, step=state.step)
        state.bad_met, state.num_bad_written = [], num_bad
        check_num_bad(num_bad, live.phase.loader)


def global_totals(state: TrainState, job: Job) -> dict[str, float]:
    """The sums over all ranks.

    Raises:
        NonFiniteLossError: On every rank, if the loss of any is not finite.
    """
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
            f"the loss is not finite at step {step} (optimizer steps count from 1); the run has stopped. {ADVICE}"
        )
    return sums


def mean_names(totals: dict[str, float]) -> list[str]:
    """The totals that are reported divided by the number of samples."""
    return [name for name in totals if name not in ("num_samples", "num_bad", "ids_hash")]


def _hash_ids(ids_N: Tensor, *, step: int) -> Tensor:
    """A number for "these samples in this step" that does not depend on how ranks share them; int64, modulo 2^64."""
    mixed = (ids_N + 1) * _ID_MULTIPLIER
    mixed = (mixed ^ (mixed >> 29)) * (2 * step + 1)
    return (mixed ^ (mixed >> 32)).sum()
