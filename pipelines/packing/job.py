"""A folder that is there when, and only when, all of it is: DEST.packing, which becomes DEST at the end.

facts of the job -> DEST.packing/job.json, locked -> (the work; killed and called again, it goes on) -> sweep -> DEST
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipelines.sources.packed import DATASET_FILE, PackedSet, load_dataset

REFUSED_FILE = "refused.jsonl"
PART_SUFFIX = ".part"
_JOB_FILE = "job.json"
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT}


def work_folder(dest: Path) -> Path:
    """Where a data set lies while it is made."""
    return dest.with_name(f"{dest.name}.packing")


def hash_job(facts: Mapping[str, Any]) -> str:
    """What is to be done, as a hash; dataset.json keeps it among the settings, as `job`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_dest(dest: Path) -> None:
    """Checks that there is nothing yet where a data set is to be made.

    Raises:
        ValueError: There is.
    """
    if (dest / DATASET_FILE).exists():
        raise ValueError(f"{dest} is a packed data set already; name another folder, or remove it.")
    if dest.exists() or dest.is_symlink():
        raise ValueError(f"{dest} exists; name a folder that does not.")


@contextlib.contextmanager
def making(dest: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Gives the folder to write into, and makes it `dest` once the block has ended without an error.

    A `dataset.json` in it says that an earlier call came to its end but for the renaming.

    Args:
        dest: The folder; it must not exist.
        facts: What is to be done; a folder that was begun for other facts is refused.

    Raises:
        OSError: The folder cannot be written.
        ValueError: `dest` exists, another call is at work, or an earlier one was about something else.
    """
    check_dest(dest)
    work = work_folder(dest)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / _JOB_FILE, "a+") as file:
            _lock(file, work)
            _claim(file, hash_job(facts), work)
            try:
                yield work
            except BaseException:
                _tidy(work)
                raise
            _sweep(work, load_dataset(work))
            sync_folder(work)
            os.rename(work, dest)
            sync_folder(dest.parent)
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        raise OSError(
            f"no space is left for {work}; make room, and call again: the shards that are finished are kept."
        ) from error


def _lock(file: TextIO, work: Path) -> None:
    """Keeps other programs out as long as the file is open, where the file system knows locks.

    Not flock: workers, which live a little longer than a program that is killed, would hold its lock, too.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(f"{work} is being written by another program; wait for it, or stop it.") from error
    except OSError:
        return  # no locks here: it is left to the user not to call twice at once


def _claim(file: TextIO, wanted: str, work: Path) -> None:
    """Makes sure that what an earlier call left is about the same."""
    file.seek(0)
    found = file.read()
    if (work / DATASET_FILE).exists():  # the earlier call was at sweeping; its job.json may be gone
        found = str(load_dataset(work).settings.get("job"))
    elif not any(work.glob(f"*{PART_SUFFIX}")):
        found = ""  # nothing is finished that could be about something else
    if found not in ("", wanted):
        raise ValueError(
            f"{work} was begun with other settings, or from data that was different then; give the same again, or "
            "remove that folder."
        )
    file.truncate(0)
    file.write(wanted)
    file.flush()
    os.fsync(file.fileno())


def _sweep(work: Path, dataset: PackedSet) -> None:
    """Removes all that dataset.json does not speak of."""
    kept = {DATASET_FILE, REFUSED_FILE, *(f"{split}.index" for split in dataset.splits)}
    kept |= {shard.name for shards in dataset.splits.values() for shard in shards}
    for path in work.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _tidy(work: Path) -> None:
    """Removes the folder if nothing in it is finished: whoever made a mistake need not clear up after it."""
    if (work / DATASET_FILE).exists() or any(work.glob(f"*{PART_SUFFIX}")):
        return
    for path in [*work.glob("*.tmp"), work / _JOB_FILE]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not empty
        work.rmdir()


def sync_folder(folder: Path) -> None:
    """Has the names of files on disk.

    Raises:
        OSError: It cannot be done.
    """
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
