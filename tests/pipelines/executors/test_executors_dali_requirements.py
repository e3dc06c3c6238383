"""A machine on which DALI cannot work gets the reason, what to do, and what `auto` takes in its place."""

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest
import torch
from executor_builders import DALI_IS_EXPECTED

from pipelines.executors.dali_requirements import Machine, obstacle_to_dali, this_machine

FINE = Machine(system="linux", processor="x86_64", packages_cuda=(13,), is_importable=True, driver_cuda=13)
INSTALL = r"pip install nvidia-dali-cuda130, or nvidia-dali-cuda120 for drivers before 580"


@pytest.mark.parametrize(
    "machine",
    [
        FINE,
        FINE._replace(driver_cuda=14),
        FINE._replace(driver_cuda=None),
        FINE._replace(packages_cuda=(12,)),
        FINE._replace(packages_cuda=(12,), driver_cuda=12),
        FINE._replace(packages_cuda=(), driver_cuda=12),
        FINE._replace(processor="aarch64"),
    ],
    ids=["fine", "newer_driver", "no_gpu", "older_package", "older_both", "from_source", "arm"],
)
def test_nothing_is_in_the_way_where_package_and_driver_fit(machine: Machine) -> None:
    assert obstacle_to_dali(machine) is None


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (
            FINE._replace(system="darwin", processor="arm64"),
            "NVIDIA DALI exists for Linux alone, and this is darwin on arm64",
        ),
        (FINE._replace(packages_cuda=(), is_importable=False), f"NVIDIA DALI is not installed ({INSTALL})"),
        (
            FINE._replace(packages_cuda=(12, 13)),
            "nvidia-dali-cuda120 and nvidia-dali-cuda130 are both installed, and each has overwritten files of the "
            "other; type `make dali-cuda130`, or `make dali-cuda120` for drivers before 580, which leaves one of them",
        ),
        (
            FINE._replace(driver_cuda=12),
            "nvidia-dali-cuda130 needs a GPU driver 580 or newer, and this machine's is for CUDA 12; update the "
            "driver, or type `make dali-cuda120`, which puts nvidia-dali-cuda120 in its place",
        ),
        (
            FINE._replace(packages_cuda=(12,), driver_cuda=11),
            "nvidia-dali-cuda120 needs a GPU driver 525.60 or newer, and this machine's is for CUDA 11; update the "
            "driver",
        ),
        (
            FINE._replace(driver_cuda=0),
            "nvidia-dali-cuda130 needs a GPU driver 580 or newer, and this machine has none; update the driver",
        ),
    ],
    ids=["system", "missing", "both", "driver_12", "driver_11", "no_driver"],
)
def test_what_is_in_the_way_is_told_with_what_to_do(machine: Machine, wanted: str) -> None:
    assert obstacle_to_dali(machine) == wanted


def test_this_machine_is_looked_at_without_a_gpu() -> None:
    machine = this_machine(on_gpu=False)
    assert machine.system == sys.platform
    assert machine.driver_cuda is None
    if DALI_IS_EXPECTED:
        assert machine.is_importable
        assert obstacle_to_dali(machine) is None, "the project's own tests run with it"


def test_the_driver_is_asked_for_the_cuda_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuDriverGetVersion(self, version) -> int:  # the driver's own name for it
            version._obj.value = 12080
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": Driver()}[name])
    assert this_machine(on_gpu=True).driver_cuda == 12

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert this_machine(on_gpu=True).driver_cuda == 0


@pytest.mark.parametrize("names", [(), ("nvidia-dali-cuda120",), ("nvidia-dali-cuda120", "nvidia-dali-cuda130")])
def test_packages_are_told_by_their_names(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in names:
            return "2.4.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    cuda = {"nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
    assert this_machine(on_gpu=False).packages_cuda == tuple(cuda[name] for name in names)


def no_package_around_it(module: str) -> None:
    raise ModuleNotFoundError("No module named 'nvidia'")


def left_behind(module: str) -> ModuleSpec:
    """A folder without Python files: what is left of both packages once one of them is uninstalled."""
    return ModuleSpec(module, None, origin=None, is_package=True)


@pytest.mark.parametrize("find_spec", [no_package_around_it, lambda module: None, left_behind])
def test_a_module_that_is_not_there_is_not_importable(
    find_spec: Callable[[str], ModuleSpec | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert not this_machine(on_gpu=False).is_importable


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.gpu
def test_the_driver_of_this_machine_is_for_the_cuda_that_torch_runs_on() -> None:
    assert this_machine(on_gpu=True).driver_cuda >= int(torch.version.cuda.partition(".")[0])
