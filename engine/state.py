"""What a fit is given, and where it stands: a plan that stays the same, and a state small enough to be saved whole.

phases, loss, val, folder, runtime, settings -> Job          module, steps, sums, best score -> TrainState
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from engine.averages import Average, Ema, Swa
from engine.bad_samples import BadSampleLog
from engine.clock import Clock
from engine.evaluation import Evaluation
from engine.losses import LossFn
from engine.profile import Profiler
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Prepared, Runtime
from engine.schedules import LrFactor, Plateau, PlateauState
from engine.stopping import Control, Orders
from engine.writer import Writer
from pipelines.batch import BadSample, Loader


class Phase(NamedTuple):
    """A stretch of training with one optimizer, one schedule and one loader (and so one image and batch size).

    name: for messages. loader: training batches. epochs: how often to pass over it. accumulation: micro-batches per
    optimizer step. build_optimizer: makes the optimizer for a module. lr_factor: optimizer step of this phase -> factor
    of each group's learning rate. lr_factors: the same for groups that end sooner, by their `until_epoch`. momentum_at:
    optimizer step -> momentum (or first beta), None to leave it. plateau: lowers the learning rate by the loss on val.
    trains: parameter name -> whether it is trained, of those that the network itself trains; None = all of these. What
    a network of your own freezes stays frozen. keeps_optimizer: whether optimizer and plateau go on as the phase before
    has left them; `build_optimizer` then serves a run that continues here. frozen_bn: BatchNorm in what is not trained:
    eval = it normalises by its running statistics, and nothing moves these; train = by those of the batch, as all
    others do, and its running statistics move. may_stop_early: whether early stopping counts the epochs of this phase;
    it counts from 0 when the first begins that it does.
    """

    name: str
    loader: Loader
    epochs: int
    accumulation: int
    build_optimizer: Callable[[nn.Module], Optimizer]
    lr_factor: LrFactor
    lr_factors: Mapping[float, LrFactor] = MappingProxyType({})
    momentum_at: LrFactor | None = None
    plateau: Plateau | None = None
    trains: Callable[[str], bool] | None = None
    keeps_optimizer: bool = False
    frozen_bn: Literal["eval", "train"] = "train"
    may_stop_early: bool = True

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.epochs * self.loader.steps_per_epoch

    def lr_factor_of(self, group: Mapping[str, Any]) -> LrFactor:
        """The schedule of one of the optimizer's groups."""
        until_epoch = group.get("until_epoch")
        return self.lr_factor if until_epoch is None else self.lr_factors[until_epoch]


class FitSettings(NamedTuple):
    """How `fit` behaves; the fields are those of configs.schema.RunConfig and TrainConfig.

    clip_norm, clip_value: those of OptimConfig. slurm_end_s: when the Slurm job ends, in seconds since 1970; None
    outside one, or where Slurm does not say.
    """

    seed: int
    select: Literal["best", "last"]
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    early_stop_epochs: int | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    control: str | None = None
    checkpoint_every_minutes: float = 0.0
    max_minutes: float | None = None
    stall_minutes: float = 0.0
    slurm_end_s: float | None = None
    profile: bool = False


class Job(NamedTuple):
    """What stays the same throughout a fit.

    phases: in their order. loss_fn: what is learned. validate: (module, step=) -> score on val, None without val. card:
    what the weights are, kept in each checkpoint. config: the configuration as nested dicts, for trackers. bad_log:
    where images that cannot be read are written. folder, runtime, settings, progress: where, with whom, how, what is
    shown. average: of the weights, None for none. bn_loader: training images by which BatchNorm's statistics are
    measured anew when training ends, None to leave them.
    """

    phases: list[Phase]
    loss_fn: LossFn
    validate: Callable[..., Evaluation] | None
    card: dict[str, Any]
    config: dict[str, Any]
    bad_log: BadSampleLog
    folder: RunFolder
    runtime: Runtime
    settings: FitSettings
    progress: Progress
    average: Ema | Swa | None = None
    bn_loader: Loader | None = None


@dataclasses.dataclass
class TrainState:
    """Where training stands. `step` counts optimizer steps over all phases, `phase_step` within the present one.

    totals: sums over this rank's samples of the present epoch, on the device. logged: their global values at the last
    log step. bad_met: this rank's images that could not be read and are not written down yet; num_bad_written: those
    of the epoch that are, over all ranks. best_score: (val top-1, -val loss) of `best_step`; num_stale_epochs: epochs
    since, but for those of phases that early stopping does not count. grad_norm: of the newest step that measured it,
    on the device. plateau: of the present phase.
    is_epoch_ending: whether the present epoch's steps are all done, but not what comes at its end. stopped_by: why
    training ended early; None where it went on to its end. average: the averaged weights; None in a run without.
    own_trained: names of the parameters that the network trains where no phase trains fewer.
    """

    module: nn.Module
    phase: int = 0
    step: int = 0
    phase_step: int = 0
    totals: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    logged: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_met: list[BadSample] = dataclasses.field(default_factory=list)
    num_bad_written: int = 0
    best_step: int | None = None
    best_score: tuple[float, float] = (-1.0, 0.0)
    num_stale_epochs: int = 0
    grad_norm: Tensor | None = None
    plateau: PlateauState = dataclasses.field(default_factory=PlateauState)
    is_epoch_ending: bool = False
    stopped_by: str | None = None
    average: Average | None = None
    own_trained: frozenset[str] = frozenset()

    @property
    def judged(self) -> nn.Module:
        """The network that the run is judged by: the averaged one, once there is an average."""
        return self.average.module if self.average is not None and self.average.num_averaged else self.module


class Hands(NamedTuple):
    """What a fit works with from its first step to its last.

    orders: whether to go on after a step. control: where that is said. writer: writes checkpoints in the background.
    profiler: traces a few steps, where that is asked for.
    """

    orders: Orders
    control: Control
    writer: Writer
    profiler: Profiler


class Live(NamedTuple):
    """The present phase at work.

    prepared: module and optimizer, wrapped for the processes there are. peak_lrs: learning rate of each parameter group
    before the schedule. lr_factors: its schedule. clock: speed and data wait. hands: those of the fit.
    frozen_norms: paths of the BatchNorm layers that stay as they are.
    """

    phase: Phase
    prepared: Prepared
    peak_lrs: list[float]
    lr_factors: list[LrFactor]
    clock: Clock
    hands: Hands
    frozen_norms: frozenset[str]


def count_epochs(state: TrainState, job: Job) -> int:
    """Whole epochs done, over all phases."""
    return math.floor(progress_in_epochs(state, job))


def progress_in_epochs(state: TrainState, job: Job) -> float:
    """Epochs done, over all phases, the part of the present one included."""
    before = sum(phase.epochs for phase in job.phases[: state.phase])
    return before + state.phase_step / steps_per_epoch(state, job)


def steps_per_epoch(state: TrainState, job: Job) -> int:
    """Optimizer steps in an epoch of the present phase."""
    return job.phases[state.phase].loader.steps_per_epoch
