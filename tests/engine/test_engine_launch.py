"""What the launcher says, and what is made of it."""

import ctypes

import pytest

from engine import launch as launch_module
from engine.launch import LauncherSettings, check_launch, launcher_settings

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


def test_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(launch_module.os, "sched_getaffinity", lambda process: {1, 3, 5, 7, 9}, raising=False)
    assert launch_module.cores_per_rank(1) == 5
    assert launch_module.cores_per_rank(2) == 2
    assert launch_module.cores_per_rank(8) == 1


def test_freed_memory_is_kept_only_where_glibc_is(monkeypatch):
    monkeypatch.setattr(launch_module.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("called another C library"))
    launch_module.keep_freed_memory()
