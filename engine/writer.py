"""Files written while training goes on: a snapshot is taken at once, a thread writes it.

tensors -> snapshot (copies on the CPU) -> Writer's only thread -> disk; the next snapshot waits for the one before
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any

from torch import Tensor

_SECONDS_BETWEEN_SIGNS = 1.0


def snapshot(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples that training no longer changes: tensors on the CPU, in own memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: snapshot(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([snapshot(each) for each in value])
    return value


class Writer:
    """Carries out one piece of writing at a time, in a thread.

    Args:
        sign: Called about once a second while somebody waits for the thread: waiting for a slow disk is no standstill.
    """

    def __init__(self, sign: Callable[[], None] = lambda: None) -> None:
        self._sign = sign
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None
        self._longest_s, self._submitted_s = 0.0, 0.0

    @property
    def longest_s(self) -> float:
        """Seconds that the longest piece has taken so far, one not yet finished among them."""
        is_writing = self._pending is not None and not self._pending.done()
        return max(self._longest_s, time.monotonic() - self._submitted_s if is_writing else 0.0)

    def submit(self, write: Callable[[], None]) -> None:
        """Has something written, once what was asked for before is done.

        Raises:
            OSError: What was asked for before could not be written.
        """
        self.wait()
        self._submitted_s = time.monotonic()
        self._pending = self._pool.submit(self._measure, write)

    def check(self) -> None:
        """Raises the OSError of what could not be written, as soon as it is known; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            OSError: It could not be.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        while not wait_for([pending], timeout=_SECONDS_BETWEEN_SIGNS).done:
            self._sign()
        pending.result()

    def _measure(self, write: Callable[[], None]) -> None:
        start_s = time.monotonic()
        write()
        self._longest_s = max(self._longest_s, time.monotonic() - start_s)

    def close(self) -> None:
        """Waits, and ends the thread; an error that nobody asked for is lost: whoever needs it calls `wait` before."""
        self._pool.shutdown(wait=True)
