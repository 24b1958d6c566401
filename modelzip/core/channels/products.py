"""Rules for convolutions and matrix products, by a layer's weight or of two sets of channels."""

from __future__ import annotations

from torch import Tensor

from modelzip.core.channels.calls import REDUCED, Call, Labelled, each
from modelzip.core.channels.labels import along, fold, line, varying
from modelzip.core.channels.layers import Layers
from modelzip.core.channels.resize import Slot


def convolve(call: Call) -> Labelled:
    source, weight = call.given["input"], call.given["weight"]
    layer = call.layers.of_weight(weight)
    if layer is None or call.label(weight) is not None:
        return _foreign_product(call, source, 1, weight)
    return _apply(call, layer, call.label(source), 1, 1)


def _apply(call: Call, layer: str, label: Tensor | None, into: int, out: int) -> Tensor | None:
    """The label of the output of `layer`, which reads the axis `into` and writes the axis `out`."""
    layers = call.layers
    layers.applied.update({Slot(layer, "in"), Slot(layer, "out")})
    if label is not None:
        others = [axis for axis in range(label.dim()) if axis != into]
        kind = type(layers.modules[layer]).__name__
        call.ties.fix(label, others, f"cannot be pruned through {kind} {layer!r}")
        call.ties.tie(line(label, into), layers.numbers(Slot(layer, "in")))
    if layers.width[Slot(layer, "out")] == 1:
        return None
    return along(layers.numbers(Slot(layer, "out")), out, call.outputs[0].shape)


def _foreign_product(call: Call, source: Tensor, axis: int, weight: Tensor) -> Labelled:
    """A product with a weight of no layer: what it reads must stay."""
    for tensor in (source, weight):
        if (label := call.label(tensor)) is not None:
            call.ties.fix(label, varying(label), call.foreign(weight))
    return None


def embed(call: Call) -> Labelled:
    label = call.label(call.given["weight"])
    if label is None or call.label(call.given["indices"]) is not None:
        raise NotImplementedError("labels among the indices")
    return label[0].expand(call.outputs[0].shape)


def multiply(call: Call) -> Labelled:
    """Matrix products, of a layer's weight or of two sets of channels, and what is added."""
    *added, left, right = each(call.given.values())
    product = _product(call, left, right)
    for term in added:
        label = call.label(term)
        if label is not None:
            label = label.expand(call.outputs[0].shape)
            product = label if product is None else call.meet(product, label)
        elif product is not None:
            call.fixed_by(product, term)
    return product


def _product(call: Call, left: Tensor, right: Tensor) -> Tensor | None:
    layers, shape = call.layers, call.outputs[0].shape
    if left.dim() == 2:
        layer = layers.of_weight(right)
        if layer is not None and _transposed(right, layer, layers):
            return _apply(call, layer, call.label(left), 1, 1)
        layer = layers.of_weight(left)
        if layer is not None and not _transposed(left, layer, layers):
            return _apply(call, layer, call.label(right), 0, 0)
    a, b = (t if t is None or t.dim() == 3 else t[None] for t in map(call.label, (left, right)))
    if a is None and b is None:
        return None
    found = _contract(call, a, b, left, right)
    return found if found is None else found.expand((1, *shape)[-3:]).reshape(shape)


def _contract(
    call: Call, a: Tensor | None, b: Tensor | None, left: Tensor, right: Tensor
) -> Tensor | None:
    """The label of a[n, t, d] @ b[n, d, s], of which one has labels at least."""
    heads = [t is not None and 0 in varying(t) for t in (a, b)]
    if any(heads):
        for label, tensor in ((a, right), (b, left)):
            if label is None:
                continue
            call.ties.tie(label.amax((1, 2), keepdim=True), label)
            if call.label(tensor) is None:
                call.ties.fix(label, [0], call.foreign(tensor))
        slices = [t.amax((1, 2), keepdim=True) for t in (a, b) if t is not None]
        return slices[0] if len(slices) == 1 else call.meet(slices[0], slices[1])
    for label, axis, other in ((a, 2, right), (b, 1, left)):
        if label is not None:
            reason = REDUCED if call.label(other) is not None else call.foreign(other)
            call.ties.fix(label, [axis], call.layers.blame(reason))
    rows = None if a is None else fold(a.amax(2, keepdim=True))
    columns = None if b is None else fold(b.amax(1, keepdim=True))
    if rows is None or columns is None:
        return columns if rows is None else rows
    shape = (rows.shape[0], rows.shape[1], columns.shape[2])
    return call.meet(rows.expand(shape), columns.expand(shape))


def _transposed(weight: Tensor, layer: str, layers: Layers) -> bool:
    stored: Tensor = getattr(layers.modules[layer], "weight")  # noqa: B009
    shape, stride = tuple(stored.shape), stored.stride()
    return weight.shape == shape[::-1] and weight.stride() == stride[::-1]
