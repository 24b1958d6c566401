"""Parameters and multiply-accumulates of a model, now and at other widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from modelzip.core import surgery
from modelzip.core.channels.resize import LAYERS, Slot, parameter_count, weight_count, widths
from modelzip.core.running import call


def count_macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of matrix products and convolutions in one call with `inputs`.

    >>> count_macs(nn.Linear(3, 5), torch.ones(2, 3))
    30
    """
    return _measure(model, inputs)[0]


class Cost:
    """What `model` costs once channels are gone, without removing them.

    Every element of a layer's weight is used equally often, so its cost follows its size.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    >>> cost = Cost(model, torch.ones(1, 2))
    >>> cost.macs({}), cost.params({}), cost.macs({Slot("0", "out"): 1, Slot("1", "in"): 1})
    (12, 17, 9)
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._total, self._macs = _measure(model, inputs)
        self._parameters = sum(p.numel() for p in model.parameters())
        self._modules = dict(model.named_modules())

    def macs(self, removed: Mapping[Slot, int]) -> int:
        """Multiply-accumulates with `removed[slot]` channels fewer on each slot."""
        total = float(self._total)
        for name, width in self._widths(removed).items():
            if name in self._macs:
                module = self._modules[name]
                left = weight_count(module, width) / weight_count(module, widths(module))
                total -= self._macs[name] * (1 - left)
        return round(total)

    def params(self, removed: Mapping[Slot, int]) -> int:
        """Parameters with `removed[slot]` channels fewer on each slot."""
        total = self._parameters
        for name, width in self._widths(removed).items():
            module = self._modules[name]
            total += parameter_count(module, width) - parameter_count(module, widths(module))
        return total

    def _widths(self, removed: Mapping[Slot, int]) -> dict[str, dict[str, int]]:
        result: dict[str, dict[str, int]] = {}
        for (name, side), count in removed.items():
            result.setdefault(name, dict(widths(self._modules[name])))[side] -= count
        return result


def _measure(model: nn.Module, inputs: Any) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates of the whole model, and of each convolution and Linear by name."""
    model = surgery.clone(model).eval()
    layers: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            side, tensor = "out", output
            if isinstance(module, _ConvTransposeNd):
                side, tensor = "in", given[0]
            width = widths(module)
            each = tensor.numel() * weight_count(module, width) // width[side]
            layers[name] = layers.get(name, 0) + each

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            watch(name, module)
    # with gradients on, or attention takes a fast path that is not counted
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        call(model, inputs)
    return counter.get_total_flops() // 2, layers
