"""Weights rounded so that each layer's output changes least on the calibration data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating
from modelzip.numerics.rounding import least_squares_integers
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.pairs import Pairs

Rounding = Literal["nearest", "least_squares"]
ROUNDINGS = ("nearest", "least_squares")

_POSITIONS = 2**15  # inputs of a layer that are looked at, over all batches


def round_layer(
    pairs: Pairs, node: fx.Node, layer: nn.Module, quantizer: WeightQuantizer, *, centred: bool
) -> None:
    """Choose the integers of `layer` by least squares, and put them where its weight was.

    The layer's output in the float model is the target, what the quantized model feeds it the
    input, so that it also makes up for the errors before it. `centred` leaves the mean out, for
    a bias that is corrected afterwards.
    """
    gram, cross = moments(layer, pairs.at(node.all_input_nodes[0]), centred=centred)
    quantizer.observing = True
    weight = surgery.own_tensors(layer)["weight"].detach()  # masked, where it is pruned
    quantizer.observing = False
    rounded_weight, scale = _fitted(weight, gram, cross, bits=quantizer.bits)
    surgery.original_tensor(layer).data.copy_(rounded_weight)
    quantizer.keep(scale)


def moments(
    layer: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, centred: bool
) -> tuple[Tensor, Tensor]:
    """Sums of x x^T and y x^T over pairs of what a layer sees, y exact and x rounded.

    [groups, d, d], less the means where `centred`.
    """
    limit = max(1, _POSITIONS // max(1, len(batches)))
    gram = cross = torch.zeros(())
    sums = [torch.zeros(()), torch.zeros(())]
    count = 0
    for exact, rounded in batches:
        y, x = (_inputs(layer, values, limit) for values in (exact, rounded))  # [groups, d, n]
        gram = gram + x @ x.transpose(1, 2)
        cross = cross + y @ x.transpose(1, 2)
        sums = [sums[0] + y.sum(2), sums[1] + x.sum(2)]
        count += x.shape[2]
    if centred:
        gram = gram - sums[1][:, :, None] * sums[1][:, None] / count
        cross = cross - sums[0][:, :, None] * sums[1][:, None] / count
    return gram, cross


def error_left(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], *, bits: int
) -> dict[str, float]:
    """Squared error of each layer's output rounded by least squares, as a part of that by nearest.

    Each layer of the float `model` alone; 1.0 for those that never run.
    """
    grams: dict[str, Tensor] = {}
    limit = max(1, _POSITIONS // max(1, len(batches)))

    def watch(name: str) -> Any:
        def see(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = _inputs(layer, args[0], limit)
            grams[name] = grams.get(name, torch.zeros(())) + x @ x.transpose(1, 2)

        return see

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for batch in batches:
                call(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = dict.fromkeys(layers, 1.0)
    for name, gram in grams.items():
        weight = surgery.own_tensors(layers[name])["weight"].detach()
        nearest = WeightQuantizer(weight, bits=bits, method="fixed").eval()(weight)
        fitted, _ = _fitted(weight, gram, gram, bits=bits)
        found[name] = _output_error(weight - fitted, gram) / max(
            _output_error(weight - nearest, gram), 1e-30
        )
    return found


def _fitted(weight: Tensor, gram: Tensor, cross: Tensor, *, bits: int) -> tuple[Tensor, Tensor]:
    """`weight` on its grid by least squares, group by group, and the scale of each channel."""
    parts = [
        least_squares_integers(rows.flatten(1), g, bits=bits, cross=c)
        for rows, g, c in zip(weight.chunk(len(gram)), gram, cross, strict=True)
    ]
    scale = torch.cat([s for _, s in parts])
    integers = torch.cat([q for q, _ in parts])
    return (integers * scale[:, None]).view_as(weight), scale


def _output_error(error: Tensor, gram: Tensor) -> float:
    """Squared error of a layer's output, summed up, where its weight is off by `error`."""
    rows = torch.stack([part.flatten(1) for part in error.chunk(len(gram))])
    return float(((rows @ gram) * rows).sum())


def _inputs(layer: nn.Module, values: Tensor, limit: int) -> Tensor:
    """What each group of output channels of `layer` sees: [groups, inputs, positions]."""
    values = values.detach()
    if isinstance(layer, nn.Linear):
        rows = values.reshape(-1, layer.in_features)
        return rows[:: max(1, -(-len(rows) // limit))].T[None]
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        raise TypeError(f"no least squares for {type(layer).__name__}")
    flat = isinstance(layer, nn.Conv1d)
    window = {
        name: (1, *getattr(layer, name)) if flat else getattr(layer, name)
        for name in ("kernel_size", "dilation", "stride")
    }
    values = F.pad(values, layer._reversed_padding_repeated_twice)  # "same" is spelt out there
    images = values.unsqueeze(2) if flat else values
    # every third position or so, of all samples, rather than every position of a few
    sparse = max(1, math.isqrt(images.shape[0] * images.shape[2] * images.shape[3] // limit))
    columns = F.unfold(images, **window | {"stride": [s * sparse for s in window["stride"]]})
    samples, _, places = columns.shape
    grouped = columns.view(samples, layer.groups, -1, places)
    return grouped.permute(1, 2, 0, 3).flatten(2)
