"""Processes, devices, precision and trackers."""

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from configs.schema import RunConfig
from engine import runtime as runtime_module
from engine.runtime import check_trackers, start_runtime
from engine.watchdog import LostRankError


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error of a machine without a GPU")
def test_fp16_without_a_gpu_is_refused_with_an_alternative():
    with pytest.raises(ValueError, match="fp16 needs a GPU, and there is none here; use bf16 or fp32"):
        start_runtime("fp16", RunConfig())


def test_sync_bn_without_a_gpu_is_refused_before_any_work(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"train\.sync_bn=true needs GPUs, and there is none here.*Leave it out"):
        start_runtime("fp32", RunConfig(num_threads=1), sync_bn=True)


def test_accumulation_told_to_the_launcher_does_not_divide_the_loss_again(monkeypatch, runtime):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    started = start_runtime("fp64", RunConfig(num_threads=1))
    weight = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    started.backward(2 * weight)
    assert weight.grad.item() == 2.0


def test_integer_sums_over_ranks_stay_exact(runtime):
    value = torch.tensor([2**62 + 1, -5])
    assert torch.equal(runtime.sum_over_ranks(value), value)


def test_one_process_gathers_its_own_objects_and_is_the_first_on_its_machine(runtime):
    objects = [{"name": "a"}, ("b", 1)]
    assert runtime.gather_objects(objects) == objects
    assert runtime.gather_objects([]) == []
    with runtime.first_on_this_machine():
        passed = True
    assert passed


def test_the_module_is_placed_in_double_precision_and_channels_last(runtime):
    module = runtime.place(nn.Conv2d(3, 4, 3))
    assert module.weight.dtype == torch.float64
    assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_number_of_threads_is_what_was_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = torch.get_num_threads()
    try:
        assert "1 CPU threads each, fp64" in start_runtime("fp64", RunConfig(num_threads=1)).describe()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_lost_connection_names_the_rank_once(runtime, monkeypatch):
    told = []
    monkeypatch.setattr(runtime, "world_size", 2)
    monkeypatch.setattr(runtime.watchdog, "explain", lambda error: told.append(error) or "rank 1 was lost (gloo)")
    with pytest.raises(LostRankError, match="rank 1 was lost"), runtime.naming_lost_ranks():  # noqa: SIM117
        with runtime.naming_lost_ranks():
            raise RuntimeError("gloo: Connection closed by peer")
    assert len(told) == 1
    with pytest.raises(RuntimeError, match="shapes") as other, runtime.naming_lost_ranks():
        raise RuntimeError("shapes differ")
    assert type(other.value) is RuntimeError


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], "unknown tracker 'tensorbord'; nearest: tensorboard"),
        (["wandb"], r"the package of wandb is not installed; type `pip install wandb`, or use one of tensorboard"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_before_anything_starts(monkeypatch, names, message):
    monkeypatch.setattr(runtime_module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(ValueError, match=message):
        check_trackers(names)
    with pytest.raises(ValueError, match=message):
        start_runtime("fp32", RunConfig(num_threads=1, trackers=tuple(names)))
    check_trackers(["tensorboard"])
    check_trackers([])


class Recorder(tracking.GeneralTracker):
    """Stands for a tracker of the internet: keeps what it is told."""

    name = "wandb"
    requires_logging_directory = False
    made: "list[Recorder]" = []  # noqa: RUF012

    def __init__(self, project, **options):
        super().__init__()
        self.project, self.options, self.rows, self.config = project, options, [], None
        Recorder.made.append(self)

    @property
    def tracker(self):
        return self

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step, **options):
        self.rows.append((step, values))


@pytest.fixture
def recorder(monkeypatch):
    installed = [LoggerType.TENSORBOARD, LoggerType.WANDB]
    monkeypatch.setattr(runtime_module, "get_available_trackers", lambda: installed)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr("accelerate.accelerator.LOGGER_TYPE_TO_CLASS", tracking.LOGGER_TYPE_TO_CLASS)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    Recorder.made.clear()
    return Recorder


def test_trackers_get_the_name_of_the_run_its_configuration_and_the_numbers_of_each_row(recorder, tmp_path):
    runtime = start_runtime("fp32", RunConfig(num_threads=1, trackers=("tensorboard", "wandb")))
    runtime.start_trackers(tmp_path / "run7", first_step=0, config={"optim": {"lr": 0.1, "betas": [0.9, 0.99]}})
    runtime.log({"step": 12, "val/top1_frac": 0.5, "epoch": 1, "note": "no number"}, step=12)
    runtime.end()
    (tracker,) = recorder.made
    assert tracker.project == "exactvision"
    run_id = tracker.options.pop("id")
    assert tracker.options == {"name": "run7", "resume": "allow", "dir": str(tmp_path / "run7")}
    assert run_id.startswith("run7-")
    assert tracker.config == {"optim.lr": 0.1, "optim.betas": "[0.9, 0.99]"}
    assert tracker.rows == [(12, {"val/top1_frac": 0.5, "epoch": 1})]
    events = EventAccumulator(str(tmp_path / "run7" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/top1_frac")] == [(12, 0.5)]


def test_a_run_that_goes_on_has_its_id_again_and_one_with_other_options_another(recorder, tmp_path):
    def id_of(config):
        runtime = start_runtime("fp32", RunConfig(num_threads=1, trackers=("wandb",)))
        runtime.start_trackers(tmp_path / "first", first_step=0, config=config)
        runtime.end()
        return recorder.made[-1].options["id"]

    before = id_of({"optim": {"lr": 0.1}, "run": {"seed": 0, "num_threads": 1}})
    assert id_of({"optim": {"lr": 0.1}, "run": {"seed": 0, "num_threads": 2}}) == before
    assert id_of({"optim": {"lr": 0.2}, "run": {"seed": 0, "num_threads": 1}}) != before
    assert id_of({"optim": {"lr": 0.1}, "run": {"seed": 1, "num_threads": 1}}) != before


def test_without_trackers_nothing_is_written(recorder, tmp_path):
    runtime = start_runtime("fp32", RunConfig(num_threads=1, trackers=()))
    runtime.start_trackers(tmp_path, first_step=0, config={})
    runtime.log({"val/top1_frac": 0.5}, step=1)
    runtime.end()
    assert not recorder.made
    assert not list(tmp_path.iterdir())


def test_seeding_begins_the_stream_of_torchs_own_seed():
    start_runtime("fp32", RunConfig(num_threads=1)).seed(2**63 + 5)
    drawn = torch.rand(4)
    torch.manual_seed(2**63 + 5)
    assert torch.equal(drawn, torch.rand(4))
