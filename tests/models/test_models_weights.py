"""Weights from files of every kind that programs write, and into networks that they fit or do not."""

import argparse
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import DenseNet, VisionTransformer

from models.weights import Match, Reshaped, load_into, read_weights

HEAD = ("4.weight", "4.bias")


def build(*, num_classes: int = 3, width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
    module[1].running_mean.normal_()
    return module


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "timm": lambda state: {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}},
    "mae": lambda state: {"model": state, "epoch": 3, "scaler": None},
    "tutorial": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "loss": 0.5},
    "distributed": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "both": lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    "both the other way": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_wherever_programs_put_them(tmp_path: Path, kind: str, suffix: str) -> None:
    state = copy_state(build())
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPED[kind](state), path)
    assert_same(read_weights(path), state)


@pytest.mark.parametrize("kind", ["plain", "distributed", "compiled", "both the other way"])
def test_safetensors_are_read_likewise(tmp_path: Path, kind: str) -> None:
    state = copy_state(build())
    save_file(WRAPPED[kind](state), tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path / "weights.safetensors"), state)


def test_an_averaged_model_of_torchs_is_taken_for_what_it_averages(tmp_path: Path) -> None:
    module = build()
    torch.save({"model_ema": AveragedModel(module).state_dict(), "epoch": 1}, tmp_path / "weights.pth")
    assert_same(read_weights(tmp_path / "weights.pth"), copy_state(module))


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "bias": torch.ones(2)}
    torch.save(state, tmp_path / "weights.pth")
    assert_same(read_weights(tmp_path / "weights.pth"), state)


def test_the_old_format_of_torch_save_is_read(tmp_path: Path) -> None:
    state = copy_state(build())
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert_same(read_weights(tmp_path / "weights.pth"), state)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, Any]]] = {
    "vit": (
        lambda: VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=1, hidden_dim=8, mlp_dim=12, num_classes=3
        ),
        (r"\.mlp\.(0|3)\.", lambda found: f".mlp.linear_{1 + int(found[1]) // 3}."),
    ),
    "densenet": (
        lambda: DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, num_classes=3),
        (r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2."),
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_files_that_torchvision_published_under_former_names_are_read_as_torchvision_does(
    tmp_path: Path, kind: str
) -> None:
    make, (pattern, former) = NETWORKS[kind]
    state = copy_state(make())
    renamed = {re.sub(pattern, former, name): value for name, value in state.items()}
    assert renamed.keys() != state.keys()
    torch.save(renamed, tmp_path / "weights.pth")
    assert_same(read_weights(tmp_path / "weights.pth"), state)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


HELD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a network": (lambda _: build(), "torch.nn.modules.container.Sequential"),
    "options beside the weights": (
        lambda _: {"model": copy_state(build()), "args": argparse.Namespace(lr=0.1)},
        "argparse.Namespace",
    ),
    "code": (lambda folder: Evil(folder / "ran"), "getattr"),
}


@pytest.mark.parametrize("kind", HELD)
def test_more_than_tensors_is_refused_with_what_it_is_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    held, told = HELD[kind]
    path = tmp_path / "weights.pth"
    torch.save(held(tmp_path), path)
    wanted = rf"^{re.escape(str(path))} holds more than tensors \({told}.*\), .*torch\.save\(network\.state_dict\(\), "
    with pytest.raises(ValueError, match=wanted):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_archive_is_refused_likewise(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(copy_state(build()), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights/constants.pkl", b"")  # by which torch knows one
    with pytest.raises(ValueError, match=r"holds more than tensors \(a TorchScript archive\), and reading that could "):
        read_weights(path)


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "pointer": (
        "weights.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is not the weights but a pointer of Git LFS to them; fetch them by `git lfs pull`",
    ),
    "page": ("weights.pth", b"\n<!DOCTYPE html><html></html>", "is not the weights but a web page"),
    "answer of a store": ("weights.pth", b"<?xml version='1.0'?><Error/>", "is not the weights but a web page"),
    "ending": ("weights.onnx", b"\x08\x07", "ends in .onnx; wanted: .safetensors, or .pth, .pt, .bin as torch.save"),
    "no ending": ("weights", b"\x08\x07", "ends in nothing; wanted: .safetensors, or .pth"),
    "empty": ("weights.pth", b"", r"cannot be read (0 bytes; EOFError"),
    "garbage": ("weights.pth", b"\x00garbage" * 9, "cannot be read (72 bytes; "),
    "text": ("weights.pt", b"Not Found", "cannot be read (9 bytes; "),
    "garbage for tensors": ("weights.safetensors", b"garbage" * 9, "cannot be read (63 bytes; SafetensorError: "),
    "empty for tensors": ("weights.safetensors", b"", "cannot be read (0 bytes; "),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_something_else_is_told_as_what_it_is(tmp_path: Path, kind: str) -> None:
    name, content, wanted = REFUSED[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name} {wanted}")):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_cut_off_is_told_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(copy_state(build()), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cannot be read .*: it is damaged, cut off, or not what its ending says"):
        read_weights(path)


def test_a_file_that_is_not_there_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no file of weights .*none\.pth \(looked for in "):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=rf"is a folder, .*a run folder is named by --model\.name {tmp_path}\.$"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ({"model": {"a": torch.ones(1)}, "model_ema": {"a": torch.ones(1)}}, "several sets of weights: model, model_"),
        ({"teacher": {"a": torch.ones(1)}, "epoch": 1}, "holds teacher, epoch; wanted: tensors by name, alone or"),
        ({}, "holds nothing; wanted: tensors by name"),
        ({"model": {}}, "holds model; wanted: tensors by name"),
        (
            {**dict.fromkeys("abcdefghijkl", torch.ones(1)), "step": 3},
            r"holds 12 tensors, step \(int\); wanted: tensors",
        ),
        ({"model": {"a": torch.ones(1), "step": 3}}, r"holds model with 1 tensors, step \(int\); wanted: tensors"),
        ({"model": {"net": {"a": torch.ones(1)}}}, "holds model with net with a; wanted: tensors by name"),
        (torch.ones(3), "holds a Tensor; wanted: tensors by name"),
        ([torch.ones(3)], "holds a list; wanted: tensors by name"),
    ],
)
def test_what_holds_no_weights_or_several_is_refused_with_what_it_holds(tmp_path: Path, held: Any, wanted: str) -> None:
    torch.save(held, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=wanted):
        read_weights(tmp_path / "weights.pth")


def load(module: nn.Module, state: dict[str, Tensor], *, keeps_head: bool = False, partial: bool = False) -> Match:
    return load_into(module, state, head=HEAD, keeps_head=keeps_head, partial=partial)


@pytest.mark.parametrize("num_classes", [3, 7])
def test_everything_is_loaded_but_the_head_which_stays_as_it_was_drawn(num_classes: int) -> None:
    state, module = copy_state(build(seed=1, num_classes=num_classes)), build()
    before = copy_state(module)
    match = load(module, state)
    assert match.describe() == "7 of 9 tensors loaded; new: 4.weight, 4.bias"
    assert_same(module.state_dict(), state | {name: before[name] for name in HEAD})
    assert module.state_dict()["1.running_mean"].any(), "the statistics of BatchNorm count"


def test_the_head_is_loaded_where_it_is_kept() -> None:
    state, module = copy_state(build(seed=1)), build()
    assert load(module, state, keeps_head=True).describe() == "9 of 9 tensors loaded"
    assert_same(module.state_dict(), state)


def test_half_precision_becomes_that_of_the_network() -> None:
    state, module = {name: one.half() for name, one in build(seed=1).state_dict().items()}, build()
    load(module, state)
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, state["0.weight"].float())


UNUSUAL: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "whole numbers": (lambda value: value.to(torch.int8), "torch.int8"),
    "complex": (lambda value: value.to(torch.complex64), "torch.complex64"),
    "sparse": (lambda value: value.to_sparse(), "torch.sparse_coo"),
    "without values": (lambda value: value.to("meta"), "no values"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_without_values_for_the_network_are_refused_by_name(kind: str) -> None:
    change, told = UNUSUAL[kind]
    module = build()
    state, before = copy_state(build(seed=1)), copy_state(module)
    state["0.weight"] = change(state["0.weight"])
    with pytest.raises(ValueError, match=rf"have 0\.weight as a tensor that cannot be trained on from \(.*{told}"):
        load(module, state, partial=True)
    assert_same(copy_state(module), before)


def test_whole_numbers_that_the_network_has_as_such_are_loaded_and_averaged_counts_too() -> None:
    module = build()
    module.register_buffer("index", torch.zeros(2, 2, dtype=torch.int64))
    state = copy_state(module) | {"index": torch.ones(2, 2, dtype=torch.int64), "1.num_batches_tracked": torch.ones(())}
    load(module, state)
    assert torch.equal(module.get_buffer("index"), state["index"])


@pytest.mark.parametrize("num_classes", [3, 7])
def test_a_head_that_has_two_names_is_new_under_both(num_classes: int) -> None:
    module, given = build(), build(num_classes=num_classes, seed=1)
    for one in (module, given):
        one.add_module("head", one[4])
    before = copy_state(module)
    match = load(module, copy_state(given))
    assert match.new == (*HEAD, "head.weight", "head.bias")
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in match.new)


def test_weights_are_copied_and_not_shared() -> None:
    state, module = copy_state(build(seed=1)), build()
    load(module, state)
    state["0.weight"].zero_()
    assert module[0].weight.all()


def test_old_weights_without_the_counts_of_batchnorm_are_whole() -> None:
    state = {name: one for name, one in build(seed=1).state_dict().items() if "num_batches" not in name}
    assert load(build(), state).describe() == "6 of 8 tensors loaded; new: 4.weight, 4.bias"


def test_a_last_layer_that_has_more_or_less_than_the_new_one_is_no_misfit() -> None:
    state = copy_state(build(seed=1))
    del state["4.bias"]
    assert load(build(), state).new == HEAD
    module = build()
    module[4] = nn.Linear(4, 3, bias=False)
    match = load_into(module, copy_state(build(seed=1)), head=HEAD[:1], keeps_head=False, partial=False)
    assert (match.new, match.unexpected) == (HEAD[:1], ())


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    state, module = copy_state(build(seed=1)), build()
    state["0.weight"] = torch.ones(4, 3, 7, 7)
    del state["0.bias"]
    state["fc.weight"] = torch.ones(2)
    before = copy_state(module)
    with pytest.raises(ValueError, match=r"--weights\.partial true\.\n") as caught:
        load(module, state)
    assert str(caught.value).splitlines()[1:] == [
        "5 of 9 tensors loaded; new: 4.weight, 4.bias",
        "  - missing 0.bias",
        "  + unexpected fc.weight",
        "  ~ reshaped 0.weight (4, 3, 7, 7) != (4, 3, 3, 3)",
    ]
    assert_same(copy_state(module), before)


def test_partial_weights_are_loaded_as_far_as_they_fit_where_that_is_wanted() -> None:
    state, module = copy_state(build(seed=1)), build()
    state["0.weight"] = torch.ones(4, 3, 7, 7)
    before = copy_state(module)
    match = load(module, state, partial=True)
    assert match.reshaped == (Reshaped("0.weight", (4, 3, 7, 7), (4, 3, 3, 3)),)
    assert torch.equal(module[0].weight, before["0.weight"])
    assert torch.equal(module[0].bias, state["0.bias"])


@pytest.mark.parametrize("partial", [False, True])
def test_a_head_that_is_to_be_kept_must_fit_whatever_else_may_not(partial: bool) -> None:
    state, module = copy_state(build(seed=1, num_classes=7)), build()
    with pytest.raises(ValueError, match=r"^weights\.head=keep, but .*use --weights\.head new\.\n7 of 9 tensors"):
        load(module, state, keeps_head=True, partial=partial)
    del state["4.weight"], state["4.bias"]
    with pytest.raises(ValueError, match=r"^weights\.head=keep, but the weights have no last layer that fits; "):
        load(module, state, keeps_head=True, partial=partial)


@pytest.mark.parametrize("keeps_head", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_weights_of_which_nothing_but_the_head_fits_are_always_refused(keeps_head: bool, partial: bool) -> None:
    other = {f"backbone.{name}": one for name, one in build(seed=1).state_dict().items()}
    counts = {"1.num_batches_tracked": torch.tensor(3)}
    for state in (other, other | counts, {name: one for name, one in build().state_dict().items() if name in HEAD}):
        with pytest.raises(ValueError, match=r"^nothing of the weights fits the network but, at most, its last layer"):
            load(build(), state, keeps_head=keeps_head, partial=partial)


def test_a_network_that_is_all_head_can_only_keep_it() -> None:
    state, module = nn.Linear(2, 3).state_dict(), nn.Linear(2, 3)
    head = ("weight", "bias")
    assert load_into(module, state, head=head, keeps_head=True, partial=False).describe() == "2 of 2 tensors loaded"
    with pytest.raises(ValueError, match=r"^nothing of the weights fits"):
        load_into(module, state, head=head, keeps_head=False, partial=True)


def test_long_lists_are_cut_and_counted() -> None:
    names = tuple(f"layer{place}.weight" for place in range(13))
    lines = Match(loaded=("a",), missing=names, unexpected=(), reshaped=()).describe().splitlines()
    assert lines[0] == "1 of 14 tensors loaded"
    assert lines[1:11] == [f"  - missing {name}" for name in names[:10]]
    assert lines[11:] == ["  - missing: 3 more"]
