"""The sides of layers along which channels lie, and how large a layer is at other widths.

A slot is one side of a layer: the channels it takes "in" or gives "out". A layer that only passes
channels on, such as BatchNorm, has the slot "out" alone. So has `nn.MultiheadAttention`, whose
"out" are the channels of its heads, which its output projection takes in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)  # layers with output channels of their own
PRUNABLE = (*LAYERS, nn.MultiheadAttention)  # and what can lose heads


class Slot(NamedTuple):
    """One side of a layer, "in" or "out"."""

    layer: str
    side: str


Axes = Mapping[str, tuple[str | None, ...]]  # tensor name -> the side along each of its axes


def axes(module: nn.Module) -> Axes:
    """Which side of `module` lies along each leading axis of its tensors; empty if unsupported.

    >>> axes(nn.Linear(2, 3))
    {'weight': ('out', 'in'), 'bias': ('out',)}
    >>> axes(nn.LayerNorm(2))
    {}
    """
    if isinstance(module, _ConvTransposeNd):
        weight: tuple[str | None, ...] = ("in", "out") if module.groups == 1 else ("in",)
        return {"weight": weight, "bias": ("out",)}
    if isinstance(module, (_ConvNd, nn.Linear)):
        # the second axis of a grouped weight counts the channels of one group: whole groups go
        grouped = isinstance(module, _ConvNd) and module.groups > 1
        return {"weight": ("out",) if grouped else ("out", "in"), "bias": ("out",)}
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("out",))
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"weight": ("out",)}
    if isinstance(module, nn.Embedding):
        return {"weight": (None, "out")}
    return {}


def widths(module: nn.Module) -> dict[str, int]:
    """Channels on each side of a supported layer; empty if unsupported.

    >>> widths(nn.Linear(2, 3))
    {'in': 2, 'out': 3}
    """
    if isinstance(module, nn.MultiheadAttention):
        return {"out": module.num_heads * module.head_dim}
    return {
        side: getattr(module, attribute) for side, attribute in width_attributes(module).items()
    }


def groups(module: nn.Module) -> int:
    """Groups of a convolution; 1 for any other layer."""
    return module.groups if isinstance(module, _ConvNd) else 1


def parameter_count(module: nn.Module, width: Mapping[str, int]) -> int:
    """Parameters `module` has once its sides are `width` wide, without those of modules inside it.

    >>> parameter_count(nn.Linear(2, 3), {"in": 1, "out": 2})
    4
    """
    if isinstance(module, nn.MultiheadAttention):  # all of them lie along its heads
        own = sum(p.numel() for p in module.parameters(recurse=False))
        return own * width["out"] // widths(module)["out"]
    return sum(
        math.prod(_shape(module, name, width))
        for name in axes(module)
        if module._parameters.get(name) is not None
    )


def weight_count(module: nn.Module, width: Mapping[str, int]) -> int:
    """Elements of what `module` multiplies by once its sides are `width` wide."""
    if isinstance(module, nn.MultiheadAttention):
        return parameter_count(module, width)
    return math.prod(_shape(module, "weight", width))


def _shape(module: nn.Module, name: str, width: Mapping[str, int]) -> list[int]:
    tensor = getattr(module, name)
    along = axes(module)[name]
    return [
        width[side] if side is not None else size
        for side, size in itertools.zip_longest(along, tensor.shape)
    ]


def width_attributes(module: nn.Module) -> dict[str, str]:
    """The attribute that holds the width of each side of a layer that has axes."""
    if isinstance(module, _ConvNd):
        return {"in": "in_channels", "out": "out_channels"}
    if isinstance(module, nn.Linear):
        return {"in": "in_features", "out": "out_features"}
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return {"out": "num_features"}
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"out": "num_parameters"}
    return {"out": "embedding_dim"} if isinstance(module, nn.Embedding) else {}
