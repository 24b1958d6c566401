"""A pass from outside modelzip, as CONTRIBUTING.md shows how to write one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Pass, PassReport, Stage
from modelzip.core.selection import select


@dataclass(frozen=True, kw_only=True)
class ClipWeights(Pass):
    """Clip weights to [-limit, limit]. Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875.

    >>> ClipWeights(limit=0.5).settings()
    {'limit': 0.5}
    """

    name: ClassVar[str] = "clip_weights"
    stage: ClassVar[Stage] = Stage.WEIGHT
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d, nn.Linear)

    limit: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("limit", self.limit)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        self._clip(model)
        return model

    def step(self, model: nn.Module, step: int) -> None:
        self._clip(model)

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        rows = []
        for name, layer in self._layers(model).items():
            count, nonzero = surgery.parameter_counts(layer)
            rows.append(
                LayerReport(
                    name=name,
                    kind=type(layer).__name__,
                    parameters_before=count,
                    parameters_after=count,
                    nonzero=nonzero,
                )
            )
        return PassReport(name=self.name, settings=self.settings(), layers=tuple(rows))

    def _clip(self, model: nn.Module) -> None:
        with torch.no_grad():
            for layer in self._layers(model).values():
                surgery.original_tensor(layer).clamp_(-self.limit, self.limit)

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        return select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
