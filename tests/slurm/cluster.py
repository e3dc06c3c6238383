"""A Slurm cluster on one machine: a head and some nodes, each with an address, a host name and processes of its own.

    head (slurmctld, munged)  --  bridge  --  node1, node2 (slurmd)

Each of them is a group of Linux namespaces, held by its first process: it ends, and all that runs there ends with it.
Nothing of it is seen outside; what it keeps lies in one folder. Needs root, Debian's slurm-wlm, munge and iproute2.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_NETWORK = "10.77.0"  # only in these namespaces
_HEAD = "head"
_NEEDED = ("slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter", "setpriv")
_HOLD = "while :; do sleep 1000 & wait; done"  # bash as process 1 reaps what its children leave
_CONF = """
ClusterName=tests
SlurmctldHost=head({network}.1)
SlurmUser=root
AuthType=auth/munge
# Slurm waits for a requeued job's credentials to expire: 120 s by default
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/task_prolog.sh
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,bf_interval=1
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=6
KillWait=8
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[1-{num_nodes}] CPUs=16 RealMemory=100000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
{more}
"""


def why_not() -> str | None:
    """Why there can be no cluster here, None if there can."""
    if not sys.platform.startswith("linux"):
        return "a Slurm cluster on one machine needs Linux"
    if os.geteuid() != 0:
        return "a Slurm cluster on one machine needs root"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm munge iproute2)"
    command = [
        "unshare",
        "--net",
        "--uts",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "ip",
        "link",
        "set",
        "lo",
        "up",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


def wait_for(condition: Callable[[], object], *, timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Returns when a condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(every_s)


class Host:
    """Namespaces of network, host name, mounts and processes, joined to nothing yet.

    It dies with the process that made it, whatever ends that one.
    """

    def __init__(self, name: str, *, hosts: Path) -> None:
        self.name = name
        setup = f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && echo ready && {_HOLD}"
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["setpriv", "--pdeathsig", "KILL", *unshare, "bash", "-c", setup]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._holder.stdout is not None
        first_line = self._holder.stdout.readline()
        assert first_line == "ready\n", f"{name} did not start: {first_line}"
        self.pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())

    def enter(self, command: Sequence[str], *, folder: Path) -> list[str]:
        """A command as it is run on this host."""
        spaces = ["--net", "--uts", "--mount", "--pid", f"--wd={folder}"]
        return ["nsenter", f"--target={self.pid}", *spaces, "--", *command]

    def join(self, other: "Host", address: str, *, bridge: str | None = None, other_address: str | None = None) -> None:
        """Lays a cable to another host, which ends in its bridge or has an address there."""
        cable = f"to-{self.name}"
        there = f"ip link set {cable} {f'master {bridge}' if bridge else ''} up"
        if other_address:
            there += f" && ip addr add {other_address}/24 dev {cable}"
        laid = f"ip link add {cable} type veth peer name eth0 netns {self.pid} && {there}"
        _succeed(["nsenter", f"--target={other.pid}", "--net", "sh", "-c", laid])
        here = f"ip addr add {address}/24 dev eth0 && ip link set eth0 up"
        _succeed(["nsenter", f"--target={self.pid}", "--net", "sh", "-c", here])

    def kill(self) -> None:
        """A power cut."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class Cluster:
    """A head and its nodes.

    Partition `high` preempts jobs of `main`, which have 20 s then. Nodes have 16 CPUs and 2 GPUs by their own word.

    Args:
        project: The folder in which commands run: all hosts share the file system, but for TMPDIR of jobs.
        environ: The environment of commands.
        num_nodes: How many there are: node1, node2, ...
        more: Another line of slurm.conf.
    """

    def __init__(self, project: Path, *, environ: Mapping[str, str], num_nodes: int = 2, more: str = "") -> None:
        self.project = project
        self.folder = Path(tempfile.mkdtemp(prefix="exactvision-slurm-"))
        self.environ = {**environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._hosts: dict[str, Host] = {}
        self._names = [f"node{number + 1}" for number in range(num_nodes)]
        try:
            self._write_files(more)
            self._start_head()
            for name in self._names:
                self.start_node(name)
            self.wait_until_idle(timeout_s=30)
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, host: str = _HEAD, **environ: str) -> str:
        """Runs a command that must succeed on a host; gives what it printed."""
        return _succeed(self._hosts[host].enter(command, folder=self.project), environ=self.environ | environ)

    def submit(self, *words: str, **environ: str) -> str:
        """Hands a job to sbatch; gives its number."""
        return self.run("sbatch", "--parsable", *words, **environ).strip()

    def job(self, key: str) -> dict[str, str]:
        """What `scontrol show job` knows of a job, or of one task of an array (`NUMBER_TASK`)."""
        shown = self.run("scontrol", "--oneliner", "show", "job", key)
        return dict(re.findall(r"(?:^|\s)([A-Z]\w*)=(\S*)", shown))

    def wait_for_state(self, key: str, *states: str, timeout_s: float) -> dict[str, str]:
        """Waits until a job is in one of some states; gives what is known of it."""
        wait_for(
            lambda: self.job(key)["JobState"] in states,
            timeout_s=timeout_s,
            what=f"job {key} {' or '.join(states)}",
            every_s=0.3,
        )
        return self.job(key)

    def wait_until_idle(self, *, timeout_s: float) -> None:
        """Waits until no node has work."""
        command = ("sinfo", "--noheader", "--states=idle", "--partition=main", "--format=%D")
        wait_for(
            lambda: self.run(*command).strip() == str(len(self._names)), timeout_s=timeout_s, what="all nodes idle"
        )

    def start_node(self, name: str) -> None:
        """Starts a node, for the first time or after `kill_node`."""
        host = self._hosts[name] = Host(name, hosts=self.folder / "hosts")
        host.join(self._hosts[_HEAD], _address(name), bridge="bridge0")
        self.run("slurmd", host=name)

    def kill_node(self, name: str) -> None:
        """A power cut: every process there ends at once, and nobody is told."""
        self._hosts.pop(name).kill()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process, and removes the folder."""
        for host in reversed(self._hosts.values()):
            host.kill()
        self._hosts.clear()
        shutil.rmtree(self.folder)

    def _start_head(self) -> None:
        host = self._hosts[_HEAD] = Host(_HEAD, hosts=self.folder / "hosts")
        bridge = f"ip link add bridge0 type bridge && ip addr add {_NETWORK}.1/24 dev bridge0 && ip link set bridge0 up"
        _succeed(host.enter(["sh", "-c", bridge], folder=self.project))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.run("munged", *(f"--{option}={self.folder / 'munge' / name}" for option, name in files.items()))
        self.run("slurmctld", "-i")

    def _write_files(self, more: str) -> None:
        self.folder.chmod(0o711)  # munged wants its socket to be reached by everybody
        munge = self.folder / "munge"
        munge.mkdir(mode=0o711)
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        lines = ["127.0.0.1 localhost", f"{_NETWORK}.1 {_HEAD}", *(f"{_address(name)} {name}" for name in self._names)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        for number in range(2):  # GPUs that Slurm believes in: devices like /dev/null
            os.mknod(self.folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        gpus = f"NodeName=node[1-{len(self._names)}] Name=gpu File={self.folder}/gpu[0-1]\n"
        (self.folder / "gres.conf").write_text(gpus)
        conf = _CONF.format(network=_NETWORK, folder=self.folder, num_nodes=len(self._names), more=more)
        (self.folder / "slurm.conf").write_text(conf)
        prolog = self.folder / "task_prolog.sh"  # each node has a disk of its own
        prolog.write_text(
            f'#!/bin/sh\nmkdir -p {self.folder}/disk.$(hostname)\necho "export TMPDIR={self.folder}/disk.$(hostname)"\n'
        )
        prolog.chmod(0o755)


def _address(node: str) -> str:
    return f"{_NETWORK}.{10 + int(node.removeprefix('node'))}"


def _succeed(command: Sequence[str], *, environ: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
