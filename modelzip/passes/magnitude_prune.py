"""Magnitude pruning: the smallest weights become zero and stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.selection import select
from modelzip.errors import ModelError, SettingError
from modelzip.numerics.patterns import parse
from modelzip.numerics.schedules import cubic_sparsity

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CUBIC_ALONE = {"begin": 0.0, "end": 0.75, "every": 10}


class Mask(nn.Module):
    """A parametrization that holds pruned weights at zero, and their gradients with them."""

    mask: Tensor

    def __init__(self, mask: Tensor, owner: MagnitudePrune, training_steps: int | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.claim(owner, training_steps)

    def claim(self, owner: MagnitudePrune, training_steps: int | None) -> None:
        """Let `owner` set this mask from now on."""
        self.owner = owner
        self.training_steps = training_steps

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)  # zero times NaN would be NaN


@dataclass(frozen=True, kw_only=True)
class MagnitudePrune(Pass):
    """Set the weights of smallest magnitude to zero, exactly as many as asked.

    Zeros make an archive smaller; an ONNX file keeps its size and, in onnxruntime, its speed.
    A weight that was pruned never comes back. On a layer that an earlier magnitude_prune holds,
    this one takes over, and starts from the zeros there are. Biases are kept.
    Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878. N:M: Mishra et al. 2021,
    https://arxiv.org/abs/2104.08378. Blocks: Narang et al. 2017, https://arxiv.org/abs/1711.02782.

    Args:
        sparsity: fraction of the weights to remove, in (0, 1). N:M sets it itself.
        scope: rank the weights of all layers together ("global") or each layer's on its own
            ("layer"). N:M always ranks within its groups.
        pattern: "unstructured"; "N:M", such as "2:4", which keeps the N largest of every M
            successive inputs; or "RxC", such as "4x1", which removes whole blocks of R outputs by
            C inputs at one tap of the kernel, those of smallest L2 norm. Layers whose sizes a
            pattern does not divide are protected.
        schedule: "oneshot" prunes before training; "cubic" grows the sparsity from 0 during it.
        begin: fraction of the training after which the cubic schedule starts, in [0, 1).
        end: fraction of the training at which it reaches `sparsity`, in (begin, 1].
        every: optimizer steps between two updates of a cubic schedule.

    >>> import modelzip as mz
    >>> small = mz.prepare(nn.Linear(8, 4), [mz.MagnitudePrune(sparsity=0.75)]).convert()
    >>> int((small.weight == 0).sum())
    24
    """

    name: ClassVar[str] = "magnitude_prune"
    stage: ClassVar[Stage] = Stage.WEIGHT
    needs: ClassVar[Need] = Need.NOTHING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        *_TRANSPOSED,
        nn.Linear,
    )

    sparsity: float | None = None
    scope: str = "global"
    pattern: str = "unstructured"
    schedule: str = "oneshot"
    begin: float = _CUBIC_ALONE["begin"]
    end: float = _CUBIC_ALONE["end"]
    every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("scope", self.scope, ("global", "layer"))
        checks.choice("schedule", self.schedule, ("oneshot", "cubic"))
        self._set("sparsity", self._checked_sparsity())
        self._set("begin", checks.fraction("begin", self.begin))
        self._set("end", checks.fraction("end", self.end, zero=False, one=True))
        checks.integer("every", self.every, low=1)
        if self.begin >= self.end:
            raise SettingError(f"begin must be below end, got {self.begin:g} and {self.end:g}")
        if self.schedule == "oneshot":
            for name, default in _CUBIC_ALONE.items():
                if getattr(self, name) != default:
                    raise SettingError(f"{name} belongs to schedule='cubic'; oneshot has no course")

    @property
    def requires(self) -> Need:
        """The length of the training as well for the cubic schedule."""
        return self.needs | Need.TRAINING if self.schedule == "cubic" else self.needs

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        if self.schedule == "cubic":
            checks.integer("training_steps", context.training_steps, low=1)
        layers, protected = self._layers(model)
        final = self._masks(layers, cast(float, self.sparsity))
        if all(torch.equal(final[name], _mask_of(layer)) for name, layer in layers.items()):
            count = sum(surgery.original_tensor(layer).numel() for layer in layers.values())
            raise ModelError(
                f"sparsity={self.sparsity:g} removes none of the {count} weights of "
                f"{', '.join(layers) or 'the model'} beyond those already pruned; raise it"
            )
        dead = [name for name, mask in final.items() if not mask.any()]
        if dead:
            where = ", ".join(dead) or "the model"
            raise ModelError(
                f"sparsity={self.sparsity:g} would remove every weight of {where}; lower it, "
                "set scope='layer', or skip the layer"
            )
        context.record["protected"] = protected
        self._attach(layers, context, final if self.schedule == "oneshot" else {})
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        self._attach(self._layers(model)[0], context, {})
        return model

    def step(self, model: nn.Module, step: int) -> None:
        owned = self._owned(model)
        if self.schedule == "oneshot" or not owned:
            return
        first, last = self._span(owned)
        due = first <= step < last and (step - first) % self.every == 0
        if not due and step != last:
            return
        goal = cubic_sparsity(step, first=first, last=last, final=cast(float, self.sparsity))
        layers = {name: module for name, (module, _) in owned.items()}
        for name, mask in self._masks(layers, goal).items():
            owned[name][1].mask.copy_(mask)

    def settled(self, model: nn.Module, step: int) -> bool:
        owned = self._owned(model)
        return self.schedule == "oneshot" or not owned or step >= self._span(owned)[1]

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        rows = []
        for name, (module, _) in self._owned(model).items():
            surgery.bake(module, Mask)
            rows.append(_row(name, module))
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(rows),
            protected=context.record["protected"],
        )

    def _checked_sparsity(self) -> float:
        implied = parse(self.pattern).sparsity
        if implied is None:
            if self.sparsity is None:
                raise SettingError("sparsity is missing; give a fraction such as 0.8")
            return checks.fraction("sparsity", self.sparsity, zero=False)
        if self.sparsity is not None:
            given = checks.fraction("sparsity", self.sparsity, zero=False)
            if abs(given - implied) > 1e-6:
                raise SettingError(
                    f"pattern {self.pattern!r} has a sparsity of {implied:g} by itself, got "
                    f"{given:g}; leave sparsity out"
                )
        return implied

    def _layers(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """The layers to prune, and why others that were selected are not."""
        selected = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        surgery.refuse_tied(model, selected, pass_name=self.name)
        surgery.refuse_computed(selected, pass_name=self.name)
        pattern = parse(self.pattern)
        protected = {
            name: reason
            for name, module in selected.items()
            if (reason := pattern.misfit(*_sizes_in_group(module)))
        }
        layers = {name: module for name, module in selected.items() if name not in protected}
        if not layers:
            reasons = "; ".join(
                f"{name or 'the model'}: {reason}" for name, reason in protected.items()
            )
            raise ModelError(f"pattern {self.pattern!r} fits none of the layers: {reasons}")
        for name, module in layers.items():
            if not bool(torch.isfinite(surgery.original_tensor(module)).all()):
                raise ModelError(
                    f"{name or 'model'}.weight holds NaN or infinity, which cannot be ranked"
                )
        return layers, protected

    def _attach(
        self, layers: Mapping[str, nn.Module], context: Context, masks: Mapping[str, Tensor]
    ) -> None:
        for name, module in layers.items():
            mask = masks[name] if name in masks else _mask_of(module)
            found = surgery.attached(module, Mask)
            if found is None:
                surgery.attach(module, Mask(mask, self, context.training_steps))
            else:
                found.mask.copy_(mask)
                found.claim(self, context.training_steps)

    def _masks(self, layers: Mapping[str, nn.Module], sparsity: float) -> dict[str, Tensor]:
        """The mask of each layer at `sparsity`, within those that are there already."""
        pattern = parse(self.pattern)
        together = [list(layers)] if self.scope == "global" else [[name] for name in layers]
        masks: dict[str, Tensor] = {}
        for names in together:
            modules = [layers[name] for name in names]
            ranked = pattern.masks(
                [_oriented(m, surgery.original_tensor(m)) for m in modules],
                [_oriented(m, _mask_of(m)) for m in modules],
                sparsity,
            )
            for name, module, mask in zip(names, modules, ranked, strict=True):
                masks[name] = _oriented(module, mask).contiguous()
        return masks

    def _owned(self, model: nn.Module) -> dict[str, tuple[nn.Module, Mask]]:
        """Layers whose mask is this pass's own, not one that a later pass took over."""
        found = surgery.all_attached(model, Mask)
        return {name: (module, mask) for name, module, mask in found if mask.owner == self}

    def _span(self, masks: Mapping[str, tuple[nn.Module, Mask]]) -> tuple[int, int]:
        """The optimizer steps between which the cubic schedule runs."""
        steps = next(iter(masks.values()))[1].training_steps
        last = max(1, round(self.end * cast(int, steps)))
        return min(round(self.begin * cast(int, steps)), last - 1), last


def _mask_of(module: nn.Module) -> Tensor:
    """What is left of the module's weight: its mask, or all of it."""
    found = surgery.attached(module, Mask)
    if found is not None:
        return found.mask
    return torch.ones_like(surgery.original_tensor(module), dtype=torch.bool)


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


def _row(name: str, module: nn.Module) -> LayerReport:
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
