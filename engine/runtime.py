"""Where and with whom this process runs: device, ranks, precision. The only file that imports accelerate.

launcher's environment -> launcher_settings, check_launch -> start_runtime -> Runtime
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from configs.load import config_keys
from configs.nearest import nearest
from configs.schema import RunConfig, SpeedConfig
from engine.compilation import CompileMode, check_compiler, compile_module
from engine.launch import check_launch, cores_per_rank, keep_freed_memory
from engine.parallel import mean_in_order_of_ranks, synchronise_norms
from engine.sharding import BufferSharing, is_sharded, shard_module, without_reduction
from engine.watchdog import LostRankError, Watchdog, is_lost_connection

_PROJECT = "exactvision"  # what trackers file the runs under
_Value = TypeVar("_Value")
_MIXED = {"fp32": "no", "fp64": "no", "bf16": "bf16", "fp16": "fp16"}


class Prepared(NamedTuple):
    """A module as it is trained (wrapped for several processes), and its optimizer."""

    module: nn.Module
    optimizer: AcceleratedOptimizer


class Runtime:
    """This process among its ranks.

    device: where it computes. dtype: of parameters and inputs. rank, world_size: as torch's. num_sharing: processes on
    this device. num_cores: CPU cores for this process. is_main: whether it is the one that writes and prints.
    is_first_on_machine: whether `first_on_this_machine` lets it go first; the main one is. is_sharding: whether
    parameters are shared out among the ranks.
    started_s: when the program started, on the clock of `time.monotonic`. watchdog: ends it when a rank is lost.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        precision: str,
        local_world_size: int,
        trackers: Sequence[str] = (),
        compile_mode: CompileMode = "none",
        is_sharding: bool = False,
        sync_bn: bool = False,
    ) -> None:
        self._accelerator = accelerator
        self._trackers = tuple(trackers)
        self._compile_mode, self._sync_bn = compile_mode, sync_bn
        self._buffer_sharing: BufferSharing | None = None
        self.is_sharding = is_sharding
        self.device: torch.device = accelerator.device
        self.precision = precision
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.num_sharing = local_world_size if self.device.type == "cpu" else 1
        self.num_cores = cores_per_rank(local_world_size)
        self.is_main: bool = accelerator.is_main_process
        self.is_first_on_machine: bool = accelerator.is_local_main_process
        self.started_s = time.monotonic()
        self.watchdog = Watchdog(rank=self.rank, world_size=self.world_size)

    def watch(self, *, stall_s: float) -> None:
        """Starts the watchdog of every rank; `stall_s` as `engine.watchdog.Watchdog.start` has it."""
        port, hosts = self.from_main(lambda: self.watchdog.port), self.gather_objects([platform.node()])
        self.watchdog.start(stall_s=stall_s, port=port, hosts=hosts)

    @contextlib.contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Within, failed communication is told as what it is: another process is gone, and which.

        Raises:
            LostRankError: One is.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and is_lost_connection(error) and not isinstance(error, LostRankError):
                raise LostRankError(self.watchdog.explain(error)) from error
            raise

    def from_main(self, find: Callable[[], _Value]) -> _Value:
        """What the main process finds, on every rank: on a file system of several machines each might see otherwise."""
        found: _Value = self.gather_objects([find() if self.is_main else None])[0]
        return found

    def describe(self) -> str:
        """Device, processes, threads and precision in a line, for the screen and environment.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        processes = f"{self.world_size} process" + "es" * (self.world_size > 1)
        shared = f", parameters shared out among {self.world_size}" if self.is_sharding else ""
        compiled = f", compiled ({self._compile_mode})" if self._compile_mode != "none" else ""
        return f"{name}, {processes}, {torch.get_num_threads()} CPU threads each, {self.precision}{shared}{compiled}"

    def place(self, module: nn.Module) -> nn.Module:
        """The module on this device, in this precision, its filters channels_last as the batches are."""
        module = module.to(device=self.device, dtype=self.dtype)
        return module.to(memory_format=torch.channels_last)

    def shape(self, module: nn.Module) -> None:
        """Changes a module, in place, for the processes there are; before its optimizer is made, which is to see it."""
        if self._sync_bn and self.world_size > 1:
            synchronise_norms(module)
        if self.is_sharding:
            shard_module(module)

    def prepare(self, module: nn.Module, optimizer: Optimizer) -> Prepared:
        """Wraps a module that `shape` has seen, and its optimizer, for training; what was prepared before is let go.

        The module itself stays as it is, for evaluation and checkpoints: what is compiled is a wrapper around it.
        """
        self._accelerator.free_memory()
        if self._buffer_sharing is not None:
            self._buffer_sharing.end()
        compiled = compile_module(module, mode=self._compile_mode)
        if self.is_sharding:
            self._buffer_sharing = BufferSharing(module, optimizer)
            return Prepared(compiled, self._accelerator.prepare_optimizer(optimizer))
        prepared = Prepared(*self._accelerator.prepare(compiled, optimizer))
        if self.world_size > 2 and self.device.type == "cpu":
            prepared.module.register_comm_hook(None, mean_in_order_of_ranks)  # type: ignore[operator]  # it is DDP's
        return prepared

    def seed(self, number: int) -> None:
        """Seeds torch on the CPU and on this rank's device: the streams of `torch.manual_seed`.

        That one also seeds every kind of device there might be, and where they have not been used yet notes the call
        stack for each, every time: 71 us and more the deeper the stack, against 1 us (torch 2.14.1, Intel Xeon,
        2026-11-26).
        """
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision for the forward pass."""
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        """Backward pass, with loss scaling in fp16."""
        self._accelerator.backward(loss)

    def treat_gradients(
        self, module: nn.Module, *, clip_norm: float | None, clip_value: float | None, measure: bool
    ) -> Tensor | None:
        """Clips gradients, after the last backward pass of a step; nothing here waits for the device.

        Args:
            module: Its parameters' gradients are treated, in fp16 with the loss scale taken off.
            clip_norm: Longest that all of them together may be.
            clip_value: Largest that each may be.
            measure: Whether to measure their length where no norm is clipped.

        Returns:
            Their length before clipping, a scalar on the device; None where it was not measured.
        """
        if clip_norm is None and clip_value is None and not measure:
            return None
        self._accelerator.unscale_gradients()
        parameters = [one for one in module.parameters() if one.grad is not None]
        norm: Tensor | None = None
        if measure or clip_norm is not None:
            norm = get_total_norm([one.grad for one in parameters if one.grad is not None])
        if clip_norm is not None and norm is not None:
            clip_grads_with_norm_(parameters, clip_norm, norm)
        if clip_value is not None:
            clip_grad_value_(parameters, clip_value)
        return norm if norm is None or not is_sharded(norm) else norm.full_tensor()  # type: ignore[attr-defined]

    def no_sync(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Gradients stay on this rank until a backward pass outside this context."""
        if self.is_sharding:
            return without_reduction(module)
        context: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return context

    def take_peak_memory_gib(self) -> float | None:
        """The most memory that tensors have taken on this rank's GPU since the last call; None on a CPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return float(peak) / 2**30

    def scaler_state(self) -> dict[str, Any] | None:
        """The state of the fp16 loss scaler, None without one."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else None

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        """Restores `scaler_state`."""
        if self._accelerator.scaler is not None and state is not None:
            self._accelerator.scaler.load_state_dict(state)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on every rank."""
        return self._accelerator.reduce(values, reduction="sum")  # type: ignore[no-any-return]

    def gather(self, values: Tensor) -> Tensor:
        """The tensors of all ranks, concatenated, on every rank."""
        return self._accelerator.gather(values)  # type: ignore[no-any-return]

    def gather_objects(self, objects: list[Any]) -> list[Any]:
        """The lists of all ranks, joined in the order of the ranks, on every rank."""
        return gather_object(objects)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def first_on_this_machine(self) -> Iterator[None]:
        """Lets the first process of each machine go through a block before the others.

        These wait for a lock and not in a collective, which would give up after ten minutes; it opens, too, if the
        first one ends with an error.
        """
        # the machine's name, for where several share the folder, each would wait for the other
        name = f"exactvision-{os.getuid()}-{platform.node()}-{os.environ.get('MASTER_PORT', 'alone')}.lock"
        with open(Path(tempfile.gettempdir()) / name, "w") as lock:
            if self.is_first_on_machine and self.world_size > 1:
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.wait_for_all()  # the first one holds the lock
            if not self.is_first_on_machine:
                fcntl.flock(lock, fcntl.LOCK_SH)
                fcntl.flock(lock, fcntl.LOCK_UN)
            yield

    def average_buffers(self, module: nn.Module, *, frozen_norms: Collection[str] = ()) -> None:
        """Sets floating-point buffers (BatchNorm's running statistics) to their mean over the ranks.

        DDP starts every forward pass from rank 0's buffers, so this averages over the ranks in the last step alone;
        what it gives is the same buffers on every rank.

        Args:
            module: Whose buffers.
            frozen_norms: Paths of layers that keep theirs, equal on all ranks already; a third of three times a number
                need not be that number.
        """
        if self.world_size == 1:
            return
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point() and name.rpartition(".")[0] not in frozen_norms:
                buffer.copy_(self.sum_over_ranks(buffer) / self.world_size)

    def take_buffers_of_main(self, module: nn.Module) -> None:
        """Sets floating-point buffers to those of rank 0, from which DDP starts every forward pass, too.

        Of an average over steps, that is what a run that continues has on every rank.
        """
        if self.world_size == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.sum_over_ranks(buffer if self.is_main else torch.zeros_like(buffer)))

    def wait_for_all(self) -> None:
        """Returns when every rank has come here."""
        self._accelerator.wait_for_everyone()

    def start_trackers(self, folder: Path, *, first_step: int, config: Mapping[str, Any]) -> None:
        """Opens the trackers that were asked for; those that can, go on with the run of this folder.

        Args:
            folder: The run folder; its name is the run's name, and TensorBoard's events lie in it. Trackers that go on
                with a run by its id are given one that says its options too: a folder that was deleted and is used
                again for other options is another run.
            first_step: Steps done; TensorBoard hides an earlier start's events from after it.
            config: The configuration as nested dicts, which all but TensorBoard keep.
        """
        accelerator, name = self._accelerator, folder.resolve().name
        accelerator.project_configuration.logging_dir = str(folder)
        purge = {"purge_step": first_step + 1}
        accelerator.log_with = [
            TensorBoardTracker("tensorboard", folder, **purge) if tracker == "tensorboard" else tracker
            for tracker in self._trackers
        ]
        flat = _flat(config)
        run_id = f"{name}-{_digest(flat)}"
        named = {
            "wandb": {"name": name, "id": run_id, "resume": "allow", "dir": str(folder)},
            "trackio": {"name": run_id, "resume": "allow"},
            "mlflow": {"run_name": name},
            "swanlab": {"experiment_name": name},
        }
        accelerator.init_trackers(_PROJECT, init_kwargs=named)
        for tracker in accelerator.trackers if self.is_main else []:
            if tracker.name != "tensorboard":
                tracker.store_init_configuration(flat)

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Sends numbers to the trackers; "step" itself is left out, for some keep that name for their own."""
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "step"}
        self._accelerator.log(numbers, step=step)

    def end(self) -> None:
        """Closes watchdog, trackers and the process group."""
        self.watchdog.stop()
        self._accelerator.end_training()


def start_runtime(
    precision: str | None, run: RunConfig, *, speed: SpeedConfig | None = None, sync_bn: bool = False
) -> Runtime:
    """Joins the process group, if there is one, and sets the number of CPU threads.

    Args:
        precision: fp32, bf16, fp16 or fp64, as `engine.build.resolve_config` decided.
        run: num_threads, world_size and trackers are read.
        speed: compile and shard are read; they matter to training alone.
        sync_bn: As train.sync_bn.

    Raises:
        ValueError: Processes that were asked for are not there, a tracker that is not installed, fp16 or sync_bn
            without a GPU, compile without a compiler, or shard with one process.
    """
    speed = speed or SpeedConfig()
    assert precision is not None, "resolve_config has decided it"
    check_trackers(run.trackers)
    check_launch(os.environ, world_size=run.world_size)
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    on_cpu = asked_for_cpu or not torch.cuda.is_available()  # under torchrun, accelerate must be told
    if precision == "fp16" and on_cpu:
        raise ValueError("train.precision=fp16 needs a GPU, and there is none here; use bf16 or fp32.")
    if sync_bn and on_cpu:
        raise ValueError(
            "train.sync_bn=true needs GPUs, and there is none here: torch has no SyncBatchNorm for the CPU. Leave it "
            "out; each process then takes the statistics of its own part of the batch."
        )
    if speed.compile != "none":
        check_compiler(torch.device("cpu" if on_cpu else "cuda"))
    if on_cpu:
        keep_freed_memory()
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # the window of accumulation is our own (engine.fit): accelerate must not divide the loss again
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # accelerate warns without; set_num_threads decides
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=_MIXED[precision], project_dir=".")
    torch.set_num_threads(run.num_threads or cores_per_rank(local_world_size))
    present = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != present:
        raise ValueError(f"the launcher started {present} processes, but {accelerator.num_processes} found each other.")
    if speed.shard and accelerator.num_processes == 1:
        raise ValueError(
            "speed.shard=true shares parameters out among the processes, and there is only one; start several "
            "(`torchrun --nproc-per-node 2 -- train.py ...`), or use --speed.shard false."
        )
    return Runtime(
        accelerator,
        precision=precision,
        local_world_size=local_world_size,
        trackers=run.trackers,
        compile_mode=speed.compile,
        is_sharding=speed.shard,
        sync_bn=sync_bn,
    )


def check_trackers(names: Sequence[str]) -> None:
    """Checks that Accelerate knows the trackers and that their packages are installed.

    Raises:
        ValueError: It does not, or one is not.
    """
    known, installed = [str(name) for name in LOGGER_TYPE_TO_CLASS], [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ValueError(f"run.trackers: unknown tracker {name!r}; {nearest(name, known)}")
        if name not in installed:
            raise ValueError(
                f"run.trackers: the package of {name} is not installed; type `pip install {name}`, or use one of "
                f"{', '.join(installed) or 'none'} (run.trackers=[] for none)."
            )


def _flat(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; values that are no numbers or words as text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, prefix=f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _digest(flat: Mapping[str, Any]) -> str:
    """Eight letters for the options that determine the result; a run that goes on has the same."""
    free = {*config_keys()} - {*config_keys(may_change=False)}
    determined = {key: value for key, value in flat.items() if key not in free}
    return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:8]
