"""What a network keeps for its backward pass, counted by hand, and the refusal of batches that cannot fit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engine import memory
from engine.memory import activation_bytes, check_memory, free_bytes

CPU = torch.device("cpu")
PIXELS = 3 * 8 * 8


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)
    )


def test_bytes_per_image_are_those_counted_by_hand() -> None:
    """Kept are the input, the outputs of convolution (for the norm) and ReLU, and the latter, flattened, once more."""
    wanted = 4 * (PIXELS + 3 * 16 * 64)
    counted = activation_bytes(make_module(), (3, 8, 8), device=CPU)
    assert counted.per_image == wanted
    assert counted.once <= 0.02 * wanted  # BatchNorm keeps a few numbers per channel


class Standardised(nn.Linear):
    """A layer whose weights are computed anew each time, as timm's ScaledStdConv2d."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs.flatten(1), (self.weight - self.weight.mean()) / 2)


def test_what_is_computed_from_the_weights_is_not_counted_for_each_image() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 10), Standardised(10, 1000))
    assert activation_bytes(module, (3, 8, 8), device=CPU) == (4 * (PIXELS + 10), 4 * 10 * 1000)


def test_in_half_precision_half_is_kept_and_the_copies_of_the_weights_once() -> None:
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 64, bias=False), nn.Linear(64, 5, bias=False))
    kept = activation_bytes(module, (3, 8, 8), device=CPU, autocast=autocast)
    assert kept.per_image == 2 * (PIXELS + 64)
    assert kept.once == 2 * 64 * 5  # backward needs no weights of the first layer: its input is the image


def test_the_module_stays_as_it_was() -> None:
    module = make_module()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    activation_bytes(module, (3, 8, 8), device=CPU)
    assert [part.training for part in module] == [True, False, True, True, True]
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_batch_that_fits_passes_and_a_larger_one_is_refused_with_a_number_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_module()
    per_image = activation_bytes(module, (3, 8, 8), device=CPU).per_image
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(1000 * per_image))
    check_memory(module, (3, 8, 8), num_images=999, device=CPU)
    with pytest.raises(MemoryError, match=r"^1,010 images at a time need at least .* about (499|500) at a time are"):
        check_memory(module, (3, 8, 8), num_images=1010, device=CPU)


def test_processes_that_share_the_memory_are_each_left_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module()
    per_image = activation_bytes(module, (3, 8, 8), device=CPU).per_image
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(1000 * per_image))
    check_memory(module, (3, 8, 8), num_images=510, device=CPU)
    with pytest.raises(MemoryError, match=r"free on cpu for each of 2 processes; about 249 at a time"):
        check_memory(module, (3, 8, 8), num_images=510, device=CPU, num_ranks=2)


def test_where_free_memory_is_not_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    check_memory(make_module(), (3, 8, 8), num_images=10**9, device=CPU)


def test_free_memory_of_this_machine_is_between_nothing_and_all_of_it() -> None:
    free = free_bytes(CPU)
    if free is None:
        pytest.skip("this system does not say how much memory is free")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < free <= int(total.split()[1]) * 1024


def test_the_limit_of_a_container_counts_without_what_can_be_taken_back(tmp_path: Path) -> None:
    assert memory._free_of_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert memory._free_of_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._free_of_group(tmp_path) == 300
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50\nactive_file 7\n")
    assert memory._free_of_group(tmp_path) == 350
