"""The schedule and the images that are written down before training."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from configs.schema import InputSpec
from engine.opening import save_preview, take_samples, trace_schedule
from engine.record import RunFolder
from engine.schedules import cycle_momentum, one_cycle, step_decay
from engine.state import Phase
from pipelines.batch import Mix

SPEC = InputSpec(size_px=4, channels=3, mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 0.2))


def pixels(count=40):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def normalised(images_NHWC):
    values = torch.from_numpy(images_NHWC).double() / 255
    values = (values - torch.tensor(SPEC.mean, dtype=torch.float64)) / torch.tensor(SPEC.std, dtype=torch.float64)
    return values.permute(0, 3, 1, 2)


def make_phase(loader, **changes):
    sgd = functools.partial(torch.optim.SGD, lr=0.2)
    phase = Phase("train", loader, 3, 1, lambda module: sgd(module.parameters()), step_decay(step_size=4, gamma=0.1))
    return phase._replace(**changes)


def test_samples_are_the_first_images_with_normalisation_undone(make_loader):
    images, labels = pixels(), torch.arange(40)
    loader = make_loader(normalised(images), labels, batch_size=10)
    samples = take_samples(loader, SPEC)
    assert samples.images_NHWC.dtype == np.uint8
    assert (samples.images_NHWC == images[:10]).all()
    assert samples.labels_N.tolist() == samples.partner_labels_N.tolist() == list(range(10))
    assert samples.weight_N.tolist() == [1] * 10
    assert len(take_samples(make_loader(normalised(images), labels, batch_size=40), SPEC).labels_N) == 32


def test_the_loader_stays_where_it_was(make_loader):
    loader = make_loader(normalised(pixels()), torch.arange(40), batch_size=10, bad=(3,))
    first = next(iter(loader))
    loader.load_state_dict({"epoch": 0, "position": 0})
    take_samples(loader, SPEC)
    assert loader.take_bad_samples() == [], "what the preview met is met again in training"
    again = next(iter(loader))
    assert torch.equal(first.ids_N, again.ids_N)
    assert torch.equal(first.inputs[0], again.inputs[0])


def test_partners_and_weights_of_mixed_images_are_kept(make_loader, monkeypatch):
    loader = make_loader(normalised(pixels()), torch.arange(40), batch_size=4)
    whole = next(iter(loader))
    mixed = whole._replace(mix=Mix(torch.tensor([1, 0, 3, 2]), torch.tensor([0.7, 0.7, 0.4, 0.4])))

    def mixed_batches(self):
        yield mixed

    loader.load_state_dict({"epoch": 0, "position": 0})
    monkeypatch.setattr(type(loader), "__iter__", mixed_batches)
    samples = take_samples(loader, SPEC)
    assert samples.partner_labels_N.tolist() == [1, 0, 3, 2]
    assert samples.weight_N.tolist() == pytest.approx([0.7, 0.7, 0.4, 0.4])


def test_the_schedule_is_that_of_every_step_over_all_phases(make_loader):
    loader = make_loader(normalised(pixels()), torch.arange(40), batch_size=10)
    schedule = trace_schedule([make_phase(loader), make_phase(loader, epochs=1)], nn.Linear(1, 1))
    assert schedule["epoch"] == [step / 4 for step in range(16)]
    assert schedule["lr"] == pytest.approx([0.2] * 4 + [0.02] * 4 + [0.002] * 4 + [0.2] * 4)
    assert "momentum" not in schedule


def test_a_long_schedule_is_thinned_out(make_loader):
    loader = make_loader(normalised(pixels()), torch.arange(40), batch_size=10)
    schedule = trace_schedule([make_phase(loader, epochs=2000)], nn.Linear(1, 1))
    assert 1000 <= len(schedule["lr"]) <= 1200
    assert schedule["epoch"][-1] > 1995


def test_momentum_is_there_where_it_moves(make_loader):
    loader = make_loader(normalised(pixels()), torch.arange(40), batch_size=10)
    moving = make_phase(
        loader,
        lr_factor=one_cycle(num_steps=12, rise_frac=0.5, start_frac=0.1, final_frac=0.0),
        momentum_at=cycle_momentum(num_steps=12, rise_frac=0.5, high=0.95, low=0.85),
    )
    schedule = trace_schedule([moving], nn.Linear(1, 1))
    assert schedule["momentum"][0] == pytest.approx(0.95)
    assert min(schedule["momentum"]) == pytest.approx(0.85)
    assert len(schedule["momentum"]) == len(schedule["lr"]) == 12


def test_both_are_written_into_the_run_folder(make_loader, tmp_path):
    loader = make_loader(normalised(pixels()), torch.arange(40), batch_size=10)
    schedule = trace_schedule([make_phase(loader)], nn.Linear(1, 1))
    save_preview(schedule, loader, SPEC, folder=RunFolder(tmp_path))
    samples = RunFolder(tmp_path).read_samples()
    assert samples is not None
    assert len(samples.labels_N) == 10
    assert RunFolder(tmp_path).read_schedule() == schedule
