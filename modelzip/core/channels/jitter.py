"""Other values for a model, so that none hides what it computes from the others."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core.running import convert

_AMOUNT = 0.1  # of the root mean square
_TINY = 1e-2  # a root mean square below may hide a whole branch, and counts as 1
_SAMPLES = 256


def perturbed(model: nn.Module) -> dict[int, Tensor]:
    """By `id`, new values for what could hide a channel: vectors, and weights that are all alike.

    Weights that differ from each other are left out, so that large models take no memory.

    >>> layer = nn.Linear(16, 16)
    >>> perturbed(layer).keys() == {id(layer.bias)}
    True
    >>> _ = nn.init.zeros_(layer.weight)
    >>> perturbed(layer).keys() == {id(layer.bias), id(layer.weight)}
    True
    """
    generator = torch.Generator().manual_seed(0)
    stored = model.state_dict(keep_vars=True)
    lines = {id(t): name for name, t in stored.items() if t.dim() <= 1}
    found: dict[int, Tensor] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        parameter = isinstance(tensor, nn.Parameter)
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if id(tensor) in lines or (parameter and (_is_line(tensor) or _alike(tensor))):
            positive = lines.get(id(tensor), "").endswith("running_var")
            new = _noisy(tensor.detach(), generator, positive=positive)
            found[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
    return found


def perturbed_inputs(inputs: Any) -> Any:
    """`inputs` with noise in every tensor of floats."""
    generator = torch.Generator().manual_seed(1)
    return convert(
        inputs, lambda t: _noisy(t, generator) if t.is_floating_point() and t.numel() else t
    )


def _is_line(tensor: Tensor) -> bool:
    return tensor.numel() == max(tensor.shape)


def _alike(tensor: Tensor) -> bool:
    """Whether many values of a weight are the same, or it is next to zero."""
    step = max(1, tensor.numel() // _SAMPLES)
    some = tensor.detach().flatten()[::step]
    return len(set(some.tolist())) <= len(some) // 2 or float(some.abs().max()) < _TINY**2


def _noisy(tensor: Tensor, generator: torch.Generator, *, positive: bool = False) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    if positive:
        return tensor * (1 + noise.abs())
    scale = float(tensor.float().square().mean()) ** 0.5
    return tensor + noise * (_AMOUNT * (scale if scale > _TINY else 1.0))
