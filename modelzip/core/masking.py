"""What passes that put single zeros into weights share: layers, masks, ranking and report rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from modelzip.core import checks, surgery
from modelzip.core.base import LayerReport, Pass
from modelzip.core.selection import select
from modelzip.errors import ModelError, SettingError
from modelzip.numerics.patterns import parse
from modelzip.numerics.schedules import cubic_sparsity

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *_TRANSPOSED,
    nn.Linear,
)


class WeightMask(nn.Module):
    """A parametrization that holds pruned weights at zero, and their gradients with them."""

    mask: Tensor

    def __init__(self, mask: Tensor, owner: Pass, training_steps: int | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.claim(owner, training_steps)

    def claim(self, owner: Pass, training_steps: int | None) -> None:
        """Let `owner` set this mask from now on."""
        self.owner = owner
        self.training_steps = training_steps

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)  # zero times NaN would be NaN


def checked_sparsity(sparsity: object, pattern: str) -> float:
    """`sparsity` as a fraction in (0, 1), or the one that an N:M pattern has by itself."""
    implied = parse(pattern).sparsity
    if implied is None:
        if sparsity is None:
            raise SettingError("sparsity is missing; give a fraction such as 0.8")
        return checks.fraction("sparsity", sparsity, zero=False)
    if sparsity is not None:
        given = checks.fraction("sparsity", sparsity, zero=False)
        if abs(given - implied) > 1e-6:
            raise SettingError(
                f"pattern {pattern!r} has a sparsity of {implied:g} by itself, got {given:g}; "
                "leave sparsity out"
            )
    return implied


def checked_span(begin: object, end: object) -> tuple[float, float]:
    """`begin` and `end` as fractions of a training, the first below the second."""
    first = checks.fraction("begin", begin)
    last = checks.fraction("end", end, zero=False, one=True)
    if first >= last:
        raise SettingError(f"begin must be below end, got {first:g} and {last:g}")
    return first, last


def held(module: nn.Module, *, besides: type[WeightMask] | None = None) -> Tensor:
    """What the masks on `module.weight`, `besides` some, leave of it: all where there are none."""
    left = torch.ones_like(surgery.original_tensor(module), dtype=torch.bool)
    for mask in surgery.every_attached(module, WeightMask):
        if besides is None or not isinstance(mask, besides):
            left &= mask.mask
    return left


def find_layers(
    pass_: Pass, model: nn.Module, pattern: str
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that `pass_` is to prune, and why others that it selects are not.

    Raises:
        ModelError: `pattern` fits none of them, or a weight is tied, computed, NaN or infinite.
    """
    selected = select(model, kinds=KINDS, targets=pass_.targets, skip=pass_.skip)
    surgery.refuse_tied(model, selected, pass_name=pass_.name)
    surgery.refuse_computed(selected, pass_name=pass_.name)
    protected = {
        name: reason
        for name, module in selected.items()
        if (reason := parse(pattern).misfit(*_sizes_in_group(module)))
    }
    layers = {name: module for name, module in selected.items() if name not in protected}
    if not layers:
        reasons = "; ".join(
            f"{name or 'the model'}: {reason}" for name, reason in protected.items()
        )
        raise ModelError(f"pattern {pattern!r} fits none of the layers: {reasons}")
    for name, module in layers.items():
        if not bool(torch.isfinite(surgery.original_tensor(module)).all()):
            raise ModelError(
                f"{name or 'model'}.weight holds NaN or infinity, which cannot be ranked"
            )
    return layers, protected


def rank(
    layers: Mapping[str, nn.Module],
    scores: Mapping[str, Tensor],
    within: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str,
    pattern: str,
    signed: bool = False,
) -> dict[str, Tensor]:
    """The mask of each layer at `sparsity`, inside the masks `within` that are there already.

    Scores and masks are shaped as the weights. Layers are ranked together if `scope` is "global",
    else each on its own; by magnitude, or by value if `signed`.
    """
    together = [list(layers)] if scope == "global" else [[name] for name in layers]
    masks: dict[str, Tensor] = {}
    for names in together:
        ranked = parse(pattern).masks(
            [_oriented(layers[name], scores[name]) for name in names],
            [_oriented(layers[name], within[name]) for name in names],
            sparsity,
            signed=signed,
        )
        for name, mask in zip(names, ranked, strict=True):
            masks[name] = _oriented(layers[name], mask).contiguous()
    return masks


def refuse_idle(
    layers: Mapping[str, nn.Module],
    masks: Mapping[str, Tensor],
    within: Mapping[str, Tensor],
    sparsity: float,
) -> None:
    """ModelError if `masks` remove nothing that `within` leaves."""
    if all(torch.equal(masks[name], within[name]) for name in layers):
        count = sum(surgery.original_tensor(layer).numel() for layer in layers.values())
        raise ModelError(
            f"sparsity={sparsity:g} removes none of the {count} weights of "
            f"{', '.join(layers) or 'the model'} beyond those already pruned; raise it"
        )


def refuse_dead(masks: Mapping[str, Tensor], sparsity: float) -> None:
    """ModelError naming the layers of which `masks` leave nothing."""
    dead = [name for name, mask in masks.items() if not mask.any()]
    if dead:
        where = ", ".join(dead) or "the model"
        raise ModelError(
            f"sparsity={sparsity:g} would remove every weight of {where}; lower it, "
            "set scope='layer', or skip the layer"
        )


def span(begin: float, end: float, steps: int) -> tuple[int, int]:
    """The optimizer steps, of `steps`, between which a schedule runs.

    >>> span(0.1, 0.75, 100)
    (10, 75)
    """
    last = max(1, round(end * steps))
    return min(round(begin * steps), last - 1), last


def sparsity_due(step: int, *, first: int, last: int, every: int, final: float) -> float | None:
    """The sparsity that a cubic schedule sets after `step`; None where it lets the masks be.

    >>> [sparsity_due(k, first=0, last=5, every=2, final=0.8) for k in (1, 5, 6)]
    [None, 0.8, None]
    """
    due = first <= step < last and (step - first) % every == 0
    if not due and step != last:
        return None
    return cubic_sparsity(step, first=first, last=last, final=final)


def row(name: str, module: nn.Module) -> LayerReport:
    """What is zero in the plain weight of `module`."""
    weight = surgery.original_tensor(module)
    count, nonzero = surgery.parameter_counts(module)
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    return LayerReport(
        name=name,
        kind=type(module).__name__.removeprefix("Parametrized"),
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        note=f"{100 * zeros / weight.numel():.1f} % of the weights are zero",
    )


def _oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """`weight` as (outputs, inputs, *kernel), or back; transposed convolutions swap the two."""
    return weight.transpose(0, 1) if isinstance(module, _TRANSPOSED) else weight


def _sizes_in_group(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of one group, as no block may straddle two."""
    outputs, inputs = _oriented(module, surgery.original_tensor(module)).shape[:2]
    if isinstance(module, nn.Linear):
        return outputs, inputs
    groups = cast(nn.Conv2d, module).groups
    if isinstance(module, _TRANSPOSED):
        return outputs, inputs // groups
    return outputs // groups, inputs
