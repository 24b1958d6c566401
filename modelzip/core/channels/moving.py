"""Rules for ops that move elements, which keep their channels: they are applied to the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from modelzip.core.channels.calls import Call, Labelled, each
from modelzip.core.channels.labels import varying


def move(call: Call) -> Labelled:
    """Apply the same op to the label."""
    (name, source), *rest = call.given.items()
    label = call.label(source)
    if label is None:
        raise NotImplementedError("its channels are not those of its first argument")
    if name != "self":
        raise NotImplementedError(f"a view of {name}")
    if "view" in call.name or "reshape" in call.name:
        moved: Any = label.reshape(call.outputs[0].shape)
        _note_shapes(call, label, moved)
    else:
        moved = getattr(torch.ops.aten, call.name)(label, **dict(rest))
        _note_parts(call, label)
    return list(each([moved]))


def rearrange(call: Call) -> Labelled:
    """Apply the same op to the label, with the indices it came with."""

    def replace(value: Any) -> Any:
        if isinstance(value, Tensor):
            label = call.label(value)
            if label is not None:
                return label
            if value.is_floating_point():
                return torch.zeros(value.shape, dtype=torch.float64)
            return value.cpu()
        return [replace(v) for v in value] if isinstance(value, (list, tuple)) else value

    given = {name: replace(value) for name, value in call.given.items()}
    return list(each([getattr(torch.ops.aten, call.name)(**given)]))


def pad(call: Call) -> Labelled:
    """Zeros beside the elements of a channel are the channel's; a channel of zeros is none."""
    label = call.label(call.given["self"])
    if label is None:
        return None
    sizes = list(call.given["pad"])  # before and after the last axis, then the one before it, ...
    differ = varying(label)
    padded = []
    for place in range(0, len(sizes), 2):
        axis = label.dim() - 1 - place // 2
        if axis not in differ:
            label = label.narrow(axis, 0, 1)
            sizes[place : place + 2] = 0, 0
        elif any(sizes[place : place + 2]):
            padded.append(axis)
    call.ties.fix(label, padded, "is padded with zeros, whose number is written in the model")
    return torch.constant_pad_nd(label, sizes, 0.0).expand(call.outputs[0].shape)


def join(call: Call) -> Labelled:
    """Concatenate or stack the labels; across the other axes the parts go together."""
    parts = call.given["tensors"]
    labels = [call.label(part) for part in parts]
    axis = call.given.get("dim", 0)
    stack = call.name == "stack"
    axis %= call.outputs[0].dim()
    known = [label for label in labels if label is not None]
    across = known if stack else [label.amax(axis, keepdim=True) for label in known]
    wide = max(across, key=lambda label: len(varying(label)))
    if varying(wide):
        for other in across:
            if other is not wide:
                call.meet(wide, other)
        for part, label in zip(parts, labels, strict=True):
            if label is None and part.numel():
                call.ties.fix(wide, varying(wide), call.foreign(part))
    none = torch.zeros((), dtype=torch.float64)
    filled = [
        none.expand(part.shape) if label is None else label
        for part, label in zip(parts, labels, strict=True)
    ]
    for dim in range(filled[0].dim()):  # what is expanded in all parts takes no room in the whole
        if (stack or dim != axis) and not any(label.stride(dim) for label in filled):
            filled = [label.narrow(dim, 0, 1) for label in filled]
    joined = torch.stack(filled, axis) if stack else torch.cat(filled, axis)
    return joined.expand(call.outputs[0].shape)


def shuffle(call: Call) -> Labelled:
    """Pixel and channel shuffles lay the channels out in two axes, one of a written size."""
    label = call.label(call.given["self"])
    if label is None:
        return None
    if "upscale_factor" in call.given:
        axis, written = label.dim() - 3, call.given["upscale_factor"] ** 2
        rows = torch.unflatten(label, axis, (-1, written)).movedim(axis + 1, 0)
    else:
        axis, written = 1, call.given["groups"]
        rows = torch.unflatten(label, axis, (written, -1)).movedim(axis, 0)
    call.ties.tie(rows[:1], rows)
    return rearrange(call)


def _note_shapes(call: Call, before: Tensor, after: Tensor) -> None:
    """Where channels are split into axes or joined from them, say so."""
    owner = call.layers.inner()
    for old, new in _blocks(before.shape, after.shape):
        split = [axis for axis in varying(after) if axis in new]
        joined = [axis for axis in varying(before) if axis in old]
        if max(len(split), len(joined)) > 1:
            call.ties.lay_out(after, owner)
            if len(split) > len(joined):
                call.ties.split(after, split)


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The smallest runs of axes that a reshape maps onto each other."""
    i = j = 0
    while i < len(before) and j < len(after):
        start, old, new = (i, j), before[i], after[j]
        i, j = i + 1, j + 1
        while old != new:
            if old < new:
                old, i = old * before[i], i + 1
            else:
                new, j = new * after[j], j + 1
        yield range(start[0], i), range(start[1], j)


def _note_parts(call: Call, label: Tensor) -> None:
    """Where channels are split into equal parts, these lose channels evenly."""
    axis = call.given.get("dim", 0)
    if ("split" not in call.name and call.name != "slice") or not isinstance(axis, int):
        return
    axis %= label.dim()
    length, size = label.shape[axis], call.outputs[0].shape[axis]
    start = call.given.get("start") or 0
    equal = all(out.shape[axis] == size for out in call.outputs) and call.given.get("step", 1) == 1
    whole = 0 < size < length and not length % size and not start % size
    if equal and whole and axis in varying(label):
        parts = torch.unflatten(label, axis, (-1, size))
        call.ties.split(parts, (axis, axis + 1), free=axis + 1)
