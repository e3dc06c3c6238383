"""The cluster of these tests: quickly there, several at a time, and gone without a trace."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster, wait_for

pytestmark = pytest.mark.slurm

KILLED = """
import os, sys
sys.path.insert(0, {here!r})
from cluster import Cluster
from pathlib import Path
cluster = Cluster(Path({project!r}), environ=os.environ)
print(cluster.folder, flush=True)
cluster.submit("--nodes=2", "--output=/dev/null", "--wrap=srun sleep 1000")
os.kill(os.getpid(), {signal})
"""


def processes_of(folder):
    """Processes whose command or environment names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(path / name).read_bytes() for name in ("cmdline", "environ")]
        except OSError:  # it has ended meanwhile
            continue
        if any(str(folder).encode() in text for text in texts):
            found.append(texts[0])
    return found


def test_two_clusters_run_beside_each_other_and_leave_nothing(can_make_hosts, project, environ):
    start_s = time.monotonic()
    with Cluster(project, environ=environ) as one, Cluster(project, environ=environ) as two:
        assert time.monotonic() - start_s < 10  # 0.2 s each, where nothing else runs
        for cluster in (one, two):
            key = cluster.submit("--nodes=2", "--output=/dev/null", "--wrap=srun hostname")
            assert cluster.wait_for_state(key, "COMPLETED", timeout_s=20)["NodeList"] == "node[1-2]"
            assert any(b"slurmctld" in command for command in processes_of(cluster.folder))
            cluster.submit("--nodes=2", "--output=/dev/null", "--wrap=srun sleep 1000")
    for cluster in (one, two):
        assert not cluster.folder.exists()
        wait_for(lambda folder=cluster.folder: not processes_of(folder), timeout_s=5, what="all processes ended")


def test_a_cluster_whose_tests_are_killed_leaves_no_process(can_make_hosts, project):
    program = KILLED.format(here=str(Path(__file__).parent), project=str(project), signal=int(signal.SIGKILL))
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    folder = Path(done.stdout.strip())
    assert folder.exists()
    wait_for(lambda: not processes_of(folder), timeout_s=5, what="all processes ended")
    shutil.rmtree(folder)
