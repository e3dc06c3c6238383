"""Threads near a GPU: which cores these are, and who runs on them."""

import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines import affinity
from pipelines.affinity import cores_near, parse_cores, threads_start_on

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
CUDA = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}), ("5\n", {5}), ("\n", set()), ("", set()), ("0-0", {0})],
)
def test_linuxs_lists_of_cores_are_read(text: str, wanted: set[int]) -> None:
    assert parse_cores(text) == wanted


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose second GPU is at 0001:c4:00.0, with the cores 0 to 63 beside it."""
    place = tmp_path / "0001:c4:00.0"
    place.mkdir()
    (place / "local_cpulist").write_text("0-63\n")
    ids = {CUDA: SimpleNamespace(pci_domain_id=1, pci_bus_id=0xC4, pci_device_id=0)}
    monkeypatch.setattr(affinity, "_DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_properties", ids.__getitem__)
    return place


@needs_linux
def test_cores_near_a_gpu_are_those_beside_it_that_this_process_may_use(
    bus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 70})
    assert cores_near(CUDA) == {2, 3}
    (bus / "local_cpulist").write_text("64-127\n")
    assert cores_near(CUDA) == {70}
    (bus / "local_cpulist").write_text("4-63\n")
    assert cores_near(CUDA) == set(), "no core of this process is near it"


@needs_linux
def test_where_nothing_is_known_of_a_gpus_place_no_cores_are_named(bus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bus / "local_cpulist").unlink()
    assert cores_near(CUDA) == set()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="of an older torch"))
    assert cores_near(CUDA) == set()
    assert cores_near(torch.device("cpu")) == set()


def affinity_of_a_new_thread() -> set[int]:
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return found[0]


@needs_linux
def test_threads_started_meanwhile_run_there_and_others_where_they_did() -> None:
    before = os.sched_getaffinity(0)
    core = {min(before)}
    with threads_start_on(core):
        assert affinity_of_a_new_thread() == core
    assert os.sched_getaffinity(0) == affinity_of_a_new_thread() == before
    with threads_start_on(set()):
        assert affinity_of_a_new_thread() == before
    with pytest.raises(ValueError, match="went wrong"), threads_start_on(core):
        raise ValueError("it went wrong")
    assert os.sched_getaffinity(0) == before


@needs_linux
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_cores_of_this_machines_gpu_are_cores_of_this_process() -> None:
    assert cores_near(torch.device("cuda", 0)) <= os.sched_getaffinity(0)
