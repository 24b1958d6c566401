"""Pseudo-quantization: a model that trains with the rounding it will be deployed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

from torch import fx, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Batch, Context, Need, Pass, PassReport, Stage
from modelzip.core.graph import notes_of
from modelzip.quantization import attach
from modelzip.quantization.correction import refine
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.freeze import freeze

_METHODS = ("straight_through", "lsq")


@dataclass(frozen=True, kw_only=True)
class FakeQuantize(Pass):
    """Round weights and activations to few bits in training; convert to the integers of `int8`.

    Batch norms train as they are: they scale each output channel, so folding one at the end
    changes that channel's scale and leaves its trained integers alone.
    Straight-through: Bengio et al. 2013, https://arxiv.org/abs/1308.3432, with ranges that follow
    the weights and a running average of the activations. LSQ learns the scales: Esser et al. 2020,
    https://arxiv.org/abs/1902.08153.

    Args:
        bits: of weights, 2 to 8, on a grid symmetric about zero. Stored as int8, below 7 bits as
            multiples of a power of two, which leaves the bias a finer step.
        activation_bits: of activations, 2 to 8; `bits` where it is None.
        layer_bits: bits of the weights of some layers, by glob over their names or "type:Linear";
            the first match counts. Their inputs have at least as many.
        method: "straight_through" or "lsq".

    Training starts from what `int8` makes of calibration data; without any, the example inputs give
    the first ranges.

    >>> import torch, modelzip as mz
    >>> model, x = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(32, 4)
    >>> zipped = mz.prepare(model, [mz.FakeQuantize(bits=4)], example_inputs=(x,))
    >>> sorted(set(zipped.convert().get_submodule("0").weight.abs().flatten().tolist()))
    [0, 8, 16, 24, 32, 40, 48, 56]
    """

    name: ClassVar[str] = "fake_quantize"
    stage: ClassVar[Stage] = Stage.ACTIVATION
    needs: ClassVar[Need] = Need.EXAMPLE_INPUTS
    kinds: ClassVar[tuple[type[nn.Module], ...]] = attach.KINDS

    bits: int = 8
    activation_bits: int | None = None
    layer_bits: Mapping[str, int] | None = field(default=None, hash=False)
    method: Literal["straight_through", "lsq"] = "straight_through"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer("bits", self.bits, low=2, high=8)
        if self.activation_bits is not None:
            checks.integer("activation_bits", self.activation_bits, low=2, high=8)
        self._set("layer_bits", attach.check_layer_bits(self.layer_bits))
        checks.choice("method", self.method, _METHODS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        layers, protected = attach.choose_layers(self, model)
        context.record["protected"] = protected
        batches = context.calibration or (Batch(context.example_inputs, None),)
        return self._attach(model, layers, batches, context)

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return self._attach(model, attach.choose_layers(self, model)[0], (), context)

    def _attach(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        batches: Sequence[Batch],
        context: Context,
    ) -> nn.Module:
        activation_bits = self.bits if self.activation_bits is None else self.activation_bits
        graph = attach.attach_static(
            model,
            layers,
            bits=self.bits,
            layer_bits=self.layer_bits,
            activation_bits=activation_bits,
            method=self.method,
            everywhere=True,
            batches=batches,
            context=context,
            calibrator="mse",
            percentile=100.0,
        )
        if context.calibration:  # as int8 does, where training starts
            refine(graph, context.calibration, rounding="nearest", bias_correction=True)
        return graph

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        before = {name: layer for name, layer, _ in surgery.all_attached(model, WeightQuantizer)}
        freeze(cast(fx.GraphModule, model))
        notes = notes_of(context.record)
        return attach.report(self, before, model, context.record["protected"], notes=notes)
