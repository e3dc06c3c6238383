"""Frozen is frozen: parameters and BatchNorm's statistics to the bit, under all that a fit can do beside."""

import pytest
import torch
from safetensors.torch import load_file
from small_fits import assert_same_weights, make_blocks, trained
from timm.layers import BatchNormAct2d
from torch import nn

from engine.averages import Ema, Swa
from engine.checkpoint import load_training_state, newest_checkpoint
from engine.fit import fit
from engine.freezing import describe_trained, find_frozen_norms, freeze, hold_norms, trained_as, trained_names
from engine.memory import activation_bytes
from engine.schedules import constant
from engine.state import Phase
from models.checkpointing import checkpoint_blocks

HEAD = ("head.weight", "head.bias")
NORMS = {"backbone.0.1", "backbone.1.1"}


@pytest.fixture
def make_phase(make_loader, data):
    def make(trains=HEAD, *, frozen_bn="eval", **changes):
        return Phase(
            name="head",
            loader=make_loader(*data, batch_size=6),
            epochs=2,
            accumulation=1,
            build_optimizer=lambda module: torch.optim.AdamW(trained(module), lr=0.05),
            lr_factor=constant(),
            trains=None if trains is None else frozenset(trains).__contains__,
            frozen_bn=frozen_bn,
        )._replace(**changes)

    return make


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def snapshot_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("average", [None, "ema", "swa"])
@pytest.mark.parametrize("is_measured", [False, True])
def test_frozen_is_bit_equal_after_a_fit_and_the_optimizer_does_not_know_it(
    make_job, make_phase, make_loader, data, accumulation, average, is_measured
):
    loader = make_loader(data[0] + 1, data[1], batch_size=8)
    kinds = {"ema": Ema(0.8, warmup=True, every_steps=1), "swa": Swa(0, bn_loader=loader), None: None}
    module = make_blocks()
    before = snapshot_of(module)
    job = make_job(
        phases=[make_phase(accumulation=accumulation)],
        average=kinds[average],
        bn_loader=loader if is_measured else None,
        checkpoint_every_steps=1,
        clip_norm=1.0,
    )
    state = fit(module, job)
    assert changed(module, before) == set(HEAD)
    assert changed(state.judged, before) == set(HEAD)
    newest, _ = newest_checkpoint(job.folder.checkpoints)
    optimizer = load_training_state(newest)["optimizer"]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [2]
    assert len(optimizer["state"]) == 2
    for file in newest.glob("*.safetensors"):
        saved = load_file(file)
        assert all(torch.equal(saved[name], value) for name, value in before.items() if name not in HEAD), file.name


def test_frozen_bn_train_moves_the_statistics_and_nothing_else_that_is_frozen(make_job, make_phase):
    module = make_blocks()
    before = snapshot_of(module)
    fit(module, make_job(phases=[make_phase(frozen_bn="train")]))
    buffers = {f"{norm}.{name}" for norm in NORMS for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed(module, before) == {*HEAD, *buffers}


def test_the_frozen_layers_normalise_by_their_running_statistics_in_training(make_job, make_phase, data):
    """One step by hand, with the backbone in evaluation mode but for its dropout, which stays on."""
    module, reference = make_blocks(), make_blocks()
    module.backbone[0][2].p = reference.backbone[0][2].p = 0.0
    fit(module, make_job(phases=[make_phase(epochs=1)]))
    optimizer = torch.optim.AdamW(reference.head.parameters(), lr=0.05)
    features = reference.backbone.eval()(data[0]).detach()
    for rows in torch.arange(24).split(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference.head(features[rows]), data[1][rows]).backward()
        optimizer.step()
    assert_same_weights(module, reference, tolerance=1e-12)


def test_dropout_of_frozen_parts_stays_on(make_job, make_phase):
    module, without = make_blocks(), make_blocks()
    without.backbone[0][2].p = 0.0
    for name, each in (("with", module), ("without", without)):
        fit(each, make_job(name, phases=[make_phase()]))
    assert not torch.equal(module.head.weight, without.head.weight)


def test_with_gradient_checkpointing_it_is_the_same(make_job, make_phase):
    trains = [name for name, _ in make_blocks().named_parameters() if not name.startswith("backbone.0")]
    phases = [make_phase(), make_phase(trains)]
    module, expected = make_blocks(), make_blocks()
    before = snapshot_of(expected)
    fit(expected, make_job("plain", phases=phases))
    checkpoint_blocks(module)
    fit(module, make_job("checkpointed", phases=[make_phase(), make_phase(trains)]))
    assert_same_weights(module, expected)
    statistics = {"backbone.1.1.running_mean", "backbone.1.1.running_var", "backbone.1.1.num_batches_tracked"}
    assert changed(module, before) == {*trains, *statistics}, "the norm of the second block goes with its layer"


@pytest.mark.slow
def test_compiled_it_is_the_same(make_job, make_phase, runtime):
    """By SGD: Adam would make steps of the rounding errors that are the gradients of biases before a norm."""

    def sgd(module):
        return torch.optim.SGD(trained(module), lr=0.05, momentum=0.9)

    phases = [make_phase(build_optimizer=sgd), make_phase(None, build_optimizer=sgd)]
    expected, module = make_blocks(), make_blocks()
    before = snapshot_of(module)
    state = fit(expected, make_job("eager", phases=phases))
    runtime._compile_mode = "default"
    fit(module, make_job("compiled", phases=phases))
    assert_same_weights(module, expected, tolerance=1e-12)
    assert state.step == 16
    head, job = make_blocks(), make_job("head", phases=[make_phase()])
    fit(head, job)
    assert changed(head, before) == set(HEAD)


def test_what_is_trained_again_moves_again(make_job, make_phase):
    module = make_blocks()
    before = snapshot_of(module)
    fit(module, make_job(phases=[make_phase(), make_phase(None)]))
    assert changed(module, before) == set(before)


def test_after_a_fit_the_network_trains_what_it_did_before(make_job, make_phase):
    module = make_blocks()
    module.backbone[0][0].requires_grad_(False)
    own = trained_names(module)
    fit(module, make_job(phases=[make_phase()]))
    assert trained_names(module) == own


def test_what_a_network_freezes_itself_stays_frozen_in_every_phase(make_job, make_phase):
    module = make_blocks()
    module.backbone[0][0].requires_grad_(False)
    before = snapshot_of(module)
    names = list(before)
    fit(module, make_job(phases=[make_phase(), make_phase(names)]))
    assert set(names) - changed(module, before) == {"backbone.0.0.weight", "backbone.0.0.bias"}


def test_each_phase_says_what_it_trains_and_plain_training_says_nothing(make_job, make_phase):
    job = make_job("phases", phases=[make_phase(), make_phase(frozen_bn="train", name="again")])
    fit(make_blocks(), job)
    said = job.progress._stream.getvalue()
    assert "phase 1 of 2, head: 21 of 139 parameters are trained, 2 BatchNorm layers stay as they are\n" in said
    assert "phase 2 of 2, again: 21 of 139 parameters are trained\n" in said
    plain = make_job("plain", phases=[make_phase(None)])
    fit(make_blocks(), plain)
    assert "phase" not in plain.progress._stream.getvalue()


def test_the_mean_over_three_ranks_leaves_frozen_statistics_to_the_bit(runtime, monkeypatch):
    module = make_blocks()
    value = 1.5 + 2**-51
    assert (value + value + value) / 3 != value, "else the test could not fail"
    for path in NORMS:
        module.get_submodule(path).running_mean.fill_(value)
    monkeypatch.setattr(runtime, "world_size", 3)
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensor: tensor + tensor + tensor)
    runtime.average_buffers(module, frozen_norms={"backbone.0.1"})
    assert (module.backbone[0][1].running_mean == value).all()
    assert (module.backbone[1][1].running_mean != value).all()


class Norms(nn.Module):
    """All kinds of layers with running statistics, and some without."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
        self.block = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4), nn.InstanceNorm2d(4, track_running_stats=True))
        self.bare = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4, affine=False)))
        self.without = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)


ALL_NORMS = {"stem.1", "block.0", "block.1", "block.2", "bare.0.0"}


@pytest.mark.parametrize(
    ("trained_ones", "frozen"),
    [
        (("head.weight",), ALL_NORMS - {"bare.0.0"}),  # the nearest that has parameters is the network itself
        ((), ALL_NORMS),
        (("head.weight", "stem.0.bias"), ALL_NORMS - {"bare.0.0", "stem.1"}),
        (("head.weight", "block.0.bias"), {"stem.1", "block.1"}),  # block.2 is within the block, of which this trains
        (("block.1.weight",), {"stem.1", "block.0"}),
    ],
)
def test_a_norm_is_frozen_with_its_own_parameters_or_else_with_what_it_is_in(trained_ones, frozen):
    module = Norms()
    freeze(module, frozenset(trained_ones).__contains__, own=trained_names(module))
    assert trained_names(module) == set(trained_ones)
    assert find_frozen_norms(module) == frozen
    hold_norms(module.train(), frozen)
    held = {path for path, part in module.named_modules() if not part.training and hasattr(part, "running_mean")}
    assert held == frozen
    assert module.training


def test_of_a_whole_network_that_is_trained_no_norm_is_frozen():
    assert find_frozen_norms(Norms()) == set()
    assert describe_trained(Norms(), frozen_norms=()) == "66 of 66 parameters are trained"


def test_a_network_is_trained_as_in_a_phase_for_a_while():
    module = Norms()
    module.stem.requires_grad_(False)
    own = trained_names(module)
    with trained_as(module, lambda name: name.startswith(("stem", "head"))):
        assert trained_names(module) == {"head.weight", "head.bias"}
    assert trained_names(module) == own
    with trained_as(module, None):
        assert trained_names(module) == own


def test_what_is_frozen_keeps_nothing_for_a_backward_pass():
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5))
    whole = activation_bytes(module, (3, 8, 8), device=torch.device("cpu"))
    with trained_as(module, lambda name: name.startswith("4.")):
        head = activation_bytes(module, (3, 8, 8), device=torch.device("cpu"))
    assert head.per_image == 4 * 16 * 36, "the input of the head"
    assert whole.per_image > 3 * head.per_image
