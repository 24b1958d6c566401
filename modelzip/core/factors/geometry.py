"""What factors of a layer cost: its sizes, and how often each weight is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from modelzip.core.factors.moments import given
from modelzip.core.running import call, evaluating

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # looked at, left whole

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """Sizes of a layer, and how many positions its inputs and outputs have in one call of a model.

    A layer of one tap is split in two by one rank. A convolution of several has two, in and out:
    the channels that its k x k core takes and gives. A rank as large as the layer's own width
    leaves that factor out.

    >>> linear = Geometry(outputs=8, inputs=4, taps=1, positions_in=1, positions_out=1)
    >>> linear.weights((2,)), linear.macs((2,)), linear.macs(())
    (24, 24, 32)
    """

    outputs: int
    inputs: int
    taps: int
    positions_in: int
    positions_out: int

    @property
    def limits(self) -> Ranks:
        """The largest rank of each kind."""
        if self.taps == 1:
            return (min(self.outputs, self.inputs),)
        return self.inputs, self.outputs

    def weights(self, ranks: Ranks) -> int:
        """Weights of the factors; of the layer as it is where there are no `ranks`."""
        return sum(count for count, _ in self._factors(ranks))

    def macs(self, ranks: Ranks) -> int:
        """Multiply-accumulates of the factors, as `weights`."""
        return sum(count * positions for count, positions in self._factors(ranks))

    def _factors(self, ranks: Ranks) -> list[tuple[int, int]]:
        """Weights of each factor, and how often each of them is used."""
        if self.taps == 1 and ranks:
            return [(ranks[0] * (self.inputs + self.outputs), self.positions_out)]
        inputs, outputs = ranks or (self.inputs, self.outputs)
        found = [(outputs * inputs * self.taps, self.positions_out)]
        if inputs < self.inputs:
            found.append((inputs * self.inputs, self.positions_in))
        if outputs < self.outputs:
            found.append((outputs * self.outputs, self.positions_out))
        return found


def observe(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> dict[str, Geometry]:
    """The geometry of those of `layers` that are called when `model` runs on `inputs`."""
    positions: dict[str, tuple[int, int]] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            outputs, width, *_ = stored(layer).shape
            seen = positions.get(name, (0, 0))
            before = given(args, kwargs).numel() // width
            positions[name] = seen[0] + before, seen[1] + output.numel() // outputs

        return hook

    handles = [
        layer.register_forward_hook(watch(name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        with evaluating(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _geometry(layers[name], before, after) for name, (before, after) in positions.items()
    }


def rank_limits(layer: nn.Module) -> Ranks:
    """The largest rank of each kind: one of a matrix, in and out of a convolution.

    >>> rank_limits(nn.Linear(4, 8)), rank_limits(nn.Conv2d(4, 8, 3))
    ((4,), (4, 8))
    """
    return _geometry(layer, 0, 0).limits


def stored(layer: nn.Module) -> Tensor:
    """The weight of a layer that has one of its own."""
    return cast(Tensor, layer.weight)


def _geometry(layer: nn.Module, before: int, after: int) -> Geometry:
    outputs, inputs, *kernel = stored(layer).shape
    return Geometry(
        outputs=outputs,
        inputs=inputs,
        taps=math.prod(kernel),
        positions_in=before,
        positions_out=after,
    )
