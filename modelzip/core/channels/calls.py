"""One call of an op, as the rules see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelzip.core.channels.labels import broadcast, compact, fold, varying
from modelzip.core.channels.layers import Layers
from modelzip.core.channels.ties import Ties

Labelled = Tensor | list[Tensor | None] | None  # of every output alike, or of each
REDUCED = "is reduced over its channels"
ALONE = "meets values that belong to no layer"
PARAMETER = "is combined with a parameter that belongs to no layer"


@dataclass
class Call:
    """One call of an op.

    Attributes:
        name: without the underscore of an in-place op.
        given: its arguments by name.
        outputs: the tensors it returned.
    """

    op: Any
    name: str
    given: dict[str, Any]
    outputs: list[Tensor]
    known: dict[int, Tensor | None]
    layers: Layers
    ties: Ties

    def label(self, tensor: Any) -> Tensor | None:
        """The label of an argument, as it was before the call."""
        return self.known.get(id(tensor))

    def foreign(self, tensor: Any) -> str:
        """Why channels cannot change that meet `tensor`, which has no label."""
        return self.layers.blame(PARAMETER if self.layers.is_parameter(tensor) else ALONE)

    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        """Tie two labels where they meet after broadcasting; the label of the result.

        A single channel broadcast over others is not tied to them, but must stay; so must what
        meets no channel.
        """
        if a is b:
            return a
        a, b = broadcast(a, b)
        differ = varying(a), varying(b)
        if bool(differ[0]) != bool(differ[1]):
            wide, single = (a, b) if differ[0] else (b, a)
            self.ties.bar(single, "is broadcast over other channels")
            return wide
        shape = a.shape
        a, b = compact(a, b)
        self.ties.tie(a, b)
        alone = torch.where((a == 0) != (b == 0), a + b, 0.0)
        if (barred := fold(alone)) is not None:
            self.ties.bar(barred, ALONE)
        return torch.maximum(a, b).expand(shape) if barred is not None else a.expand(shape)

    def fixed_by(self, label: Tensor, tensor: Tensor) -> None:
        """Fix the axes of `label` along which `tensor`, which has none and meets it, extends."""
        offset = label.dim() - tensor.dim()
        wide = [
            axis
            for axis in varying(label)
            if axis >= offset and tensor.shape[axis - offset] > 1 and tensor.stride(axis - offset)
        ]
        self.ties.fix(label, wide, self.foreign(tensor))


def each(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or outputs of an op, but for sparse and nested ones."""
    for value in values:
        if isinstance(value, Tensor):
            if value.layout is torch.strided and not value.is_nested:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from each(value)
