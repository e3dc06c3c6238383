"""What keeps NVIDIA DALI from working on this machine: its platform, its packages, the GPU's driver.

machine -> Machine -> obstacle_to_dali -> None, or what is wrong and what to do

It needs no DALI. Source of the drivers' versions: NVIDIA's table of CUDA toolkits and drivers, and DALI's installation
guide: a package is named for the CUDA it was built with, and runs on drivers of that major version and later ones.
"""

import ctypes
import importlib.metadata
import importlib.util
import platform
import sys
from typing import NamedTuple

_PACKAGES = {12: "nvidia-dali-cuda120", 13: "nvidia-dali-cuda130"}  # by the CUDA version they were built with
_OLDEST_DRIVER = {12: "525.60", 13: "580"}
_INSTALL = "pip install nvidia-dali-cuda130, or nvidia-dali-cuda120 for drivers before 580"


class Machine(NamedTuple):
    """What DALI depends on.

    system, processor: as `sys` and `platform` name them. packages_cuda: major versions of CUDA that DALI's installed
    packages were built with, rising; () = none, though it may have been built from source. is_importable: whether
    Python finds the module. driver_cuda: major version of CUDA that the GPU's driver is for, 0 = there is no driver;
    None = no GPU is to be used.
    """

    system: str
    processor: str
    packages_cuda: tuple[int, ...]
    is_importable: bool
    driver_cuda: int | None


def this_machine(*, on_gpu: bool) -> Machine:
    """This machine, its GPU's driver only where one is to be used."""
    return Machine(
        system=sys.platform,
        processor=platform.machine(),
        packages_cuda=tuple(cuda for cuda, name in _PACKAGES.items() if _is_installed(name)),
        is_importable=_is_importable(),
        driver_cuda=_cuda_of_driver() if on_gpu else None,
    )


def obstacle_to_dali(machine: Machine) -> str | None:
    """Why DALI cannot work there, and what to do about it; None = nothing is in its way."""
    if machine.system != "linux":
        return f"NVIDIA DALI exists for Linux alone, and this is {machine.system} on {machine.processor}"
    if not machine.is_importable:
        return f"NVIDIA DALI is not installed ({_INSTALL})"
    if len(machine.packages_cuda) > 1:
        return (
            f"{' and '.join(_PACKAGES.values())} are both installed, and each has overwritten files of the other; type "
            "`make dali-cuda130`, or `make dali-cuda120` for drivers before 580, which leaves one of them"
        )
    if machine.driver_cuda is None or not machine.packages_cuda:
        return None
    (built_with,) = machine.packages_cuda
    if machine.driver_cuda >= built_with:
        return None
    found = f"this machine's is for CUDA {machine.driver_cuda}" if machine.driver_cuda else "this machine has none"
    instead = (
        f", or type `make dali-cuda120`, which puts {_PACKAGES[12]} in its place" if machine.driver_cuda == 12 else ""
    )
    return (
        f"{_PACKAGES[built_with]} needs a GPU driver {_OLDEST_DRIVER[built_with]} or newer, and {found}; update the "
        f"driver{instead}"
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_importable() -> bool:
    try:
        found = importlib.util.find_spec("nvidia.dali")
        return found is not None and found.origin is not None  # else a folder that an uninstalled package has left
    except ModuleNotFoundError:  # of the package around it
        return False


def _cuda_of_driver() -> int:
    """The newest CUDA that the driver can run, its major version; 0 = there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000
