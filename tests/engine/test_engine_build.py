"""Configuration into optimizer, schedule and resolved settings."""

import json
import re

import pytest
import yaml
from torch import nn

from configs.load import config_to_dict, differing_keys, replace_section
from configs.own_pipeline import read_pipeline
from configs.schema import Config, DataConfig, InputSpec, ModelConfig, OptimConfig, TrainConfig
from engine.averages import Ema, Swa
from engine.build import (
    build_average,
    build_bn_loader,
    build_card,
    resolve_config,
    with_card,
)

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn", args={"width": 8}),
    optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    train=TrainConfig(epochs=10, global_batch_size=60),
)


def test_precision_and_accumulation_are_what_the_launcher_was_told():
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16"}
    train = resolve_config(CONFIG, told).train
    assert (train.accumulation, train.precision) == (4, "bf16")
    train = resolve_config(CONFIG, {}).train
    assert (train.accumulation, train.precision) == (1, "fp32")
    same = replace_section(CONFIG, "train", precision="bf16", accumulation=4)
    assert resolve_config(same, told).train == same.train


def test_recipe_and_launcher_that_disagree_are_refused():
    told = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    with pytest.raises(ValueError, match=r"train\.precision=fp32, but accelerate launch was told bf16; leave one"):
        resolve_config(replace_section(CONFIG, "train", precision="fp32"), told)
    with pytest.raises(ValueError, match=r"train\.accumulation=2, but accelerate launch was told 8"):
        resolve_config(
            replace_section(CONFIG, "train", accumulation=2), {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}
        )


def test_the_run_folder_is_decided():
    assert resolve_config(CONFIG, {}).run.out.startswith("runs/digits-simple_cnn-")
    assert resolve_config(replace_section(CONFIG, "run", out="here"), {}).run.out == "here"


PIPELINE = {"__version__": "2.0.8", "transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": []}}


def test_a_pipeline_of_the_users_own_is_known_by_what_it_does_and_not_by_its_file(tmp_path, monkeypatch):
    def resolved(path, **augment):
        return resolve_config(replace_section(CONFIG, "augment", albumentations=str(path), **augment), {})

    paths = [tmp_path / name for name in ("a.yaml", "b.yml", "c.json", "other.json", "d.json")]
    paths[0].write_text(yaml.safe_dump(PIPELINE))
    paths[1].write_text("# mine\n" + yaml.safe_dump(PIPELINE, default_flow_style=True, sort_keys=False))
    paths[2].write_text(json.dumps(dict(reversed(PIPELINE.items())), indent=7))
    paths[3].write_text(json.dumps(PIPELINE).replace("1.0", "0.5"))
    paths[4].write_text(json.dumps({**PIPELINE, "__version__": "2.0.7"}))
    first, *same, other, last = [resolved(path) for path in paths]
    monkeypatch.chdir(tmp_path)
    for one in (*same, last, resolved("a.yaml"), resolved("./a.yaml")):
        assert one.run.out == first.run.out
        assert differing_keys(config_to_dict(one), config_to_dict(first)) == []
    hashes = [one.augment.albumentations_hash for one in (first, other)]
    assert re.fullmatch("[0-9a-f]{16}", hashes[0])
    assert other.run.out != first.run.out
    wanted = [f"augment.albumentations_hash: {hashes[0]} -> {hashes[1]}"]
    assert differing_keys(config_to_dict(other), config_to_dict(first)) == wanted
    assert resolved("a.yaml", albumentations_hash=hashes[0]) == resolved("a.yaml")
    with pytest.raises(
        ValueError, match=rf"=a\.yaml holds another pipeline \({hashes[0]}\) than .*_hash={hashes[1]}: "
    ):
        resolved("a.yaml", albumentations_hash=hashes[1])
    without = resolve_config(replace_section(CONFIG, "augment", albumentations_hash="of one that was left out"), {})
    assert without == resolve_config(CONFIG, {})


def test_a_pipeline_that_changes_while_the_run_starts_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(PIPELINE))
    config = resolve_config(replace_section(CONFIG, "augment", albumentations=str(path)), {})
    assert read_pipeline(str(path), expected_hash=config.augment.albumentations_hash) == PIPELINE
    path.write_text(json.dumps(PIPELINE).replace("1.0", "0.5"))
    with pytest.raises(ValueError, match=r"a run folder has it as albumentations\.json"):
        read_pipeline(str(path), expected_hash=config.augment.albumentations_hash)


def test_the_card_gives_back_model_and_input():
    spec = InputSpec(size_px=8, channels=1, mean=(0.3,), std=(0.4,), fit="letterbox")
    card = build_card(CONFIG, class_names=("a", "b"), spec=spec, fingerprints={"train": "12ab"})
    other = replace_section(CONFIG, "model", name="other", args={})
    restored = with_card(other, card)
    assert restored.model == CONFIG.model
    assert restored.input == spec
    assert card["class_names"] == ["a", "b"]
    assert card["data"] == {"train": "12ab"}


NORMED, PLAIN = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 2)


def named(num_images):
    """Stands for a loader of so many images."""
    return f"{num_images} images"


def test_a_run_has_the_average_that_it_asks_for():
    assert build_average(CONFIG, NORMED, named) is None
    ema = replace_section(CONFIG, "average", ema_decay=0.99, ema_every_steps=3, ema_warmup=False)
    assert build_average(ema, NORMED, named) == Ema(0.99, warmup=False, every_steps=3)
    swa = replace_section(CONFIG, "average", swa_start_epoch=7, bn_images=50)
    assert build_average(swa, NORMED, named) == Swa(7, bn_loader="50 images")
    assert build_average(swa, PLAIN, named) == Swa(7, bn_loader=None), "there is nothing to measure"
    assert build_average(swa, PLAIN, named, first_epoch=3) == Swa(10, bn_loader=None)


def test_images_for_batch_norm_are_loaded_only_where_there_is_some():
    config = replace_section(CONFIG, "train", bn_images=80)
    assert build_bn_loader(config, NORMED, named) == "80 images"
    assert build_bn_loader(CONFIG, NORMED, named) is None
    with pytest.raises(
        ValueError, match=r"train\.bn_images=80, but the network simple_cnn has no BatchNorm with running .*; drop it"
    ):
        build_bn_loader(config, PLAIN, named)
