"""When a run saves in between, and when it ends early: the door for people, schedulers and scripts.

    CONTROL/stop, SIGTERM, Ctrl-C, minutes -> Orders.after_step() -> agreed among the ranks -> go on | save | stop
    what became of it -> CONTROL/stopped, CONTROL/saved, CONTROL/failed, for the script that started the run

A rank that is told to stop tells the others in the step that follows, by numbers sent beside those of training: nothing
waits for a GPU, and nobody leaves while others still wait for it.
"""

import contextlib
import enum
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch
from torch import distributed

from engine.record import replace_file

_SECONDS_BETWEEN_LOOKS = 1.0  # at the stop file
_SAME_CTRL_C_S = 2.0  # a terminal and a launcher send the same one twice
_SLURM_RESERVE_S, _SLURM_RESERVE_FRAC = 60.0, 0.1  # of a job's time, at most: what Slurm rounds


class Order(enum.IntEnum):
    """What comes after a step; of what the ranks say the highest counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Control:
    """The files by which a run is told to stop, and says what became of it.

    stop: asks to save and end. stopped: it has; the same command goes on. saved: the step of the newest checkpoint that
    this start has written. failed: an error that the same command would meet again.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def asks_to_stop(self) -> bool:
        """Whether somebody has made the file `stop`."""
        return (self._folder / "stop").exists()

    def forget(self) -> None:
        """Takes away what an earlier start said."""
        for what in ("stopped", "saved", "failed"):
            (self._folder / what).unlink(missing_ok=True)

    def say(self, what: str, text: str) -> None:
        """Writes `stopped`, `saved` or `failed`; `stop` has been heeded when it has stopped.

        Raises:
            OSError: It cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / what, f"{text}\n".encode())
        if what == "stopped":
            (self._folder / "stop").unlink(missing_ok=True)


def control_of(words: Sequence[str]) -> Control | None:
    """What `--run.control DIR` names on a command line that may be wrong otherwise; None where it is not there.

    Of several the last one counts, as in the parser.
    """
    control = None
    for number, word in enumerate(words):
        name, is_given, value = word.partition("=")
        if name == "--run.control" and (is_given or number + 1 < len(words)):
            control = Control(Path(value if is_given else words[number + 1]))
    return control


class Signals:
    """SIGTERM and Ctrl-C, remembered until training comes to the end of a step."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._since_s = 0.0

    @contextlib.contextmanager
    def heeded(self) -> Iterator["Signals"]:
        """Within, they no longer end the program at once, but for a second Ctrl-C."""
        if threading.current_thread() is not threading.main_thread():  # there alone Python lets them be caught
            yield self
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._heed) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.reason is None:
            self.reason, self._since_s = signal.Signals(number).name, now_s
        elif number == signal.SIGINT and now_s > self._since_s + _SAME_CTRL_C_S:
            raise KeyboardInterrupt


class Agreement:
    """The highest number that any rank says, known one call later; it waits for no GPU.

    Every rank calls it equally often. Numbers travel among the CPUs by a process group of their own, while the next
    step is computed.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._group: distributed.ProcessGroup | None = None
        if world_size > 1:
            self._group = distributed.new_group(backend="gloo")  # type: ignore[assignment]  # a rank of it, as all are
        self._said: torch.Tensor | None = None
        self._pending: distributed.Work | None = None

    def __call__(self, number: int) -> int:
        """Says `number`; gives the highest of what was said in the call before, 0 at first; alone, `number` itself."""
        if self._group is None:
            return number
        before = 0
        if self._pending is not None and self._said is not None:
            self._pending.wait()
            before = int(self._said)
        self._said = torch.tensor(number)
        self._pending = distributed.all_reduce(
            self._said, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        return before


class Orders:
    """Tells after each step whether to go on, to save, or to save and stop.

    Args:
        control: Where a file `stop` may appear.
        signals: What was heard.
        agreement: Makes all ranks do the same.
        is_main: Whether this rank looks at files and clocks, for all.
        save_every_s: Seconds between checkpoints; 0 = none by the clock.
        deadlines_s: When the program must have ended, each with the reason, on the clock of `time.monotonic`.
        writing_s: Seconds that writing a checkpoint in the background takes.
    """

    def __init__(
        self,
        control: Control,
        signals: Signals,
        agreement: Agreement,
        *,
        is_main: bool,
        save_every_s: float,
        deadlines_s: dict[str, float],
        writing_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._control, self._signals, self._agreement = control, signals, agreement
        self._is_main = is_main
        self._save_every_s = save_every_s
        self._deadlines_s, self._writing_s = deadlines_s, writing_s
        self._saved_s = time.monotonic()
        self._looked_s = float("-inf")
        self._asked_s: float | None = None
        self._longest_s = 0.0
        self.reason: str | None = None

    def after_step(self) -> Order:
        """What all ranks do now."""
        now_s = time.monotonic()
        if self._asked_s is not None:
            self._longest_s = max(self._longest_s, now_s - self._asked_s)
        self._asked_s = now_s
        return Order(self._agreement(self._wish(now_s)))

    def note_saved(self) -> None:
        """A checkpoint was taken: the clock for the next one starts."""
        self._saved_s = time.monotonic()

    def _wish(self, now_s: float) -> Order:
        self.reason = self.reason or self._signals.reason
        if self._is_main and self.reason is None:
            self.reason = self._look(now_s)
        if self.reason is not None:
            return Order.STOP
        if self._is_main and 0 < self._save_every_s <= now_s - self._saved_s:
            self._saved_s = now_s
            return Order.SAVE
        return Order.GO_ON

    def _look(self, now_s: float) -> str | None:
        for reason, deadline_s in self._deadlines_s.items():
            # what may come yet: twice the longest time between two looks, steps and validation among them, and twice
            # that of writing, for a checkpoint under way and the last one
            if now_s + 2 * (self._longest_s + self._writing_s()) >= deadline_s:
                return reason
        if now_s < self._looked_s + _SECONDS_BETWEEN_LOOKS:
            return None
        self._looked_s = now_s
        return "a file called stop" if self._control.asks_to_stop() else None


def deadlines(*, started_s: float, max_minutes: float | None, slurm_end_s: float | None) -> dict[str, float]:
    """When a program must have ended, on the clock of `time.monotonic`.

    Args:
        started_s: When it started, on that clock.
        max_minutes: `run.max_minutes`.
        slurm_end_s: When its Slurm job ends, in seconds since 1970.
    """
    found = {}
    if max_minutes is not None:
        found[f"run.max_minutes={max_minutes:g}"] = started_s + 60 * max_minutes
    if slurm_end_s is not None:
        left_s = slurm_end_s - time.time()
        reserve_s = min(_SLURM_RESERVE_S, _SLURM_RESERVE_FRAC * left_s)
        found["the Slurm job's time limit"] = time.monotonic() + left_s - reserve_s
    return found
