"""What quantizing each layer alone costs, so that bits go where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core import checks, surgery
from modelzip.core.answers import Tally, log_probabilities
from modelzip.core.running import as_batches, call, evaluating
from modelzip.core.selection import select
from modelzip.errors import ModelError, SettingError, did_you_mean
from modelzip.numerics.affine import activation_grid, fake_quantize, levels
from modelzip.quantization.fake import WeightQuantizer

_INPUT_BITS = 8
_KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What rounding one layer to `bits` does to the outputs of a model that else stays in float.

    Attributes:
        layer: the module's name.
        bits: of its weights.
        parameters: its weights, biases aside.
        kl: mean Kullback-Leibler divergence from the float model's outputs, softened at a
            temperature of 3, in nats for each sample.
        agreement: fraction of the samples whose largest output stays the same.
    """

    layer: str
    bits: int
    parameters: int
    kl: float
    agreement: float


def sensitivity(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    bits: Sequence[int] = (8,),
    layers: Sequence[str] | None = None,
    activations: bool = True,
) -> list[Sensitivity]:
    """Quantize each layer of the float `model` alone, and compare its outputs on `batches`.

    Weights are rounded to a symmetric grid for each output channel. A layer and bit width takes
    one run over the batches; `model` itself is untouched.

    Args:
        batches: as a loader yields them, (inputs, targets), or bare inputs.
        bits: widths of the weights to try, 2 to 8 each.
        layers: names of layers to try; by default every convolution and linear layer that runs.
        activations: also round the layer's input, to 8 bits over its range on the batches.

    Returns:
        A row for each layer, in the model's order, and each of `bits`.

    Raises:
        SettingError: `layers` names one that there is not.
        DataError: no batches, or a value in them that is not finite.
        ModelError: an output that is not finite, or a layer asked for that never runs.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> rows = sensitivity(net, [torch.randn(16, 4)], bits=(2, 8))
    >>> [(row.layer, row.bits) for row in rows]
    [('0', 2), ('0', 8), ('2', 2), ('2', 8)]
    """
    widths = [checks.integer("bits", width, low=2, high=8) for width in bits]
    if not widths:
        raise SettingError("bits is empty; give at least one, such as 8")
    inputs = [batch.inputs for batch in as_batches(batches)]
    trial = surgery.clone(model)
    chosen = _chosen(trial, layers)
    with evaluating(trial):
        ranges, reference = _observe(trial, inputs, chosen)
        missed = [name for name in layers or () if name not in ranges]
        if missed:
            raise ModelError(
                f"{missed[0]} is never called as a module, so it cannot be tried alone"
            )
        rows = []
        for name, layer in chosen.items():
            for width in widths if name in ranges else ():
                limits = ranges[name] if activations else None
                tally = Tally()
                with _rounded(layer, bits=width, limits=limits):
                    for original, batch in zip(reference, inputs, strict=True):
                        tally.add(original, log_probabilities(call(trial, batch)))
                rows.append(
                    Sensitivity(
                        layer=name,
                        bits=width,
                        parameters=surgery.original_tensor(layer).numel(),
                        kl=tally.kl,
                        agreement=tally.agreement,
                    )
                )
    return rows


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> Mapping[str, nn.Module]:
    there = select(model, kinds=_KINDS)
    for name in layers or ():
        if name not in there:
            raise SettingError(f"there is no layer {name!r} to quantize{did_you_mean(name, there)}")
    return there if layers is None else {n: m for n, m in there.items() if n in layers}


def _observe(
    model: nn.Module, inputs: Sequence[Any], layers: Mapping[str, nn.Module]
) -> tuple[dict[str, tuple[float, float]], list[Tensor]]:
    """The range of the input of each layer that runs, and the log-probabilities of `model`."""
    ranges: dict[str, tuple[float, float]] = {}

    def widen(name: str, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values))
        old = ranges.get(name, (low, high))
        ranges[name] = min(low, old[0]), max(high, old[1])

    def hook(name: str) -> Any:
        return lambda layer, args: widen(name, args[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        reference = [log_probabilities(call(model, batch)) for batch in inputs]
    finally:
        for handle in handles:
            handle.remove()
    return ranges, reference


@contextmanager
def _rounded(layer: nn.Module, *, bits: int, limits: tuple[float, float] | None) -> Iterator[None]:
    """Inside, the weight of `layer` is rounded, and its input too where `limits` are given."""
    stored = surgery.original_tensor(layer)
    kept = stored.detach().clone()
    computed = surgery.own_tensors(layer)["weight"].detach()
    # eval: the scale that it was built with
    stored.copy_(WeightQuantizer(computed, bits=bits, method="fixed").eval()(computed))
    handle = None
    if limits is not None:
        scale, zero = activation_grid(*limits, bits=_INPUT_BITS, nonnegative=limits[0] >= 0)
        top = levels(_INPUT_BITS)

        def round_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            on_grid = fake_quantize(args[0], torch.tensor(scale), low=-zero, high=top - zero)
            return (on_grid, *args[1:])

        handle = layer.register_forward_pre_hook(round_input)
    try:
        yield
    finally:
        stored.copy_(kept)
        if handle is not None:
            handle.remove()
