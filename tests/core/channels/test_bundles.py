"""Which channels go together, by hand for small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.resize import LAYERS


class Flow(nn.Module):
    """Layers `a`, `b`, ... of the sizes given, and `flow` of them and the input."""

    def __init__(self, flow: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.flow = flow
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *given: Tensor) -> Any:
        return self.flow(self, *given)


def names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


def find(model: nn.Module, *inputs: Tensor) -> tuple[dict[str, Bundle], dict[str, str]]:
    found, reasons = find_bundles(model, inputs, chosen=names(model))
    return {bundle.name: bundle for bundle in found}, reasons


def channels(bundle: Bundle) -> dict[str, list[list[int]]]:
    return {f"{slot.layer}.{slot.side}": t.tolist() for slot, t in bundle.channels.items()}


def test_concatenated_channels_are_read_where_they_end_up() -> None:
    def flow(m: Any, x: Tensor) -> Tensor:
        return m.c(torch.cat([m.a(x), m.b(x)], 1))

    found, _ = find(
        Flow(flow, a=nn.Linear(3, 2), b=nn.Linear(3, 2), c=nn.Linear(4, 1)), IMAGE[0, 0]
    )
    assert channels(found["a"]) == {"a.out": [[0], [1]], "c.in": [[0], [1]]}
    assert channels(found["b"]) == {"b.out": [[0], [1]], "c.in": [[2], [3]]}
