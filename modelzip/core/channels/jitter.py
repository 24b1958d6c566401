"""Other values for a model, so that none hides what it computes from the others."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from modelzip.core.running import convert

_AMOUNT = 0.1  # of the root mean square
_TINY = 1e-2  # a root mean square below may hide a whole branch, and counts as 1
_SAMPLES = 256


def perturbed(model: nn.Module) -> dict[int, Tensor]:
    """By `id`, new values for what could hide a channel: weights, scales and statistics all alike.

    Values that differ from each other hide nothing and are left out: large models take no memory.

    >>> layer = nn.Linear(16, 16)
    >>> perturbed(layer)
    {}
    >>> _ = nn.init.zeros_(layer.weight)
    >>> perturbed(layer).keys() == {id(layer.weight)}
    True
    """
    generator = torch.Generator().manual_seed(0)
    positive = {
        id(module.running_var)
        for module in model.modules()
        if isinstance(module, (_BatchNorm, _InstanceNorm))
    }
    lines = (buffer for buffer in model.buffers() if buffer.dim() == 1)
    found: dict[int, Tensor] = {}
    for tensor in itertools.chain(model.parameters(), lines):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        some = _sample(tensor)
        if 2 * len(set(some)) <= len(some) + 1 or max(map(abs, some)) < _TINY**2:
            new = _noisy(tensor.detach(), generator, some, positive=id(tensor) in positive)
            parameter = isinstance(tensor, nn.Parameter)
            found[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
    return found


def perturbed_inputs(inputs: Any) -> Any:
    """`inputs` with noise in every tensor of floats."""
    generator = torch.Generator().manual_seed(1)

    def noisy(tensor: Tensor) -> Tensor:
        floats = tensor.is_floating_point() and tensor.numel()
        return _noisy(tensor, generator, _sample(tensor)) if floats else tensor

    return convert(inputs, noisy)


def _sample(tensor: Tensor) -> list[float]:
    values = tensor.detach().flatten()
    found: list[float] = values[:: max(1, len(values) // _SAMPLES)].tolist()
    return found


def _noisy(
    tensor: Tensor, generator: torch.Generator, some: list[float], *, positive: bool = False
) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    if positive:
        return tensor * (1 + noise.abs())
    scale = math.sqrt(sum(value * value for value in some) / len(some))
    return tensor + noise * (_AMOUNT * (scale if scale > _TINY else 1.0))
