"""Training whose batch size changes, against a hand-written loop, and after interruptions."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from small_fits import KilledError, assert_same_weights, make_module, rows_of

from configs.schema import GroupConfig, OptimConfig
from engine.averages import Ema
from engine.build_phases import build_optimizer
from engine.checkpoint import load_training_state, newest_checkpoint
from engine.fit import fit
from engine.opening import trace_schedule
from engine.phases import lr_of_batch, split_by_batch_size
from engine.schedules import Plateau, cosine, cycle_momentum
from engine.state import Phase

SIZES = ((0, 6), (2, 12), (3, 4))  # 24 images: 4, 2 and 6 steps an epoch


@pytest.fixture
def make_phases(make_loader, data):
    def make(batch_sizes=SIZES, *, batch_lr="linear", epochs=5, **changes):
        whole = Phase(
            name="train",
            loader=make_loader(*data, batch_size=batch_sizes[0][1]),
            epochs=epochs,
            accumulation=1,
            build_optimizer=lambda module: torch.optim.AdamW(module.parameters(), lr=0.02),
            lr_factor=cosine(num_steps=epochs * 24 // batch_sizes[0][1], final_frac=0.1),
        )._replace(**changes)
        return split_by_batch_size(
            whole,
            batch_sizes,
            lambda size: make_loader(*data, batch_size=size),
            batch_lr=batch_lr,
            base_size=batch_sizes[0][1],
        )

    return make


def test_phases_share_the_epochs_and_each_loader_begins_at_its_own(make_phases):
    phases = make_phases()
    assert [(phase.epochs, phase.num_steps, phase.loader.batch_size) for phase in phases] == [
        (2, 8, 6),
        (1, 2, 12),
        (2, 12, 4),
    ]
    assert [phase.loader.state_dict()["epoch"] for phase in phases] == [0, 2, 3]
    assert [phase.keeps_optimizer for phase in phases] == [False, True, True]


@pytest.mark.parametrize(
    ("batch_lr", "factors"), [("none", (1, 1, 1)), ("linear", (1, 2, 2 / 3)), ("sqrt", (1, 2**0.5, (2 / 3) ** 0.5))]
)
def test_the_schedule_goes_on_in_epochs_and_the_rate_follows_the_batch(make_phases, batch_lr, factors):
    phases, whole = make_phases(batch_lr=batch_lr), cosine(num_steps=20, final_frac=0.1)
    for phase, start, factor in zip(phases, (0, 2, 3), factors, strict=True):
        for step in range(phase.num_steps):
            epoch = start + step / phase.loader.steps_per_epoch
            assert phase.lr_factor(step) == pytest.approx(factor * whole(4 * epoch), rel=1e-12)
    assert phases[2].lr_factor(6) == pytest.approx(factors[2] * whole(16), rel=0), "whole epochs come out exactly"


def test_the_learning_rate_belongs_to_the_base_size():
    assert [lr_of_batch(256, base_size=64, rule=rule) for rule in ("none", "linear", "sqrt")] == [1.0, 4.0, 2.0]
    assert lr_of_batch(16, base_size=64, rule="linear") == 0.25


def test_one_size_is_the_schedule_as_it_is(make_phases):
    (phase,) = make_phases(batch_sizes=((0, 6),))
    whole = cosine(num_steps=20, final_frac=0.1)
    assert [phase.lr_factor(step) for step in range(20)] == [whole(step) for step in range(20)]


def test_the_momentum_of_a_schedule_goes_on_and_does_not_follow_the_batch(make_phases):
    momentum_at = cycle_momentum(num_steps=20, rise_frac=0.5, high=0.95, low=0.85)
    phases = make_phases(momentum_at=momentum_at)
    assert phases[1].momentum_at(1) == pytest.approx(momentum_at(10))
    assert make_phases()[1].momentum_at is None


def test_groups_with_a_schedule_of_their_own_keep_it_over_a_boundary(make_job, make_phases, data):
    """The weights end with the first phase, the biases do not; each step's rates are looked at."""
    seen = []

    def build_optimizer(module):
        weights = [one for one in module.parameters() if one.dim() > 1]
        biases = [one for one in module.parameters() if one.dim() == 1]
        groups = [{"params": weights, "until_epoch": 3.0}, {"params": biases}]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer

    sooner = cosine(num_steps=12, final_frac=0.0)
    phases = make_phases(build_optimizer=build_optimizer, lr_factors={3.0: sooner})
    fit(make_module(), make_job(phases=phases))
    whole, expected = cosine(num_steps=20, final_frac=0.1), []
    for phase, start, factor in zip(phases, (0, 2, 3), (1, 2, 2 / 3), strict=True):
        times = [4 * (start + step / phase.loader.steps_per_epoch) for step in range(phase.num_steps)]
        expected += [[0.02 * factor * sooner(time), 0.02 * factor * whole(time)] for time in times]
    assert torch.allclose(torch.tensor(seen), torch.tensor(expected), rtol=1e-12)


def test_a_fit_in_phases_is_the_hand_written_loop_with_one_optimizer(make_job, make_phases, data):
    job, module = make_job(phases=make_phases()), make_module()
    reference = copy.deepcopy(module)
    state = fit(module, job)
    optimizer = torch.optim.AdamW(reference.parameters())
    schedule = cosine(num_steps=20, final_frac=0.1)
    inputs, labels = data
    for epoch in range(5):
        size = 6 if epoch < 2 else 12 if epoch < 3 else 4
        for step in range(24 // size):
            rows = slice(step * size, (step + 1) * size)
            optimizer.param_groups[0]["lr"] = 0.02 * size / 6 * schedule(4 * epoch + step * 4 * size / 24)
            optimizer.zero_grad()
            F.cross_entropy(reference(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    assert_same_weights(module, reference, tolerance=1e-12)
    assert state.step == 8 + 2 + 12
    assert [row["epoch"] for row in rows_of(job) if "val/loss" in row] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("interrupt_after", [7, 8, 9, 10, 11, 15])  # phases end with steps 8 and 10
@pytest.mark.parametrize("checkpoint_every_steps", [0, 1])
def test_an_interruption_before_on_and_after_a_boundary_changes_nothing(
    make_job, make_phases, interrupt_after, checkpoint_every_steps
):
    plateau = Plateau(0.5, patience_epochs=0, threshold_frac=0.5, min_factor=0.0)
    settings = {"checkpoint_every_steps": checkpoint_every_steps, "average": Ema(0.9, warmup=True, every_steps=2)}
    straight, expected = make_job("straight", phases=make_phases(plateau=plateau), **settings), make_module(0.5)
    wanted = fit(expected, straight)
    assert wanted.plateau.factor < 0.2, "the plateau goes on over boundaries"
    stopped = make_job("stopped", phases=make_phases(plateau=plateau), interrupt_after=interrupt_after, **settings)
    with pytest.raises(KilledError):
        fit(make_module(0.5), stopped)
    module, continued = make_module(0.5), make_job("stopped", phases=make_phases(plateau=plateau), **settings)
    state = fit(module, continued)
    assert_same_weights(module, expected)
    assert_same_weights(state.average.module, wanted.average.module)
    assert rows_of(continued) == rows_of(straight)
    assert state.plateau == wanted.plateau
    moments = [
        load_training_state(newest_checkpoint(job.folder.checkpoints)[0])["optimizer"]["state"][0]
        for job in (straight, continued)
    ]
    assert torch.equal(moments[0]["exp_avg_sq"], moments[1]["exp_avg_sq"])
    assert moments[0]["step"] == moments[1]["step"] == 22


@pytest.mark.parametrize("interrupt_after", [3, 9, 16, 17, 19, 23, 31])  # micro-batches; odd ones lie within a step
@pytest.mark.parametrize("checkpoint_every_steps", [0, 3])
def test_with_every_part_that_has_a_state_an_interruption_changes_nothing(
    make_job, make_phases, interrupt_after, checkpoint_every_steps
):
    """Muon and AdamW as one, EMA, accumulation, batch sizes, plateau and early stopping, all at once."""
    vectors = GroupConfig(only="vectors", name="adamw", lr=0.01, until_epoch=3.5)
    optim = OptimConfig(name="muon", lr=0.02, momentum=0.9, weight_decay=0.01, groups=(vectors,))

    def make(name, **options):
        phases = make_phases(
            build_optimizer=functools.partial(build_optimizer, optim),
            lr_factors={3.5: cosine(num_steps=14, final_frac=0.0)},
            accumulation=2,
            plateau=Plateau(0.5, patience_epochs=0, threshold_frac=0.5, min_factor=0.0),
        )
        average = Ema(0.9, warmup=True, every_steps=2)
        options |= {"checkpoint_every_steps": checkpoint_every_steps, "early_stop_epochs": 2, "clip_norm": 0.5}
        return make_job(name, phases=phases, average=average, **options)

    straight, expected = make("straight"), make_module(0.5)
    wanted = fit(expected, straight)
    with pytest.raises(KilledError):
        fit(make_module(0.5), make("stopped", interrupt_after=interrupt_after))
    module, continued = make_module(0.5), make("stopped")
    state = fit(module, continued)
    assert_same_weights(module, expected)
    assert_same_weights(state.average.module, wanted.average.module)
    assert rows_of(continued) == rows_of(straight)
    for name in ("step", "best_step", "plateau", "num_stale_epochs"):
        assert getattr(state, name) == getattr(wanted, name)


def test_a_run_that_stopped_early_at_a_boundary_does_not_train_on(make_job, make_phases):
    options = {"early_stop_epochs": 1}
    phases = make_phases(batch_sizes=((0, 6), (1, 12), (2, 6)), epochs=5, lr_factor=lambda step: 1e-12)
    state = fit(make_module(), make_job("run", phases=phases, **options))
    assert state.step == 4 + 2, "no better score in the second epoch, of 2 steps"
    again = fit(make_module(), make_job("run", phases=phases, interrupt_after=0, **options))
    assert again.step == state.step


def test_the_planned_schedule_shows_the_phases(make_phases):
    traced = trace_schedule(make_phases(), make_module())
    assert traced["epoch"] == pytest.approx([*(n / 4 for n in range(8)), 2, 2.5, *(3 + n / 6 for n in range(12))])
    assert traced["lr"][8] == pytest.approx(0.02 * 2 * cosine(num_steps=20, final_frac=0.1)(8))
