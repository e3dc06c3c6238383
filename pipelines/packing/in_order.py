"""Tasks done by worker processes, results in the order of the tasks.

tasks -> worker: function(task) -> in turn
"""

import contextlib
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def map_in_order(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], *, num_workers: int
) -> Iterator[_Result]:
    """`function` of each task, in turn.

    Args:
        function: Raises nothing but OSError and RuntimeError.
        tasks: Its arguments; they may be made one by one.
        num_workers: Processes; 0 = this one.

    Raises:
        OSError, RuntimeError: That of `function`, with its own words alone.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: whoever asks knows
        results = DataLoader(
            _Done(function),
            batch_size=None,
            sampler=tasks,
            num_workers=num_workers,
            collate_fn=_identity,
            worker_init_fn=_leave_ctrl_c_to_the_program,
            generator=torch.Generator(),
        )
        running = iter(results)
    yield from map(_given_or_raised, running)


@contextlib.contextmanager
def telling_of_killed_workers() -> Iterator[None]:
    """Says it well when a worker process is ended from outside: torch interrupts whatever the program is doing.

    Raises:
        ChildProcessError: A worker process was ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ChildProcessError(
            "a worker process was ended from outside, perhaps because memory did not suffice; the same command goes on "
            "where this one was, with fewer --workers it needs less memory"
        ) from error


class _Failure(NamedTuple):
    kind: type[Exception]
    message: str


class _Done(Dataset[Any], Generic[_Task, _Result]):
    def __init__(self, function: Callable[[_Task], _Result]) -> None:
        self._function = function

    def __getitem__(self, task: _Task) -> _Result | _Failure:
        try:
            return self._function(task)
        except (OSError, RuntimeError) as error:  # a DataLoader would join its words with those of where it was raised
            return _Failure(OSError if isinstance(error, OSError) else RuntimeError, str(error))


def _given_or_raised(result: Any) -> Any:
    if isinstance(result, _Failure):
        raise result.kind(result.message)
    return result


def _identity(result: Any) -> Any:
    return result


def _leave_ctrl_c_to_the_program(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends the workers itself, without a word from each
