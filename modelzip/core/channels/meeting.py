"""Rules for ops by which elements of several tensors, or of one, meet."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from modelzip.core.channels.calls import ALONE, REDUCED, Call, Labelled, each
from modelzip.core.channels.labels import line, spread
from modelzip.core.channels.resize import Slot

SPATIAL = re.compile(r"(?:pool|upsample|reflection_pad|replication_pad|grid_sampler).*?(\d)d")


def pointwise(call: Call) -> Labelled:
    """Tie the labels of the operands where they meet after broadcasting."""
    shape = call.outputs[0].shape
    merged: Tensor | None = None
    operands = [t for t in each(call.given.values()) if t.numel() > 1 or call.label(t) is not None]
    for tensor in operands:
        label = call.label(tensor)
        if label is None:
            continue
        label = spread(label, shape)
        merged = label if merged is None else call.meet(merged, label)
    if merged is None:
        return None
    for tensor in operands:
        if call.label(tensor) is None:
            call.fixed_by(merged, tensor)
    return [merged if out.shape == shape else None for out in call.outputs]


def copy(call: Call) -> Labelled:
    label = call.label(call.given["src"])
    return None if label is None else spread(label, call.outputs[0].shape)


def norm(call: Call) -> Labelled:
    """Batch and instance norm: their tensors lie along axis 1."""
    given = call.given
    source = given["input"]
    label = call.label(source)
    channels = torch.zeros(source.shape[1], dtype=torch.float64)
    if label is not None:
        others = [axis for axis in range(label.dim()) if axis != 1]
        call.ties.fix(label, others, call.layers.blame(f"cannot be followed through {call.name}"))
        channels = line(label, 1)
    for numbers in _norm_channels(call, channels):
        numbers = numbers.repeat(len(channels) // len(numbers))
        call.ties.tie(channels, numbers)
        if not bool(channels.all()):
            call.ties.bar(torch.where(channels == 0, numbers, 0.0), ALONE)
    return [label, *[None] * (len(call.outputs) - 1)]


def _norm_channels(call: Call, channels: Tensor) -> Iterator[Tensor]:
    """What lies along the channels of a norm: the tensors given, or else those of its module."""
    tensors = [call.given.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
    slot = Slot(call.layers.inner(), "out")
    if isinstance(call.layers.modules[slot.layer], _NormBase) and slot in call.layers.width:
        yield call.layers.numbers(slot)
        return
    for tensor in tensors:
        if tensor is None:
            continue
        if (numbers := call.label(tensor)) is not None:
            yield numbers
        else:
            call.ties.fix(channels, (0,), call.foreign(tensor))


def glu(call: Call) -> Labelled:
    label = call.label(call.given["self"])
    if label is None:
        return None
    halves = label.chunk(2, call.given.get("dim", -1))
    return call.meet(halves[0], halves[1])


def _dims(call: Call, rank: int) -> list[int]:
    dims = call.given.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return [d % rank for d in ([dims] if isinstance(dims, int) else dims)] if rank else []


def reduce(call: Call) -> Labelled:
    label = call.label(call.given["self"])
    if label is None:
        return None
    dims = _dims(call, label.dim())
    call.ties.fix(label, dims, call.layers.blame(REDUCED))
    for dim in sorted(dims, reverse=True):
        label = label.amax(dim, keepdim=label.dim() == call.outputs[0].dim())
    return [spread(label, out.shape) for out in call.outputs]


def mix(call: Call) -> Labelled:
    """Ops that mix the elements along an axis, and keep their number or cut it."""
    label = call.label(call.given["self"])
    if label is None:
        return None
    dim = call.given.get("dim", -1) % max(1, label.dim())
    call.ties.fix(label, [dim], call.layers.blame(REDUCED))
    shape = call.outputs[0].shape
    if shape[dim] != label.shape[dim]:
        label = label.amax(dim, keepdim=True).expand(shape)
    return [label] * len(call.outputs)


def layer_norm(call: Call) -> Labelled:
    label = call.label(call.given["input"])
    if label is None:
        return None
    rank = len(call.given["normalized_shape"])
    dims = range(label.dim() - rank, label.dim())
    call.ties.fix(label, list(dims), call.layers.blame(REDUCED))
    return [label, *[None] * (len(call.outputs) - 1)]


def group_norm(call: Call) -> Labelled:
    label = call.label(call.given["input"])
    if label is None:
        return None
    call.ties.fix(label, list(range(1, label.dim())), call.layers.blame(REDUCED))
    return [label, *[None] * (len(call.outputs) - 1)]


def spatial(call: Call) -> Labelled:
    """Pooling, resizing and padding of the last axes, each channel by itself."""
    label = call.label(next(each(call.given.values())))
    if label is None:
        raise NotImplementedError("labels in the grid")
    rank = int(SPATIAL.search(call.name)[1])  # type: ignore[index]
    dims = list(range(label.dim() - rank, label.dim()))
    call.ties.fix(label, dims, call.layers.blame(REDUCED))
    label = label.amax(dims, keepdim=True)
    return [spread(label, out.shape) for out in call.outputs]
