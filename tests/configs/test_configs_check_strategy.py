"""What no fine-tuning can do; and what train.py refuses."""

import re

import pytest
from test_configs_check import with_values

from configs.check import check_config
from configs.check_strategy import refuse_finetuning
from configs.schema import Config, DataConfig, GroupConfig, ModelConfig, OptimConfig, TrainConfig

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn"),
    optim=OptimConfig(name="sgd", lr=0.1),
    train=TrainConfig(epochs=4, global_batch_size=10),
)
STRATEGIES = ("auto", "linear", "features", "head_then_all", "all", "gradual", "differential", "scratch")


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_passes_as_it_is(name):
    check_config(with_values(CONFIG, strategy__name=name))


REFUSED = [
    ({"weights__run": "runs/a", "weights__file": "a.pth"}, "weights.run=runs/a and weights.file=a.pth are both set"),
    ({"strategy__name": "scratch", "weights__partial": True}, "strategy.name=scratch draws all weights"),
    ({"strategy__name": "scratch", "weights__head": "keep"}, "strategy.name=scratch draws all weights"),
    (
        {"strategy__name": "head_then_all", "strategy__head_epochs": 4},
        "strategy.head_epochs=4 leaves none of train.epochs=4 in which all is trained",
    ),
    (
        {"strategy__name": "gradual", "strategy__stage_decay": 0.5, "optim__layer_decay": 0.9},
        "strategy.stage_decay=0.5 and optim.layer_decay=0.9 both say how learning rates fall",
    ),
    (
        {"strategy__name": "gradual", "optim__groups": (GroupConfig(only="vectors", lr=0.1),)},
        "optim.groups is not read with strategy.name=gradual",
    ),
    (
        {"strategy__name": "gradual", "train__batch_sizes": ((0, 10), (2, 20))},
        "train.batch_sizes and strategy.name=gradual both cut training into phases",
    ),
    ({"strategy__name": "features", "train__bn_images": 100}, "train.bn_images: not read with strategy.name=features"),
    (
        {"strategy__name": "features", "strategy__classifier": "knn", "loss__label_smoothing": 0.1},
        "loss: not read with strategy.name=features and strategy.classifier=knn",
    ),
    (
        {
            "strategy__name": "features",
            "strategy__classifier": "svm",
            "data__sampling": "balanced",
            "data__class_weights": {"3": 2.0},
            "weights__head": "keep",
        },
        "data.sampling and data.class_weights and weights.head=keep: not read with strategy.name=features and "
        "strategy.classifier=svm",
    ),
    ({"strategy__name": "linear", "optim__layer_decay": 0.5}, "optim.layer_decay=0.5 is read only with strategy.name="),
    ({"strategy__name": "features", "optim__layer_decay": 0.5}, "but strategy.name=features; drop it"),
    ({"strategy__name": "linear", "strategy__head_epochs": 2}, "strategy.head_epochs=2 is read only with"),
    ({"data__num_folds": 1}, "data.num_folds=1 and data.fold=0: cross-validation needs two parts or more"),
    ({"data__num_folds": 3, "data__fold": 3}, "of which val is one, 0 to 2"),
    ({"data__fold": 1}, "data.num_folds=0 and data.fold=1"),
]


@pytest.mark.parametrize(("values", "told"), REFUSED)
def test_what_contradicts_itself_is_refused(values, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        check_config(with_values(CONFIG, **values))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"strategy__name": "linear"}, "section strategy of the configuration is"),
        (
            {"weights__partial": True, "strategy__name": "all"},
            "section weights and section strategy of the configuration are",
        ),
        ({"model__name": "timm/resnet50.a1_in1k"}, "model.name=timm/resnet50.a1_in1k of the configuration is"),
    ],
)
def test_train_refuses_what_is_for_pretrained_weights(values, named):
    refuse_finetuning(CONFIG)
    with pytest.raises(ValueError, match=re.escape(named) + " for pretrained weights.*use finetune.py"):
        refuse_finetuning(with_values(CONFIG, **values))
