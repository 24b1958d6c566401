"""Half-precision floats: half the bytes, and on some hardware more speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from modelzip.core import checks, precision, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.running import call, evaluating, tensors
from modelzip.core.selection import candidates, select
from modelzip.errors import ModelError, SettingError
from modelzip.numerics.floats import largest_magnitude, overflow_count, underflow_count
from modelzip.quantization.fake import ActivationQuantizer, WeightQuantizer

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Cast(Pass):
    """Store what is left in float32 as float16 or bfloat16, and optionally compute in float16.

    Values too large for the type are looked for before anything is changed, and named.
    bfloat16 convolutions have no kernel in onnxruntime, so that type is for storage alone.
    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740.

    Args:
        dtype: "float16" (3 digits, up to 65504) or "bfloat16" (2 digits, float32's range).
        weights_only: store in `dtype` and compute in float32: half the file at the full speed,
            as onnxruntime widens weights once, on loading. False computes in `dtype` too, which
            is faster on most GPUs and slower on most CPUs.
        keep_io: return float32, when computing in `dtype`. False returns `dtype`.
        skip: layers that stay float32, and compute in it.

    A converted layer's `weight` reads as float32 under weights_only; its state holds `dtype`.

    >>> import modelzip as mz
    >>> small = mz.prepare(nn.Linear(4, 2), [mz.Cast(dtype="float16")]).convert()
    >>> small.state_dict()["weight"].dtype, small(torch.ones(1, 4)).dtype
    (torch.float16, torch.float32)
    """

    name: ClassVar[str] = "cast"
    stage: ClassVar[Stage] = Stage.PRECISION
    needs: ClassVar[Need] = Need.NOTHING

    dtype: str = "float16"
    weights_only: bool = True
    keep_io: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("dtype", self.dtype, _DTYPES)
        checks.flag("weights_only", self.weights_only)
        checks.flag("keep_io", self.keep_io)
        if self.weights_only and not self.keep_io:
            raise SettingError(
                "keep_io=False needs weights_only=False: inputs and outputs are float32 as long as "
                "the computation is"
            )
        if self.dtype == "bfloat16" and not self.weights_only:
            raise SettingError(
                "dtype='bfloat16' needs weights_only=True: onnxruntime has no bfloat16 convolution"
            )

    @property
    def requires(self) -> Need:
        """Inputs to try it on as well, when computing in `dtype`."""
        return self.needs if self.weights_only else self.needs | Need.EXAMPLE_INPUTS

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self._layers(model)
        self._check_ranges(model, layers, context)
        if not self.weights_only:
            trial = surgery.clone(model)
            for module in trial.modules():
                surgery.detach_all(module)  # the types are on trial, not the values
            self._cast(trial, self._layers(trial))
            self._check_runs(trial, context)
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return model

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        layers = self._layers(model)
        self._check_ranges(model, layers, context)
        lost = {name: _lost(layer, self._torch_dtype) for name, layer in layers.items()}
        self._cast(model, layers)
        if not self.weights_only:
            self._check_runs(model, context)
        rows = tuple(_row(name, layer, lost[name]) for name, layer in layers.items())
        return PassReport(name=self.name, settings=self.settings(), layers=rows)

    @property
    def _torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        if not self.weights_only and isinstance(model, fx.GraphModule):
            raise ModelError(
                "weights_only=False cannot follow quantization or tracing; set weights_only=True"
            )
        # a static quantizer folds batch norms away when it converts
        static = any(isinstance(m, ActivationQuantizer) for m in model.modules())
        norms = (nn.BatchNorm1d, nn.BatchNorm2d) if static else ()

        def is_left(module: nn.Module) -> bool:
            return bool(_floats(module)) and not isinstance(module, norms)

        if not any(is_left(module) for _, module in candidates(model, kinds=self.kinds)):
            raise ModelError(
                "cast finds nothing left in float32: every layer is quantized, or of another type"
            )
        layers = select(
            model, kinds=self.kinds, targets=self.targets, skip=self.skip, where=is_left
        )
        surgery.refuse_computed(layers, pass_name=self.name)
        for group in surgery.tied_parameters(model):
            inside = {name.rpartition(".")[0] in layers for name in group}
            if len(inside) == 2:
                raise ModelError(f"cast would untie {' and '.join(group)}; skip all or none")
        return layers

    def _check_ranges(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> None:
        """ModelError naming every layer with a weight or activation that overflows."""
        dtype = self._torch_dtype
        found: dict[str, list[str]] = {}
        for layer, module in layers.items():
            for name, tensor in _floats(module).items():
                if overflow_count(tensor, dtype):
                    found.setdefault(layer, []).append(f"{name} {largest_magnitude(tensor):.4g}")
        if not self.weights_only:
            limit = torch.finfo(dtype).max
            for layer, largest in _activations(model, layers, context).items():
                if largest > limit:
                    found.setdefault(layer, []).append(f"activations {largest:.4g}")
        if found:
            values = "; ".join(f"{layer}: {', '.join(items)}" for layer, items in found.items())
            raise ModelError(
                f"{self.dtype} ends at {torch.finfo(dtype).max:g}, and these go beyond: {values}. "
                f"Add skip: [{', '.join(found)}], or use dtype: bfloat16"
            )

    def _cast(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        floating = [name for name, m in candidates(model, kinds=self.kinds) if _floats(m)]
        stored = {module: _floats(module) for module in layers.values()}
        precision.store(stored, self._torch_dtype)
        if self.weights_only:
            for module, own in stored.items():
                precision.widen(module, tuple(own))
            return
        for name, module in model.named_modules():
            below = [n for n in floating if n == name or not name or n.startswith(f"{name}.")]
            if below and all(n in layers for n in below):
                # containers too: some read the weights of the layers in them
                precision.compute_in(module, inside=self._torch_dtype)
            elif name in floating and name not in layers:
                precision.compute_in(module, inside=torch.float32)
        precision.compute_in(model, outside=torch.float32 if self.keep_io else self._torch_dtype)

    def _check_runs(self, model: nn.Module, context: Context) -> None:
        if context.example_inputs is None:  # a checkpoint was read; it ran when it was written
            return
        remedy = "set weights_only=True, or skip the layers concerned"
        outputs = list(tensors(_run(model, context.example_inputs, self.dtype, remedy)))
        if not all(bool(torch.isfinite(t).all()) for t in outputs):
            raise ModelError(
                f"{type(model).__name__} gives NaN or infinity in {self.dtype}: a value between "
                "its layers overflows; set weights_only=True"
            )


def _floats(module: nn.Module) -> dict[str, Tensor]:
    """The float32 weights of `module` itself. Scalars are left out: there is nothing to save."""
    own = surgery.own_tensors(module)
    quantized = any(t.dtype is torch.int8 for t in own.values())
    if quantized or surgery.attached(module, WeightQuantizer) is not None:
        return {}  # what is float there are scales
    return {n: t for n, t in own.items() if t.dtype is torch.float32 and t.dim()}


def _activations(
    model: nn.Module, layers: Mapping[str, nn.Module], context: Context
) -> dict[str, float]:
    """The largest magnitude that goes into or comes out of each layer, on the data there are."""
    largest = dict.fromkeys(layers, 0.0)

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: Any, outputs: Any) -> None:
            floats = [t for t in tensors((args, outputs)) if t.is_floating_point()]
            largest[name] = max(largest[name], *(largest_magnitude(t) for t in floats), 0.0)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        for inputs in _batches(context):
            _run(model, inputs, "float32", "give inputs that it takes")
    finally:
        for handle in handles:
            handle.remove()
    return largest


def _run(model: nn.Module, inputs: Any, dtype: str, remedy: str) -> Any:
    try:
        with evaluating(model):
            return call(model, inputs)
    except Exception as error:  # the user's forward raises what it likes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"{type(model).__name__} does not run in {dtype}: {reason}; {remedy}"
        ) from error


def _batches(context: Context) -> Iterator[Any]:
    if context.example_inputs is not None:
        yield context.example_inputs
    for batch in context.calibration:
        yield batch.inputs


def _lost(layer: nn.Module, dtype: torch.dtype) -> int:
    return sum(underflow_count(tensor, dtype) for tensor in _floats(layer).values())


def _row(name: str, layer: nn.Module, lost: int) -> LayerReport:
    count, nonzero = surgery.parameter_counts(layer)
    return LayerReport(
        name=name,
        kind=type(layer).__name__,
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        bits=16.0,
        note=f"{lost} values became zero" if lost else "",
    )
