"""Weights rounded so that each layer's output changes least on the calibration data."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from modelzip.core import surgery
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
    batches = pairs.at(node.all_input_nodes[0])
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
    quantizer.observing = True
    weight = surgery.own_tensors(layer)["weight"].detach()  # masked, where it is pruned
    quantizer.observing = False
    parts = [
        least_squares_integers(rows.flatten(1), g, bits=quantizer.bits, cross=c)
        for rows, g, c in zip(weight.chunk(len(gram)), gram, cross, strict=True)
    ]
    scale = torch.cat([s for _, s in parts])
    integers = torch.cat([q for q, _ in parts])
    surgery.original_tensor(layer).data.copy_((integers * scale[:, None]).view_as(weight))
    quantizer.keep(scale)


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
