"""Pseudo-quantization noise: training finds how many bits each layer's weights need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, fx, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Batch, Context, Need, Pass, PassReport, Stage
from modelzip.core.graph import notes_of
from modelzip.errors import SettingError
from modelzip.numerics.widths import NARROWEST, WIDEST, round_widths
from modelzip.quantization import attach
from modelzip.quantization.freeze import freeze
from modelzip.quantization.learned import LearnedWidthQuantizer, SizePrice

_PRICE = "size_price"  # submodule of the model
_REFRESH = 20  # optimizer steps between two fits of the scales to the weights


@dataclass(frozen=True, kw_only=True)
class LearnBits(Pass):
    """Learn each layer's bits, 2 to 8, at a given mean; then train with weights rounded to them.

    For the first part of training the weights carry noise as large as rounding to the learned bits
    would be, which has a gradient for the bits, and the loss a term for their size, whose price
    follows from the target. Then the bits are whole, of a mean no larger than the target, and
    training goes on with weights rounded to them and learned scales. The noise: Défossez et al.
    2021, https://arxiv.org/abs/2104.09987; the rounding: Esser et al. 2020,
    https://arxiv.org/abs/1902.08153.

    Args:
        bits: the target size: most bits a weight, 2 to 8, as the mean over all quantized layers.
        activation_bits: of activations, 2 to 8.
        settle: fraction of the training steps after which the bits are whole and fixed.

    >>> import torch, modelzip as mz
    >>> model, x = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(32, 4)
    >>> pass_ = mz.LearnBits(bits=3.2)
    >>> zipped = mz.prepare(model, [pass_], example_inputs=(x,), training_steps=9)
    >>> small = zipped.convert()
    >>> [layer.bits for layer in zipped.reports[0].layers]
    [3.0, 3.0]
    """

    name: ClassVar[str] = "learn_bits"
    stage: ClassVar[Stage] = Stage.ACTIVATION
    needs: ClassVar[Need] = Need.EXAMPLE_INPUTS | Need.TRAINING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = attach.KINDS

    bits: float = 4.0
    activation_bits: int = 8
    settle: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("bits", checks.positive("bits", self.bits))
        if not NARROWEST <= self.bits <= WIDEST:
            raise SettingError(f"bits must be a mean from 2 to 8, got {self.bits:g}")
        checks.integer("activation_bits", self.activation_bits, low=2, high=8)
        checks.fraction("settle", self.settle, zero=False)

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
        graph = attach.attach_static(
            model,
            layers,
            bits=NARROWEST,
            activation_bits=self.activation_bits,
            method="straight_through",
            everywhere=True,
            batches=batches,
            calibrator="minmax" if self.activation_bits > 4 else "mse",
            percentile=100.0,
            context=context,
            weight_quantizer=LearnedWidthQuantizer,
        )
        steps = context.training_steps or 0
        graph.add_module(_PRICE, SizePrice(settle_step=max(1, round(self.settle * steps))))
        for quantizer, _ in _quantized(graph):
            quantizer.start(self.bits)
        self._round(graph)
        return graph

    def step(self, model: nn.Module, step: int) -> None:
        price = _price(model)
        if price.settled or not price.follow(float(self._gap(model).detach()), step=step):
            return
        if price.settled or step % _REFRESH == 0:
            self._round(model)
        for quantizer, _ in _quantized(model):
            quantizer.settled = price.settled

    def settled(self, model: nn.Module, step: int) -> bool:
        return step >= _price(model).settle_step

    def penalty(self, model: nn.Module) -> Tensor | float:
        price = _price(model)
        return 0.0 if price.settled else price.penalty(self._gap(model))

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        found = surgery.all_attached(model, LearnedWidthQuantizer)
        before = {name: layer for name, layer, _ in found}
        freeze(cast(fx.GraphModule, model))
        notes = notes_of(context.record)
        return attach.report(self, before, model, context.record["protected"], notes=notes)

    def _gap(self, model: nn.Module) -> Tensor:
        """Mean bits a weight above the target, differentiable."""
        found = _quantized(model)
        total = sum(weight.numel() for _, weight in found)
        mean = sum(quantizer.width * (weight.numel() / total) for quantizer, weight in found)
        return cast(Tensor, mean) - self.bits

    def _round(self, model: nn.Module) -> None:
        found = _quantized(model)
        widths = [float(quantizer.width.detach()) for quantizer, _ in found]
        counts = [weight.numel() for _, weight in found]
        chosen = round_widths(widths, counts, mean=self.bits)
        for (quantizer, weight), bits in zip(found, chosen, strict=True):
            quantizer.choose(weight, bits=bits)


def _quantized(model: nn.Module) -> list[tuple[LearnedWidthQuantizer, Tensor]]:
    """Each quantizer, and the weight that it rounds as training has it."""
    return [
        (quantizer, surgery.original_tensor(layer))
        for _, layer, quantizer in surgery.all_attached(model, LearnedWidthQuantizer)
    ]


def _price(model: nn.Module) -> SizePrice:
    return cast(SizePrice, model.get_submodule(_PRICE))
