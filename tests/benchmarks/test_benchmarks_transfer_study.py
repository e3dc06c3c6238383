"""The cells of the study of transfer: all that it compares, and configurations that a run accepts."""

import shlex
from pathlib import Path

import pytest

from benchmarks.cells import Cell, run_name
from benchmarks.publish_transfer import best_rates
from benchmarks.recipes import RESULTS, STUDIES, build_command, read_csv
from benchmarks.transfer_study import (
    ARMS,
    EPOCHS,
    KEPT,
    METHODS,
    RATES,
    RATES_TRIED,
    SEEDS,
    SOURCE,
    SUBSETS,
    TRIAL_SUBSETS,
    TRIALS,
)
from configs.load import load_config, replace_section
from configs.schema import Config


def parse(cell: Cell) -> Config:
    words = build_command(cell, Path("/runs/one"), data="/data", work=Path("/elsewhere"), threads=1)
    return load_config(words[1:], prog=words[0], description="")


def test_the_study_is_each_of_six_methods_at_three_sizes_and_five_seeds() -> None:
    assert len(METHODS) * len(EPOCHS) * len(SEEDS) == 6 * 3 * 5 == len(STUDIES["transfer"])
    assert {(method, num_images) for method, num_images in ARMS.values()} == {
        (method, num_images) for method in METHODS for num_images in EPOCHS
    }
    assert len(STUDIES["transfer_rates"]) == 5 * 3 + 1
    assert STUDIES["transfer_source"] == [SOURCE]


def test_rates_are_tried_for_all_but_the_svm_with_a_seed_that_the_study_has_not() -> None:
    assert set(RATES) == set(RATES_TRIED) == set(METHODS) - {"features and SVM"}
    assert all(RATES[method] in rates and list(rates) == sorted(rates) for method, rates in RATES_TRIED.items())
    assert {cell.seed for cell in STUDIES["transfer_rates"]}.isdisjoint(SEEDS)
    assert len(SUBSETS) == len(set(SUBSETS)) == 3 * 5
    assert TRIAL_SUBSETS == [(200, 9)]


def test_rates_that_were_measured_are_those_that_the_study_takes() -> None:
    best = best_rates(read_csv(RESULTS / "recipes.csv"))
    assert best == {method: RATES[method] for method in best}


@pytest.mark.parametrize(("arm", "meant"), ARMS.items(), ids=[f"{method}-{size}" for method, size in ARMS.values()])
def test_an_arm_is_the_configuration_that_it_is_called(arm: tuple[str, str], meant: tuple[str, int]) -> None:
    config, (method, num_images) = parse(Cell(*arm, 3)), meant
    assert config.data.root == f"/elsewhere/three_{num_images}_3"
    assert config.model.name == f"/runs/{run_name('transfer_source', SOURCE)}"
    assert config.model.args == {}, "those of the run hold"
    assert config.train.epochs == {50: 60, 200: 30, 1000: 15}[num_images]
    assert (config.data.val_frac, config.run.select, config.run.seed) == (0, "last", 3)
    assert config.train.global_batch_size == 50
    assert (config.augment.crop, config.augment.flip) == ("pad", "alternating")
    if method == "features and SVM":
        assert (config.strategy.name, config.strategy.classifier) == ("features", "svm")
    else:
        assert (config.strategy.name, config.optim.lr) == (method, RATES[method])
    if method == "head_then_all":
        assert config.strategy.head_epochs == {50: 12, 200: 6, 1000: 3}[num_images]


@pytest.mark.parametrize(("arm", "meant"), TRIALS.items(), ids=[f"{method}-{lr:g}" for method, lr in TRIALS.values()])
def test_a_trial_is_its_method_at_a_rate_on_data_with_a_val(arm: tuple[str, str], meant: tuple[str, float]) -> None:
    config = parse(Cell(*arm, 9))
    assert (config.strategy.name, config.optim.lr) == meant
    assert (config.data.root, config.data.val_frac) == ("/elsewhere/trial_200_9", 0)
    assert config.train.epochs == EPOCHS[200]


def test_a_head_is_trained_on_the_same_images_in_every_epoch_with_and_without_features() -> None:
    images, features = (
        parse(Cell(*arm, 3)) for arm, name in sorted(KEPT.items(), key=lambda item: item[1], reverse=True)
    )
    assert (images.strategy.name, features.strategy.name) == ("linear", "features")
    assert features.strategy.classifier == "linear"
    assert images.augment == features.augment
    assert (images.augment.crop, images.augment.flip) == ("none", "none")
    assert images.data.root == "/elsewhere/three_1000_3"
    assert replace_section(features, "strategy", name="linear") == images


def test_the_source_is_trained_by_train_py_on_the_seven_classes() -> None:
    words = build_command(SOURCE, Path("/runs/one"), data="/data", work=Path("/elsewhere"), threads=1)
    assert words[0] == "train.py"
    config = parse(SOURCE)
    assert (config.data.root, config.train.epochs, config.evaluation.tta) == ("/elsewhere/seven", 10, "none")
    assert config.model.args == {"widths": [32, 64, 128]}


def test_the_recipe_is_the_sources_network_from_random_weights() -> None:
    recipe = "configs/finetune/cifar10_three.yaml"
    config = load_config(shlex.split(f"--config {recipe} --data.root DIR"), prog="finetune.py", description="")
    source = parse(SOURCE)
    assert config.model == source.model
    assert config.strategy.name == "scratch"
