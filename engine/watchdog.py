"""Ends a run of which a rank is lost or hangs, within a bounded time, and says which one, where, and at which step.

main thread: beat() at each step -> a thread of every rank: a sign of life each second -> a small server in rank 0
rank 0: a rank without a sign of life, or nobody going on -> verdict -> every rank ends
other ranks: rank 0 no longer answers -> this rank ends

Without it the others would wait in their next all-reduce: for ten minutes, or for ever.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_SECONDS_BETWEEN_SIGNS = 1.0
_LOST_S = 60.0  # without a sign of life; some compilers hold Python's lock for half a minute
_SUSPECT_S = 4.0  # the same, once communication has failed
_SECONDS_FOR_RANK_0 = 8.0  # in which it finds out who is lost, before others speak
_TIMEOUT_S = 20.0  # of the server
_BEATS_OF_A_STEP, _LONGER_AT_FIRST = 2, 6
_ASLEEP_S = 3.0  # between two looks: this process was suspended (Ctrl-Z, `scontrol suspend`), and others may have been


class LostRankError(RuntimeError):
    """Communication failed since a rank is gone; starting the same command again may well go through."""


class _Sign(NamedTuple):
    life: int
    num_beats: int
    step: int
    host: str
    doing: str


class Watchdog:
    """One of each rank. Until `start` it does nothing, and with `stall_s` 0 it never does.

    Args:
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, *, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._doing, self._step, self._num_beats, self._waits = "starting", 0, 0, 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: TCPStore | None = None
        self._seen: dict[int, tuple[_Sign, float]] = {}
        self._moved_s = self._heard_s = self._lost_s = 0.0
        self._verdict: str | None = None
        self._life = 0

    def beat(self, doing: str, *, step: int | None = None) -> None:
        """Says what the main thread begins to do; every rank says the same in the same order. Costs next to nothing."""
        self._doing, self._num_beats = doing, self._num_beats + 1
        self._step = self._step if step is None else step

    def wait_on(self) -> None:
        """Says that this rank is waiting for a disk, and is not to be taken for hanging."""
        self._waits += 1

    @property
    def port(self) -> int:
        """Where the server of rank 0 listens, made by the first call; 0 on other ranks."""
        if self._rank == 0 and self._world_size > 1 and self._store is None:
            self._store = _open_store("0.0.0.0", 0, is_server=True)
        return self._store.port if self._store is not None and self._rank == 0 else 0

    def start(self, *, stall_s: float, port: int, hosts: Sequence[str]) -> None:
        """Begins to watch.

        Args:
            stall_s: Seconds without a step of anybody after which the program ends; 0 = never, and nothing is watched.
            port: `port` of rank 0.
            hosts: The machine of each rank.
        """
        if self._thread is not None or stall_s == 0:
            return
        if self._world_size > 1 and self._store is None:
            self._store = _open_store(os.environ["MASTER_ADDR"], port, is_server=False)
        self._moved_s = self._heard_s = time.monotonic()
        self._lost_s = min(_LOST_S, max(stall_s, 2 * _SUSPECT_S))
        self._seen = {rank: (_Sign(0, 0, 0, host, "starting"), self._heard_s) for rank, host in enumerate(hosts)}
        self._thread = threading.Thread(target=self._watch, args=(stall_s,), name="watchdog", daemon=True)
        self._thread.start()
        if self._rank > 0:  # who asks a frozen server waits for ever
            threading.Thread(target=self._talk, name="watchdog talks", daemon=True).start()

    def stop(self) -> None:
        """Ends watching; it was no error."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def explain(self, error: BaseException) -> str:
        """Which rank is lost, after communication has failed on this one; takes some seconds."""
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        lost = self._find_lost() if self._rank == 0 else self._wait_for_rank_0()
        return f"{lost or 'another process is gone, and could not be named'} ({first_line})"

    def _find_lost(self) -> str:
        deadline_s = time.monotonic() + 2 * _SUSPECT_S
        while time.monotonic() < deadline_s:
            if self._silent(_SUSPECT_S):
                return "; ".join(self._describe(rank, "was lost") for rank in self._silent(_SUSPECT_S))
            time.sleep(0.2)
        return ""

    def _wait_for_rank_0(self) -> str:
        time.sleep(_SECONDS_FOR_RANK_0)  # it names the lost one, and the launcher ends this process meanwhile
        return f"rank 0 was lost, at step {self._step}" if _age(self._heard_s) > _SUSPECT_S else ""

    def _watch(self, stall_s: float) -> None:
        before, looked_s = (-1, -1), time.monotonic()
        while not self._stop.wait(_SECONDS_BETWEEN_SIGNS):
            if _age(looked_s) > _ASLEEP_S:
                self._leave_out(_age(looked_s))
            looked_s = time.monotonic()
            if self._rank == 0:
                if (self._num_beats, self._waits) != before:
                    before, self._moved_s = (self._num_beats, self._waits), time.monotonic()
                self._give_sign()
                for rank in range(1, self._world_size):
                    self._look_at(rank)
                self._verdict = self._judge(stall_s)
            elif self._verdict is None and _age(self._heard_s) > self._lost_s:
                silence = f"rank 0 on {self._seen[0][0].host} gave no sign of life for {self._lost_s:.0f} s"
                self._verdict = f"{silence}, at step {self._step} of rank {self._rank} ({self._doing})"
            if self._verdict is not None:
                self._end(self._verdict)
                return

    def _leave_out(self, asleep_s: float) -> None:
        """Counts no time in which this process itself stood still: it could hear nobody, and go on with nothing."""
        now_s = time.monotonic()
        self._moved_s, self._heard_s = min(now_s, self._moved_s + asleep_s), min(now_s, self._heard_s + asleep_s)
        self._seen = {rank: (sign, min(now_s, seen_s + asleep_s)) for rank, (sign, seen_s) in self._seen.items()}

    def _talk(self) -> None:
        """Gives signs of life, and asks for the verdict, until rank 0 no longer answers."""
        assert self._store is not None, "`start` has opened it"
        with contextlib.suppress(distributed.DistError, RuntimeError, OSError):
            while not self._stop.wait(_SECONDS_BETWEEN_SIGNS):
                self._give_sign()
                self._look_at(0)
                if self._store.check(["verdict"]):
                    self._verdict = self._store.get("verdict").decode()
                self._heard_s = time.monotonic()

    def _give_sign(self) -> None:
        self._life += 1
        own = _Sign(self._life, self._num_beats, self._step, self._seen[self._rank][0].host, self._doing)
        if self._store is not None:
            self._store.set(str(self._rank), "\n".join(map(str, own)))
        if self._rank == 0:
            self._seen[0] = (own, time.monotonic())

    def _look_at(self, rank: int) -> None:
        """Notes the sign that a rank gave, and when it was first seen."""
        if self._store is None or not self._store.check([str(rank)]):
            return
        life, num_beats, step, host, doing = self._store.get(str(rank)).decode().split("\n")
        sign = _Sign(int(life), int(num_beats), int(step), host, doing)
        last, seen_s = self._seen[rank]
        if last.num_beats != sign.num_beats:
            self._moved_s = time.monotonic()
        self._seen[rank] = (sign, seen_s if last.life == sign.life else time.monotonic())

    def _judge(self, stall_s: float) -> str | None:
        lost = self._silent(self._lost_s)
        if lost:
            return "; ".join(self._describe(rank, f"gave no sign of life for {self._lost_s:.0f} s") for rank in lost)
        # in the first step, programs are compiled
        if _age(self._moved_s) <= stall_s * (1 if self._num_beats > _BEATS_OF_A_STEP else _LONGER_AT_FIRST):
            return None
        least = min(sign.num_beats for sign, _ in self._seen.values())
        behind = [rank for rank, (sign, _) in sorted(self._seen.items()) if sign.num_beats == least]
        what = f"has not gone on for {_age(self._moved_s):.0f} s"
        return "; ".join(self._describe(rank, what) for rank in self._silent(_SUSPECT_S) or behind)

    def _silent(self, seconds: float) -> list[int]:
        return [rank for rank, (_, seen_s) in sorted(self._seen.items()) if _age(seen_s) > seconds]

    def _describe(self, rank: int, what: str) -> str:
        sign, _ = self._seen[rank]
        return f"rank {rank} on {sign.host} {what}, at step {sign.step} ({sign.doing})"

    def _end(self, verdict: str) -> None:
        """Ends this process, from a thread: its main thread cannot."""
        if self._rank == 0 or verdict.startswith("rank 0 "):
            advice = "The same command goes on from the newest checkpoint. (--run.stall_minutes sets how long to wait.)"
            print(f"error: {verdict}. {advice}", file=sys.stderr, flush=True)
        if self._rank == 0 and self._store is not None:
            self._store.set("verdict", verdict)
            time.sleep(3 * _SECONDS_BETWEEN_SIGNS)  # others see it
        if f"rank {self._rank} on " in verdict:
            print(f"rank {self._rank} stands here:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr)
        os._exit(1)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error is one of communication between ranks: gloo's are plain RuntimeErrors."""
    return isinstance(error, distributed.DistError) or any(
        words in str(error) for words in ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    )


def _open_store(host: str, port: int, *, is_server: bool) -> TCPStore:
    timeout = timedelta(seconds=_TIMEOUT_S)
    return TCPStore(host, port, is_master=is_server, wait_for_workers=False, timeout=timeout)


def _age(seen_s: float) -> float:
    return time.monotonic() - seen_s
