"""Magnitude pruning: the smallest weights become zero and stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from modelzip.core import checks, masking, surgery
from modelzip.core.base import Context, Need, Pass, PassReport, Stage
from modelzip.core.masking import WeightMask, held
from modelzip.errors import SettingError

_CUBIC_ALONE = {"begin": 0.0, "end": 0.75, "every": 10}


class Mask(WeightMask):
    """The mask of magnitude_prune."""


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
    kinds: ClassVar[tuple[type[nn.Module], ...]] = masking.KINDS

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
        self._set("sparsity", masking.checked_sparsity(self.sparsity, self.pattern))
        begin, end = masking.checked_span(self.begin, self.end)
        self._set("begin", begin)
        self._set("end", end)
        checks.integer("every", self.every, low=1)
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
        layers, protected = masking.find_layers(self, model, self.pattern)
        sparsity = cast(float, self.sparsity)
        final = self._masks(layers, sparsity)
        masking.refuse_idle(layers, final, {n: held(m) for n, m in layers.items()}, sparsity)
        masking.refuse_dead(final, sparsity)
        context.record["protected"] = protected
        self._attach(layers, context, final if self.schedule == "oneshot" else {})
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        layers, _ = masking.find_layers(self, model, self.pattern)
        self._attach(layers, context, {})
        return model

    def step(self, model: nn.Module, step: int) -> None:
        owned = self._owned(model)
        if self.schedule == "oneshot" or not owned:
            return
        first, last = self._span(owned)
        goal = masking.sparsity_due(
            step, first=first, last=last, every=self.every, final=cast(float, self.sparsity)
        )
        if goal is None:
            return
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
            rows.append(masking.row(name, module))
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(rows),
            protected=context.record["protected"],
        )

    def _attach(
        self, layers: Mapping[str, nn.Module], context: Context, masks: Mapping[str, Tensor]
    ) -> None:
        for name, module in layers.items():
            mask = masks[name] if name in masks else held(module)
            found = surgery.attached(module, Mask)
            if found is None:
                surgery.attach(module, Mask(mask, self, context.training_steps))
            else:
                found.mask.copy_(mask)
                found.claim(self, context.training_steps)

    def _masks(self, layers: Mapping[str, nn.Module], sparsity: float) -> dict[str, Tensor]:
        """The mask of each layer at `sparsity`, within those that are there already."""
        return masking.rank(
            layers,
            {name: surgery.original_tensor(module) for name, module in layers.items()},
            {name: held(module) for name, module in layers.items()},
            sparsity,
            scope=self.scope,
            pattern=self.pattern,
        )

    def _owned(self, model: nn.Module) -> dict[str, tuple[nn.Module, Mask]]:
        """Layers whose mask is this pass's own, not one that a later pass took over."""
        found = surgery.all_attached(model, Mask)
        return {name: (module, mask) for name, module, mask in found if mask.owner == self}

    def _span(self, masks: Mapping[str, tuple[nn.Module, Mask]]) -> tuple[int, int]:
        """The optimizer steps between which the cubic schedule runs."""
        steps = next(iter(masks.values()))[1].training_steps
        return masking.span(self.begin, self.end, cast(int, steps))
