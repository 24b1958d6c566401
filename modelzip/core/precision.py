"""Layers that store or compute in a narrower float type, under the names they had."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def store(layers: Mapping[nn.Module, Mapping[str, Tensor]], dtype: torch.dtype) -> None:
    """Store the tensors listed for each layer as `dtype`; tied ones stay tied."""
    narrowed: dict[int, Tensor] = {}
    for module, own in layers.items():
        for name, tensor in own.items():
            if id(tensor) not in narrowed:
                value = tensor.detach().to(dtype)
                narrowed[id(tensor)] = nn.Parameter(value) if _is_parameter(tensor) else value
            setattr(module, name, narrowed[id(tensor)])


def widen(module: nn.Module, names: tuple[str, ...]) -> None:
    """Make `module` read its tensors `names` as float32, whatever they are stored as.

    >>> layer = nn.Linear(2, 2, bias=False).half()
    >>> widen(layer, ("weight",))
    >>> layer(torch.ones(1, 2)).dtype, layer.state_dict()["weight"].dtype
    (torch.float32, torch.float16)
    """
    members: dict[str, Any] = {name: _widened(name) for name in names}
    if isinstance(module, nn.RNNBase):  # it keeps a list of its weights besides
        members["_flat_weights"] = property(
            lambda self: [getattr(self, name) for name in self._flat_weights_names],
            lambda self, weights: None,  # set when it is copied
        )
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), members)


def compute_in(
    module: nn.Module, *, inside: torch.dtype | None = None, outside: torch.dtype | None = None
) -> None:
    """Make `module` turn floats that it is given to `inside`, and those it returns to `outside`.

    >>> layer = nn.Linear(2, 2).half()
    >>> compute_in(layer, inside=torch.float16, outside=torch.float32)
    >>> layer(torch.ones(1, 2)).dtype
    torch.float32
    """
    kind = type(module)

    @functools.wraps(kind.forward)  # exporters read the names of the inputs there
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _to(args, inside), _to(kwargs, inside)
        return _to(kind.forward(self, *args, **kwargs), outside)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def _widened(name: str) -> property:
    def read(self: nn.Module) -> Tensor:
        stored: Any = self._parameters.get(name, self._buffers.get(name))
        widened: Tensor = stored.float()
        return widened

    return property(read)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _to(values: Any, dtype: torch.dtype | None) -> Any:
    def change(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating and dtype is not None else value

    return pytree.tree_map(change, values)
