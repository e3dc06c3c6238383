"""Strategies of fine-tuning as phases: what each trains, how fast in every step, and all of it over interruptions."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from small_fits import KilledError, assert_same_weights, make_blocks, rows_of

from configs.load import replace_section
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, ScheduleConfig, StrategyConfig, TrainConfig
from engine.averages import Ema
from engine.build_strategy import STAGE_DECAY, build_strategy_phases, first_scheduled_epoch
from engine.fit import fit
from engine.freezing import trained_as
from engine.opening import trace_schedule
from engine.schedules import cosine, with_warmup

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="mlp"),
    optim=OptimConfig(name="adamw", lr=0.05),
    schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
    train=TrainConfig(epochs=5, global_batch_size=6, accumulation=1),
)
NAMES = [name for name, _ in make_blocks().named_parameters()]
STAGES = [[name for name in NAMES if name.startswith(part)] for part in ("backbone.0", "backbone.1", "head")]
LAYERS = [["backbone.0.0.weight", "backbone.0.0.bias"], ["backbone.0.1.weight", "backbone.0.1.bias"], *STAGES[1:]]
STEPS = 4  # of an epoch


def config_of(name, *, epochs=5, optim=None, schedule=None, average=None, train=None, **strategy):
    config = dataclasses.replace(CONFIG, strategy=StrategyConfig(name=name, **strategy))
    for section, changes in (("optim", optim), ("schedule", schedule), ("average", average)):
        config = replace_section(config, section, **(changes or {}))
    return replace_section(config, "train", epochs=epochs, **(train or {}))


@pytest.fixture
def build(make_loader, data):
    def build(name, **changes):
        return build_strategy_phases(
            config_of(name, **changes),
            make_loader(*data, batch_size=6),
            lambda size: make_loader(*data, batch_size=size),
            stages=STAGES,
            layers=LAYERS,
        )

    return build


def trained_stages(phase):
    if phase.trains is None:
        return [0, 1, 2]
    found = [place for place, names in enumerate(STAGES) if all(map(phase.trains, names))]
    assert [name for name in NAMES if phase.trains(name)] == [name for place in found for name in STAGES[place]]
    return found


def rates(phases):
    """The learning rate of each trained parameter in every step, as the optimizers see it."""
    module, steps = make_blocks(), []
    names = {parameter: name for name, parameter in module.named_parameters()}
    for phase in phases:
        with trained_as(module, phase.trains):
            groups = phase.build_optimizer(module).param_groups
        members = [(names[one], group) for group in groups for one in group["params"]]
        for step in range(phase.num_steps):
            steps.append({name: group["lr"] * phase.lr_factor_of(group)(step) for name, group in members})
    return steps


def by_stage(*lrs):
    """Rates of the last stages, as `rates` gives them."""
    return {name: lr for names, lr in zip(STAGES[-len(lrs) :], lrs, strict=True) for name in names}


def assert_rates(phases, expected):
    found = rates(phases)
    assert len(found) == len(expected)
    for step, (one, wanted) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(wanted, rel=1e-12), step


def planned(epochs):
    """The schedule of CONFIG over so many epochs."""
    whole = with_warmup(cosine(num_steps=(epochs - 0.5) * STEPS, final_frac=0.0), num_steps=2)
    return [whole(step) for step in range(epochs * STEPS)]


PLANS = {  # name, epochs, stages that are trained, epoch at which the loader begins, whether it may stop early
    "linear": [("head", 5, [2], 0, True)],
    "head_then_all": [("head", 1, [2], 0, False), ("all", 4, [0, 1, 2], 1, True)],
    "all": [("all", 5, [0, 1, 2], 0, True)],
    "gradual": [
        ("head", 1, [2], 0, False),
        ("last 2 of 3 stages", 1, [1, 2], 1, False),
        ("all", 3, [0, 1, 2], 2, True),
    ],
    "differential": [("all", 5, [0, 1, 2], 0, True)],
    "scratch": [("all", 5, [0, 1, 2], 0, True)],
}


@pytest.mark.parametrize("name", PLANS)
def test_each_strategy_has_its_phases(build, name):
    phases = build(name)
    found = [
        (one.name, one.epochs, trained_stages(one), one.loader.state_dict()["epoch"], one.may_stop_early)
        for one in phases
    ]
    assert found == PLANS[name]
    assert {phase.frozen_bn for phase in phases} == {"train" if name == "scratch" else "eval"}
    assert not any(phase.keeps_optimizer for phase in phases)


def test_frozen_bn_is_that_of_the_configuration_in_every_phase(build):
    assert [phase.frozen_bn for phase in build("gradual", frozen_bn="train")] == ["train"] * 3


@pytest.mark.parametrize("name", ["all", "scratch"])
def test_all_is_plain_training(build, name):
    assert_rates(build(name), [by_stage(*[0.05 * factor] * 3) for factor in planned(5)])
    assert [phase.trains for phase in build(name)] == [None], "plain training says nothing of phases"


def test_linear_has_the_schedule_for_the_head_alone(build):
    assert_rates(build("linear"), [by_stage(0.05 * factor) for factor in planned(5)])


def test_head_then_all_holds_the_rate_and_then_has_the_schedule_at_a_part_of_it(build):
    expected = [by_stage(0.05)] * 2 * STEPS + [by_stage(*[0.05 * 0.2 * factor] * 3) for factor in planned(3)]
    assert_rates(build("head_then_all", head_epochs=2, all_lr_frac=0.2), expected)


@pytest.mark.parametrize("stage_decay", [None, 0.5])
def test_gradual_holds_the_rate_of_each_stage_and_then_has_the_schedule(build, stage_decay):
    decay = stage_decay or STAGE_DECAY
    lrs = [0.05 * decay**2, 0.05 * decay, 0.05]
    expected = [by_stage(0.05)] * STEPS + [by_stage(*lrs[1:])] * STEPS
    expected += [by_stage(*(lr * factor for lr in lrs)) for factor in planned(3)]
    assert_rates(build("gradual", stage_decay=stage_decay), expected)


@pytest.mark.parametrize("stage_decay", [None, 0.5])
def test_differential_has_the_schedule_at_the_rate_of_each_stage(build, stage_decay):
    decay = stage_decay or STAGE_DECAY
    lrs = [0.05 * decay**2, 0.05 * decay, 0.05]
    expected = [by_stage(*(lr * factor for lr in lrs)) for factor in planned(5)]
    assert_rates(build("differential", stage_decay=stage_decay), expected)


@pytest.mark.parametrize("name", ["differential", "gradual", "head_then_all", "all"])
def test_layer_decay_falls_layer_by_layer(build, name):
    last = rates(build(name, optim={"layer_decay": 0.5}))[-STEPS]
    top = last["head.weight"]
    for depth, names in enumerate(reversed(LAYERS)):
        assert [last[one] for one in names] == pytest.approx([top * 0.5**depth] * len(names))


def test_without_a_decay_all_stages_are_equally_fast(build):
    assert_rates(build("differential", stage_decay=1.0), [by_stage(*[0.05 * factor] * 3) for factor in planned(5)])


@pytest.mark.parametrize("name", PLANS)
def test_a_fit_sets_in_every_step_the_rates_that_are_planned(build, make_job, name):
    phases, seen, module = build(name), [], make_blocks()
    names = {parameter: name for name, parameter in module.named_parameters()}

    def recording(build_optimizer):
        def build(module):
            optimizer = build_optimizer(module)

            def note(*_):
                groups = optimizer.param_groups
                seen.append({names[one]: group["lr"] for group in groups for one in group["params"]})

            optimizer.register_step_pre_hook(note)
            return optimizer

        return build

    expected = rates(phases)
    recorded = [phase._replace(build_optimizer=recording(phase.build_optimizer)) for phase in phases]
    fit(module, make_job(phases=recorded))
    assert seen == expected


def test_the_planned_schedule_is_that_of_what_is_trained_fastest(build):
    module = make_blocks()
    traced = trace_schedule(build("gradual"), module)
    assert traced["epoch"] == [step / STEPS for step in range(5 * STEPS)]
    assert traced["lr"] == pytest.approx([0.05] * 2 * STEPS + [0.05 * factor for factor in planned(3)])
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_momentum_and_plateau_are_those_of_the_last_phase(build):
    cycle = {"name": "one_cycle", "warmup_epochs": 0.0, "momentum_range": (0.95, 0.85), "rise_frac": 0.5}
    head, last = build("head_then_all", schedule=cycle)
    assert head.momentum_at is None
    assert [last.momentum_at(step) for step in (0, 7, 15)] == pytest.approx([0.95, 0.85, 0.95])
    head, last = build("head_then_all", schedule={"name": "plateau"})
    assert (head.plateau, last.plateau is None) == (None, False)


def test_swa_counts_from_the_last_phase(build):
    average = {"swa_start_epoch": 2, "swa_lr_frac": 0.3}
    phases = build("head_then_all", average=average, all_lr_frac=1.0)
    assert_rates(phases[:1], [by_stage(0.05)] * STEPS)
    assert_rates(phases[1:], [by_stage(*[0.05 * one] * 3) for one in planned(4)[:8] + [0.3] * 8])
    strategies = {name: first_scheduled_epoch(StrategyConfig(name=name, head_epochs=2), num_stages=3) for name in PLANS}
    assert strategies == dict.fromkeys(PLANS, 0) | {"head_then_all": 2, "gradual": 4}


def test_batch_sizes_go_with_one_phase(build):
    train = {"batch_sizes": ((0, 6), (2, 12)), "batch_lr": "linear"}
    first, second = build("linear", train=train)
    assert (first.name, second.name, second.loader.state_dict()["epoch"]) == ("batches of 6", "batches of 12", 2)
    assert trained_stages(first) == trained_stages(second) == [2]
    assert second.keeps_optimizer


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "gradual",
            {"head_epochs": 2, "epochs": 4},
            r"strategy\.name=gradual trains parts of the network for 4 epochs, strategy\.head_epochs=2 of them for "
            r"each of 2, before all of it, and train\.epochs=4 leaves none; use --train\.epochs 5 or more, or fewer",
        ),
        ("head_then_all", {"head_epochs": 5}, r"for 5 epochs.* train\.epochs=5 leaves none"),
        (
            "head_then_all",
            {"schedule": {"warmup_epochs": 4.0}},
            r"schedule\.warmup_epochs = 4 counts from the last phase of strategy\.name=head_then_all on, and that has "
            r"4 of train\.epochs=5, after 1 at a constant learning rate; use less than 4, or --train\.epochs 6 or more",
        ),
        (
            "gradual",
            {"schedule": {"name": "linear", "warmup_epochs": 1.0, "cooldown_epochs": 2.0}},
            r"schedule\.warmup_epochs \+ schedule\.cooldown_epochs = 3 counts",
        ),
        (
            "gradual",
            {"schedule": {"name": "multi_step", "milestones_epochs": (1.0, 3.5)}},
            r"the last of schedule\.milestones_epochs = 3\.5 counts .*--train\.epochs 6 or more",
        ),
        ("gradual", {"average": {"swa_start_epoch": 3}}, r"average\.swa_start_epoch = 3 counts"),
        ("linear", {"train": {"bn_images": 9}}, r"train\.bn_images=9 would measure BatchNorm's .* keeps them; drop"),
    ],
)
def test_what_leaves_the_last_phase_too_little_is_refused_with_the_numbers(build, name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


def test_what_the_message_offers_is_enough(build):
    build("gradual", head_epochs=2, epochs=5)
    build("head_then_all", epochs=6, schedule={"warmup_epochs": 4.0})
    build("gradual", epochs=6, schedule={"name": "multi_step", "milestones_epochs": (1.0, 3.5)})
    build("linear", train={"bn_images": 9}, frozen_bn="train")


@pytest.mark.parametrize("name", ["linear", "head_then_all", "gradual"])
def test_at_the_end_of_each_phase_what_it_did_not_train_is_bit_equal(build, make_job, name):
    module = make_blocks()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    phases = build(name)
    job = make_job(phases=phases, keep_checkpoints=99)
    fit(module, job)
    step = 0
    for phase in phases:
        step += phase.num_steps
        after = load_file(job.folder.checkpoints / f"step_{step:08d}" / "model.safetensors")
        moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
        parts = tuple(("backbone.0", "backbone.1", "head")[place] for place in trained_stages(phase))
        assert moved == {key for key in before if key.startswith(parts)}


def test_early_stopping_counts_the_last_phase_alone(build, make_job):
    """Nothing is learned, and no statistic moves, so that no epoch after the first is better."""
    module = make_blocks()
    module.backbone[0][1].momentum = module.backbone[1][1].momentum = 0.0
    phases = build("head_then_all", head_epochs=3, epochs=9, optim={"lr": 1e-12})
    state = fit(module, make_job(phases=phases, early_stop_epochs=2))
    assert (state.step, state.best_step) == ((3 + 2) * STEPS, STEPS)


@pytest.mark.parametrize("interrupt_after", [2, 4, 5, 8, 9, 13])
@pytest.mark.parametrize("checkpoint_every_steps", [0, 1])
@pytest.mark.parametrize("name", ["linear", "head_then_all", "gradual", "differential"])
def test_an_interruption_in_a_phase_or_between_two_changes_nothing(
    build, make_job, name, interrupt_after, checkpoint_every_steps
):
    def make(folder, **options):
        options |= {"checkpoint_every_steps": checkpoint_every_steps, "average": Ema(0.8, warmup=True, every_steps=2)}
        return make_job(folder, phases=build(name, epochs=4), early_stop_epochs=9, **options)

    straight, expected = make("straight"), make_blocks()
    wanted = fit(expected, straight)
    with pytest.raises(KilledError):
        fit(make_blocks(), make("stopped", interrupt_after=interrupt_after))
    module, continued = make_blocks(), make("stopped")
    state = fit(module, continued)
    assert_same_weights(module, expected)
    assert_same_weights(state.average.module, wanted.average.module)
    assert rows_of(continued) == rows_of(straight)
    assert (state.best_step, state.num_stale_epochs) == (wanted.best_step, wanted.num_stale_epochs)
