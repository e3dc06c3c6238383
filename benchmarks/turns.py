"""Contenders that take turns, each a process of its own: warm from the start, computing only when it is its turn.

    Racer: starts it --------------> the contender warms up
           ready  <--- {...} ------- answer_and_wait({...})
    take_turn: go ----------------->   a turn
                  <--- {...} ------- answer_and_wait({...})
    leaves: closes its stdin ------> it gives False: the contender ends

Lines that do not begin with a brace are passed over.
"""

import contextlib
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

_END_S = 60.0  # time to end in, for loaders with threads and processes


class Racer:
    """A contender in a process of its own, which waits for its turns; to be used in a `with` statement.

    Args:
        command: What starts it.
        name: What to call it in messages.

    Attributes:
        ready: What it answered when it was warm.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self._name = name
        self._process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> "Racer":
        """Waits until it is warm, so that nobody else computes meanwhile.

        Raises:
            RuntimeError: The process has ended.
        """
        try:
            self.ready = self._read()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        status = self._stop()
        if status != 0 and kind is None:  # its turns were good, so they are not lost
            warnings.warn(f"{self._name} ended with exit status {status} after its last turn.", stacklevel=2)

    def take_turn(self) -> dict[str, Any]:
        """Lets it take a turn, and gives its answer.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says so
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"{self._name} has ended; what went wrong stands above.")

    def _stop(self) -> int:
        """Closes its stdin, and gives its exit status; one that does not end in time is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()
        return self._process.wait()


def answer_and_wait(answer: dict[str, Any]) -> bool:
    """The contender's side: answers, and waits for its next turn; False = there is none."""
    print(json.dumps(answer), flush=True)
    return bool(sys.stdin.readline())
