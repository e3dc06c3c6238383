"""Weights from a file and into a network: what fits is copied, and what does not is said.

file -> read_weights -> {name: tensor} -> load_into(network) -> Match: loaded, missing, unexpected, reshaped, new
"""

import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_PICKLED = (".pth", ".pt", ".bin")
# under which training programs keep the weights in what they save
_NESTINGS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel, and of torch.compile
_NUM_AVERAGED = "n_averaged"  # beside the weights of torch's AveragedModel, which calls them module.*
_COUNT = "num_batches_tracked"  # of BatchNorm; older weights lack it
# what torchvision called parts when it published weights of them, and what it calls them now
_FORMER_NAMES = (
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_2\."), r"\g<1>3."),
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
)
_NUM_LOOKED = 512  # bytes by which it is told what a file is
_NUM_LISTED = 10  # names of each kind that a report lists before it only counts them


class Reshaped(NamedTuple):
    """A tensor that both have in another shape: `given` by the weights, `wanted` by the network."""

    name: str
    given: tuple[int, ...]
    wanted: tuple[int, ...]


class Match(NamedTuple):
    """How weights fitted a network, by names of tensors.

    Attributes:
        loaded: Copied.
        missing: What the network has and the weights lack.
        unexpected: What the weights have and the network lacks.
        reshaped: What both have, in another shape.
        new: The parameters of the last layer, where these stay as they were drawn.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    new: tuple[str, ...] = ()

    def describe(self) -> str:
        """How many were loaded and what is new, and a line for each that did not fit."""
        total = sum(map(len, (self.loaded, self.missing, self.reshaped, self.new)))
        first = f"{len(self.loaded)} of {total} tensors loaded" + (f"; new: {', '.join(self.new)}" if self.new else "")
        shapes = [f"{name} {given} != {wanted}" for name, given, wanted in self.reshaped]
        return "\n".join(
            [
                first,
                *_list("- missing", self.missing),
                *_list("+ unexpected", self.unexpected),
                *_list("~ reshaped", shapes),
            ]
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; nothing in it can run code.

    Where a training program has put them beside other things, under a name that many use (state_dict, model, ...),
    they are found there. What DistributedDataParallel, torch.compile and AveragedModel put before all names is taken
    off, and what torchvision has renamed since it published weights is called as it is now.

    Args:
        path: .safetensors, or .pth, .pt or .bin as torch.save writes them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else, is damaged, holds more than tensors and plain values, or holds several sets of
            weights.
    """
    path = Path(path)
    _check_file(path)
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    state = _strip_prefixes(_find_tensors(loaded, path=path))
    return {_present_name(name): value for name, value in state.items()}


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], *, head: Collection[str], keeps_head: bool, partial: bool
) -> Match:
    """Copies the tensors that fit, and says which did not; a network that is refused stays as it was.

    Args:
        module: Where to.
        state: Tensors by name.
        head: Names of the parameters of the last layer.
        keeps_head: Whether these are copied like the others; otherwise they stay as they are.
        partial: Whether other tensors may stay as they are, because the weights lack them or have another shape, and
            whether the weights may have more than the network.

    Raises:
        ValueError: Something does not fit that must; the message lists it. Or nothing beside the last layer fits, or a
            tensor holds no values for it, which no `partial` allows.
    """
    head = _all_names(module, head)
    match = _compare(module, state, head=head, keeps_head=keeps_head)
    _check_match(module, match, head=head, keeps_head=keeps_head, partial=partial)
    wanted = module.state_dict()
    _check_values({name: (state[name], wanted[name]) for name in match.loaded})
    # and not what was loaded alone, which lacks the versions that some modules ask for (MNASNet)
    wanted.update({name: state[name].to(wanted[name]) for name in match.loaded})
    module.load_state_dict(wanted)
    return match


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of weights; a run folder is named by --model.name {path}.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path} (looked for in {Path.cwd()}).")
    with open(path, "rb") as file:
        start = file.read(_NUM_LOOKED).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is not the weights but a pointer of Git LFS to them; fetch them by `git lfs pull` where you "
            "cloned it, or download the file itself."
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is not the weights but a web page, perhaps about them or about an error; download the file itself "
            "(on Hugging Face, the address with /resolve/ in place of /blob/)."
        )
    if path.suffix not in (".safetensors", *_PICKLED):
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; wanted: .safetensors, or {', '.join(_PICKLED)} as torch.save "
            "writes them. Give it the ending of what it is, or save its state dict by torch.save."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(_explain_damage(path, error)) from error


def _read_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # before it refuses a TorchScript archive, torch warns of it
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever bytes do to an unpickler that are no pickle
        held = re.search(r"GLOBAL (\S+)", str(error))
        if held or "TorchScript" in str(error):
            raise ValueError(_explain_pickled(path, held[1] if held else "a TorchScript archive")) from error
        raise ValueError(_explain_damage(path, error)) from error


def _explain_pickled(path: Path, held: str) -> str:
    return (
        f"{path} holds more than tensors ({held}), and reading that could run any code, so it is refused. Where you "
        "trust it, save the weights alone, once: load it by torch.load(..., weights_only=False), then "
        "torch.save(network.state_dict(), 'weights.pth')."
    )


def _explain_damage(path: Path, error: Exception) -> str:
    told = "" if isinstance(error, pickle.UnpicklingError) else f": {str(error).strip().partition(chr(10))[0]}"
    return (
        f"{path} cannot be read ({path.stat().st_size:,} bytes; {type(error).__name__}{told}): it is damaged, cut off, "
        "or not what its ending says; copy or download it again."
    )


def _find_tensors(loaded: Any, *, path: Path) -> dict[str, Tensor]:
    """The weights in what a file held."""
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__}; wanted: tensors by name, as torch.save(network.state_dict(), "
            "'weights.pth') writes them."
        )
    if _is_state(loaded):
        return dict(loaded)
    nested = [name for name in _NESTINGS if _is_state(loaded.get(name))]
    if len(nested) == 1:
        return dict(loaded[nested[0]])
    if nested:
        raise ValueError(
            f"{path} holds several sets of weights: {', '.join(nested)}; save the one you want alone, for example by "
            f"torch.save(torch.load({str(path)!r})[{nested[0]!r}], 'weights.pth')."
        )
    raise ValueError(
        f"{path} holds {_describe(loaded)}; wanted: tensors by name, alone or under one of {', '.join(_NESTINGS)}. "
        "Save them by torch.save(network.state_dict(), 'weights.pth')."
    )


def _describe(loaded: Mapping[Any, Any]) -> str:
    """What a file holds that are no weights: its names, or, where there are tensors among it, what is none.

    It looks into what stands under a name under which weights were looked for.
    """
    for name in _NESTINGS:
        if isinstance(nested := loaded.get(name), Mapping) and nested:
            return f"{name} with {_describe(nested)}"
    others = {name: type(one).__name__ for name, one in loaded.items() if not isinstance(one, Tensor)}
    num_tensors = len(loaded) - len(others)
    if num_tensors and others:
        listed = [f"{num_tensors} tensors", *(f"{name} ({kind})" for name, kind in others.items())]
    else:
        listed = [str(name) for name in loaded] or ["nothing"]
    return ", ".join(listed[:_NUM_LISTED])


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items())
    )


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    others = {name: value for name, value in state.items() if name != _NUM_AVERAGED}
    if others and all(name.startswith("module.") for name in others):
        state = others
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _present_name(name: str) -> str:
    for pattern, present in _FORMER_NAMES:
        name = pattern.sub(present, name)
    return name


def _all_names(module: nn.Module, names: Collection[str]) -> list[str]:
    """These, and the others that the same parameters have where a layer stands in the network under two names."""
    values = module.state_dict(keep_vars=True)
    meant = {id(values[name]) for name in names}
    return [name for name, value in values.items() if id(value) in meant]


def _compare(module: nn.Module, state: Mapping[str, Tensor], *, head: Collection[str], keeps_head: bool) -> Match:
    wanted = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    new = () if keeps_head else tuple(name for name in wanted if name in head)
    heads = {name.rpartition(".")[0] for name in new}  # what else stands there in the weights is their last layer's
    sought = [name for name in wanted if name not in new]
    common = [name for name in sought if name in state]
    return Match(
        loaded=tuple(name for name in common if state[name].shape == wanted[name].shape),
        missing=tuple(name for name in sought if name not in state and not name.endswith(_COUNT)),
        unexpected=tuple(name for name in state if name not in wanted and name.rpartition(".")[0] not in heads),
        reshaped=tuple(
            Reshaped(name, tuple(state[name].shape), tuple(wanted[name].shape))
            for name in common
            if state[name].shape != wanted[name].shape
        ),
        new=new,
    )


def _check_match(module: nn.Module, match: Match, *, head: Collection[str], keeps_head: bool, partial: bool) -> None:
    beside = {name for name in module.state_dict() if name not in head and not name.endswith(_COUNT)}
    if beside.isdisjoint(match.loaded) and (beside or not keeps_head):
        raise ValueError(
            "nothing of the weights fits the network but, at most, its last layer, so there would be nothing to start "
            f"from; give the weights of this network, or the network of these weights.\n{match.describe()}"
        )
    if not (match.missing or match.unexpected or match.reshaped):
        return
    unfit = {*match.missing, *(one.name for one in match.reshaped)}
    if keeps_head and not unfit.isdisjoint(head):
        raise ValueError(
            "weights.head=keep, but the weights have no last layer that fits; use --weights.head new.\n"
            + match.describe()
        )
    if not partial:
        raise ValueError(
            "the weights are not those of the network (- it has and they lack, + they have and it lacks, ~ their shape "
            "!= its); give the model.name and model.args that they were trained with, or, to have what does not fit "
            f"stay as it was drawn, --weights.partial true.\n{match.describe()}"
        )


def _check_values(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Whether each tensor, given and wanted, has values for the network: whole numbers for float ones need a scale."""
    for name, (given, wanted) in pairs.items():
        is_plain = given.layout == torch.strided and not given.is_meta
        if not is_plain or (wanted.is_floating_point() and not given.is_floating_point()):
            kind = "no values" if given.is_meta else f"{given.dtype}, {given.layout}"
            raise ValueError(
                f"the weights have {name} as a tensor that cannot be trained on from ({kind}); wanted: {wanted.dtype} "
                "or another float type, dense. Save the weights as they were before they were quantised or converted."
            )


def _list(mark: str, names: Collection[str]) -> list[str]:
    shown = [f"  {mark} {name}" for name in list(names)[:_NUM_LISTED]]
    more = len(names) - len(shown)
    return shown + ([f"  {mark}: {more} more"] if more else [])
