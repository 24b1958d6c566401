"""Residual blocks that can be left out whole.

Within a block the widths of channels are all that pruning can change; without it, its additions and
activations go as well (Huang et al. 2016, https://arxiv.org/abs/1603.09382; Elkerdawy et al. 2020,
https://arxiv.org/abs/2007.00389).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.running import call, evaluating
from modelzip.errors import SettingError

_TOLERANCE = 1e-5  # of the largest value


def find_blocks(model: nn.Module, inputs: Any) -> list[str]:
    """Modules that return their input once all of their parameters are zero, innermost ones.

    Such a block adds what it computes to its input, which may pass through an activation that it
    has been through before. Each takes one tensor, runs once, and shares no parameter.

    Args:
        inputs: one batch of inputs as `call` takes them.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(4, 4)
    ...
    ...     def forward(self, x):
    ...         return torch.relu(x + self.layer(x))
    >>> find_blocks(nn.Sequential(nn.ReLU(), Block(), nn.Linear(4, 2)), torch.ones(1, 4))
    ['1']
    """
    calls: dict[str, list[Tensor | None]] = {}

    def watch(name: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
        ) -> None:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            same = alone and isinstance(out, Tensor) and out.shape == args[0].shape
            calls.setdefault(name, []).append(args[0] if same else None)

        return hook

    candidates = {
        name: module
        for name, module in model.named_modules()
        if name and any(True for _ in module.children()) and any(True for _ in module.parameters())
    }
    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in candidates.items()
    ]
    with evaluating(model):
        try:
            call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        found = {
            name
            for name, given in calls.items()
            if len(given) == 1 and given[0] is not None
            if _returns_its_input(candidates[name], given[0])
        }
    tied = {name.rpartition(".")[0] for group in surgery.tied_parameters(model) for name in group}
    inner = {name for name in found if not any(inside(other, name) for other in found)}
    free = {name for name in inner if not any(t == name or inside(t, name) for t in tied)}
    return [name for name in candidates if name in free]


def drop(model: nn.Module, blocks: Iterable[str]) -> None:
    """Put an `nn.Identity` where each of `blocks` stands, in place.

    Raises:
        SettingError: `model` has no such module; nothing was changed.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> drop(model, ["0"])
    >>> model[0]
    Identity()
    """
    blocks = list(blocks)
    there = dict(model.named_modules())
    for name in blocks:
        if not name or name not in there:
            raise SettingError(f"prune_channels cannot drop {name!r}: the model has no such block")
    for name in blocks:
        surgery.replace(model, name, nn.Identity())


def inside(name: str, block: str) -> bool:
    """Whether the module `name` is a part of `block`, not the block itself."""
    return name.startswith(f"{block}.")


def _returns_its_input(block: nn.Module, given: Tensor) -> bool:
    zeros = {name: torch.zeros_like(p) for name, p in block.named_parameters()}
    try:
        output = torch.func.functional_call(block, zeros, (given,))
    except Exception:  # the block's own code may raise anything
        return False
    if not isinstance(output, Tensor) or output.shape != given.shape:
        return False
    most = float(given.abs().max()) if given.numel() else 0.0
    return most > 0 and float((output - given).abs().max()) <= _TOLERANCE * most
