"""Whether the optimizer updates all parameters in one kernel."""

from typing import Literal

import torch

_NAMES = ("sgd", "adam", "adamw")


def fused_of(asked: Literal["auto", "on", "off"], *, name: str, device: torch.device) -> bool:
    """Whether an optimizer of torch's is made with `fused=True`.

    Args:
        asked: on, off, or auto, which is on a GPU alone.
        name: sgd, adam, adamw, or one that has no such kernel.
        device: Where the parameters lie.

    Raises:
        ValueError: on, and it has none.
    """
    if asked == "on" and name not in _NAMES:
        raise ValueError(
            f"speed.fused=on, but torch has no fused {name}; it has {', '.join(_NAMES)}. Use --speed.fused auto."
        )
    return asked == "on" or (asked == "auto" and name in _NAMES and device.type == "cuda")
