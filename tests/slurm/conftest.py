"""Fixtures of the tests on a Slurm cluster of their own."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cluster import Cluster, why_not
from programs import BIN, ROOT, clean_environ


@pytest.fixture(scope="session")
def can_make_hosts() -> None:
    """Skips where there can be none, and says why."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the project's does, and gets the `runs` of jobs."""
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "runs":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def environ() -> Mapping[str, str]:
    """The environment of sbatch."""
    return clean_environ() | {"RANKS_PER_NODE": "2", "SETUP": f"PATH={BIN}:$PATH"}


@pytest.fixture(scope="session")
def cluster(can_make_hosts: None, project: Path, environ: Mapping[str, str]) -> Iterator[Cluster]:
    """Two nodes; preemption as it is without settings."""
    with Cluster(project, environ=environ) as running:
        yield running


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SETUP that puts tests/slurm/stand_in.py in the place of accelerate."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "accelerate"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "stand_in.py"} "$@"\n')
    program.chmod(0o755)
    return f"PATH={folder}:$PATH"
