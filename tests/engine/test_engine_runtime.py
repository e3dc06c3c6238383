"""What the launcher says, and what is made of it."""

import contextlib
import ctypes
import errno

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.layers import BatchNormAct2d
from torch import nn

from configs.schema import RunConfig
from engine import runtime as runtime_module
from engine.runtime import (
    LauncherSettings,
    check_launch,
    check_trackers,
    clear_errors,
    launcher_settings,
    start_runtime,
    synchronise_norms,
)
from engine.watchdog import LostRankError

ALONE_UNDER_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
GOOD_LAUNCHES = {
    "python": {},
    "accelerate, one process": {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"},
    "accelerate, two": ALONE_UNDER_ACCELERATE | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    "torchrun, three": {"WORLD_SIZE": "3", "RANK": "2", "MASTER_ADDR": "localhost"},
    "a host that always sets MASTER_ADDR": {"MASTER_ADDR": "node1"},
    "one launcher per node under srun": {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "4", "RANK": "0"},
}
LONELY_LAUNCHES = {
    "accelerate --cpu --num_processes 2": ALONE_UNDER_ACCELERATE,
    "srun of two tasks without a launcher": {"SLURM_STEP_NUM_TASKS": "2"},
}


@pytest.mark.parametrize("environ", GOOD_LAUNCHES.values(), ids=GOOD_LAUNCHES)
def test_launches_that_work_pass(environ):
    check_launch(environ, world_size=None)


@pytest.mark.parametrize("environ", LONELY_LAUNCHES.values(), ids=LONELY_LAUNCHES)
def test_processes_that_would_each_train_alone_are_told_what_to_type(environ):
    with pytest.raises(ValueError, match="was started alone") as error:
        check_launch(environ, world_size=None)
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes" in str(error.value)
    assert "torchrun --nproc-per-node" in str(error.value)


def test_another_world_size_than_asked_for_is_an_error():
    check_launch({"WORLD_SIZE": "4"}, world_size=4)
    with pytest.raises(ValueError, match=r"run\.world_size=8, but there are 4") as error:
        check_launch({"WORLD_SIZE": "4"}, world_size=8)
    assert "--num_processes 8" in str(error.value)
    with pytest.raises(ValueError, match=r"run\.world_size=2, but there are 1"):
        check_launch({}, world_size=2)


def test_launcher_options_are_read_from_its_environment():
    assert launcher_settings({}) == LauncherSettings(None, None)
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16"}
    assert launcher_settings(told) == LauncherSettings(4, "bf16")
    assert launcher_settings({"ACCELERATE_MIXED_PRECISION": "no"}) == LauncherSettings(None, None)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "told mixed precision fp8; use no, bf16 or fp16"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, "told to accumulate auto steps; give a whole number"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "told ACCELERATE_USE_DEEPSPEED=true, which train.py does not do"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            r"told ACCELERATE_DYNAMO_BACKEND=INDUCTOR.*--speed\.compile default",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, r"told ACCELERATE_USE_FSDP=true.*leave it out, and add --speed\.shard true"),
    ],
)
def test_what_the_launcher_was_told_and_cannot_be_done_is_refused(environ, message):
    with pytest.raises(ValueError, match=message):
        launcher_settings(environ)


def test_the_launchers_own_defaults_pass():
    defaults = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_MIXED_PRECISION": "no"}
    assert launcher_settings(defaults) == LauncherSettings(None, None)


def test_out_of_memory_is_told_with_what_to_lower(capsys):
    with pytest.raises(SystemExit):
        run_with_clear_errors(MemoryError("Unable to allocate 9 TiB"))
    assert "out of memory (lower train.global_batch_size" in capsys.readouterr().err


def test_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(runtime_module.os, "sched_getaffinity", lambda process: {1, 3, 5, 7, 9}, raising=False)
    assert runtime_module.cores_per_rank(1) == 5
    assert runtime_module.cores_per_rank(2) == 2
    assert runtime_module.cores_per_rank(8) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error of a machine without a GPU")
def test_fp16_without_a_gpu_is_refused_with_an_alternative():
    with pytest.raises(ValueError, match="fp16 needs a GPU, and there is none here; use bf16 or fp32"):
        start_runtime("fp16", RunConfig())


def test_sync_bn_without_a_gpu_is_refused_before_any_work(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"train\.sync_bn=true needs GPUs, and there is none here.*Leave it out"):
        start_runtime("fp32", RunConfig(num_threads=1), sync_bn=True)


def test_synchronised_norms_keep_names_weights_activations_and_hooks():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)), BatchNormAct2d(4))
    module[2].register_forward_pre_hook(lambda norm, inputs: None)
    names, parameters = list(module.state_dict()), list(module.parameters())
    for _ in range(2):  # a second phase does it again
        synchronise_norms(module)
        assert [isinstance(norm, nn.SyncBatchNorm) for norm in (module[1][0], module[2])] == [True, True]
        assert isinstance(module[2].act, nn.ReLU)
        assert len(module[2]._forward_pre_hooks) == 1
        assert list(module.state_dict()) == names
        assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))
    images_NCHW = torch.randn(2, 3, 8, 8)
    assert module.eval()(images_NCHW).min() == 0, "evaluation works on a CPU, too, and its activation is there"


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


def test_freed_memory_is_kept_only_where_glibc_is(monkeypatch):
    monkeypatch.setattr(runtime_module.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("called another C library"))
    runtime_module.keep_freed_memory()


def run_with_clear_errors(error):
    with clear_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "is_left"),
    [
        (ValueError("batch is 7; use 8."), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (LostRankError("rank 3 on node2 was lost"), False),
    ],
)
def test_a_script_is_left_word_of_errors_that_would_come_again(tmp_path, error, is_left):
    wrapped = OSError("could not write checkpoint")
    wrapped.__cause__ = error
    for number, each in enumerate([error, wrapped]):
        control = tmp_path / str(number)
        with pytest.raises(SystemExit), clear_errors(["train.py", "--run.control", str(control)]):
            raise each
        assert (control / "failed").exists() == is_left


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


def test_an_error_of_the_user_ends_with_its_message_alone(capsys):
    with pytest.raises(SystemExit) as left:
        run_with_clear_errors(ValueError("batch is 7; use 8."))
    assert left.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: batch is 7; use 8.\n")
    assert "test_engine_runtime.py" in printed
    assert "Traceback" not in printed


def test_the_other_ranks_leave_rank_0_time_to_speak_for_all(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    slept = []
    monkeypatch.setattr(runtime_module.time, "sleep", slept.append)
    with contextlib.suppress(SystemExit):
        run_with_clear_errors(OSError("disk full"))
    assert slept == [3.0]
    assert capsys.readouterr().err.startswith("error on rank 1: disk full\n")


def test_control_c_says_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as left:
        run_with_clear_errors(KeyboardInterrupt())
    assert left.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError, match="wanted"):
        run_with_clear_errors(ValueError("wanted"))


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_with_clear_errors(KeyError("bug"))


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
