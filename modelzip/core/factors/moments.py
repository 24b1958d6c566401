"""First and second moments of what layers take in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating
from modelzip.errors import DataError


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the inputs of a layer, over all samples and positions: `mean` [n], `second` [n, n].

    `second` is the mean of x x^T, about zero; float64.
    """

    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        return self.second - torch.outer(self.mean, self.mean)


def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> dict[str, Moments]:
    """Moments of the inputs of those of `layers` that run: linear layers and convolutions.

    Memory for a square of each layer's input channels is held, in float64.

    Raises:
        DataError: an input is not finite.

    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> batch = Batch(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), None)
    >>> input_moments(net, {"0": net[0]}, [batch])["0"].second.tolist()
    [[5.0, 4.0], [4.0, 4.0]]
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            rows = _rows(layer, given(args, kwargs)).double()
            old = sums.get(name)
            total, outer = rows.sum(0), rows.T @ rows
            if old is not None:
                total, outer = old[1] + total, old[2] + outer
            sums[name] = len(rows) + (old[0] if old else 0), total, outer

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with evaluating(model):
            for batch in batches:
                call(model, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, (_, total, _) in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise DataError(
                f"{name or 'the model'} takes in NaN or infinity on the calibration data"
            )
    return {
        name: Moments(mean=total / count, second=outer / count)
        for name, (count, total, outer) in sums.items()
    }


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input that a layer was called with."""
    found: Tensor = args[0] if args else kwargs["input"]
    return found


def _rows(layer: nn.Module, values: Tensor) -> Tensor:
    """The channels of `values` at every sample and position, [positions, channels]."""
    spatial = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    axis = values.dim() - spatial - 1
    return values.movedim(axis, -1).reshape(-1, values.shape[axis])
