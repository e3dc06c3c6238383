"""The learning rate as a factor of its peak: pure functions of the optimizer step, nothing to save or prepare.

A schedule does not know how many processes there are, so it cannot run faster on more of them. Steps may be fractions:
where the batch size changes in training, a step of another size is that part of one.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

LrFactor = Callable[[float], float]


def constant(value: float = 1.0) -> LrFactor:
    """The same at every step."""
    return lambda step: value


def step_decay(*, step_size: int, gamma: float) -> LrFactor:
    """Times `gamma` every `step_size` optimizer steps, as torch's StepLR."""
    return lambda step: float(gamma ** (step // step_size))


def multi_step(*, milestones: Sequence[int], gamma: float) -> LrFactor:
    """Times `gamma` at each of the optimizer steps `milestones`, which rise, as torch's MultiStepLR."""
    return lambda step: float(gamma ** bisect.bisect_right(milestones, step))


def polynomial(*, num_steps: float, power: float, final_frac: float) -> LrFactor:
    """From 1 to `final_frac` over `num_steps` by (1 - progress) ** `power`, as torch's PolynomialLR does to 0."""

    def factor(step: float) -> float:
        progress = min(step / num_steps, 1.0)
        return float(final_frac + (1 - final_frac) * (1 - progress) ** power)

    return factor


def cosine(*, num_steps: float, final_frac: float) -> LrFactor:
    """Half a cosine from 1 to `final_frac` over `num_steps`, as torch's CosineAnnealingLR."""

    def factor(step: float) -> float:
        progress = min(step / num_steps, 1.0)
        return final_frac + (1 - final_frac) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def cosine_restarts(*, cycle_steps: float, mult: float, decay: float, final_frac: float) -> LrFactor:
    """Half cosines, each from its top to `final_frac`, as torch's CosineAnnealingWarmRestarts.

    Source: Loshchilov, Hutter, "SGDR", 2017.

    Args:
        cycle_steps: Steps of the first.
        mult: How much longer each is than the one before; torch's T_mult.
        decay: Factor on the top of each, the first being 1; as timm's CosineLRScheduler has it.
        final_frac: Where each ends.
    """

    def factor(step: float) -> float:
        number, start, length = 0, 0.0, cycle_steps
        while step >= start + length:
            number, start, length = number + 1, start + length, length * mult
        top = decay**number
        return final_frac + (top - final_frac) * (1 + math.cos(math.pi * (step - start) / length)) / 2

    return factor


class OneCycle(NamedTuple):
    """One rise and one fall over all steps, each half a cosine, as torch's OneCycleLR.

    Source: Smith, Topin, "Super-Convergence", 2018, in fastai's form. The peak is at step `rise_frac * num_steps - 1`.
    """

    num_steps: int
    rise_frac: float

    def between(self, step: float, *, start: float, peak: float, end: float) -> float:
        """What moves from `start` to `peak` and on to `end`, at an optimizer step."""
        top, last = self.rise_frac * self.num_steps - 1, self.num_steps - 1
        if step <= top:
            return _half_cosine(start, peak, part=step / top if top > 0 else 1.0)
        return _half_cosine(peak, end, part=min((step - top) / max(last - top, 1e-9), 1.0))


def one_cycle(*, num_steps: int, rise_frac: float, start_frac: float, final_frac: float) -> LrFactor:
    """From `start_frac` to 1 and on to `final_frac` over `num_steps`."""
    cycle = OneCycle(num_steps, rise_frac)
    return lambda step: cycle.between(step, start=start_frac, peak=1.0, end=final_frac)


def cycle_momentum(*, num_steps: int, rise_frac: float, high: float, low: float) -> LrFactor:
    """Momentum against the learning rate of `one_cycle`: from `high` to `low` and back."""
    cycle = OneCycle(num_steps, rise_frac)
    return lambda step: cycle.between(step, start=high, peak=low, end=high)


def with_warmup(after: LrFactor, *, num_steps: int, start_frac: float | None = None) -> LrFactor:
    """Linear warm-up of `num_steps` steps, then `after`, counted from its end.

    From 1 / `num_steps` at the first step to 1 at the last of them; or, with `start_frac`, from that at the first step
    to 1 at the first one after them, as torch's LinearLR and timm do.
    """

    def factor(step: float) -> float:
        if step >= num_steps:
            return after(step - num_steps)
        return (step + 1) / num_steps if start_frac is None else start_frac + (1 - start_frac) * step / num_steps

    return factor if num_steps > 0 else after


def until(before: LrFactor, *, num_steps: float, after: LrFactor) -> LrFactor:
    """`before` for `num_steps` steps, then `after`, which counts from the first step of all."""
    return lambda step: before(step) if step < num_steps else after(step)


def squeezed(whole: LrFactor, *, num_steps: float, into_steps: float) -> LrFactor:
    """A schedule of `num_steps` run through in `into_steps`; then 0."""
    return lambda step: whole(step * num_steps / into_steps) if step < into_steps else 0.0


class PlateauState(NamedTuple):
    """Where a plateau schedule stands: the factor so far, the lowest loss, and the epochs since without a lower one."""

    factor: float = 1.0
    best_loss: float = math.inf
    num_bad_epochs: int = 0


class Plateau(NamedTuple):
    """Lowers the learning rate when the loss on val stops falling, as torch's ReduceLROnPlateau.

    gamma: factor of each step down. patience_epochs: epochs without a lower loss that are waited for. threshold_frac:
    how much lower a loss must be, as a fraction, to count. min_factor: the lowest factor.
    """

    gamma: float
    patience_epochs: int
    threshold_frac: float
    min_factor: float

    def after_epoch(self, state: PlateauState, *, val_loss: float) -> PlateauState:
        """The state after an epoch that ended with `val_loss`."""
        if val_loss < state.best_loss * (1 - self.threshold_frac):
            return PlateauState(state.factor, val_loss, 0)
        if state.num_bad_epochs < self.patience_epochs:
            return state._replace(num_bad_epochs=state.num_bad_epochs + 1)
        return PlateauState(max(state.factor * self.gamma, self.min_factor), state.best_loss, 0)


def _half_cosine(start: float, end: float, *, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
