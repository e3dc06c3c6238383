"""Every executor, as the tests of all of them make it."""

import platform
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch

from pipelines.execution import Executor, Operate
from pipelines.executors.processes import ProcessesExecutor
from pipelines.executors.reference import ReferenceExecutor
from pipelines.executors.resident import ResidentExecutor, load_store
from pipelines.executors.threads import ThreadsExecutor
from pipelines.parallel import RowPool
from pipelines.plan import Fit, plan_evaluation
from pipelines.source import Source

DALI_IS_EXPECTED = sys.platform == "linux" and platform.machine() == "x86_64"  # else there are no builds of it


class Setting(NamedTuple):
    """What an executor is told when it is made.

    fit, size_px and windows are read by resident alone; operate by reference, threads and processes.
    """

    channels: int = 3
    interpolation: str = "bilinear"
    fit: Fit = Fit("crop", 1.0)
    size_px: int = 32
    windows: Literal["drawn", "stored"] = "drawn"
    operate: Operate | None = None


def _reference(num_workers: int) -> Callable[[Source, Setting], Executor]:
    return lambda source, setting: ReferenceExecutor(
        source,
        channels=setting.channels,
        interpolation=setting.interpolation,
        num_workers=num_workers,
        pin_memory=False,
        operate=setting.operate,
    )


def _processes(num_workers: int) -> Callable[[Source, Setting], Executor]:
    return lambda source, setting: ProcessesExecutor(
        source,
        channels=setting.channels,
        interpolation=setting.interpolation,
        num_workers=num_workers,
        num_prefetched=2,
        pin_memory=False,
        operate=setting.operate,
    )


def _threads(num_threads: int) -> Callable[[Source, Setting], Executor]:
    return lambda source, setting: ThreadsExecutor(
        source,
        channels=setting.channels,
        interpolation=setting.interpolation,
        num_threads=num_threads,
        num_prefetched=2,
        pin_memory=False,
        operate=setting.operate,
    )


def _dali(source: Source, setting: Setting) -> Executor:
    from pipelines.executors.dali import DaliExecutor

    return DaliExecutor(
        source,
        channels=setting.channels,
        interpolation=setting.interpolation,
        device=torch.device("cpu"),
        num_threads=2,
        num_prefetched=2,
    )


def _resident(source: Source, setting: Setting) -> Executor:
    every_id = np.arange(len(source.labels_N))
    windows = plan_evaluation(every_id, sizes_N2=source.sizes_N2, fit=setting.fit, size_px=setting.size_px)
    store = load_store(
        source,
        channels=setting.channels,
        windows=windows if setting.windows == "stored" else None,
        interpolation=setting.interpolation,
        show_progress=False,
    )
    return ResidentExecutor(store, interpolation=setting.interpolation, windows=setting.windows, pool=RowPool(2))


EXECUTORS: dict[str, Callable[[Source, Setting], Executor]] = {
    "processes_0": _processes(0),
    "processes_2": _processes(2),
    "reference_0_workers": _reference(0),
    "reference_2_workers": _reference(2),
    "resident": _resident,
    "threads_1": _threads(1),
    "threads_2": _threads(2),
    "threads_4": _threads(4),
}
if DALI_IS_EXPECTED:
    EXECUTORS["dali"] = _dali
