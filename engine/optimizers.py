"""Parameter groups -> one optimizer: torch's and timm's, Muon for convolutions, and several of them as one.

[ParameterGroup] -> by name: SGD, RMSprop, Adam, AdamW, Lamb, Lars, Muon -> where there are several: Joined
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from configs.schema import OptimConfig, OptimizerName
from engine.fused import fused_of
from engine.groups import ParameterGroup, Settings

_SCALES = {"original": "original", "match_adamw": "match_rms_adamw"}  # our names, torch's
_WITH_BETAS = ("adam", "adamw", "lamb")
_FROM_GROUP = ("lr", "weight_decay", "momentum", "nesterov")  # what training may change from step to step


def make_optimizer(
    groups: Sequence[ParameterGroup], optim: OptimConfig, *, fused: Literal["auto", "on", "off"] = "off"
) -> Optimizer:
    """The optimizer of all groups; each of its `param_groups` has the keys `until_epoch` and `has_own_lr`, too.

    Args:
        groups: Parameters and their settings.
        optim: What all groups of one optimizer share: eps, alpha and the like.
        fused: Whether SGD, Adam and AdamW update all parameters in one kernel, as `engine.fused` has it.

    Raises:
        ValueError: fused is on, and torch has no such kernel for one of them.
    """
    by_name: dict[OptimizerName, list[ParameterGroup]] = {}
    for group in groups:
        by_name.setdefault(group.settings.name, []).append(group)
    made = [
        _make_one(name, members, optim, fused=fused_of(fused, name=name, device=members[0].parameters[0].device))
        for name, members in by_name.items()
    ]
    return made[0] if len(made) == 1 else Joined(made)


def main_lr(groups: Sequence[Mapping[str, Any]]) -> float:
    """The highest learning rate of those of an optimizer's groups that have the configuration's; else of all."""
    lrs = [float(group["lr"]) for group in groups if not group.get("has_own_lr", False)]
    return max(lrs or [float(group["lr"]) for group in groups])


def _make_one(name: OptimizerName, groups: Sequence[ParameterGroup], optim: OptimConfig, *, fused: bool) -> Optimizer:
    plain = [{"params": group.parameters, **_options(group.settings)} for group in groups]
    match name:
        case "sgd":
            return SGD(plain, fused=fused)
        case "rmsprop":
            return RMSprop(plain, alpha=optim.alpha, eps=optim.eps)
        case "adam":
            return Adam(plain, eps=optim.eps, fused=fused)
        case "adamw":
            return AdamW(plain, eps=optim.eps, fused=fused)
        case "lamb" | "lars":
            return _make_timm(name, plain, optim)
        case "muon":
            return Muon(
                plain,
                ns_steps=optim.ns_steps,
                ns_coefficients=optim.ns_coefficients,
                adjust_lr_fn=_SCALES[optim.muon_scale],
                fix_filter_norm=optim.fix_filter_norm,
            )


def _make_timm(name: str, plain: list[dict[str, Any]], optim: OptimConfig) -> Optimizer:
    """timm's; its Lamb shortens gradients by itself unless told not to, which here is optim.clip_norm."""
    from timm.optim.lamb import Lamb  # a second, so only where it is used
    from timm.optim.lars import Lars

    optimizer: Optimizer = (
        Lamb(plain, eps=optim.eps, max_grad_norm=None)
        if name == "lamb"
        else Lars(plain, trust_coeff=optim.trust_coefficient)
    )
    return optimizer


def _options(settings: Settings) -> dict[str, Any]:
    """The options of a group that its optimizer knows, and what the schedule needs to know of it."""
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name in _WITH_BETAS:
        options["betas"] = settings.betas
    else:
        options["momentum"] = settings.momentum
    if settings.name in ("sgd", "lars", "muon"):
        options["nesterov"] = settings.nesterov
    return options | {"until_epoch": settings.until_epoch, "has_own_lr": settings.has_own_lr}


class Muon(Optimizer):
    """torch.optim.Muon, which takes matrices alone, for convolutions too: each filter is a row.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of each weight by the nearest
    orthogonal matrix, found by Newton-Schulz steps in bfloat16. Each step hands torch's optimizer views of weights and
    gradients; their momentum is kept here, under the weights themselves, so that `state_dict` is as any other's.

    Args:
        groups: Parameters of two dimensions and more, each group with lr, weight_decay, momentum and nesterov.
        ns_steps: Newton-Schulz steps.
        ns_coefficients: Their coefficients.
        adjust_lr_fn: As torch's.
        fix_filter_norm: Sets the norm of each weight to the root of its number of filters before each step, as airbench
            (Jordan 2024) does in place of weight decay.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        ns_steps: int,
        ns_coefficients: tuple[float, float, float],
        adjust_lr_fn: str,
        fix_filter_norm: bool,
    ) -> None:
        super().__init__(groups, {})
        self._fix_filter_norm = fix_filter_norm
        self._matrices = [
            [nn.Parameter(_as_matrix(one.detach(), like=one)) for one in group["params"]] for group in self.param_groups
        ]
        self._inner = torch.optim.Muon(
            [{"params": matrices} for matrices in self._matrices],
            ns_steps=ns_steps,
            ns_coefficients=ns_coefficients,
            adjust_lr_fn=adjust_lr_fn,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closures here
        """One update of all weights that have a gradient."""
        assert closure is None, "the loop computes gradients itself"
        for group, inner, matrices in zip(self.param_groups, self._inner.param_groups, self._matrices, strict=True):
            inner.update({key: group[key] for key in _FROM_GROUP})
            for parameter, matrix in zip(group["params"], matrices, strict=True):
                if self._fix_filter_norm and parameter.grad is not None:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                matrix.data = _as_matrix(parameter.detach(), like=parameter)  # where the weight lies may have changed
                assert matrix.data_ptr() == parameter.data_ptr(), "a view: what is done to it is done to the weight"
                matrix.grad = None if parameter.grad is None else _as_matrix(parameter.grad, like=parameter)
                self._inner.state[matrix] = self.state[parameter]
        self._inner.step()  # type: ignore[no-untyped-call]


def _as_matrix(tensor: Tensor, *, like: Tensor) -> Tensor:
    """(filters, inputs): a row per filter, its columns in the order in which the weight `like` lies in memory.

    The order of columns does not matter to Muon, as long as it is the same for weight, gradient and momentum.
    """
    return (tensor if like.is_contiguous() else tensor.movedim(1, -1)).flatten(1)


class Joined(Optimizer):
    """Several optimizers as one: `param_groups` and `state` are those of all of them, one after another."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for one in self.optimizers for group in one.param_groups], {})
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]  # the very objects
        for one in self.optimizers:
            one.state = self.state  # by parameter, so they do not meet

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closures here
        """One step of each."""
        assert closure is None, "the loop computes gradients itself"
        for one in self.optimizers:
            one.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave, which is torch's own: it reads groups and state of all of them."""
        super().load_state_dict(dict(state_dict))
        groups = iter(self.param_groups)  # new objects, as the state is
        for one in self.optimizers:
            one.param_groups = list(itertools.islice(groups, len(one.param_groups)))
            one.state = self.state
