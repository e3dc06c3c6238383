"""BatchNorm measured anew against torch's update_bn and sums written by hand."""

import copy

import pytest
import torch
from small_fits import KilledError, assert_same_weights, rows_of
from torch import nn
from torch.optim.swa_utils import update_bn

from engine.averages import Ema, Swa
from engine.batchnorm import has_batch_norm, measure_bn
from engine.fit import fit


def make_network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 6), nn.BatchNorm1d(6)
    ).double()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    return 4 + 3 * torch.randn(24, 5, generator=generator, dtype=torch.float64), torch.zeros(24, dtype=torch.int64)


def statistics(module):
    return [
        (name, value.clone())
        for name, value in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]


def assert_close(found, expected, *, tolerance):
    for (name, value), (_, wanted) in zip(found, expected, strict=True):
        assert torch.allclose(value, wanted, rtol=tolerance, atol=tolerance), name


def test_of_one_batch_it_is_torchs_update_bn(make_loader, images, runtime):
    module, reference = make_network(), make_network()
    measure_bn(module, make_loader(*images, batch_size=24), runtime=runtime)
    update_bn([images[0]], reference)
    assert_close(statistics(module), statistics(reference), tolerance=1e-12)


@pytest.mark.parametrize("batch_size", [4, 6, 7])
def test_of_several_batches_it_is_mean_and_unbiased_variance_of_all_values(make_loader, images, runtime, batch_size):
    """The second layer is given what the first has normalised by each batch's statistics; 7 leaves rows to fill."""
    module = make_network()
    linear, _, _, _, second, _ = copy.deepcopy(module)
    first_values = linear(images[0]).detach()
    parts = []
    for values in first_values.split(batch_size):
        normal = (values - values.mean(0)) / (values.var(0, unbiased=False) + 1e-5).sqrt()
        parts.append(second(normal.relu()).detach())
    measure_bn(module, make_loader(*images, batch_size=batch_size), runtime=runtime)
    for layer, values in ((module[1], first_values), (module[5], torch.cat(parts))):
        assert torch.allclose(layer.running_mean, values.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.allclose(layer.running_var, values.var(0, unbiased=True), rtol=1e-11, atol=1e-12)


def test_images_of_convolutions_are_summed_over_places_too(make_loader, runtime):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(9, 2, 5, 4, generator=generator).to(memory_format=torch.channels_last) + 100
    module = nn.BatchNorm2d(2)
    measure_bn(module, make_loader(images, torch.zeros(9, dtype=torch.int64), batch_size=4), runtime=runtime)
    exact = images.double()
    assert torch.allclose(module.running_mean.double(), exact.mean((0, 2, 3)), rtol=1e-7)
    assert torch.allclose(module.running_var.double(), exact.var((0, 2, 3)), rtol=1e-6), "mean 100, deviation 1"


def test_nothing_else_changes_and_dropout_does_not_count(make_loader, images, runtime):
    module, reference = make_network(dropout=0.9), make_network()
    for each in (module, reference):
        each.train()
        measure_bn(each, make_loader(*images, batch_size=6), runtime=runtime)
        assert each.training
        assert each[1].training
    assert_same_weights(module, reference)
    assert module[1].num_batches_tracked == 0
    assert not module[1]._forward_pre_hooks


class Auxiliary(nn.Module):
    """A layer of training alone, and one without statistics."""

    def __init__(self):
        super().__init__()
        self.main, self.extra = nn.BatchNorm1d(5).double(), nn.BatchNorm1d(5).double()
        self.none = nn.BatchNorm1d(5, track_running_stats=False).double()

    def forward(self, inputs):
        return self.none(self.main(inputs) + (self.extra(inputs) if self.training else 0))


def test_a_layer_that_evaluation_does_not_use_keeps_what_it_has(make_loader, images, runtime):
    module = Auxiliary()
    module(images[0])
    before = module.extra.running_var.clone()
    measure_bn(module, make_loader(*images, batch_size=6), runtime=runtime)
    assert torch.equal(module.extra.running_var, before)
    assert torch.allclose(module.main.running_mean, images[0].mean(0), rtol=1e-12)


def test_sync_batch_norm_is_measured_without_waiting_for_other_ranks(make_loader, images, runtime):
    module, reference = make_network(), make_network()
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for each in (module, reference):
        measure_bn(each, make_loader(*images, batch_size=6), runtime=runtime)
    assert_same_weights(module, reference)


def test_whether_there_is_something_to_measure():
    assert has_batch_norm(make_network())
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2, affine=True)))
    assert not has_batch_norm(nn.BatchNorm1d(2, track_running_stats=False))


class Small(nn.Module):
    """A network of small_fits' data with BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, inputs):
        return self.layers(inputs)


def measured(module, loader, runtime):
    other = copy.deepcopy(module)
    measure_bn(other, loader, runtime=runtime)
    return statistics(other)


@pytest.mark.parametrize("average", [None, Ema(0.8, warmup=True, every_steps=1)])
def test_at_the_end_of_training_the_weights_and_their_ema_are_measured(make_job, make_loader, data, runtime, average):
    loader = make_loader(data[0] + 1, data[1], batch_size=8)  # unlike training's
    plain, job = make_job("plain", average=average), make_job("measured", average=average, bn_loader=loader)
    before, state = fit(Small(), plain), fit(Small(), job)
    networks = [(before.module, state.module)] + ([(before.average.module, state.average.module)] if average else [])
    for unmeasured, network in networks:
        assert_close(statistics(network), measured(unmeasured, loader, runtime), tolerance=0)
        assert not torch.allclose(statistics(network)[0][1], statistics(unmeasured)[0][1], atol=0.1)
    losses = [[row["val/loss"] for row in rows_of(each) if "val/loss" in row] for each in (plain, job)]
    assert losses[0][:2] == losses[1][:2], "measured in the last epoch"
    assert losses[0][2] != losses[1][2], "before val is scored"


def test_swa_is_measured_after_every_epoch_and_the_weights_are_not(make_job, make_loader, data, runtime):
    loader = make_loader(*data, batch_size=8)
    job = make_job(average=Swa(1, bn_loader=loader))
    state = fit(Small(), job)
    plain = fit(Small(), make_job("plain"))
    assert_same_weights(state.module, plain.module)
    assert_close(statistics(state.average.module), measured(state.average.module, loader, runtime), tolerance=0)


@pytest.mark.parametrize("interrupt_after", [5, 8, 10, 12])
def test_measured_statistics_are_the_same_after_an_interruption(make_job, make_loader, data, interrupt_after):
    settings = {
        "average": Swa(1, bn_loader=make_loader(*data, batch_size=8)),
        "bn_loader": make_loader(*data, batch_size=9),
        "checkpoint_every_steps": 1,
    }
    wanted, straight = Small(), make_job("straight", **settings)
    whole = fit(wanted, straight)
    inner = straight.validate

    def die_at_the_end(network, step):
        if step == interrupt_after:
            raise KilledError
        return inner(network, step)

    stopped = make_job("stopped", interrupt_after=interrupt_after, **settings)
    with pytest.raises(KilledError):
        fit(Small(), stopped._replace(validate=die_at_the_end))
    module, continued = Small(), make_job("stopped", **settings)
    state = fit(module, continued)
    assert_same_weights(module, wanted)
    assert_same_weights(state.average.module, whole.average.module)
    assert rows_of(continued) == rows_of(straight)


def test_frozen_layers_keep_their_statistics_and_the_others_are_given_what_these_make_of_them(
    make_loader, images, runtime
):
    module = make_network()
    module[1].running_mean += 2
    first, first_norm = module[0](images[0]).detach(), copy.deepcopy(module[1]).eval()
    given = module[4](first_norm(first).relu()).detach()
    before = statistics(module)[:2]
    measure_bn(module, make_loader(*images, batch_size=6), runtime=runtime, frozen_norms={"1"})
    assert_close(statistics(module)[:2], before, tolerance=0)
    assert torch.allclose(module[5].running_mean, given.mean(0), rtol=1e-12, atol=1e-12)
    untouched = copy.deepcopy(module)
    measure_bn(module, make_loader(*images, batch_size=6), runtime=runtime, frozen_norms={"1", "5"})
    assert_same_weights(module, untouched)
