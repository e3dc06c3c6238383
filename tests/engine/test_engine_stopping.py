"""Told to stop: by a file, a signal or the clock; what is left then, and how it goes on."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from small_fits import KilledError, assert_same_weights, make_module, rows_of, two_phases

from engine import stopping
from engine.checkpoint import newest_checkpoint, read_manifest
from engine.fit import fit
from engine.stopping import Agreement, Control, Order, Orders, Signals, control_of, deadlines
from engine.writer import snapshot

NUM_STEPS = 12


class Clock:
    """Stands for time.monotonic and time.time."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + 5e8


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    return clock


def make_orders(folder, *, signals=None, save_every_s=0.0, deadlines_s=None, is_main=True, writing_s=lambda: 0.0):
    control = Control(folder)
    return Orders(
        control,
        signals or Signals(),
        Agreement(1),
        is_main=is_main,
        save_every_s=save_every_s,
        deadlines_s=deadlines_s or {},
        writing_s=writing_s,
    )


def stopping_at(job, steps, *, how=lambda: os.kill(os.getpid(), signal.SIGTERM)):
    """The job, but that `how` is done while these steps are computed, counted from 1 in this start."""
    inner, done = job.loss_fn, []

    def loss_fn(module, batch):
        done.append(1)
        if len(done) in steps:
            how()
        return inner(module, batch)

    return job._replace(loss_fn=loss_fn)


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))  # 4 and 8 end an epoch, 12 ends it all
def test_a_run_that_sigterm_stopped_goes_on_as_if_it_never_had(make_job, step):
    expected, straight = make_module(dropout=0.5), make_job("straight")
    fit(expected, straight)
    stopped = make_job("stopped")
    state = fit(make_module(dropout=0.5), stopping_at(stopped, [step]))
    assert (state.step, state.stopped_by) == (step, "SIGTERM")
    assert (stopped.folder.path / "stopped").read_text() == f"SIGTERM, step {step}\n"
    newest, _ = newest_checkpoint(stopped.folder.checkpoints)
    assert read_manifest(newest)["step"] == step
    module, continued = make_module(dropout=0.5), make_job("stopped")
    state = fit(module, continued)
    assert (state.step, state.stopped_by) == (NUM_STEPS, None)
    assert_same_weights(module, expected)
    assert rows_of(continued) == rows_of(straight)


@pytest.mark.parametrize("step", [3, 4])  # 4 ends an epoch
def test_what_is_saved_at_the_end_of_an_epoch_has_the_buffers_of_all_ranks(make_job, monkeypatch, step):
    """Only one rank's are saved: the others' must be in them, or a run that goes on would score something else."""
    job, module = make_job(), make_module()
    module.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
    monkeypatch.setattr(job.runtime, "average_buffers", lambda trained, frozen_norms: trained.mean.fill_(7.0))
    fit(module, stopping_at(job, [step]))
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    assert load_file(newest / "model.safetensors")["mean"].item() == (7.0 if step == 4 else 0.0)


def test_a_run_that_is_stopped_after_every_step_is_the_same(make_job, make_loader, data):
    expected = make_module(dropout=0.5)
    straight = make_job("straight", phases=two_phases(make_loader, data))
    fit(expected, straight)
    num_stops = 0
    while num_stops < 100:
        job = make_job("stopped", phases=two_phases(make_loader, data))
        module = make_module(dropout=0.5)
        if fit(module, stopping_at(job, [1])).stopped_by is None:
            break
        num_stops += 1
    assert num_stops == 16  # steps
    assert_same_weights(module, expected)
    assert rows_of(job) == rows_of(straight)


def test_a_kill_after_the_metrics_of_an_epoch_leaves_them_once(make_job, monkeypatch):
    expected, straight = make_module(dropout=0.5), make_job("straight")
    fit(expected, straight)
    fit(make_module(dropout=0.5), stopping_at(make_job("killed"), [4]))  # all steps of an epoch done, but not its end

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("engine.fit.save_state", killed)
        with pytest.raises(KilledError):
            fit(make_module(dropout=0.5), make_job("killed"))
    module, job = make_module(dropout=0.5), make_job("killed")
    fit(module, job)
    assert_same_weights(module, expected)
    assert rows_of(job) == rows_of(straight)


def test_a_file_called_stop_stops_and_is_taken_away(make_job):
    job = make_job()
    (job.folder.path / "stop").touch()  # before training begins: it is not lost
    state = fit(make_module(), job)
    assert (state.step, state.stopped_by) == (1, "a file called stop")
    assert not (job.folder.path / "stop").exists()
    assert "stopped by a file called stop: saved at step 1; the same command goes on" in (
        job.progress._stream.getvalue()
    )


def test_another_folder_may_hold_the_files(make_job, tmp_path):
    job = make_job(control=str(tmp_path / "far" / "away"))
    fit(make_module(), stopping_at(job, [2]))
    assert (tmp_path / "far" / "away" / "saved").read_text() == "step 2\n"
    fit(make_module(), make_job(control=str(tmp_path / "far" / "away")))
    assert (tmp_path / "far" / "away" / "saved").read_text() == "step 12\n"
    assert not (tmp_path / "far" / "away" / "stopped").exists()
    assert not (job.folder.path / "stopped").exists()


def test_a_run_that_ends_by_itself_does_not_say_it_was_stopped(make_job):
    job = make_job()
    (job.folder.path / "stopped").write_text("SIGTERM, step 3\n")  # of an earlier start
    fit(make_module(), job)
    assert {path.name for path in job.folder.path.iterdir()} & {"stop", "stopped", "saved", "failed"} == set()


def test_signals_end_the_program_again_after_training(make_job):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(make_module(), make_job())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_ends_at_once_but_the_same_one_twice_does_not(clock):
    signals = Signals()
    with signals.heeded():
        os.kill(os.getpid(), signal.SIGINT)
        clock.now += 0.5  # the launcher sends it on
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.reason == "SIGINT"
        clock.now += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_checkpoints_by_the_clock_change_nothing(make_job, monkeypatch):
    expected, straight = make_module(dropout=0.5), make_job("straight")
    fit(expected, straight)
    module, job = make_module(dropout=0.5), make_job("saved", checkpoint_every_minutes=1e-9, keep_checkpoints=100)
    fit(module, job)
    assert_same_weights(module, expected)
    assert rows_of(job) == rows_of(straight)
    assert len(list(job.folder.checkpoints.iterdir())) == NUM_STEPS


def test_the_clock_asks_for_a_checkpoint_once_in_its_time(clock, tmp_path):
    orders = make_orders(tmp_path, save_every_s=60)
    said = []
    for _ in range(10):
        clock.now += 20
        said.append(orders.after_step())
    assert said == [Order.GO_ON, Order.GO_ON, Order.SAVE] * 3 + [Order.GO_ON]
    clock.now += 40
    orders.note_saved()  # an epoch ended
    assert orders.after_step() is Order.GO_ON


def test_a_budget_of_minutes_leaves_time_for_what_takes_longest(clock, tmp_path):
    orders = make_orders(tmp_path, deadlines_s=deadlines(started_s=clock.now, max_minutes=10, slurm_end_s=None))
    seconds = []
    for step_s in [300, 10, 60, *[10] * 50]:  # the first is not counted: the program was compiled
        clock.now += step_s
        seconds.append(clock.now - 1000)
        if orders.after_step() is Order.STOP:
            break
    assert seconds[-1] == 480  # 600 - 2 * 60
    assert orders.reason == "run.max_minutes=10"


def test_a_budget_of_minutes_leaves_time_for_a_checkpoint_under_way_and_the_last_one(clock, tmp_path):
    found = deadlines(started_s=clock.now, max_minutes=10, slurm_end_s=None)
    orders = make_orders(tmp_path, deadlines_s=found, writing_s=lambda: 100.0)
    clock.now += 399
    assert orders.after_step() is Order.GO_ON
    clock.now += 1
    assert orders.after_step() is Order.STOP


@pytest.mark.parametrize(("left_s", "used_s"), [(3600, 3540), (100, 90)])
def test_the_end_of_a_slurm_job_is_met_a_minute_early_or_a_tenth(clock, tmp_path, left_s, used_s):
    found = deadlines(started_s=0, max_minutes=None, slurm_end_s=clock.time() + left_s)
    assert found == {"the Slurm job's time limit": clock.now + used_s}
    orders = make_orders(tmp_path, deadlines_s=found)
    clock.now += used_s - 1
    assert orders.after_step() is Order.GO_ON
    clock.now += 1
    assert orders.after_step() is Order.STOP


def test_only_the_main_rank_looks_at_files_and_once_a_second(clock, tmp_path):
    (tmp_path / "stop").touch()
    assert make_orders(tmp_path, is_main=False).after_step() is Order.GO_ON
    (tmp_path / "stop").unlink()
    orders = make_orders(tmp_path)
    assert orders.after_step() is Order.GO_ON
    (tmp_path / "stop").touch()
    clock.now += 0.9
    assert orders.after_step() is Order.GO_ON
    clock.now += 0.2
    assert orders.after_step() is Order.STOP


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["train.py", "--run.control", "a"], "a"),
        (["train.py", "--nonsense", "--run.control=b"], "b"),
        (["train.py", "--run.control", "a", "--run.control", "b"], "b"),  # as the parser has it
        (["train.py", "--run.control"], None),
        (["train.py", "--run.out", "c"], None),
    ],
)
def test_the_control_folder_is_found_on_a_command_line_that_is_wrong(words, folder):
    control = control_of(words)
    assert (None if control is None else str(control._folder)) == folder


def test_memory_holds_one_snapshot_at_a_time(make_job, monkeypatch):
    writing, found = [], []

    def save(*args, **options):
        writing.append(1)
        time.sleep(0.05)
        writing.pop()

    def take(value):
        found.append(len(writing))
        return snapshot(value)

    monkeypatch.setattr("engine.resume.save_checkpoint", save)
    monkeypatch.setattr("engine.resume.snapshot", take)
    fit(make_module(), make_job(checkpoint_every_steps=1))
    assert found == [0] * 2 * NUM_STEPS


def test_a_full_disk_stops_the_run_and_earlier_checkpoints_stay(make_job, monkeypatch):
    job = make_job()
    inner, saved = torch.save, []

    def save(*args):
        saved.append(1)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        inner(*args)

    monkeypatch.setattr("engine.checkpoint.torch.save", save)
    with pytest.raises(OSError, match=r"could not write checkpoint .*step_00000008.*start the same command again"):
        fit(make_module(), job)
    newest, passed_over = newest_checkpoint(job.folder.checkpoints)
    assert (newest.name, passed_over) == ("step_00000004", [])
