"""What makes several processes one training."""

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from engine.parallel import synchronise_norms


def test_synchronised_norms_keep_names_weights_activations_and_hooks():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)), BatchNormAct2d(4))
    module[2].register_forward_pre_hook(lambda norm, inputs: None)
    names, parameters = list(module.state_dict()), list(module.parameters())
    for _ in range(2):  # a second phase does it again
        synchronise_norms(module)
        assert [isinstance(norm, nn.SyncBatchNorm) for norm in (module[1][0], module[2])] == [True, True]
        assert isinstance(module[2].act, nn.ReLU)
        assert len(module[2]._forward_pre_hooks) == 1
        assert list(module.state_dict()) == names
        assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))
    images_NCHW = torch.randn(2, 3, 8, 8)
    assert module.eval()(images_NCHW).min() == 0, "evaluation works on a CPU, too, and its activation is there"
