"""Programs that are told to stop, killed or frozen, on one machine: how they end, and that nothing is lost."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from programs import BIN, PORT_LOCK, ROOT, clean_environ, epoch_rows, final_weights, read_rows, succeed

pytestmark = pytest.mark.slow
TWO = [str(BIN / "torchrun"), "--nproc-per-node", "2", "train.py"]
ONE = [sys.executable, "train.py"]


@contextlib.contextmanager
def started(command, *, is_launcher):
    """A program in a session of its own; all of it is killed at the end."""
    with FileLock(PORT_LOCK) if is_launcher else contextlib.nullcontext():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for pid in ranks_of(process) if is_launcher and process.poll() is None else []:  # in sessions of their own
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdout, process.stderr):
                stream.close()


def wait_for_rows(folder, count, *, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while not ((folder / "metrics.jsonl").exists() and len(read_rows(folder)) >= count):
        assert time.monotonic() < end, "it does not train"
        time.sleep(0.02)


def ranks_of(process):
    """Processes of the ranks, in their order."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    found = [int(pid) for pid, parent, words in rows if int(parent) == process.pid and "train.py" in words]
    return sorted(found, key=rank_of)


def rank_of(pid):
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(word[5:]) for word in words if word.startswith(b"RANK="))


def assert_same_end(folder, expected):
    weights = final_weights(expected)
    assert all(torch.equal(weights[name], value) for name, value in final_weights(folder).items())
    assert epoch_rows(folder) == epoch_rows(expected)
    assert (folder / "result.json").read_text() == (expected / "result.json").read_text()


@pytest.fixture(scope="module")
def long_recipe(tmp_path_factory):
    recipe = {
        "data": {"dataset": "digits"},
        "augment": {"crop": "pad", "pad_px": 1, "flip": "alternating"},
        "model": {"name": "simple_cnn", "args": {"width": 32, "hidden": 128, "norm": "batch", "dropout": 0.3}},
        "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 20, "global_batch_size": 60},
        "run": {"log_every_steps": 1, "trackers": []},
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def straight(long_recipe, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    succeed("train.py", "--config", str(long_recipe), "--run.out", str(folder))
    return folder


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGINT to all its processes", "stop file", "minutes"])
def test_a_run_that_is_told_to_stop_saves_and_goes_on_bit_for_bit(long_recipe, straight, tmp_path, how):
    folder, options = tmp_path / "stopped", ["--config", str(long_recipe)]
    if "all" in how:
        options += ["--loader.backend", "reference", "--loader.num_workers", "2"]
    minutes = ["--run.max_minutes", "0.02"] if how == "minutes" else []
    with started([*ONE, *options, "--run.out", str(folder), *minutes], is_launcher=False) as process:
        if how != "minutes":  # those may be over with the first step
            wait_for_rows(folder, 3)
        match how:
            case "SIGTERM":
                process.terminate()
            case "SIGINT":
                process.send_signal(signal.SIGINT)
            case "SIGINT to all its processes":  # as a terminal does
                os.killpg(process.pid, signal.SIGINT)
            case "stop file":
                (folder / "stop").touch()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "stopped by " in output
    assert (folder / "stopped").exists()
    assert not (folder / "result.json").exists()
    assert "continuing from" in succeed("train.py", *options, "--run.out", str(folder))
    assert_same_end(folder, straight)


def test_sigterm_to_all_processes_of_a_run_does_not_take_the_workers_from_it(long_recipe, tmp_path):
    folder = tmp_path / "run"
    options = ["--config", str(long_recipe), "--loader.backend", "reference", "--loader.num_workers", "2"]
    with started([*ONE, *options, "--run.out", str(folder)], is_launcher=False) as process:
        wait_for_rows(folder, 30)  # workers of the second epoch have just begun
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "stopped by SIGTERM" in output
    assert time.monotonic() - start < 20, "workers end when training does"


@pytest.mark.dist
def test_two_ranks_of_which_one_hears_sigterm_stop_together(long_recipe, tmp_path):
    folder, expected = tmp_path / "stopped", tmp_path / "straight"
    options = ["--config", str(long_recipe), "--train.epochs", "6"]
    succeed("torchrun", "--nproc-per-node", "2", "train.py", *options, "--run.out", str(expected))
    command = [*TWO, *options, "--run.out", str(folder)]
    with started(command, is_launcher=True) as process:
        wait_for_rows(folder, 3)
        os.kill(ranks_of(process)[1], signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped by SIGTERM" in output
    with started(command, is_launcher=True) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same_end(folder, expected)


@pytest.mark.dist
def test_a_rank_that_is_killed_ends_the_run_which_names_it(long_recipe, tmp_path):
    folder, control = tmp_path / "run", tmp_path / "control"
    command = [*TWO, "--config", str(long_recipe), "--run.out", str(folder), "--run.control", str(control)]
    with started(command, is_launcher=True) as process:
        wait_for_rows(folder, 3)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "error: rank 1 on " in errors
    assert " was lost, at step " in errors
    assert not (control / "failed").exists(), "the same command would go through"


@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_frozen_ends_the_run_which_names_it(long_recipe, tmp_path, rank):
    folder = tmp_path / "run"
    command = [*TWO, "--config", str(long_recipe), "--run.out", str(folder), "--run.stall_minutes", "0.1"]
    with started(command, is_launcher=True) as process:
        wait_for_rows(folder, 3)
        frozen = ranks_of(process)[rank]
        os.kill(frozen, signal.SIGSTOP)
        start = time.monotonic()
        _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert f"rank {rank} on " in errors
    assert time.monotonic() - start < 90


def test_an_error_of_the_user_is_left_for_the_script_that_started_the_run(tmp_path):
    for options in (["--optim.lrr", "1"], ["--data.dataset", "folder", "--data.root", "nowhere"]):
        control = tmp_path / options[0]
        command = [*ONE, *options, "--run.control", str(control), "--run.out", str(tmp_path / "run")]
        done = subprocess.run(command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert (control / "failed").read_text().strip()


@pytest.mark.dist
def test_a_last_checkpoint_that_cannot_be_written_is_an_error_and_no_traceback_of_other_ranks(long_recipe, tmp_path):
    folder = tmp_path / "run"
    program = tmp_path / "full_disk.py"
    program.write_text(
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import engine.resume\n"
        "def save_checkpoint(folder, **_):\n"
        "    raise OSError(28, 'could not write checkpoint')\n"
        "engine.resume.save_checkpoint = save_checkpoint\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    options = ["--config", str(long_recipe), "--train.epochs", "1", "--run.out", str(folder)]
    with started([*TWO[:-1], str(program), *options], is_launcher=True) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "could not write checkpoint" in errors
    assert "RuntimeError" not in errors


def in_a_small_file_system(script, folder):
    """Runs a script of the shell where `folder` is a file system of its own, of 3 MB."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux and the program unshare, to mount a small file system")
    folder.mkdir()
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f"mount -t tmpfs -o size=3m tmpfs {folder}"
    if subprocess.run([*own, mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a file system of its own")
    return subprocess.run(
        [*own, f"{mount}\n{script}"], cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("harm", "mend", "error"),
    [
        ("head -c {1} /dev/zero > {0}/fill", "rm {0}/fill", "could not write checkpoint {0}/run/checkpoints/step_"),
        ("head -c 9999999 /dev/zero > {0}/fill || true", "rm {0}/fill", "could not write {0}/run/"),
        ("mount -o remount,ro {0}", "mount -o remount,rw {0}", "the run folder {0}/run cannot be written"),
    ],
    ids=["nearly full", "full", "read-only"],
)
def test_a_disk_that_fails_gives_one_clear_error_and_the_last_checkpoint_stays(
    small_recipe, tmp_path, harm, mend, error
):
    size_of_fill = 3 * 2**20 - 950_000 - 500_000  # 950,000 bytes are a checkpoint
    recipe = small_recipe(
        model={"name": "simple_cnn", "args": {"width": 32, "hidden": 128}}, run={"trackers": []}, train={"epochs": 4}
    )
    folder = tmp_path / "small"
    train = f"{sys.executable} train.py --config {recipe} --run.out {folder}/run"
    stop_early = f"mkdir -p {folder}/run; touch {folder}/run/stop; {train}"
    harmed = harm.format(folder, size_of_fill)
    script = "\n".join([stop_early, harmed, f"! {train}", mend.format(folder), "echo MENDED", train])
    done = in_a_small_file_system(script, folder)
    assert done.returncode == 0, done.stderr
    assert f"error: {error.format(folder)}" in done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    after = done.stdout.split("MENDED")[1]
    assert "step_00000001 (step 1)" in after
    assert "test: top-1" in after
