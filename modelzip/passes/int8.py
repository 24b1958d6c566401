"""Post-training int8 quantization, for the integer kernels of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from torch import fx, nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, Need, Pass, PassReport, Stage
from modelzip.core.graph import notes_of
from modelzip.errors import SelectionError, SettingError, did_you_mean
from modelzip.quantization import attach, dynamic
from modelzip.quantization.allocation import allocate_bits
from modelzip.quantization.calibration import CALIBRATORS, Calibrator
from modelzip.quantization.correction import refine
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.freeze import freeze
from modelzip.quantization.representative import refuse_constant
from modelzip.quantization.rounding import ROUNDINGS, Rounding

Mode = Literal["auto", "static", "linear", "dynamic"]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PORTABLE_BITS = 7  # two products of 7 and 8 bits fit the 16 bits they are summed in
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
        bits: of weights, 2 to 8. The kernels are those of 8 bits at any of them.
        activation_bits: of activations, 2 to 8; 8 where ranges are found at run time.
        layer_bits: bits of the weights of some layers, by glob over their names or "type:Linear";
            the first match counts. Their inputs have at least as many.
        size: of the file, as a ratio to that in float32 such as "0.12x", in place of the two
            before: each layer gets the bits, 2 to 8, that cost the outputs least at that size.
        rounding: of weights: "nearest", or "least_squares", which keeps each layer's output on the
            calibration data and makes up for the layers before it (Frantar et al. 2022,
            https://arxiv.org/abs/2210.17323, with fitted scales); worth its time below 8 bits.
        bias_correction: shift biases, and rescale batch norms, so that each channel has the mean
            and deviation of the float model on the calibration data (Nagel et al. 2019,
            https://arxiv.org/abs/1906.04721, section 4.2). Where ranges are fixed.
        portable: keep weights in 7 bits, which processors without VNNI, whose sums of two products
            saturate at 16 bits, compute exactly too.
        calibrator: how ranges follow from the calibration data: "minmax"; "percentile", which
            leaves the rarest values out; "mse", with the least squared rounding error over all
            data, sums sharing the step of a term where that costs less; "mse_batch", the mean of
            each batch's "mse" range; or "entropy", with the least information lost.
        percentile: percent of the values inside the range, for "percentile".
        keep_float: layers to leave in float, by name, each with the reason; or "auto": a recipe's
            run, and `compress`, find those that are slower in int8 on this machine, or that cost
            most of the accuracy where more than the recipe allows is lost.

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
    bits: int = 8
    activation_bits: int = 8
    layer_bits: Mapping[str, int] | None = field(default=None, hash=False)
    size: str | None = None
    rounding: Rounding = "nearest"
    bias_correction: bool = True
    portable: bool = False
    calibrator: Calibrator = "mse"
    percentile: float = 99.99
    keep_float: Mapping[str, str] | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("mode", self.mode, _MODES)
        checks.integer("bits", self.bits, low=2, high=8)
        checks.integer("activation_bits", self.activation_bits, low=2, high=8)
        self._set("layer_bits", attach.check_layer_bits(self.layer_bits))
        if self.size is not None:
            checks.ratio("size", self.size)
            if self.bits != 8 or self.layer_bits:
                raise SettingError("size chooses the bits of each layer; give it without bits")
        checks.choice("rounding", self.rounding, ROUNDINGS)
        checks.flag("bias_correction", self.bias_correction)
        checks.flag("portable", self.portable)
        if self.mode == "dynamic":
            self._refuse_ranges()
        checks.choice("calibrator", self.calibrator, CALIBRATORS)
        percent = checks.positive("percentile", self.percentile)
        if not 50 <= percent <= 100:
            raise SettingError(f"percentile must be from 50 to 100, got {percent:g}")
        if self.keep_float != "auto":
            self._set("keep_float", _reasons(self.keep_float))

    @property
    def requires(self) -> Need:
        unranged = self.mode == "dynamic" and self.size is None
        return Need.NOTHING if unranged else Need.CALIBRATION

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        if self.keep_float == "auto":
            raise SettingError(
                "keep_float='auto' times files, which modelzip run and compress do; here name the "
                "layers: keep_float={'fc': 'reason'}"
            )
        mode = self._mode(model)
        if mode == "dynamic":
            self._refuse_ranges()
        else:
            refuse_constant(context.calibration)
        layers, protected = self._layers(model, mode)
        layer_bits = self.layer_bits
        if self.size is not None:
            size = checks.ratio("size", self.size)
            layer_bits = allocate_bits(
                model, layers, context.calibration, size=size, rounding=self.rounding
            )
        context.record.update(mode=mode, protected=protected, layer_bits=layer_bits)
        return self._attach(model, layers, context)

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return self._attach(model, self._layers(model, context.record["mode"])[0], context)

    def _refuse_ranges(self) -> None:
        """SettingError for settings that need fixed activation ranges, where there are none."""
        for name, value, only in (
            ("activation_bits", self.activation_bits, 8),
            ("rounding", self.rounding, "nearest"),
        ):
            if value != only:
                raise SettingError(
                    f"{name} must be {only} with dynamic quantization, which finds ranges at run "
                    f"time, got {value}; set mode to static or linear"
                )

    def _layers(self, model: nn.Module, mode: str) -> tuple[dict[str, nn.Module], dict[str, str]]:
        kinds = (nn.Linear,) if mode in ("dynamic", "linear") else attach.KINDS
        layers, protected = attach.choose_layers(self, model, kinds=kinds, traced=mode != "dynamic")
        kept = cast("Mapping[str, str]", self.keep_float or {})
        for name in kept:
            if name not in layers:
                near = did_you_mean(name, layers)
                raise SelectionError(f"keep_float: there is no layer {name!r} to quantize{near}")
        layers = {name: layer for name, layer in layers.items() if name not in kept}
        if not layers:
            raise SelectionError("keep_float names every layer; leave int8 out")
        return layers, protected | dict(kept)

    def _attach(
        self, model: nn.Module, layers: dict[str, nn.Module], context: Context
    ) -> nn.Module:
        most = _PORTABLE_BITS if self.portable else 8
        wanted: dict[str, int] | None = context.record["layer_bits"]
        layer_bits = {name: min(bits, most) for name, bits in (wanted or {}).items()}
        if context.record["mode"] == "dynamic":
            for name, bits in attach.bits_of(layers, min(self.bits, most), layer_bits).items():
                dynamic.attach(cast(nn.Linear, layers[name]), bits=bits)
            return model
        graph = attach.attach_static(
            model,
            layers,
            bits=min(self.bits, most),
            layer_bits=layer_bits,
            activation_bits=self.activation_bits,
            method="fixed",
            everywhere=context.record["mode"] == "static",
            batches=context.calibration,
            context=context,
            calibrator=self.calibrator,
            percentile=self.percentile,
        )
        if context.calibration and (self.bias_correction or self.rounding != "nearest"):
            refine(
                graph,
                context.calibration,
                rounding=self.rounding,
                bias_correction=self.bias_correction,
            )
        if self.rounding != "nearest":
            for _, _, quantizer in surgery.all_attached(graph, WeightQuantizer):
                quantizer.keep()  # refitted scales would round the chosen integers again
        return graph

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


def _reasons(kept: object) -> dict[str, str] | None:
    """The setting `keep_float` in its proper type, or SettingError; None where it is empty."""
    if kept is None or kept == {}:
        return None
    if not isinstance(kept, Mapping):
        raise SettingError(
            f"keep_float must be auto, or map layer names to reasons, got {kept!r}; "
            "skip takes patterns"
        )
    return {str(name): str(reason) for name, reason in kept.items()}


def _weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    layers = (m for m in model.modules() if isinstance(m, kinds))
    return sum(surgery.original_tensor(layer).numel() for layer in layers)
