"""torch.compile of a network, and whether this machine can do it.

module -> compile_module -> the same parameters under a forward pass that torch compiles when it is first called
"""

import os
import shutil
from typing import Literal

import torch
from torch import nn

CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune"]


def check_compiler(device: torch.device) -> None:
    """Checks that the compiler is there that torch calls: of C++ on a CPU, of C on a GPU (for what starts its kernels).

    Raises:
        ValueError: It is not, or, on a GPU, triton is not.
    """
    variable, usual = ("CXX", ["g++"]) if device.type == "cpu" else ("CC", ["gcc", "clang", "cc"])
    wanted = [os.environ[variable]] if variable in os.environ else usual
    if not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"speed.compile needs a compiler, and {' or '.join(wanted)} is not on the path; install one (Debian: "
            f"`apt install g++`), name yours by the variable {variable}, or use --speed.compile none."
        )
    if device.type == "cuda" and not _has_triton():
        raise ValueError("speed.compile needs the package triton on a GPU; install it, or use --speed.compile none.")


def compile_module(module: nn.Module, *, mode: CompileMode) -> nn.Module:
    """A wrapper whose forward pass is compiled; `module` stays as it is and shares its parameters.

    Each image size gets code of its own: training has few, and code for any size is slower. Random numbers are drawn
    as without compiling, so that dropout drops the same.

    Args:
        module: The network.
        mode: As torch.compile's; none gives the module itself.
    """
    if mode == "none":
        return module
    import torch._inductor  # takes a second

    options = torch._inductor.list_mode_options(mode) | {"fallback_random": True}  # a mode takes no further options
    compiled: nn.Module = torch.compile(module, dynamic=False, options=options)  # type: ignore[assignment]
    return compiled


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()
