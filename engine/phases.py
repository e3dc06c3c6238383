"""Training whose batch size changes: one phase for each size, of which each goes on where the one before has ended.

a phase of all epochs, [(first epoch, size), ...] -> phases, each with a loader, the schedule and the optimizer going on
"""

from collections.abc import Callable, Sequence
from typing import Literal

from engine.schedules import LrFactor
from engine.state import Phase
from pipelines.batch import Loader


def split_by_batch_size(
    whole: Phase,
    batch_sizes: Sequence[tuple[int, int]],
    loader_of: Callable[[int], Loader],
    *,
    batch_lr: Literal["none", "linear", "sqrt"],
    base_size: int,
) -> list[Phase]:
    """The phases that together are the epochs of `whole`.

    Schedules are functions of the time in epochs, counted in steps of the first size. The learning rate follows the
    batch size by `lr_of_batch`.

    Args:
        whole: Its loader makes batches of the first size; its schedules count steps of that.
        batch_sizes: Pairs of an epoch, from 0 on, and the global batch size from there on.
        loader_of: Global batch size -> training batches.
        batch_lr: How the learning rate follows.
        base_size: The global batch size to which the learning rate belongs.

    Source: Smith et al., "Don't Decay the Learning Rate, Increase the Batch Size", 2018; of the rules: Goyal et al.,
    "Accurate, Large Minibatch SGD", 2017 (linear); Krizhevsky, "One weird trick for parallelizing convolutional neural
    networks", 2014 (sqrt).
    """
    phases = []
    ends = [start for start, _ in batch_sizes[1:]] + [whole.epochs]
    for number, ((start, size), end) in enumerate(zip(batch_sizes, ends, strict=True)):
        loader = loader_of(size) if number else whole.loader
        if number:
            loader.load_state_dict(loader.state_dict() | {"epoch": start})
        time_of = _time_in_first_steps(start, steps=loader.steps_per_epoch, first_steps=whole.loader.steps_per_epoch)
        factor = lr_of_batch(size, base_size=base_size, rule=batch_lr)
        phases.append(
            whole._replace(
                name=f"batches of {size}",
                loader=loader,
                epochs=end - start,
                lr_factor=_at(whole.lr_factor, time_of, factor=factor),
                lr_factors={until: _at(one, time_of, factor=factor) for until, one in whole.lr_factors.items()},
                momentum_at=whole.momentum_at and _at(whole.momentum_at, time_of, factor=1.0),
                keeps_optimizer=number > 0,
            )
        )
    return phases


def lr_of_batch(size: int, *, base_size: int, rule: Literal["none", "linear", "sqrt"]) -> float:
    """The factor by which a batch of `size` changes a learning rate that was chosen for `base_size`."""
    match rule:
        case "none":
            return 1.0
        case "linear":
            return size / base_size
        case "sqrt":
            return float((size / base_size) ** 0.5)


def _time_in_first_steps(start_epoch: int, *, steps: int, first_steps: int) -> Callable[[float], float]:
    """Step of a phase -> the time since training began, in steps of the first phase; whole epochs come out exactly."""
    return lambda step: start_epoch * first_steps + step * first_steps / steps


def _at(schedule: LrFactor, time_of: Callable[[float], float], *, factor: float) -> LrFactor:
    return lambda step: factor * schedule(time_of(step))
