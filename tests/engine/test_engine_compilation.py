"""Compiled networks against the same ones uncompiled."""

import pytest
import torch
import torch.nn.functional as F
from small_fits import KilledError, assert_same_weights, make_module, rows_of
from torch import nn

from configs.schema import RunConfig, SpeedConfig
from engine.checkpoint import load_weights, newest_checkpoint
from engine.compilation import check_compiler, compile_module
from engine.fit import fit
from engine.runtime import start_runtime

CPU = torch.device("cpu")


def make_convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def train_three_steps(module, forward):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for step, size_px in enumerate((8, 8, 12)):
        images_NCHW = torch.randn(6, 3, size_px, size_px, generator=torch.Generator().manual_seed(step))
        F.cross_entropy(forward(images_NCHW), torch.arange(6) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_weights_of_an_uncompiled_one_at_each_image_size():
    module, expected = make_convolutions(), make_convolutions()
    compiled = compile_module(module, mode="default")
    train_three_steps(expected, expected)
    torch._dynamo.utils.counters.clear()
    train_three_steps(module, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for each size"
    assert list(module.state_dict()) == list(expected.state_dict())
    weights, wanted = (
        torch.cat([value.flatten() for value in one.state_dict().values()]) for one in (module, expected)
    )
    assert (weights - wanted).norm() <= 1e-6 * wanted.norm()
    images_NCHW = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        assert torch.allclose(module.eval()(images_NCHW), expected.eval()(images_NCHW), rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "evaluation is not compiled"


@pytest.mark.slow
def test_a_fit_compiled_drops_the_same_units_and_goes_on_as_if_never_stopped(make_job, runtime):
    expected = make_module(dropout=0.5)
    fit(expected, make_job("eager"))
    runtime._compile_mode = "default"
    straight, straight_job = make_module(dropout=0.5), make_job("straight")
    fit(straight, straight_job)
    assert_same_weights(straight, expected, tolerance=1e-12)
    with pytest.raises(KilledError):
        fit(make_module(dropout=0.5), make_job("stopped", interrupt_after=6))
    module, job = make_module(dropout=0.5), make_job("stopped")
    fit(module, job)
    assert_same_weights(module, straight)
    assert rows_of(job) == rows_of(straight_job)
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    loaded = make_module()
    load_weights(loaded, newest)
    assert_same_weights(loaded, module)


def test_without_a_compiler_it_is_said_which_one_is_wanted(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"speed\.compile needs a compiler, and g\+\+ is not on the path; install one"):
        check_compiler(CPU)
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"my-compiler is not on the path.*or use --speed\.compile none"):
        start_runtime("fp32", RunConfig(num_threads=1), speed=SpeedConfig(compile="default"))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ValueError, match="gcc or clang or cc is not on the path"):
        check_compiler(torch.device("cuda"))


def test_mode_none_compiles_nothing():
    module = make_convolutions()
    assert compile_module(module, mode="none") is module
