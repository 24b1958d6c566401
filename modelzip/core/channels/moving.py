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
    label = call.label(call.given["self"])
    if label is None:
        return None
    pad = call.given["pad"]
    padded = {label.dim() - 1 - i // 2 for i, size in enumerate(pad) if size}
    call.ties.fix(
        label,
        [axis for axis in varying(label) if axis in padded],
        "is padded with zeros, whose number is written in the model",
    )
    return torch.constant_pad_nd(label, pad, 0.0)


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
    filled = [
        torch.zeros((), dtype=torch.float64).expand(part.shape) if label is None else label
        for part, label in zip(parts, labels, strict=True)
    ]
    return torch.stack(filled, axis) if stack else torch.cat(filled, axis)


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
