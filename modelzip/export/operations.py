"""Functions and methods of torch, in float, as ONNX operators.

A rule takes the call it writes for, then what torch's function takes, with the same names. What a
rule does not name cannot be written: the TypeError of the call says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelzip.export.writer import Call, NoRuleError, Value

Rule = Callable[..., str | list[str]]


def unary(op: str, **attributes: Any) -> Rule:
    """The rule of an operator that works on each value alone."""

    def rule(call: Call, x: Value, inplace: bool = False) -> str:
        return call.node(op, x.name, **attributes)

    return rule


def binary(op: str) -> Rule:
    """The rule of an operator on two tensors, or on a tensor and a number."""

    def rule(call: Call, x: Value | float, other: Value | float) -> str:
        return call.node(op, call.operand(x), call.operand(other))

    return rule


def clip(call: Call, x: Value, min: Any = None, max: Any = None) -> str:  # noqa: A002
    bounds = ["" if bound is None else call.operand(bound) for bound in (min, max)]
    while bounds and not bounds[-1]:
        bounds.pop()
    return call.node("Clip", x.name, *bounds)


def hardtanh(
    call: Call, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> str:
    return clip(call, x, min_val, max_val)


def relu6(call: Call, x: Value, inplace: bool = False) -> str:
    return clip(call, x, 0.0, 6.0)


def leaky_relu(call: Call, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> str:
    return call.node("LeakyRelu", x.name, alpha=negative_slope)


def silu(call: Call, x: Value, inplace: bool = False) -> str:
    return call.node("Mul", x.name, call.node("Sigmoid", x.name))


def gelu(call: Call, x: Value, approximate: str = "none") -> str:
    return call.node("Gelu", x.name, approximate=None if approximate == "none" else approximate)


def softmax(
    call: Call, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: None = None
) -> str:
    if dim is None or dtype is not None:
        raise NoRuleError(f"{call.label} has a dim of {dim} and a dtype of {dtype}")
    return call.node("Softmax", x.name, axis=None if dim == -1 else dim)


def mean(call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> str:
    if dim is None:
        raise NoRuleError(f"{call.label} averages over the batch")
    dims = [dim] if isinstance(dim, int) else list(dim)
    axes = call.constant(np.array(dims, np.int64))
    return call.node("ReduceMean", x.name, axes, keepdims=None if keepdim else 0)


def matmul(call: Call, x: Value, other: Value) -> str:
    return call.node("MatMul", x.name, other.name)


def same(call: Call, x: Value, *args: Any, **kwargs: Any) -> str:
    return x.name


def dropout(
    call: Call, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> str:
    if training:
        raise NoRuleError(f"{call.label} works in eval mode too")
    return x.name


def reshape(call: Call, x: Value, *args: Any, **kwargs: Any) -> str:
    """Whatever leaves the values in their order: the arguments were seen to give this shape."""
    return x.name if call.out == x.shape else call.reshape(x.name)


def permute(call: Call, x: Value, *dims: Any) -> str:
    order = list(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else list(dims)
    return call.node("Transpose", x.name, perm=[d % len(x.shape) for d in order])


def transpose(call: Call, x: Value, dim0: int, dim1: int) -> str:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return call.node("Transpose", x.name, perm=order)


def concat(call: Call, tensors: Sequence[Value], dim: int = 0) -> str:
    return call.node("Concat", *[tensor.name for tensor in tensors], axis=dim)


def split(call: Call, x: Value, *args: Any, dim: int = 0, **kwargs: Any) -> list[str]:
    """`chunk` and `split`: into the lengths that were seen."""
    dim = args[1] if len(args) > 1 else dim
    lengths = [out[dim] for out in call.outs]
    if None in lengths or x.shape[dim] is None:
        raise NoRuleError(f"{call.label} splits the batch")
    return call.graph.nodes_outputs(
        "Split", x.name, call.constant(np.array(lengths, np.int64)), names=[""] * len(lengths),
        axis=dim,
    )  # fmt: skip


def pad(call: Call, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None) -> str:
    """`pad` runs from the last dimension backwards, a pair for each."""
    if mode != "constant" or any(not isinstance(p, int) or p < 0 for p in pad):
        raise NoRuleError(f"{call.label} pads {list(pad)}, mode {mode}")
    rank = len(x.shape)
    before = [0] * (rank - len(pad) // 2) + list(pad[::2])[::-1]
    after = [0] * (rank - len(pad) // 2) + list(pad[1::2])[::-1]
    inputs = [call.constant(np.array(before + after, np.int64))]
    if value:
        inputs.append(call.operand(value))
    return call.node("Pad", x.name, *inputs)


def pad_module(call: Call, x: Value, padding: Sequence[int]) -> str:
    return pad(call, x, padding)


def select(call: Call, x: Value, index: Any) -> str:
    """Indexing with integers, slices, None and an ellipsis."""
    entries = list(index) if isinstance(index, tuple) else [index]
    kept = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis in entries:
        place = entries.index(Ellipsis)
        entries[place : place + 1] = [slice(None)] * (len(x.shape) - kept)
    bounds: list[tuple[int, int, int, int]] = []  # start, end, axis, step
    entries = [entry for entry in entries if entry is not None]
    for axis, (entry, length) in enumerate(zip(entries, x.shape, strict=False)):
        if entry == slice(None):
            continue
        if length is None:
            raise NoRuleError(f"{call.label} selects from the batch")
        if isinstance(entry, int):
            bounds.append((entry % length, entry % length + 1, axis, 1))
        elif isinstance(entry, slice):
            start, end, step = entry.indices(length)
            bounds.append((start, end, axis, step))
        else:
            raise NoRuleError(f"{call.label} selects by a {type(entry).__name__}")
    name = x.name
    if bounds:
        columns = [
            call.constant(np.array(column, np.int64)) for column in zip(*bounds, strict=True)
        ]
        name = call.node("Slice", name, *columns)
    return call.reshape(name) if len(call.out) != len(x.shape) else name


def interpolate(
    call: Call,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> str:
    """To the nearest value, by whole factors."""
    pairs = list(zip(call.out[2:], x.shape[2:], strict=True))
    if mode != "nearest" or any(a is None or b is None or a % b for a, b in pairs):
        raise NoRuleError(f"{call.label} interpolates by {mode} to {list(call.out)}")
    scales = [1.0, 1.0, *(float(int(a or 0) // int(b or 1)) for a, b in pairs)]
    return call.node(
        "Resize", x.name, "", call.constant(np.array(scales, np.float32)), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def pixel_shuffle(call: Call, x: Value, upscale_factor: int) -> str:
    return call.node("DepthToSpace", x.name, blocksize=upscale_factor, mode="CRD")
