"""Ranks that are lost or hang are named; tests/test_interruptions.py kills and freezes real ones."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from programs import ROOT

from engine import watchdog
from engine.watchdog import Watchdog, is_lost_connection


@pytest.fixture
def ended(monkeypatch):
    """What a watchdog says when it ends its process; here it ends nothing, and watches no more."""
    verdicts: list[tuple[int, str]] = []

    def end(self, verdict):
        verdicts.append((self._rank, verdict))
        self._stop.set()

    monkeypatch.setattr(Watchdog, "_end", end)
    monkeypatch.setattr(watchdog, "_SECONDS_BETWEEN_SIGNS", 0.02)
    monkeypatch.setattr(watchdog, "_LONGER_AT_FIRST", 1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return verdicts


def start_all(count, *, stall_s):
    dogs = [Watchdog(rank=rank, world_size=count) for rank in range(count)]
    port = dogs[0].port
    for dog in dogs:
        dog.start(stall_s=stall_s, port=port, hosts=[f"node{rank}" for rank in range(count)])
    return dogs


def wait_until(condition, *, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def stop_all(dogs):
    for dog in reversed(dogs):
        dog.stop()


def test_the_rank_that_is_behind_is_named(ended):
    dogs = start_all(3, stall_s=0.5)
    for step in range(3):
        for dog in dogs:
            dog.beat("computing", step=step)
            dog.beat("loading a batch", step=step + 1)
    for dog in (dogs[0], dogs[2]):
        dog.beat("computing", step=3)
    wait_until(lambda: ended)
    stop_all(dogs)
    assert ended[0][0] == 0
    assert ended[0][1].startswith("rank 1 on node1 has not gone on for ")
    assert ended[0][1].endswith(", at step 3 (loading a batch)")


def test_a_rank_without_a_sign_of_life_is_named_though_others_are_as_far(ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_LOST_S", 0.5)
    dogs = start_all(2, stall_s=60)
    for dog in dogs:
        dog.beat("computing", step=7)
    wait_until(lambda: dogs[0]._seen[1][0].step == 7)
    dogs[1].stop()
    wait_until(lambda: ended)
    stop_all(dogs)
    assert ended == [(0, "rank 1 on node1 gave no sign of life for 0 s, at step 7 (computing)")]


def test_a_frozen_rank_0_is_named_by_the_others(ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_LOST_S", 0.5)
    dogs = start_all(2, stall_s=60)
    for dog in dogs:
        dog.beat("computing", step=7)
    wait_until(lambda: dogs[1]._seen[0][0].step == 7)
    monkeypatch.setattr(dogs[1], "_look_at", lambda rank: time.sleep(5))  # the server does not answer
    wait_until(lambda: ended)
    stop_all(dogs)
    assert ended == [(1, "rank 0 on node0 gave no sign of life for 0 s, at step 7 of rank 1 (computing)")]


def test_while_anybody_goes_on_nobody_hangs(ended):
    dogs = start_all(2, stall_s=0.3)
    for step in range(40):
        dogs[1].beat("computing", step=step)
        time.sleep(0.02)
    stop_all(dogs)
    assert ended == []


def test_waiting_for_a_disk_is_not_hanging(ended):
    (dog,) = start_all(1, stall_s=0.3)
    dog.beat("computing", step=1)
    for _ in range(40):
        dog.wait_on()
        time.sleep(0.02)
    assert ended == []
    wait_until(lambda: ended)
    dog.stop()
    assert ended[0][1].startswith("rank 0 on node0 has not gone on for 0 s, at step 1")


def test_a_run_that_was_suspended_is_not_taken_for_hanging():
    program = (
        "import time\n"
        "from engine.watchdog import Watchdog\n"
        "dog = Watchdog(rank=0, world_size=1)\n"
        "dog.start(stall_s=8, port=0, hosts=['node0'])\n"
        "for step in range(5):\n"
        "    dog.beat('computing', step=step)\n"
        "    print(step, flush=True)\n"
        "    end_s = time.process_time() + 1.5\n"
        "    while time.process_time() < end_s:\n"
        "        pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while process.stdout.readline() != "3\n":
            pass
        process.send_signal(signal.SIGSTOP)
        time.sleep(12)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_first_step_may_take_longer(ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_LONGER_AT_FIRST", 1000)
    (dog,) = start_all(1, stall_s=0.1)
    dog.beat("computing", step=0)
    time.sleep(0.5)
    assert ended == []
    for _ in range(2):
        dog.beat("computing", step=1)
    wait_until(lambda: ended)
    dog.stop()


def test_a_rank_that_is_gone_is_named_after_communication_failed(ended, monkeypatch):
    monkeypatch.setattr(watchdog, "_SUSPECT_S", 0.3)
    monkeypatch.setattr(watchdog, "_SECONDS_FOR_RANK_0", 0.1)
    dogs = start_all(3, stall_s=60)
    for dog in dogs:
        dog.beat("computing", step=9)
    wait_until(lambda: all(dogs[0]._seen[rank][0].step == 9 for rank in (1, 2)))
    dogs[2].stop()
    error = RuntimeError("[pair.cc:534] gloo: Connection closed by peer [10.0.0.7]\nmore")
    assert dogs[0].explain(error) == (
        "rank 2 on node2 was lost, at step 9 (computing) ([pair.cc:534] gloo: Connection closed by peer [10.0.0.7])"
    )
    assert dogs[1].explain(error).startswith("another process is gone, and could not be named")
    stop_all(dogs[:2])


def test_no_thread_and_no_server_where_nothing_is_watched():
    before = threading.active_count()
    dog = Watchdog(rank=0, world_size=2)
    dog.start(stall_s=0, port=0, hosts=["node0", "node1"])
    dog.beat("computing", step=1)
    dog.stop()
    assert threading.active_count() == before


def test_errors_of_communication_are_told_from_others():
    assert is_lost_connection(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"))


def test_the_server_listens_where_other_machines_reach_it():
    dog = Watchdog(rank=0, world_size=2)
    with socket.create_connection(("127.0.0.1", dog.port), timeout=5):
        pass
    assert Watchdog(rank=1, world_size=2).port == 0
