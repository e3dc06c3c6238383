"""Why a process ended, out of what it wrote."""

from benchmarks.reasons import reason_in


def test_the_reason_is_the_last_error_that_a_process_told() -> None:
    traceback = (
        "Traceback (most recent call last):\n  File \"a.py\", line 1\nModuleNotFoundError: No module named 'x'\n"
    )
    assert reason_in(traceback) == "ModuleNotFoundError: No module named 'x'"
    after = traceback + "resource_tracker.py:254: UserWarning: leaked semaphore\n  warnings.warn('resource_tracker')\n"
    assert reason_in(after) == "ModuleNotFoundError: No module named 'x'"
    several = "ImportError: first\n\nDuring handling ...\n\nmypkg.errors.FFmpegError: second\n - a hint\n"
    assert reason_in(several) == "mypkg.errors.FFmpegError: second"
    assert reason_in("Killed\n") == "Killed"
    assert reason_in("\n") == "ended without a word"
