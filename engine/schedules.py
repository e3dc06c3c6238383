"""The learning rate as a factor of its peak: pure functions of the optimizer step, nothing to save or prepare.

A schedule does not know how many processes there are, so it cannot run faster on more of them.
"""

import math
from collections.abc import Callable

LrFactor = Callable[[int], float]


def constant() -> LrFactor:
    """1 at every step."""
    return lambda step: 1.0


def step_decay(*, step_size: int, gamma: float) -> LrFactor:
    """Times `gamma` every `step_size` optimizer steps, as torch's StepLR."""
    return lambda step: float(gamma ** (step // step_size))


def cosine(*, num_steps: int, final_frac: float) -> LrFactor:
    """Half a cosine from 1 to `final_frac` over `num_steps`, as torch's CosineAnnealingLR."""

    def factor(step: int) -> float:
        progress = min(step / num_steps, 1.0)
        return final_frac + (1 - final_frac) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def with_warmup(after: LrFactor, *, num_steps: int) -> LrFactor:
    """Linear from 1/`num_steps` to 1 in `num_steps` steps, then `after`, counted from the end of the warm-up."""

    def factor(step: int) -> float:
        return (step + 1) / num_steps if step < num_steps else after(step - num_steps)

    return factor if num_steps > 0 else after
