"""Outliers of activations moved into the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.graph import trace
from modelzip.core.selection import select
from modelzip.errors import SelectionError
from modelzip.quantization.smoothing import NORMS, largest_outputs, readers, smooth


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Pass):
    """Even out the channels between a norm and the linear layers that read it, for `int8` later.

    Where all readers of a LayerNorm or RMSNorm are linear layers, channel j of its output is
    divided by s_j = max|x_j|**alpha / max|w_j|**(1 - alpha), in the norm's own weight and bias,
    and the readers' weights are multiplied by it. The model computes what it did, so this pass
    alone changes nothing; `targets` and `skip` name the norms.
    Xiao et al. 2022, https://arxiv.org/abs/2211.10438.

    Args:
        alpha: how much of the range moves from activations to weights, in [0, 1].

    >>> import torch, modelzip as mz
    >>> model, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(8, 4)
    >>> smoothed = mz.prepare(model, [mz.SmoothQuant()], calibration=[x]).convert()
    >>> bool((smoothed[1].weight == model[1].weight).all())
    False
    >>> torch.allclose(smoothed(x), model(x), atol=1e-5)
    True
    """

    name: ClassVar[str] = "smooth_quant"
    stage: ClassVar[Stage] = Stage.WEIGHT
    needs: ClassVar[Need] = Need.CALIBRATION
    kinds: ClassVar[tuple[type[nn.Module], ...]] = NORMS

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.fraction("alpha", self.alpha, one=True)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        norms = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        found, misfits = readers(trace(model, context), norms)
        if not found:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in misfits.items())
            raise SelectionError(f"{self.name} finds no norm that linear layers read ({reasons})")
        layers = {n: model.get_submodule(n) for names in found.values() for n in names}
        layers |= {name: norms[name] for name in found}
        surgery.refuse_computed(layers, pass_name=self.name)
        surgery.refuse_replaced(layers, pass_name=self.name)
        largest = largest_outputs(model, {n: norms[n] for n in found}, context.calibration)
        notes: dict[str, str] = {}
        for name, names in found.items():
            linears = [layers[n] for n in names]
            scales = smooth(norms[name], linears, largest[name], alpha=self.alpha)
            low, high = float(scales.min()), float(scales.max())
            notes[name] = f"scales of {low:.3g} to {high:.3g} moved into {', '.join(names)}"
        context.record.update(notes=notes, protected=misfits)
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return model  # all there is to it is in the checkpoint's tensors

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        notes: dict[str, str] = context.record["notes"]
        protected: dict[str, Any] = context.record["protected"]
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(_row(model, name, note) for name, note in notes.items()),
            protected=protected,
        )


def _row(model: nn.Module, name: str, note: str) -> LayerReport:
    norm = model.get_submodule(name)
    count, nonzero = surgery.parameter_counts(norm)
    return LayerReport(
        name=name,
        kind=type(norm).__name__,
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        note=note,
    )
