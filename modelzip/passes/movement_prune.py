"""Movement pruning: the weights that training pulls towards zero become zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from modelzip.core import checks, masking, surgery
from modelzip.core.base import Context, Need, Pass, PassReport, Stage
from modelzip.core.masking import WeightMask, held
from modelzip.errors import ModelError


class ScoreMask(WeightMask):
    """The mask of movement_prune, and the scores it is chosen by, trained beside the weight."""

    learning: Tensor

    def __init__(self, mask: Tensor, owner: Pass, training_steps: int | None) -> None:
        super().__init__(mask, owner, training_steps)
        # one dimension, as weight decay leaves those alone: it would fade what is long past
        self.scores = nn.Parameter(torch.zeros(mask.numel(), device=mask.device))
        self.register_buffer("learning", torch.ones((), device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` where the mask is set; the scores add 0, with the gradient dL/dW' * W."""
        nothing = (self.scores - self.scores.detach()) * self.learning
        return super().forward(weight) + nothing.view_as(weight) * weight.detach()


@dataclass(frozen=True, kw_only=True)
class MovementPrune(Pass):
    """Set to zero the weights that training moves towards zero, whatever their size.

    Better than by magnitude where a pretrained model is fine-tuned for another task, since the size
    of a weight says what it was worth before. A score a weight sums up, over the training, the
    gradient times the weight; its scale is free, so no learning rate of its own is needed. A
    pruned weight keeps its value and its score goes on moving, so it may come back until the
    schedule ends; then the mask stands. Build the optimizer after `prepare`: it trains the scores.
    Sanh, Wolf & Rush 2020, https://arxiv.org/abs/2005.07683. The schedule: Zhu & Gupta 2017,
    https://arxiv.org/abs/1710.01878.

    Args:
        sparsity: fraction of the weights to remove, in (0, 1). N:M sets it itself. What an earlier
            pass has set to zero counts, and stays.
        scope: rank each layer's weights on their own ("layer"), as in the paper, or those of all
            layers together ("global").
        pattern: "unstructured", "N:M" such as "2:4", or blocks such as "4x1" by the sum of their
            scores; see magnitude_prune.
        begin: fraction of the training after which weights start to go, in [0, 1); the scores
            learn from the first step on.
        end: fraction of the training at which `sparsity` is reached, in (begin, 1].
        every: optimizer steps between two choices of what is masked.

    >>> import modelzip as mz
    >>> model, x = nn.Linear(8, 4), torch.randn(16, 8)
    >>> zipped = mz.prepare(model, [mz.MovementPrune(sparsity=0.75)], training_steps=20)
    >>> optimizer = torch.optim.SGD(zipped.model.parameters(), lr=0.1)
    >>> for _ in range(20):
    ...     zipped.model(x).square().mean().backward()
    ...     optimizer.step()
    ...     zipped.step()
    >>> int((zipped.convert().weight == 0).sum())
    24
    """

    name: ClassVar[str] = "movement_prune"
    stage: ClassVar[Stage] = Stage.WEIGHT
    needs: ClassVar[Need] = Need.TRAINING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = masking.KINDS

    sparsity: float | None = None
    scope: str = "layer"
    pattern: str = "unstructured"
    begin: float = 0.1
    end: float = 0.75
    every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("scope", self.scope, ("global", "layer"))
        self._set("sparsity", masking.checked_sparsity(self.sparsity, self.pattern))
        begin, end = masking.checked_span(self.begin, self.end)
        self._set("begin", begin)
        self._set("end", end)
        checks.integer("every", self.every, low=1)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Attach scores of 0.

        Raises:
            ModelError: nothing would be removed or left of a layer, or one has scores already.
        """
        checks.integer("training_steps", context.training_steps, low=1)
        layers, protected = masking.find_layers(self, model, self.pattern)
        for name, module in layers.items():
            if surgery.attached(module, ScoreMask) is not None:
                raise ModelError(
                    f"{name or 'the model'} has a movement_prune already; give it one alone, with "
                    f"the sparsity wanted in the end, or add skip: [{name}]"
                )
        sparsity = cast(float, self.sparsity)
        within = {name: held(module) for name, module in layers.items()}
        zero = {name: torch.zeros_like(mask, dtype=torch.float) for name, mask in within.items()}
        counted = self._masks(layers, zero, within, sparsity)  # right in number, not in place
        masking.refuse_idle(layers, counted, within, sparsity)
        if self.scope == "layer":
            masking.refuse_dead(counted, sparsity)
        context.record["protected"] = protected
        return self._attach(model, layers, context)

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return self._attach(model, masking.find_layers(self, model, self.pattern)[0], context)

    def step(self, model: nn.Module, step: int) -> None:
        """Choose the mask anew where the schedule says so.

        Raises:
            ModelError: scope is "global", and nothing would be left of a layer.
        """
        owned = self._owned(model)
        if not owned:
            return
        first, last = self._span(owned)
        sparsity = masking.sparsity_due(
            step, first=first, last=last, every=self.every, final=cast(float, self.sparsity)
        )
        if sparsity is None:
            return
        layers = {name: module for name, (module, _) in owned.items()}
        scores = {n: mask.scores.detach().view_as(mask.mask) for n, (_, mask) in owned.items()}
        within = {name: held(module, besides=ScoreMask) for name, module in layers.items()}
        masks = self._masks(layers, scores, within, sparsity)
        masking.refuse_dead(masks, sparsity)
        for name, mask in masks.items():
            owned[name][1].mask.copy_(mask)
            owned[name][1].learning.fill_(float(step < last))

    def settled(self, model: nn.Module, step: int) -> bool:
        owned = self._owned(model)
        return not owned or step >= self._span(owned)[1]

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        rows = []
        for name, (module, _) in self._owned(model).items():
            surgery.bake(module, ScoreMask)
            rows.append(masking.row(name, module))
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(rows),
            protected=context.record["protected"],
        )

    def _attach(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> nn.Module:
        for module in layers.values():
            surgery.attach(module, ScoreMask(held(module), self, context.training_steps))
        return model

    def _masks(
        self,
        layers: Mapping[str, nn.Module],
        scores: Mapping[str, Tensor],
        within: Mapping[str, Tensor],
        sparsity: float,
    ) -> dict[str, Tensor]:
        kinds = {"scope": self.scope, "pattern": self.pattern}
        return masking.rank(layers, scores, within, sparsity, signed=True, **kinds)

    def _owned(self, model: nn.Module) -> dict[str, tuple[nn.Module, ScoreMask]]:
        found = surgery.all_attached(model, ScoreMask)
        return {name: (module, mask) for name, module, mask in found if mask.owner == self}

    def _span(self, masks: Mapping[str, tuple[nn.Module, ScoreMask]]) -> tuple[int, int]:
        """The optimizer steps between which weights go."""
        steps = next(iter(masks.values()))[1].training_steps
        return masking.span(self.begin, self.end, cast(int, steps))
