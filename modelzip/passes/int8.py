"""Post-training int8 quantization, for the integer kernels of the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from torch import fx, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, Need, Pass, PassReport, Stage
from modelzip.core.graph import notes_of
from modelzip.errors import SettingError
from modelzip.quantization import attach, dynamic
from modelzip.quantization.calibration import CALIBRATORS, Calibrator
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.freeze import freeze

Mode = Literal["auto", "static", "linear", "dynamic"]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MODES = ("auto", "static", "linear", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Int8(Pass):
    """Quantize weights to int8 and activations to uint8 after training.

    Weights get one scale for each output channel, activations one for each tensor, biases are
    int32, batch norms are folded; residual additions, pools and concatenations are integer too.
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877.

    Args:
        mode: "static" has fixed activation ranges everywhere, which convolutional nets need to be
            fast; "linear" has them at the inputs of linear layers alone; "dynamic" quantizes linear
            layers, with ranges found at run time. "auto" is "dynamic" for a model with layer
            norms whose weights are mostly in linear layers, and "static" otherwise.
        calibrator: how ranges follow from the calibration data: "minmax"; "percentile", which
            leaves the rarest values out; or "mse", with the least squared rounding error.
        percentile: percent of the values inside the range, for "percentile".

    >>> import torch, modelzip as mz
    >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(32, 4)
    >>> small = mz.prepare(model, [mz.Int8()], calibration=[x]).convert()
    >>> small.get_submodule("0").weight.dtype
    torch.int8
    """

    name: ClassVar[str] = "int8"
    stage: ClassVar[Stage] = Stage.ACTIVATION
    needs: ClassVar[Need] = Need.NOTHING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = attach.KINDS

    mode: Mode = "auto"
    calibrator: Calibrator = "minmax"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("mode", self.mode, _MODES)
        checks.choice("calibrator", self.calibrator, CALIBRATORS)
        percent = checks.positive("percentile", self.percentile)
        if not 50 <= percent <= 100:
            raise SettingError(f"percentile must be from 50 to 100, got {percent:g}")

    @property
    def requires(self) -> Need:
        return Need.NOTHING if self.mode == "dynamic" else Need.CALIBRATION

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        mode = self._mode(model)
        layers, protected = self._layers(model, mode)
        context.record.update(mode=mode, protected=protected)
        return self._attach(model, layers, context)

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return self._attach(model, self._layers(model, context.record["mode"])[0], context)

    def _layers(self, model: nn.Module, mode: str) -> tuple[dict[str, nn.Module], dict[str, str]]:
        kinds = (nn.Linear,) if mode in ("dynamic", "linear") else attach.KINDS
        return attach.choose_layers(self, model, kinds=kinds, traced=mode != "dynamic")

    def _attach(
        self, model: nn.Module, layers: dict[str, nn.Module], context: Context
    ) -> nn.Module:
        if context.record["mode"] == "dynamic":
            for layer in layers.values():
                dynamic.attach(cast(nn.Linear, layer), bits=8)
            return model
        return attach.attach_static(
            model,
            layers,
            bits=8,
            activation_bits=8,
            method="fixed",
            everywhere=context.record["mode"] == "static",
            batches=context.calibration,
            context=context,
            calibrator=self.calibrator,
            percentile=self.percentile,
        )

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        before = {name: layer for name, layer, _ in surgery.all_attached(model, WeightQuantizer)}
        if context.record["mode"] == "dynamic":
            dynamic.freeze(model)
        else:
            freeze(cast(fx.GraphModule, model))
        protected: dict[str, Any] = context.record["protected"]
        return attach.report(self, before, model, protected, notes=notes_of(context.record))

    def _mode(self, model: nn.Module) -> str:
        if self.mode != "auto":
            return self.mode
        # transformers, with or without a convolution that makes the patches, run best dynamically
        normalised = any(isinstance(m, nn.LayerNorm) for m in model.modules())
        linear = _weights(model, (nn.Linear,))
        return "dynamic" if normalised and linear > _weights(model, _CONVOLUTIONS) else "static"


def _weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    layers = (m for m in model.modules() if isinstance(m, kinds))
    return sum(surgery.original_tensor(layer).numel() for layer in layers)
