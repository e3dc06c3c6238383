"""Errors that a user can cause, told in a line or two, once, and noted for the script that started the program.

error -> clear_errors -> the screen; the folder of --run.control, where it need not pass by itself
"""

import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.stopping import control_of
from engine.watchdog import LostRankError

_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN, errno.ECONNRESET}  # as on NFS
_SECONDS_FOR_RANK_0 = 3.0


@contextlib.contextmanager
def clear_errors(words: Sequence[str] = ()) -> Iterator[None]:
    """Ends the program on an error a user can cause with its message alone; TRACEBACK=1 shows where it came from.

    Most errors meet every rank, and then rank 0 speaks for all: the others wait before they speak, and the launcher
    ends them in that time. An error of one rank alone, such as a broken image in its share, is thus told too.

    Args:
        words: The command line. Where it names a `--run.control` folder, the error is written there, too, unless it is
            one that need not come again.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the newest checkpoint, if there is one", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as ending:
        if ending.code not in (None, 0):  # the parser has said why
            _note_failure("the command line is wrong", words)
        raise
    except (ValueError, OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError, LostRankError) as error:
        if not _may_pass(error):
            _note_failure(str(error), words)
        if os.environ.get("TRACEBACK"):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        rank = int(os.environ.get("RANK", "0"))
        if rank > 0:
            time.sleep(_SECONDS_FOR_RANK_0)
        speaker = f"error on rank {rank}" if rank > 0 else "error"
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            speaker += ", out of memory (lower train.global_batch_size or input.size_px, or raise train.accumulation)"
        hint = f"({Path(place.filename).name}:{place.lineno}; TRACEBACK=1 shows more)"
        print(f"{speaker}: {error}\n{hint}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _may_pass(error: BaseException | None) -> bool:
    """Whether the same command may well go through: a process was lost, or a file system was away for a while."""
    while error is not None:
        if isinstance(error, LostRankError) or (isinstance(error, OSError) and error.errno in _PASSING):
            return True
        error = error.__cause__
    return False


def _note_failure(text: str, words: Sequence[str]) -> None:
    control = control_of(words)
    if control is not None:
        with contextlib.suppress(OSError):  # what is wrong is said on the screen all the same
            control.say("failed", text)
