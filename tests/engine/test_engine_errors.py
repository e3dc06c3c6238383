"""Errors of the user, told in a line."""

import contextlib
import errno

import pytest

from engine import errors as errors_module
from engine.errors import clear_errors
from engine.watchdog import LostRankError


def test_out_of_memory_is_told_with_what_to_lower(capsys):
    with pytest.raises(SystemExit):
        run_with_clear_errors(MemoryError("Unable to allocate 9 TiB"))
    assert "out of memory (lower train.global_batch_size" in capsys.readouterr().err


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


def test_an_error_of_the_user_ends_with_its_message_alone(capsys):
    with pytest.raises(SystemExit) as left:
        run_with_clear_errors(ValueError("batch is 7; use 8."))
    assert left.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: batch is 7; use 8.\n")
    assert "test_engine_errors.py" in printed
    assert "Traceback" not in printed


def test_the_other_ranks_leave_rank_0_time_to_speak_for_all(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    slept = []
    monkeypatch.setattr(errors_module.time, "sleep", slept.append)
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
