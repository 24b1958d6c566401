"""What every layer of a module returns while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.quantization.integer import OnGrid
from modelzip.runtime.inputs import Array, as_array

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Call:
    """What the module `name` returned: integers of its grid where `steps`, else floats."""

    name: str
    values: Array
    steps: bool


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Call]]:
    """Collect what every layer of `module` returns, in the order in which they run.

    Layers are what has a weight or a grid. A batch norm right behind a layer takes the place of
    the layer's own values, as it is folded into the layer in a file.

    >>> net = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    >>> with recording(net) as calls:
    ...     found = net(torch.ones(1, 2))
    >>> [call.name for call in calls]
    ['0']
    """
    calls: list[Call] = []
    latest: list[Tensor] = []

    def record(name: str, part: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        if isinstance(part, _NORMS) and latest and args and args[0] is latest[0]:
            calls[-1].values = as_array(result.clone())
            return
        if isinstance(part, OnGrid) and part.quantized:
            calls.append(Call(name, _integers(part, result), steps=True))
        else:  # cloned: what follows may write over it
            calls.append(Call(name, as_array(result.clone()), steps=False))
        latest[:] = [result]

    def hook(name: str) -> Any:
        return lambda part, args, result: record(name, part, args, result)

    handles = [
        part.register_forward_hook(hook(name))
        for name, part in module.named_modules()
        if isinstance(part, OnGrid) or "weight" in surgery.own_tensors(part)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _integers(part: OnGrid, values: Tensor) -> Array:
    scale, zero_point, _ = part.out
    return as_array((values / scale).round_().add_(zero_point).to(torch.uint8))
