"""What people see while a run trains: a bar on a terminal, fixed-width lines elsewhere, from the main process only."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn, TextIO, TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_HEADER = "epoch      step  train loss  train top-1  val loss  val top-1        lr   images/s  wait  seconds"
_SECONDS_BETWEEN_LINES = 30.0  # without a terminal, a long epoch still shows that it lives


class Progress:
    """The display of one run.

    Args:
        num_epochs: Epochs in all.
        is_main: Whether this process prints; the others are silent.
        stream: Where to print.
    """

    def __init__(self, *, num_epochs: int, is_main: bool, stream: TextIO | None = None) -> None:
        self._num_epochs = num_epochs
        self._is_main = is_main
        self._stream = stream or sys.stdout
        self._bar: tqdm[NoReturn] | None = None
        self._line_time = time.monotonic()
        self._has_header = False

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        if self._is_main:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def through(self, items: Iterable[_Item], *, doing: str, num_items: int) -> Iterator[_Item]:
        """Hands items on, with a bar on a terminal, and elsewhere a line now and then."""
        on_terminal = self._is_main and self._stream.isatty()
        shown_s = time.monotonic()
        bar = tqdm(items, total=num_items, desc=doing, leave=False, disable=not on_terminal, file=self._stream)
        for place, item in enumerate(bar):
            if not on_terminal and time.monotonic() - shown_s > _SECONDS_BETWEEN_LINES:
                self.say(f"{doing}: {place:,} of {num_items:,}")
                shown_s = time.monotonic()
            yield item

    def start_epoch(self, epoch: int, *, num_steps: int, first_step: int) -> None:
        """Begins the display of an epoch, counted from 1."""
        if not self._has_header:
            self.say(_HEADER)
            self._has_header = True
        on_terminal = self._is_main and self._stream.isatty()
        title = f"epoch {epoch}/{self._num_epochs}"
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=title,
            unit="step",
            leave=False,
            disable=not on_terminal,
            file=self._stream,
        )

    def step(self) -> None:
        """One optimizer step is done."""
        if self._bar is not None:
            self._bar.update()

    def show(self, metrics: Mapping[str, float], *, step: int, num_steps: int) -> None:
        """Shows the metrics of a log step."""
        text = (
            f"loss {metrics['train/loss']:.4f}, top-1 {100 * metrics.get('train/top1_frac', 0):.1f} %, "
            f"{metrics['train/images_per_s']:,.0f} images/s, data wait {100 * metrics['train/data_wait_frac']:.0f} %"
        )
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._line_time > _SECONDS_BETWEEN_LINES:
            self.say(f"  step {step} of {num_steps}: {text}")
            self._line_time = time.monotonic()

    def end_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Closes the bar and prints the line of the epoch, counted from 1."""
        if self._bar is not None:
            self._bar.close()
        self._line_time = time.monotonic()

        def percent(key: str) -> str:
            return f"{100 * metrics[key]:.2f} %" if key in metrics else "-"

        val_loss = f"{metrics['val/loss']:.4f}" if "val/loss" in metrics else "-"
        self.say(
            f"{epoch:5d}  {metrics['step']:8d}  {metrics['train/epoch_loss']:10.4f}"
            f"  {percent('train/epoch_top1_frac'):>11}  {val_loss:>8}  {percent('val/top1_frac'):>9}"
            f"  {metrics['lr']:8.2e}  {metrics['train/images_per_s']:9,.0f}"
            f"  {100 * metrics['train/data_wait_frac']:3.0f}%  {metrics['train/epoch_s']:7.1f}"
        )
