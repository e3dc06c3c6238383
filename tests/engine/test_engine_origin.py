"""Runs that others start from: what they are and the weights that count."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from configs.load import config_to_dict
from configs.schema import InputSpec, ModelConfig
from engine.checkpoint import load_weights, save_checkpoint
from engine.origin import load_origin
from models.build import build_model

SPEC = InputSpec(size_px=8, channels=3, mean=(0.25, 0.5, 0.75), std=(0.5, 0.25, 0.125), interpolation="bicubic")
MODEL = ModelConfig(name="mlp", args={"hidden": [6]})
CLASSES = ("a", "b", "c")


@pytest.fixture
def save(tmp_path):
    """Saves a checkpoint of a run, with weights drawn from its step; gives its network."""

    def save(step, *, best_step=None, average=None):
        module = build_model(MODEL, num_classes=3, spec=SPEC, seed=step)
        card = {"model": config_to_dict(MODEL), "class_names": list(CLASSES), "input": config_to_dict(SPEC)}
        save_checkpoint(
            tmp_path / "run" / "checkpoints",
            step=step,
            best_step=best_step,
            weights=module.state_dict(),
            card=card,
            training_state={},
            average=average,
        )
        return module

    return save


def test_a_run_says_what_it_is_and_gives_its_best_weights(save, tmp_path):
    best, _ = save(3, best_step=3), save(5, best_step=3)
    origin = load_origin(tmp_path / "run")
    assert (origin.model, origin.spec, origin.class_names) == (MODEL, SPEC, CLASSES)
    assert origin.checkpoint == tmp_path / "run" / "checkpoints" / "step_00000003"
    weights = load_file(origin.weights)
    assert weights.keys() == best.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in best.state_dict().items())
    assert origin.digest == hashlib.sha256(origin.weights.read_bytes()).hexdigest()
    module = build_model(origin.model, num_classes=3, spec=origin.spec, seed=0)
    load_weights(module, origin.checkpoint)
    assert torch.equal(module.head.weight, best.head.weight)


def test_of_a_run_with_an_average_that_counts(save, tmp_path):
    average = build_model(MODEL, num_classes=3, spec=SPEC, seed=99).state_dict()
    save(3, average=average)
    origin = load_origin(str(tmp_path / "run"))
    assert origin.weights.name == "average.safetensors"
    assert torch.equal(load_file(origin.weights)["head.weight"], average["head.weight"])


def test_other_weights_have_another_digest_and_the_same_the_same(save, tmp_path):
    digests = []
    for step in (3, 3, 5):
        save(step)
        digests.append(load_origin(tmp_path / "run").digest)
    assert digests[0] == digests[1]
    assert digests[1] != digests[2]


def test_folders_without_a_run_are_named(save, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no such run folder \(looked for in /.*torchvision/NAME or"):
        load_origin("runs/none")
    with pytest.raises(FileNotFoundError, match=r"holds no whole checkpoint; train first, or give another run"):
        load_origin(tmp_path)
    save(3)
    save(5, best_step=3)
    (tmp_path / "run" / "checkpoints" / "step_00000003" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="step_00000003, the best checkpoint so far, is incomplete"):
        load_origin(tmp_path / "run")
