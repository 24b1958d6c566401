"""Weights in 8 or 4 bits beside float activations: for size, and for large linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.selection import select
from modelzip.errors import ModelError, SettingError
from modelzip.quantization import blocks, nbits
from modelzip.quantization.blocks import BlockQuantizer, NormalFloatQuantizer
from modelzip.quantization.fake import WeightQuantizer

Codebook = Literal["uniform", "nf4"]
Compute = Literal["float", "int8"]
_KERNEL_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class WeightOnly(Pass):
    """Store weights in 8 or 4 bits, and compute in float32 at the speed of float.

    The runtime unpacks the weights once, when it loads the file; or with `compute` "int8" never,
    and is faster than float where linear layers are large. Scales cover the largest |w| at
    8 bits and minimise the squared error at 4. Blocks: Dettmers et al. 2022,
    https://arxiv.org/abs/2110.02861. NormalFloat4: Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314.

    Args:
        bits: 8 or 4.
        block_size: weights that share a scale, along the inputs of an output; at least 8. None is
            one scale for each output. A scale takes 32 bits, so blocks of 32 make 4 bits 5.
        codebook: "uniform" rounds to multiples of the scale; "nf4" to 16 values that lie as
            densely as normally distributed weights do, with 4 bits alone.
        compute: "int8" keeps linear layers of `block_size` inputs or more packed in memory too, and
            multiplies them by inputs rounded to int8 in blocks (MatMulNBits of onnxruntime, with
            block_size 16, 32, 64, 128 or 256). "float" leaves inputs as they are.

    A converted layer's `weight` reads as float32; its state holds the codes.

    >>> import modelzip as mz
    >>> small = mz.prepare(nn.Linear(64, 8), [mz.WeightOnly(bits=4, block_size=32)]).convert()
    >>> small.state_dict()["weight"].dtype, small.state_dict()["weight_scale"].shape
    (torch.int8, torch.Size([8, 2, 1]))
    """

    name: ClassVar[str] = "weight_only"
    stage: ClassVar[Stage] = Stage.ACTIVATION
    needs: ClassVar[Need] = Need.NOTHING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.Linear,
        nn.Embedding,
    )

    bits: int = 8
    block_size: int | None = None
    codebook: Codebook = "uniform"
    compute: Compute = "float"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (4, 8):
            raise SettingError(f"bits must be 4 or 8, got {self.bits!r}")
        if self.block_size is not None:
            checks.integer("block_size", self.block_size, low=8)
        checks.choice("codebook", self.codebook, ("uniform", "nf4"))
        if self.codebook == "nf4" and self.bits != 4:
            raise SettingError(f"codebook='nf4' has 16 values, got bits={self.bits}; set bits: 4")
        checks.choice("compute", self.compute, ("float", "int8"))
        if self.compute == "int8" and self.codebook == "nf4":
            raise SettingError("compute='int8' multiplies integers; set codebook: uniform")
        if self.compute == "int8" and self.block_size not in _KERNEL_BLOCKS:
            raise SettingError(
                f"compute='int8' has kernels for blocks of {', '.join(map(str, _KERNEL_BLOCKS))}, "
                f"got block_size={self.block_size}"
            )

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self._layers(model)
        suited = self._multiplied(model)
        if self.compute == "int8" and not suited.keys() & layers.keys():
            raise ModelError(
                f"compute='int8' is for linear layers of at least {self.block_size} inputs, and "
                "none is selected; set compute: float, or a smaller block_size"
            )
        for name, layer in layers.items():
            quantizer = self._quantizer(surgery.original_tensor(layer).detach())
            surgery.attach(layer, quantizer.train(layer.training))
            if name in suited:
                nbits.attach(suited[name], block_size=cast(int, self.block_size))
        return model

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        rows = []
        suited = self._multiplied(model)
        for name, layer, _ in list(surgery.all_attached(model, BlockQuantizer)):
            before = surgery.parameter_counts(layer)[0]
            kind = type(layer).__name__.removeprefix("Parametrized")
            blocks.store(layer)
            if name in suited:
                nbits.store(suited[name], bits=self.bits, block_size=cast(int, self.block_size))
            row = self._row(name, kind, layer, before)
            note = f"{row.note}, multiplied in int8" if name in suited else row.note
            rows.append(replace(row, note=note))
        if suited:
            nbits.keep_off_fused_paths(model)
        return PassReport(name=self.name, settings=self.settings(), layers=tuple(rows))

    def _multiplied(self, model: nn.Module) -> dict[str, nn.Linear]:
        """The layers that run in int8, were they selected."""
        if self.compute == "float":
            return {}
        return nbits.suited(model, block_size=cast(int, self.block_size))

    def _quantizer(self, weight: torch.Tensor) -> BlockQuantizer:
        if self.codebook == "nf4":
            return NormalFloatQuantizer(weight, block_size=self.block_size)
        return BlockQuantizer(weight, bits=self.bits, block_size=self.block_size)

    def _layers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        if next(surgery.all_attached(model, WeightQuantizer), None) is not None:
            raise SettingError(f"{self.name}: the model is quantized already; give one such pass")
        layers = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        surgery.refuse_tied(model, layers, pass_name=self.name)
        surgery.refuse_computed(layers, pass_name=self.name)
        for name, layer in layers.items():
            weight = surgery.original_tensor(layer)
            full = f"{name}.weight" if name else "weight"
            if weight.dtype != torch.float32:
                kind = str(weight.dtype).removeprefix("torch.")
                raise ModelError(
                    f"{full} is {kind}; {self.name} works on float32, call model.float() first"
                )
            if not bool(torch.isfinite(weight).all()):
                raise ModelError(f"{full} holds NaN or infinity; nothing was quantized")
        return layers

    def _row(self, name: str, kind: str, layer: nn.Module, before: int) -> LayerReport:
        count, nonzero = surgery.parameter_counts(layer)
        stored = layer.state_dict()
        mean = self.bits + 32 * stored["weight_scale"].numel() / stored["weight"].numel()
        return LayerReport(
            name=name,
            kind=kind,
            parameters_before=before,
            parameters_after=count,
            nonzero=nonzero,
            bits=float(self.bits),
            note=f"{mean:.2f} bits a weight with its scales",
        )
