"""Half-precision floats: half the bytes, and on some hardware more speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from modelzip.core import checks, mixed, precision, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.running import call, evaluating, tensors
from modelzip.core.selection import candidates, select
from modelzip.errors import ModelError, SettingError
from modelzip.numerics.floats import largest_magnitude, misfit, underflow_count
from modelzip.quantization.fake import ActivationQuantizer, WeightQuantizer

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Cast(Pass):
    """Store what is left in float32 as float16 or bfloat16, and optionally compute in float16.

    What the type cannot hold stays float32 by itself, and the report says why: weights, and when
    computing in float16 the modules whose values or sums, in a run in float32 on the example
    inputs and the calibration data, come within a factor of 8 of 65504 or stay below 6.1e-05.
    bfloat16 convolutions have no kernel in onnxruntime, so that type is for storage alone.
    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740.

    Args:
        dtype: "float16" (3 digits, up to 65504) or "bfloat16" (2 digits, float32's range).
        weights_only: store in `dtype` and compute in float32: half the file at the full speed,
            as onnxruntime widens weights once, on loading. Biases and other vectors stay float32,
            which widening would cost more bytes than it saves. False computes in `dtype` too,
            which is faster on most GPUs and slower on most CPUs.
        keep_io: return float32, when computing in `dtype`. False returns `dtype`.
        skip: more layers that stay float32, and compute in it.

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
        layers, protected = self._layers(model, {})
        if not self.weights_only:
            risks = self._risks(model, context)
            layers, protected = self._layers(model, risks)
            context.record["protected"] = risks
            trial = surgery.clone(model)
            for module in trial.modules():
                surgery.detach_all(module)  # the types are on trial, not the values
            self._cast(trial, {n: trial.get_submodule(n) for n in layers}, protected)
            self._check_runs(trial, context)
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        return model

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        layers, protected = self._layers(model, context.record.get("protected", {}))
        lost = {name: self._lost(layer) for name, layer in layers.items()}
        self._cast(model, layers, protected)
        if not self.weights_only:
            self._check_runs(model, context)
        rows = tuple(_row(name, layer, lost[name]) for name, layer in layers.items())
        return PassReport(
            name=self.name, settings=self.settings(), layers=rows, protected=_named(protected)
        )

    @property
    def _torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    def _floats(self, module: nn.Module) -> dict[str, Tensor]:
        """The float32 tensors of `module` itself that are to be stored in `dtype`."""
        own = surgery.own_tensors(module)
        quantized = any(t.dtype is torch.int8 for t in own.values())
        if quantized or surgery.attached(module, WeightQuantizer) is not None:
            return {}  # what is float there are scales
        least = 2 if self.weights_only else 1
        return {n: t for n, t in own.items() if t.dtype is torch.float32 and t.dim() >= least}

    def _layers(
        self, model: nn.Module, risks: dict[str, str]
    ) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """The layers to cast, and why modules stay float32: `risks`, and their weights."""
        if not self.weights_only and isinstance(model, fx.GraphModule):
            raise ModelError(
                "weights_only=False cannot follow quantization or tracing; set weights_only=True"
            )
        # a static quantizer folds batch norms away when it converts
        static = any(isinstance(m, ActivationQuantizer) for m in model.modules())
        norms = (nn.BatchNorm1d, nn.BatchNorm2d) if static else ()

        def is_left(module: nn.Module) -> bool:
            return bool(self._floats(module)) and not isinstance(module, norms)

        if not any(is_left(module) for _, module in candidates(model, kinds=self.kinds)):
            raise ModelError(
                "cast finds nothing left in float32: every layer is quantized, or of another type"
            )
        selected = select(
            model, kinds=self.kinds, targets=self.targets, skip=self.skip, where=is_left
        )
        surgery.refuse_computed(selected, pass_name=self.name)
        found = {n: r for n, m in selected.items() if (r := self._misfit(m))} | risks
        protected = found if self.weights_only else mixed.whole_units(model, found)
        protected = self._with_tied(model, selected, protected)
        layers = {n: m for n, m in selected.items() if n not in protected}
        if not layers:
            reasons = "; ".join(f"{n}: {r}" for n, r in _named(protected).items())
            raise ModelError(
                f"{self.dtype} can hold none of the selected layers ({reasons}); use "
                f"{'dtype: bfloat16' if self.weights_only else 'weights_only: true'}"
            )
        return layers, protected

    def _misfit(self, module: nn.Module) -> str:
        for name, tensor in self._floats(module).items():
            if reason := misfit(largest_magnitude(tensor), self._torch_dtype):
                return f"{name} {reason}"
        return ""

    def _with_tied(
        self, model: nn.Module, selected: dict[str, nn.Module], protected: dict[str, str]
    ) -> dict[str, str]:
        """`protected`, and the layers that share a weight with one of them."""
        found = dict(protected)
        for group in surgery.tied_parameters(model):
            owners = [name.rpartition(".")[0] for name in group]
            if len({owner in selected for owner in owners}) == 2:
                raise ModelError(f"cast would untie {' and '.join(group)}; skip all or none")
            hit = next((owner for owner in owners if owner in protected), None)
            if hit is not None:
                found |= {o: f"tied to {hit}" for o in owners if o not in protected}
        return found

    def _risks(self, model: nn.Module, context: Context) -> dict[str, str]:
        with _explained(model, "float32", "give inputs that it takes"):
            return mixed.risks(model, _inputs(context), self._torch_dtype)

    def _cast(
        self, model: nn.Module, layers: dict[str, nn.Module], protected: dict[str, str]
    ) -> None:
        stored = {module: self._floats(module) for module in layers.values()}
        precision.store(stored, self._torch_dtype)
        if self.weights_only:
            for module, own in stored.items():
                precision.widen(module, tuple(own))
            return
        untouched = {
            name
            for name, module in model.named_modules()
            if name not in layers and any(t.dim() for t in surgery.own_tensors(module).values())
        }
        mixed.compute_narrow(
            model,
            self._torch_dtype,
            wide=untouched | set(protected),
            outside=torch.float32 if self.keep_io else self._torch_dtype,
        )

    def _check_runs(self, model: nn.Module, context: Context) -> None:
        if context.example_inputs is None:  # a checkpoint was read; it ran when it was written
            return
        remedy = "set weights_only=True, or skip the layers concerned"
        with _explained(model, self.dtype, remedy), evaluating(model):
            outputs = list(tensors(call(model, context.example_inputs)))
        floats = [t for t in outputs if t.is_floating_point()]
        if not all(bool(torch.isfinite(t).all()) for t in floats):
            raise ModelError(
                f"{type(model).__name__} gives NaN or infinity in {self.dtype}; set "
                "weights_only=True, or prepare it again if its weights have grown since"
            )

    def _lost(self, layer: nn.Module) -> int:
        dtype = self._torch_dtype
        return sum(underflow_count(tensor, dtype) for tensor in self._floats(layer).values())


@contextmanager
def _explained(model: nn.Module, dtype: str, remedy: str) -> Iterator[None]:
    """ModelError in place of whatever the user's forward raises inside."""
    try:
        yield
    except Exception as error:  # it raises what it likes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"{type(model).__name__} does not run in {dtype}: {reason}; {remedy}"
        ) from error


def _inputs(context: Context) -> Iterator[Any]:
    if context.example_inputs is not None:
        yield context.example_inputs
    for batch in context.calibration:
        yield batch.inputs


def _named(reasons: dict[str, str]) -> dict[str, str]:
    return {name or "the model": f"kept float32: {reason}" for name, reason in reasons.items()}


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
