"""What the loader study tries on a machine: torch's DataLoader as courses teach it, then the executors of this project.

LoaderConfig, cores, GPU or none -> list of Setting -> the changes that each makes to the recipe's loader
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from configs.schema import LoaderConfig
from pipelines.build import DataLoaderOptions

_STEPS = (1, 2, 4, 8)  # threads that are tried, as far as there are cores
_MOST_WORKERS = 8  # that a run starts where loader.num_workers is not given


class Setting(NamedTuple):
    """One way of loading.

    name: for table and chart. backend: who carries plans out: reference, threads, processes, resident or dali. changes:
    fields of the recipe's loader. num_helpers: threads or processes beside the program. dataloader: options of the
    DataLoader that a run does not have; None = as in a run.
    """

    name: str
    backend: str
    changes: dict[str, Any]
    num_helpers: int
    dataloader: DataLoaderOptions | None = None

    @property
    def num_ahead(self) -> int:
        """Batches begun at the same time, which arrive together: nobody's rate shows before they are through."""
        return {"reference": self.num_helpers, "processes": self.num_helpers, "dali": 4}.get(self.backend, 1)

    def options(self, recipe: LoaderConfig) -> str:
        """What to write behind a command that takes the recipe: `--loader.backend threads --loader.num_threads 2`."""
        needed = {name: value for name, value in self.changes.items() if name != "workers" or recipe.workers != value}
        return " ".join(f"--loader.{name} {value}" for name, value in needed.items())


def settings_for(
    loader: LoaderConfig, *, num_cores: int, on_gpu: bool, num_workers: Sequence[int], num_threads: Sequence[int]
) -> list[Setting]:
    """Every setting worth a try; whether resident and dali are to be had is not known here.

    Args:
        loader: The recipe's: its own numbers of threads and workers are among those tried.
        num_cores: CPU cores of this process.
        on_gpu: Whether batches go to a GPU; only there do pinning and non-blocking copies change anything.
        num_workers: Worker processes of the DataLoader.
        num_threads: Threads; none = 1, 2, 4, 8 up to the cores, the cores, and a step beyond.
    """
    own_threads = [] if loader.num_threads is None else [loader.num_threads]
    own_workers = [] if loader.num_workers is None else [loader.num_workers]
    threads = sorted({*(num_threads or threads_for(num_cores)), *own_threads})
    helpers = loader.num_threads or num_cores
    processes = min(_MOST_WORKERS, num_cores) if loader.num_workers is None else loader.num_workers
    return [
        *_dataloader_settings(sorted({*num_workers, *own_workers}), num_cores=num_cores, on_gpu=on_gpu),
        *(_threads(number) for number in threads),
        Setting(
            f"processes, {count(processes, 'worker')}",
            "processes",
            {"backend": "threads", "workers": "processes", "num_workers": processes},
            processes,
        ),
        Setting("resident", "resident", {"backend": "resident"}, 0),
        Setting(f"dali, {count(helpers, 'thread')}", "dali", {"backend": "dali", "num_threads": helpers}, helpers),
    ]


def threads_for(num_cores: int) -> list[int]:
    """1, 2, 4, 8 as far as there are cores, as many as there are cores, and a step beyond."""
    beyond = 1 << num_cores.bit_length()
    return sorted({*(number for number in _STEPS if number <= num_cores), num_cores, beyond})


def own_setting(settings: Sequence[Setting], *, backend: str, loader: LoaderConfig, num_cores: int) -> Setting | None:
    """The setting that the recipe has already, if it is among them; `backend` is what its loader comes to."""
    helpers = {
        "reference": min(_MOST_WORKERS, num_cores) if loader.num_workers is None else loader.num_workers,
        "threads": loader.num_threads or num_cores,
    }
    wanted = helpers.get({"processes": "reference", "dali": "threads"}.get(backend, backend), 0)
    return next(
        (one for one in settings if (one.backend, one.num_helpers, one.dataloader) == (backend, wanted, None)), None
    )


def count(number: int, thing: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {thing}" + "s" * (number != 1)


def _dataloader_settings(num_workers: Sequence[int], *, num_cores: int, on_gpu: bool) -> list[Setting]:
    """The DataLoader by number of workers; its other options at one number, about as many as there are cores."""
    settings = [_dataloader(number) for number in num_workers]
    positive = [number for number in num_workers if number > 0]
    if positive:
        chosen = max((number for number in positive if number <= num_cores), default=positive[0])
        settings.append(_dataloader(chosen, "not persistent", DataLoaderOptions(persistent_workers=False)))
    else:
        chosen = 0
    if on_gpu:
        settings += [
            _dataloader(chosen, "not pinned", DataLoaderOptions(pin_memory=False)),
            _dataloader(chosen, "blocking", DataLoaderOptions(non_blocking=False)),
            _dataloader(chosen, "not pinned, blocking", DataLoaderOptions(pin_memory=False, non_blocking=False)),
        ]
    return settings


def _dataloader(number: int, words: str = "", options: DataLoaderOptions | None = None) -> Setting:
    name = f"DataLoader, {count(number, 'worker')}" + f", {words}" * bool(words)
    return Setting(name, "reference", {"backend": "reference", "num_workers": number}, number, options)


def _threads(number: int) -> Setting:
    changes = {"backend": "threads", "workers": "threads", "num_threads": number}
    return Setting(f"threads, {count(number, 'thread')}", "threads", changes, number)
