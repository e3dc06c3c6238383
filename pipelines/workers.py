"""Plans carried out in a torch DataLoader's worker processes, which persist from run to run.

plans -> sampler -> worker: carry_out(plan) -> Carried, or the error on its way home -> in the order of the plans

A scheduler, or Ctrl-C, signals all processes of a run at once. What training makes of that, workers must live to see:
they heed the process that started them, and nobody else.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.execution import Carried
from pipelines.plan import Plan

CarryOut = Callable[[Plan], Carried]


class PlanWorkers:
    """Worker processes that carry plans out, some batches ahead; one task is one plan.

    Args:
        carry_out: Does it, images on the CPU; it can be sent to another process.
        num_workers: Worker processes; 0 = in this one.
        num_prefetched: Batches that each of them works on ahead of the one handed out; None as torch has it.
        pin_memory: Whether images lie in pinned memory.
        persistent: Whether workers live on from run to run; else each run starts its own.
    """

    def __init__(
        self,
        carry_out: CarryOut,
        *,
        num_workers: int,
        num_prefetched: int | None,
        pin_memory: bool,
        persistent: bool = True,
    ) -> None:
        self._sampler = _Forward()
        self._batches = DataLoader(
            _CarriedOut(carry_out),
            batch_size=None,  # a plan is already a whole batch
            sampler=self._sampler,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            prefetch_factor=num_prefetched if num_workers > 0 else None,
            pin_memory=pin_memory,
            collate_fn=_identity,
            worker_init_fn=_heed_only_the_parent,
            generator=torch.Generator(),  # else each epoch draws from torch's global generator
        )

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, in turn.

        Raises:
            ValueError: One cannot be carried out, by whatever worker; the message is that of the cause alone.
        """
        self._sampler.plans = iter(plans)
        try:
            with _signals_held():
                batches = iter(self._batches)
            yield from map(_given_or_raised, batches)
        finally:
            self._sampler.plans = iter(())


class _Forward:
    """The sampler: hands on the plans of the present run, so that workers can persist between runs.

    It knows the plans only while they run, and not its owner: objects that lead back to each other are left to the
    garbage collector, which takes the workers' pipes from them before it tells them to stop (10 s, "Bad file
    descriptor"; torch 2.14.1).
    """

    def __init__(self) -> None:
        self.plans: Iterator[Plan] = iter(())

    def __iter__(self) -> Iterator[Plan]:
        while (plan := next(self.plans, None)) is not None:
            yield plan


class _Failure(NamedTuple):
    """A ValueError on its way home: its text, and where it was raised; a DataLoader would join the two."""

    message: str
    traceback: str


class _CarriedOut(Dataset[Carried | _Failure]):
    def __init__(self, carry_out: CarryOut) -> None:
        self._carry_out = carry_out

    def __getitem__(self, plan: Plan) -> Carried | _Failure:
        try:
            return self._carry_out(plan)
        except ValueError as error:
            return _Failure(str(error), traceback.format_exc())


def _given_or_raised(done: Carried | _Failure) -> Carried:
    if isinstance(done, _Failure):
        raise ValueError(done.message) from RuntimeError(f"in a worker:\n{done.traceback}")
    return done


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that come meanwhile are met afterwards; processes that start meanwhile are born with them held."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_only_the_parent(worker: int) -> None:
    """Has this worker, born with SIGTERM held, end by that of its parent, but by no other, and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    starter = multiprocessing.parent_process()  # not the parent where a server forks (Python 3.14's way)
    parent = os.getppid() if starter is None else starter.pid

    def end() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=end, name="heed", daemon=True).start()


def _identity(images: Any) -> Any:
    return images
