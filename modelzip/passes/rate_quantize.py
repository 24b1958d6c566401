"""Weights for the archive: rounded so that they take the fewest entropy-coded bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.graph import notes_of, trace
from modelzip.core.selection import select
from modelzip.errors import SettingError
from modelzip.quantization import attach, blocks, rate
from modelzip.quantization.blocks import BlockQuantizer
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.folding import fold_norms


@dataclass(frozen=True, kw_only=True)
class RateQuantize(Pass):
    """Round weights so that an archive of them is as small as `size`, or costs as much as `kl`.

    Nothing is gained in memory or time: the file computes in float. Batch norms are folded. Each
    layer has one step, in proportion to the root of its weights over its sensitivity, measured by
    rounding it alone, so that a bit gains the same everywhere; integers are chosen by least squares
    and by the bits they take, scales of channels and biases make up for the rest. After DeepCABAC,
    Wiedemann et al. 2020, https://arxiv.org/abs/1907.11900, and GPTQ, Frantar et al. 2022,
    https://arxiv.org/abs/2210.17323.

    Attributes:
        size: bytes of the coded weights as a fraction of those of all parameters in float32, such
            as "0.05x"; by the entropy of each layer, which the archive's context coder undercuts.
        kl: mean Kullback-Leibler divergence from the original's answers on the calibration data, in
            nats. On data that the model was not trained on it is several times as large. One of the
            two is given.
        price: of a bit, in units of a step's squared error; 0 rounds for accuracy alone.

    >>> import modelzip as mz, torch
    >>> net, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 64)
    >>> small = mz.prepare(net, [mz.RateQuantize(size="0.1x")], calibration=[x]).convert()
    >>> small.state_dict()["0.weight"].dtype
    torch.int8
    """

    name: ClassVar[str] = "rate_quantize"
    stage: ClassVar[Stage] = Stage.ACTIVATION
    needs: ClassVar[Need] = Need.CALIBRATION
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.Linear,
        nn.Embedding,
    )

    size: str | None = None
    kl: float | None = None
    price: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.size is None) == (self.kl is None):
            given = "none" if self.size is None else "both"
            raise SettingError(f"rate_quantize needs size, such as 0.05x, or kl, got {given}")
        if self.size is not None:
            checks.ratio("size", self.size)
        if self.kl is not None:
            checks.positive("kl", self.kl)
        checks.positive("price", self.price, zero=True)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantizers on the traced `model`, its weights rounded to what `size` or `kl` allow.

        Raises:
            SettingError: the target is out of reach, or the model is quantized already.
            SelectionError: targets and skip leave no layer.
            ModelError: the model cannot be traced, its weights are tied, or not finite float32.
        """
        layers = self._layers(model)
        counts = {name: surgery.parameter_counts(layer)[0] for name, layer in layers.items()}
        context.record["parameters"] = counts  # batch norms fold into biases that there were not
        graph = self._attach(model, list(layers), context)
        rounding = rate.Rounding(graph, list(layers), context.calibration, price=self.price)
        if self.kl is not None:
            rounding.solve(kl=self.kl)
        else:
            rounding.solve(size=checks.ratio("size", self.size))
        return graph

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return self._attach(model, list(self._layers(model)), context)

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        rows = []
        for name, layer, quantizer in list(surgery.all_attached(model, BlockQuantizer)):
            count, nonzero = surgery.parameter_counts(layer)
            bits = rate.coded_bits(layer)
            kind = type(layer).__name__.removeprefix("Parametrized")
            step = float(quantizer.scale.median())
            blocks.store(layer)
            rows.append(
                LayerReport(
                    name=name,
                    kind=kind,
                    parameters_before=context.record["parameters"][name],
                    parameters_after=count,
                    nonzero=nonzero,
                    bits=8.0,
                    note=f"step {step:.2g}, {bits / count:.2f} bits a parameter once coded",
                )
            )
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(rows),
            notes=notes_of(context.record),
        )

    def _layers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        if next(surgery.all_attached(model, WeightQuantizer), None) is not None:
            raise SettingError(f"{self.name}: the model is quantized already; give one such pass")
        layers = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        surgery.refuse_tied(model, layers, pass_name=self.name)
        surgery.refuse_computed(layers, pass_name=self.name)
        attach.refuse_unusable(self, model)
        return layers

    def _attach(self, model: nn.Module, layers: Sequence[str], context: Context) -> fx.GraphModule:
        graph = trace(model, context)
        fold_norms(graph)
        for name in layers:
            layer = graph.get_submodule(name)
            weight = surgery.original_tensor(layer).detach()
            quantizer = BlockQuantizer(weight, bits=8, block_size=None)
            quantizer.keep()
            surgery.attach(layer, quantizer.train(layer.training))
        return graph
