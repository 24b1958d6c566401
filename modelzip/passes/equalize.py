"""Cross-layer equalization: the same function with weights and activations of even ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.graph import trace
from modelzip.core.running import call, evaluating, tensors
from modelzip.core.selection import select
from modelzip.errors import ModelError, SelectionError
from modelzip.quantization.equalization import KINDS, Pair, equalize, find_pairs

_SHOWN = 8  # layers named in an error
_TOLERANCE = 1e-3  # of the largest output; float32 differs by some 1e-6


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Scale the channels between two layers so that their weights have equal ranges.

    For a layer, an optional batch norm, ReLU or the like, and another layer, each channel is
    divided by a constant in the first and multiplied by it in the second. The model computes what
    it did, but no channel is lost any more on a grid that its loud neighbours need: give it before
    `int8` or `fake_quantize`. Pools, flatten, dropout and LeakyReLU may lie in between; ReLU6 may
    not, as it does not scale. Nagel et al. 2019, section 4.1, https://arxiv.org/abs/1906.04721.

    The result is checked on the example inputs or calibration data, where there are any.

    >>> import torch, modelzip as mz
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[8.0], [0.5]]))
    ...     _ = model[2].weight.copy_(torch.tensor([[0.5, 2.0]]))
    >>> even = mz.prepare(model, [mz.Equalize()]).convert()
    >>> [round(w, 3) for w in even[0].weight.flatten().tolist()]
    [2.0, 1.0]
    """

    name: ClassVar[str] = "equalize"
    stage: ClassVar[Stage] = Stage.WEIGHT
    needs: ClassVar[Need] = Need.NOTHING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = KINDS

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        layers = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        graph = trace(model, dataclasses.replace(context, record={}))
        pairs, reasons = find_pairs(graph, layers)
        if not pairs:
            told = [f"{n or 'the model'}: {reason}" for n, reason in reasons.items()]
            why = "; ".join(told[:_SHOWN] + ["..."] * (len(told) > _SHOWN))
            raise SelectionError(
                f"equalize finds no two layers with only batch norm, ReLU or pools between: {why}"
            )
        used = dict.fromkeys(name for pair in pairs for name in pair if name is not None)
        touched = {name: model.get_submodule(name) for name in used}
        surgery.refuse_tied(model, touched, pass_name=self.name)
        surgery.refuse_computed(touched, pass_name=self.name)
        surgery.refuse_replaced(touched, pass_name=self.name)
        _refuse_unusable(touched)
        inputs = context.example_inputs
        if inputs is None and context.calibration:
            inputs = context.calibration[0].inputs
        before = None if inputs is None else _outputs(model, inputs)
        scales = equalize(model, pairs)
        if before is not None:
            _refuse_changed(before, _outputs(model, inputs), pairs)
        context.record.update(
            notes=_notes(scales), protected={n: r for n, r in reasons.items() if n not in used}
        )
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return model  # the checkpoint has the scaled weights

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        notes: Mapping[str, str] = context.record["notes"]
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(_row(n, model.get_submodule(n), note) for n, note in notes.items()),
            protected=context.record["protected"],
        )


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with evaluating(model):
        return [tensor.clone() for tensor in tensors(call(model, inputs))]


def _refuse_unusable(layers: Mapping[str, nn.Module]) -> None:
    for name, module in layers.items():
        if not all(bool(torch.isfinite(t).all()) for t in surgery.own_tensors(module).values()):
            raise ModelError(f"{name} holds NaN or infinity; nothing was equalized")


def _refuse_changed(before: Sequence[Tensor], after: Sequence[Tensor], pairs: list[Pair]) -> None:
    for old, new in zip(before, after, strict=True):
        if old.numel() and old.is_floating_point():
            change = float((old - new).abs().max() / old.abs().max().clamp_min(1e-12))
            if not change <= _TOLERANCE:
                names = ", ".join(f"{pair.first} and {pair.second}" for pair in pairs)
                raise ModelError(
                    f"equalizing {names} would change the outputs by {change:.2g} of the largest; "
                    "a batch norm or activation between them is not over channels: skip them"
                )


def _notes(scales: Mapping[Pair, Tensor]) -> dict[str, str]:
    """What was done to each layer, in words."""
    notes: dict[str, list[str]] = {}
    for pair, scale in scales.items():
        span = f"{float(scale.min()):.3g} to {float(scale.max()):.3g}"
        notes.setdefault(pair.first, []).append(f"outputs divided by {span}")
        notes.setdefault(pair.second, []).append(f"inputs multiplied by {span}")
    return {name: "; ".join(texts) for name, texts in notes.items()}


def _row(name: str, layer: nn.Module, note: str) -> LayerReport:
    count, nonzero = surgery.parameter_counts(layer)
    return LayerReport(
        name=name,
        kind=type(layer).__name__.removeprefix("Parametrized"),
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        note=note,
    )
