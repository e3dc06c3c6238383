"""Where the time of a step goes: torch's profiler over a few steps, a trace and a page.

loader -> Profiler.watch -> the same batches, the first ones warming up, the next ones traced
       -> RUN/profile/trace.json.gz (chrome://tracing, ui.perfetto.dev), RUN/profile/summary.txt

Ranges of a step, in the trace and on the page: data wait, forward, backward, optimizer; the rest is other: sums,
metrics, checkpoints. Communication between processes runs beside the backward pass, and is counted for itself.
"""

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from engine.progress import Progress
from engine.record import describe_environment, replace_file
from engine.runtime import Runtime
from pipelines.batch import Batch, Loader

Range = Literal["data wait", "forward", "backward", "optimizer"]

_RANGES: tuple[Range, ...] = ("data wait", "forward", "backward", "optimizer")
_NUM_WARMUP, _NUM_TRACED = 5, 10
_NUM_OPERATORS = 10
_COMMUNICATION = ("gloo:", "nccl")  # beginnings of the names of gloo's work, and of NCCL's kernels


class Measured(NamedTuple):
    """What was traced: optimizer steps of this rank, seconds from the first to the end of the last, their images."""

    num_steps: int
    seconds: float
    num_images: int


class Profiler:
    """Traces steps of the first epoch that it sees, on the main process alone; otherwise it does nothing.

    Args:
        folder: Of the run.
        is_on: Whether to trace.
        runtime: This process.
        progress: Where it is said what was written.
    """

    def __init__(self, folder: Path, *, is_on: bool, runtime: Runtime, progress: Progress) -> None:
        self._folder = folder / "profile"
        self._is_due = is_on and runtime.is_main
        self._is_tracing = False
        self._runtime, self._progress = runtime, progress

    def range(self, name: Range) -> contextlib.AbstractContextManager[Any]:
        """Names what is done within, while steps are traced."""
        return record_function(name) if self._is_tracing else contextlib.nullcontext()

    def watch(self, loader: Loader, *, num_steps: int) -> Iterable[Batch]:
        """The batches of a loader, each of which is trained on before the next is asked for; `num_steps` are left."""
        if not self._is_due:
            return loader
        self._is_due = False
        num_warmup, num_traced = plan_steps(num_steps)
        if num_traced == 0:
            self._progress.say(f"profile: nothing is traced, for the epoch has only {num_steps} step(s) left of two")
            return loader
        return self._trace(loader, num_warmup=num_warmup, num_traced=num_traced)

    def _trace(self, loader: Loader, *, num_warmup: int, num_traced: int) -> Iterator[Batch]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # on a machine without a GPU it prints an error about that
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._runtime.device.type == "cuda")
        tracer = profile(
            activities=activities, schedule=schedule(wait=0, warmup=num_warmup, active=num_traced, repeat=1)
        )
        batches, num_images, start_s, num_steps = iter(loader), 0, 0.0, num_warmup + num_traced
        try:
            self._is_tracing = True
            tracer.start()
            for step in range(num_steps):
                if step == num_warmup:
                    start_s = self._now()
                with self.range("data wait"):
                    batch = next(batches)
                yield batch  # and here the step is done
                num_images += len(batch.labels_N) * (step >= num_warmup)
                if step == num_steps - 1:
                    seconds = self._now() - start_s
                tracer.step()
        finally:
            self._is_tracing = False
            tracer.stop()
        self._save(tracer, Measured(num_traced, seconds, num_images))
        yield from batches

    def _now(self) -> float:
        if self._runtime.device.type == "cuda":
            torch.cuda.synchronize(self._runtime.device)
        return time.perf_counter()

    def _save(self, tracer: profile, measured: Measured) -> None:
        text = describe(tracer, measured, world_size=self._runtime.world_size, machine=self._runtime.describe())
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(f"could not make {self._folder} ({error}); leave out --run.profile.") from error
        tracer.export_chrome_trace(str(self._folder / "trace.json.gz"))
        replace_file(self._folder / "summary.txt", text.encode())
        self._progress.say(f"profile of {measured.num_steps} steps: {self._folder / 'summary.txt'}, trace.json.gz")


def plan_steps(num_steps: int) -> tuple[int, int]:
    """How many steps of an epoch warm up and how many are traced: 5 and 10, of a short one a third and the rest."""
    if num_steps < 2:
        return 0, 0
    num_warmup = min(_NUM_WARMUP, max(1, num_steps // 3))
    return num_warmup, min(_NUM_TRACED, num_steps - num_warmup)


def describe(tracer: profile, measured: Measured, *, world_size: int, machine: str) -> str:
    """The page: where the time of a step goes, the operators that take most, and on what it was measured."""
    events: list[Any] = list(tracer.events() or [])  # type: ignore[no-untyped-call]
    has_gpu = any(event.device_type == DeviceType.CUDA for event in events)
    step_ms = 1000 * measured.seconds / measured.num_steps
    images_per_s = measured.num_images * world_size / measured.seconds
    about = describe_environment({})
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", "torchvision", "accelerate"))
    images_per_step = measured.num_images // measured.num_steps
    lines = [
        f"{measured.num_steps} steps traced, of {step_ms:.2f} ms and {images_per_step} images each on rank 0",
        f"{images_per_s:,.1f} images/s, over {world_size} process(es); tracing itself costs some",
        "",
        *_range_lines(events, num_steps=measured.num_steps, step_ms=step_ms, has_gpu=has_gpu),
        "",
        *_operator_lines(tracer, num_steps=measured.num_steps, step_ms=step_ms, has_gpu=has_gpu),
        "",
        f"machine: {machine}; {about['cpu_cores']} CPU cores, {platform.machine()}, {about['platform']}",
        f"versions: python {about['python']}, {versions}; commit {about['git_commit']}",
        "trace.json.gz opens in https://ui.perfetto.dev",
    ]
    return "\n".join(lines) + "\n"


def _range_lines(events: list[Any], *, num_steps: int, step_ms: float, has_gpu: bool) -> list[str]:
    spans = {name: _spans(events, name) for name in _RANGES}
    host_ms: dict[str, float] = {
        name: sum(end - start for start, end in spans[name]) / 1000 / num_steps for name in _RANGES
    }
    host_ms["other"] = max(step_ms - sum(host_ms.values()), 0.0)
    gpu_ms = _gpu_ms(events, spans, num_steps=num_steps) if has_gpu else {}
    lines = [f"{'where the time goes':<32}{'share':>8}{'ms/step':>11}" + f"{'GPU ms/step':>13}" * has_gpu]
    for name, each_ms in host_ms.items():
        on_gpu = f"{gpu_ms[name]:13.3f}" if has_gpu else ""
        lines.append(f"{name:<32}{100 * each_ms / step_ms:7.1f}%{each_ms:11.3f}{on_gpu}")
    shared_ms = _communication_ms(events) / num_steps
    lines.append(f"{'communication (beside the others)':<32}{100 * shared_ms / step_ms:7.1f}%{shared_ms:11.3f}")
    if has_gpu:
        lines.append("share and ms/step are the host's, which runs ahead of the GPU; GPU ms/step are its kernels'.")
    return lines


def _operator_lines(tracer: profile, *, num_steps: int, step_ms: float, has_gpu: bool) -> list[str]:
    def own_us(one: Any) -> float:
        return float(one.self_device_time_total if has_gpu else one.self_cpu_time_total)

    operators = [one for one in tracer.key_averages() if not one.is_user_annotation]
    lines = [
        f"{'operators, by own time on ' + ('GPU' if has_gpu else 'CPU'):<60}{'share':>8}{'ms/step':>11}{'calls':>8}"
    ]
    for one in sorted(operators, key=own_us, reverse=True)[:_NUM_OPERATORS]:
        each_ms = own_us(one) / 1000 / num_steps
        lines.append(f"{one.key[:58]:<60}{100 * each_ms / step_ms:7.1f}%{each_ms:11.3f}{one.count / num_steps:8.1f}")
    return lines


def _spans(events: list[Any], name: str) -> list[tuple[float, float]]:
    """Begin and end of a range, each time, on the host, in microseconds."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.name == name and event.is_user_annotation and event.device_type == DeviceType.CPU
    ]


def _gpu_ms(events: list[Any], spans: Mapping[Range, list[tuple[float, float]]], *, num_steps: int) -> dict[str, float]:
    """Milliseconds of kernels by the range in which the host started them, in any thread: backward has its own."""
    found: dict[str, float] = dict.fromkeys((*_RANGES, "other"), 0.0)
    for event in events:
        if event.device_type != DeviceType.CPU or event.is_user_annotation:
            continue
        start = event.time_range.start
        name = next((name for name in _RANGES if any(low <= start < high for low, high in spans[name])), "other")
        found[name] += event.self_device_time_total / 1000 / num_steps
    return found


def _communication_ms(events: list[Any]) -> float:
    """Milliseconds in which at least one piece of communication was under way."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.name.startswith(_COMMUNICATION) and not event.name.startswith("nccl:")  # those are the host's
    )
    total_us, reached_us = 0.0, 0.0
    for start, end in spans:
        total_us += max(end - max(start, reached_us), 0.0)
        reached_us = max(reached_us, end)
    return total_us / 1000
