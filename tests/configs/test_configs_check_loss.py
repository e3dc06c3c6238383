"""Losses and teachers: what does not go together is refused, with what to do."""

import re

import pytest

from configs.check import check_config
from configs.load import replace_section

TEACHER = {"teachers": ("runs/teacher",)}


def with_sections(config, sections):
    for section, values in sections.items():
        config = replace_section(config, section, **values)
    return config


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"name": "bce", "target_threshold": 0.2, "label_smoothing": 0.1, "balance": "effective"}},
        {"loss": {"name": "focal", "focal_gamma": 1.0, "balance": "logit_adjustment"}},
        {"loss": {"class_weights": {"3": 2.0, "cat": 0.5}}, "data": {"sampling": "balanced"}},
        {"distill": TEACHER},
        {"distill": {"teachers": ("runs/a", "timm/resnet18", "torchvision/resnet18"), "temperature": 1.0}},
        {"distill": TEACHER | {"features": {"layers.0": "layer1"}, "features_weight": 1000.0, "weight": 0.0}},
        {"distill": TEACHER, "loss": {"name": "bce"}, "run": {"out": "runs/student"}},
    ],
)
def test_what_goes_together_passes(config, sections):
    check_config(with_sections(config, sections))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"loss": {"name": "bce", "balance": "logit_adjustment"}},
            "loss.balance=logit_adjustment shifts the logits of a softmax, which loss.name=bce does not have; use "
            "--loss.balance effective, or --loss.name cross_entropy.",
        ),
        (
            {"loss": {"balance": "inverse"}, "data": {"sampling": "balanced"}},
            "loss.balance=inverse and data.sampling=balanced both make up for classes of different size, together "
            "twice over; drop one of them.",
        ),
        (
            {"loss": {"class_weights": {3: 2.0}}},
            "loss.class_weights has 3, read as int and not as the name of a class; put the name in quotes",
        ),
        ({"loss": {"class_weights": {"cat": 0.0}}}, "loss.class_weights.cat=0.0 must be a number above 0"),
        ({"loss": {"class_weights": {"cat": float("inf")}}}, "loss.class_weights.cat=inf must be a number above 0"),
        (
            {"distill": {"temperature": 2.0}},
            "distill.temperature=2.0 is read only with distill.teachers; name one, for example "
            "--distill.teachers '[runs/NAME]', or drop it.",
        ),
        ({"distill": {"weight": 0.5}}, "distill.weight=0.5 is read only with distill.teachers"),
        ({"distill": {"features": {"a": "b"}}}, "distill.features={'a': 'b'} is read only with distill.teachers"),
        ({"distill": {"features_weight": 2.0}}, "distill.features_weight=2.0 is read only with distill.teachers"),
        ({"distill": {"teachers": ("",)}}, "distill.teachers has an empty name; give run folders, torchvision/NAME or"),
        ({"distill": {"teachers": ("a", "b", "a")}}, "distill.teachers names a twice; name each once."),
        (
            {"distill": TEACHER, "run": {"out": "runs/teacher/"}},
            "distill.teachers names run.out=runs/teacher/, the run itself; use another --run.out.",
        ),
        (
            {"distill": TEACHER | {"features": {1: "layer1"}}},
            "distill.features has 1: 'layer1', which are not both names of modules; put them in quotes",
        ),
        (
            {"distill": {"teachers": ("a", "b"), "features": {"x": "y"}}},
            "distill.features takes the layers of one teacher, but distill.teachers has 2; drop the features, or all",
        ),
        (
            {"distill": TEACHER | {"features_weight": 3.0}},
            "distill.features_weight=3 is read only with distill.features; drop it, or say which layers are to match.",
        ),
        (
            {"distill": TEACHER | {"weight": 0.0}},
            "distill.weight=0 without distill.features leaves the teachers no part in the loss; drop distill.teachers, "
            "or use 0.9.",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_what_to_do(config, sections, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config(with_sections(config, sections))
