"""The networks that the contracts run over: all of our own and twenty of each zoo."""

from typing import Any, NamedTuple


class Case(NamedTuple):
    """How a network is built for the contract.

    Attributes:
        size_px: The smallest of 16, 32, 64, 96 and 224 that it takes.
        stem: default or small.
        args: Arguments that make it smaller.
    """

    size_px: int = 32
    stem: Any = "default"
    args: dict[str, Any] = {}  # noqa: RUF012


OWN = {
    "mlp": Case(16),
    "simple_cnn": Case(16),
    "alexnet": Case(16, args={"width": 0.25, "hidden": 64}),
    "vgg": Case(16, args={"width": 0.25}),
    "resnet": Case(16, args={"width": 0.25}),
    "airbench": Case(16, args={"widths": [16, 32, 32]}),
}
TORCHVISION = {
    "densenet121": Case(stem="small"),
    "efficientnet_b0": Case(stem="small"),
    "googlenet": Case(),
    "inception_v3": Case(stem="small"),
    "mnasnet0_5": Case(stem="small"),
    "mnasnet0_75": Case(stem="small"),
    "mobilenet_v2": Case(),
    "mobilenet_v3_large": Case(),
    "mobilenet_v3_small": Case(stem="small"),
    "regnet_x_400mf": Case(stem="small"),
    "regnet_y_400mf": Case(stem="small"),
    "resnet18": Case(stem="small"),
    "resnet34": Case(stem="small"),
    "resnet50": Case(stem="small"),
    "resnext50_32x4d": Case(stem="small"),
    "shufflenet_v2_x0_5": Case(stem="small"),
    "shufflenet_v2_x1_0": Case(),
    "squeezenet1_0": Case(),
    "squeezenet1_1": Case(),
    "swin_t": Case(),
}
TIMM = {
    "test_byobnet": Case(stem="small"),
    "test_coatnet": Case(),
    "test_convnext": Case(stem="small"),
    "test_convnext2": Case(),
    "test_efficientnet": Case(stem="small"),
    "test_efficientnet_gn": Case(),
    "test_mambaout": Case(),
    "test_maxvit": Case(64),
    "test_nfnet": Case(stem="small"),
    "test_resnet": Case(stem="small"),
    "test_vit": Case(args={"patch_size": 4}),
    "test_vit3": Case(),
    "test_vit_relpos": Case(),
    "resnet10t": Case(),
    "mobilenetv3_small_050": Case(),
    "regnetx_002": Case(stem="small"),
    "edgenext_xx_small": Case(),
    "pvt_v2_b0": Case(),
    "efficientvit_b0": Case(),
    "levit_128s": Case(),
}
CASES = (
    OWN
    | {f"torchvision/{name}": case for name, case in TORCHVISION.items()}
    | {f"timm/{name}": case for name, case in TIMM.items()}
)
# too large for a test: built and run on the meta device alone, which knows shapes and no values
HEAVY = {
    "torchvision/alexnet": Case(64),
    "torchvision/vgg11_bn": Case(),
    "torchvision/wide_resnet50_2": Case(),
    "torchvision/convnext_tiny": Case(),
    "torchvision/vit_b_16": Case(),
    "torchvision/maxvit_t": Case(224),
}
