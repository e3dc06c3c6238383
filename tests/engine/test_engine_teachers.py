"""Teachers from run folders and from the zoos: the right weights, or an error that says what to do."""

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.load import config_to_dict
from configs.schema import InputSpec, ModelConfig
from engine.checkpoint import read_card, save_checkpoint
from engine.distillation import AttentionTransfer
from engine.teachers import check_teachers, hash_weights, load_teachers
from models.build import build_model, build_pretrained

SPEC = InputSpec(size_px=8, channels=1, mean=(0.25,), std=(0.5,))
MODEL = ModelConfig(name="mlp", args={"hidden": [6]})
CLASSES = ("a", "b", "c")


@pytest.fixture
def make_run(tmp_path):
    """A run folder with one checkpoint: its path and its network."""

    def make(name="teacher", *, model=MODEL, spec=SPEC, class_names=CLASSES, seed=1):
        module = build_model(model, num_classes=len(class_names), spec=spec, seed=seed)
        card = {"model": config_to_dict(model), "class_names": list(class_names), "input": config_to_dict(spec)}
        save_checkpoint(
            tmp_path / name / "checkpoints",
            step=3,
            best_step=None,
            weights=module.state_dict(),
            card=card,
            training_state={},
        )
        return str(tmp_path / name), module

    return make


@pytest.fixture
def load(runtime):
    def load(*names, class_names=CLASSES, spec=SPEC, pretrained=build_pretrained):
        return load_teachers(
            names, class_names=class_names, spec=spec, builders=(build_model, pretrained), runtime=runtime
        )

    return load


@pytest.fixture
def check(runtime):
    def check(teachers, *, student=None, attention=None, num_classes=3, image_CHW=(1, 8, 8)):
        student = student or build_model(MODEL, num_classes=3, spec=SPEC, seed=0).double()
        check_teachers(
            teachers,
            student=student,
            attention=attention,
            image_CHW=image_CHW,
            num_classes=num_classes,
            runtime=runtime,
        )

    return check


def test_a_run_gives_its_network_frozen_and_in_evaluation_mode(make_run, load, check):
    name, module = make_run()
    (teacher,) = load(name)
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(teacher.logits([images]), module.double()(images))
    assert (teacher.name, teacher.module.training) == (name, False)
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    check([teacher])


def test_the_views_are_turned_into_those_the_run_was_trained_on(make_run, load, check):
    name, module = make_run(spec=dataclasses.replace(SPEC, mean=(0.1,), std=(0.3,), size_px=6))
    (teacher,) = load(name)
    pixels = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    smaller = nn.functional.interpolate(pixels, size=(6, 6), mode="bilinear", antialias=True)
    expected = module.double()((smaller - 0.1) / 0.3)
    assert torch.allclose(teacher.logits([(pixels - 0.25) / 0.5]), expected, rtol=0, atol=1e-12)
    check([teacher])


def test_the_digest_tells_any_other_weight():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    digests = [hash_weights(module)]
    module[0].weight.data[1, 2] += 1e-6
    digests.append(hash_weights(module))
    module[1].num_batches_tracked += 1
    digests.append(hash_weights(module))
    digests.append(hash_weights(nn.Sequential(*module)))
    assert len(set(digests)) == 3
    assert digests[2] == digests[3]
    assert hash_weights(module.bfloat16()) not in digests


def test_the_digest_is_of_the_weights_whatever_the_precision_of_the_run(make_run, load):
    name, module = make_run()
    assert load(name)[0].digest == hash_weights(module)


def test_nearest_neighbours_are_refused_as_a_teacher_before_their_tensors_are_compared(make_run, load):
    name, module = make_run()
    card = read_card(Path(name) / "checkpoints" / "step_00000003") | {"knn": {"num_images": 4, "width": 6, "k": 1}}
    folder, weights = Path(name) / "checkpoints", module.state_dict()
    save_checkpoint(folder, step=4, best_step=None, weights=weights, card=card, training_state={})
    with pytest.raises(ValueError, match=rf"distill.teachers: {name}: its last layer are nearest neighbours"):
        load(name)


@pytest.mark.parametrize(
    ("class_names", "why"),
    [
        (("a", "b", "d"), r"- d, \+ c"),
        (("a", "b"), r"\+ c"),
        (("a", "c", "b"), "the same ones in another order"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(make_run, load, class_names, why):
    name, _ = make_run()
    with pytest.raises(ValueError, match=rf"distill.teachers: {name}: it knows other classes than the data .*: {why}"):
        load(name, class_names=class_names)


def test_a_folder_that_is_not_there_or_holds_no_checkpoint_is_named(load, tmp_path):
    with pytest.raises(OSError, match=r"distill.teachers: runs/none: there is no such run folder \(looked for in /"):
        load("runs/none")
    with pytest.raises(OSError, match=rf"distill.teachers: {tmp_path}: .*holds no whole checkpoint; train first"):
        load(str(tmp_path))


def test_a_teacher_of_grey_images_is_refused_by_a_run_in_colour(make_run, load):
    name, _ = make_run()
    spec = dataclasses.replace(SPEC, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match=f"distill.teachers: {name}: it was trained on grey images, and this run sees"):
        load(name, spec=spec)


def test_names_of_the_zoos_go_to_their_builder_and_its_errors_name_them(load):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    asked = []

    def pretrained(name, *, num_classes):
        asked.append((name, num_classes))
        return copy.deepcopy(module), SPEC

    teachers = load("torchvision/resnet18", "timm/resnet18", pretrained=pretrained)
    assert asked == [("torchvision/resnet18", 3), ("timm/resnet18", 3)]
    assert [teacher.digest for teacher in teachers] == [hash_weights(module)] * 2
    with pytest.raises(ValueError, match=r"distill.teachers: timm/resnet18: timm/resnet18 tells 1000 classes apart"):
        load("timm/resnet18")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), r"it gives \(1, 4\) for one image; wanted: logits \(1, 3\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 3)), "it fails on a black image: RuntimeError: mat1 and mat2"),
    ],
)
def test_a_teacher_that_gives_no_logits_of_such_images_is_refused(load, check, module, why):
    teachers = load("timm/one", pretrained=lambda name, num_classes: (module, SPEC))
    with pytest.raises(ValueError, match=f"distill.teachers: timm/one: {why}"):
        check(teachers)


def test_layers_are_checked_before_training_and_modes_stay(make_run, load, check):
    (teacher,) = load(make_run(model=ModelConfig(name="simple_cnn", args={"width": 8, "hidden": 8}))[0])
    student = build_model(MODEL, num_classes=3, spec=SPEC, seed=0).double().train()
    student.head.eval()
    modes = [one.training for one in student.modules()]
    attention = AttentionTransfer(student, teacher.module, layers={"hidden.1": "features.0"})
    message = (
        "distill.features: layer 'hidden.1' of the network gives shape (1, 6); wanted: one that gives feature maps"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check([teacher], student=student, attention=attention)
    assert [one.training for one in student.modules()] == modes
