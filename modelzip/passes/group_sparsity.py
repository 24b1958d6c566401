"""Group sparsity: training that empties the channels that prune_channels will then remove."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.channels import pressure
from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.resize import LAYERS
from modelzip.core.selection import select
from modelzip.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class GroupSparsity(Pass):
    """Add to the loss the squared norms of channels, so that the weak ones fade in training.

    Channels that can only go together, with all the weights that make or read them, shrink
    together; the weaker they are beside the others, the faster. Put it before a fine-tuning, and
    prune_channels after that: what is cut then does little. The penalty is gone once channels
    have been, or once a later pass has rebuilt the model from its graph. Fang et al. 2023,
    https://arxiv.org/abs/2301.12900; growing it in training: Wang et al. 2021,
    https://arxiv.org/abs/2012.09243.

    Args:
        strength: what the penalty is to the strongest channels: a weight decay of this much, on
            top of the optimizer's own. The default is for many epochs; ResNet-20 on CIFAR-10
            needs 0.01 for a tenth of one (learning rate 0.02).
        contrast: the weakest channels get 2 to this power times as much. 0 treats all alike.
        growth: fraction of the training over which the penalty grows from nothing to its full
            strength, in [0, 1].
        targets: layers whose output channels are to fade.

    >>> import torch, modelzip as mz
    >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    >>> fade = mz.GroupSparsity(strength=0.1)
    >>> zipped = mz.prepare(model, [fade], example_inputs=(x,), training_steps=100)
    >>> bool(zipped.penalty() > 0)
    True
    """

    name: ClassVar[str] = "group_sparsity"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    needs: ClassVar[Need] = Need.EXAMPLE_INPUTS | Need.TRAINING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = LAYERS

    strength: float = 5e-4
    contrast: float = 4.0
    growth: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("strength", checks.positive("strength", self.strength))
        self._set("contrast", checks.positive("contrast", self.contrast, zero=True))
        self._set("growth", checks.fraction("growth", self.growth, one=True))

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Find the channels and watch them; no weight is touched.

        Raises:
            SelectionError: targets and skip leave no layer.
            ModelError: the model does not run, or no channels of the layers can go.
        """
        checks.integer("training_steps", context.training_steps, low=1)
        chosen = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        bundles, protected = find_bundles(model, context.example_inputs, chosen=chosen)
        if not bundles:
            reasons = "; ".join(f"{name!r} {reason}" for name, reason in protected.items())
            raise ModelError(f"group_sparsity finds no channels that may fade: {reasons}")
        context.record.update(
            bundles=pressure.to_record(model, bundles),
            weaker_half=pressure.weaker_half(model, bundles),
            protected=protected,
        )
        return self._attach(model, bundles, context)

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        bundles = pressure.from_record(model, context.record.get("bundles"))
        return self._attach(model, bundles, context)

    def step(self, model: nn.Module, step: int) -> None:
        if self._own(model) is not None:
            pressure.count_step(model, step)

    def penalty(self, model: nn.Module) -> Tensor | float:
        own = self._own(model)
        if own is None or not pressure.still_whole(model, own):
            return 0.0
        total = pressure.penalty(model, own, contrast=self.contrast, growth=self.growth)
        return total * (self.strength / own.holders)  # the same pass twice presses once

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        """Report how much of the weights the weaker half of the channels has left."""
        own, halves = pressure.attached(model), {}
        if own is not None and pressure.still_whole(model, own):
            halves = pressure.weaker_half(model, own.bundles)
        pressure.detach(model)
        modules = dict(model.named_modules())
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(
                _row(name, modules[name], before, halves.get(name))
                for name, before in context.record["weaker_half"].items()
                if name in modules  # a later pass may have replaced it
            ),
            protected=context.record["protected"],
        )

    def _attach(self, model: nn.Module, bundles: list[Bundle], context: Context) -> nn.Module:
        pressure.attach(model, self, bundles, cast(int, context.training_steps))
        return model

    def _own(self, model: nn.Module) -> pressure.Pressure | None:
        found = pressure.attached(model)
        return found if found is not None and found.owner == self else None


def _row(name: str, module: nn.Module, before: float, after: float | None) -> LayerReport:
    count, nonzero = surgery.parameter_counts(module)
    now = "channels are gone since" if after is None else f"now {100 * after:.1f} %"
    return LayerReport(
        name=name,
        kind=type(module).__name__.removeprefix("Parametrized"),
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        note=f"weaker half of the channels had {100 * before:.1f} % of the squared norm, {now}",
    )
