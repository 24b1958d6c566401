"""Zeros in a file, and the patterns they hold: counted in what is stored, not in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import inliner

from modelzip.measure.onnx_weights import (
    CONVOLUTIONS,
    PRODUCTS,
    Stored,
    flag,
    nonzero_elements,
    stored_tensors,
    tensor_values,
    weights_of,
)
from modelzip.measure.unpacking import unpacked
from modelzip.numerics.masks import block_norms
from modelzip.numerics.patterns import Pattern, parse
from modelzip.runtime import onnx_file

Mask = npt.NDArray[np.bool_]

_SIZES = (32, 16, 8, 4, 2, 1)
_BLOCKS = sorted(((r, c) for r in _SIZES for c in _SIZES if r * c > 1), key=lambda b: -b[0] * b[1])
# looked for in this order: each before what follows from it
PATTERNS = ("1:8", "1:4", "2:8", "1:2", "2:4", "4:8", *(f"{r}x{c}" for r, c in _BLOCKS))
_ROWS = 2 * max(_SIZES)  # enough to see that a pattern does not hold
_ROUNDED = 0.05  # of the integers between zero blocks may be zero by rounding, at 8 bits
_QUANTIZED = {"QGemm", "QLinearConv", "QLinearMatMul"}  # their weight is the fourth input


@dataclass(frozen=True, kw_only=True)
class WeightZeros:
    """The zeros of the weight of one convolution or matrix product.

    Attributes:
        layer: the operator's name in the file.
        weight: the stored tensor's.
        elements, zeros: how many it has, and how many of them are zero or at their zero point.
        patterns: those of `PATTERNS` that the zeros hold, without those that follow from another:
            N:M along the inputs, or RxC where the zeros come in blocks of R outputs by C inputs.
    """

    layer: str
    weight: str
    elements: int
    zeros: int
    patterns: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return self.zeros / self.elements


def file_zeros(path: str | Path) -> tuple[WeightZeros, ...]:
    """The zeros of each weight that a convolution or matrix product of the file has stored.

    Integers are zero at their zero point. Weights packed several to a byte count where the file
    unpacks them by standard operators.

    Raises:
        ExportError: the file cannot be read, as `modelzip.runtime.onnx_file.read` says.
    """
    path = Path(path)
    model = inliner.inline_local_functions(onnx_file.read(path))
    stored = stored_tensors(model.graph) | unpacked(model.graph).weights
    makers = {name: node for node in model.graph.node for name in node.output}
    rows, seen = [], set()
    for node in model.graph.node:
        found = _weight(node, stored, makers)
        if found is None or found.tensor.name in seen:
            continue
        seen.add(found.tensor.name)
        mask = _oriented(node, found, nonzero_elements(found, stored, path.parent), stored, path)
        if mask is None or not mask.size:
            continue
        rows.append(
            WeightZeros(
                layer=node.name or node.output[0],
                weight=found.tensor.name,
                elements=mask.size,
                zeros=int(mask.size - np.count_nonzero(mask)),
                patterns=patterns_of(mask, groups=_groups(node), rounded=found.is_integer),
            )
        )
    return tuple(rows)


def patterns_of(nonzero: Mask, *, groups: int = 1, rounded: bool = False) -> tuple[str, ...]:
    """The patterns that zeros hold, given where a weight [outputs, inputs, *kernel] is not zero.

    Args:
        groups: of a convolution; no block may straddle two.
        rounded: the weight is stored in integers, of which some are zero by rounding alone: up to
            one in twenty between the blocks does not break their pattern.

    >>> patterns_of(np.array([[True, True, False, False], [False, True, True, False]]))
    ('2:4',)
    >>> patterns_of(np.array([[True, True], [False, False]]))
    ('1x2',)
    """
    if nonzero.all():
        return ()
    given = torch.from_numpy(nonzero.astype(np.float32))
    outputs, inputs = given.shape[0] // groups, given.shape[1]

    def holds(pattern: Pattern) -> bool:
        fits = not pattern.misfit(outputs, inputs)
        return fits and _holds(pattern, given, rounded=rounded)

    zeros = 1 - np.count_nonzero(nonzero) / nonzero.size
    enough = zeros >= _ROUNDED or not rounded
    in_blocks = enough and any(holds(parse(text)) for text in ("2x1", "1x2"))  # as in any larger
    kept: list[Pattern] = []
    found = []
    for text in PATTERNS:
        pattern = parse(text)
        least = pattern.sparsity
        possible = in_blocks if least is None else least <= zeros + 1e-9
        if possible and not any(implies(p, pattern) for p in kept) and holds(pattern):
            kept.append(pattern)
            found.append(text)
    return tuple(found)


def implies(stronger: Pattern, weaker: Pattern) -> bool:
    """Whether zeros in the one pattern are always in the other as well, where both fit.

    >>> implies(parse("1:4"), parse("2:4")), implies(parse("2:4"), parse("1:2"))
    (True, False)
    >>> implies(parse("8x4"), parse("4x1"))
    True
    """
    if stronger.keep is not None and weaker.keep is not None:
        if stronger.columns % weaker.columns == 0:
            return weaker.keep >= stronger.keep
        times, rest = divmod(weaker.columns, stronger.columns)
        return rest == 0 and weaker.keep >= times * stronger.keep
    if stronger.keep is None and weaker.keep is None:
        return stronger.rows % weaker.rows == 0 and stronger.columns % weaker.columns == 0
    return False


def holding(rows: Sequence[WeightZeros]) -> Iterator[tuple[str, int]]:
    """Each pattern that some weight holds by itself, and how many hold it, that way or another."""
    found = {text for row in rows for text in row.patterns}
    for text in PATTERNS:
        if text in found:
            yield text, sum(any(implies(parse(p), parse(text)) for p in r.patterns) for r in rows)


def _holds(pattern: Pattern, nonzero: torch.Tensor, *, rounded: bool) -> bool:
    exact = pattern.keep is not None or not rounded
    if exact and len(nonzero) > _ROWS and not _holds(pattern, nonzero[:_ROWS], rounded=rounded):
        return False  # most weights hold no pattern, and show it at once
    # the norm of ones and zeros is the square root of how many ones there are
    counts = block_norms(nonzero, rows=pattern.rows, columns=pattern.columns).square().round()
    if pattern.keep is not None:
        return bool((counts <= pattern.keep).all())
    size, left = pattern.rows * pattern.columns, counts[counts > 0]
    if not rounded:
        return bool((left == size).all())
    gone = 1 - left.numel() / counts.numel()
    return gone >= _ROUNDED and float((size - left).sum()) <= _ROUNDED * size * left.numel()


def _weight(
    node: onnx.NodeProto,
    stored: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
) -> Stored | None:
    """The weight of `node`, if it is a convolution or a product with one stored."""
    if node.op_type not in CONVOLUTIONS | PRODUCTS | {"ConvTranspose"}:
        return None
    position = 3 if node.op_type in _QUANTIZED else 1
    return next((w for w in weights_of(node, stored, makers) if w.position == position), None)


def _oriented(
    node: onnx.NodeProto,
    found: Stored,
    mask: Mask,
    stored: Mapping[str, onnx.TensorProto],
    path: Path,
) -> Mask | None:
    """`mask` as (outputs, inputs, *kernel); None where its layout cannot be told."""
    for move in found.moves:
        if move.op_type == "Transpose":
            order = next((list(a.ints) for a in move.attribute if a.name == "perm"), None)
            mask = mask.transpose(order)
            continue
        shape = stored.get(move.input[1])
        if shape is None:
            return None
        sizes = tensor_values(shape, path.parent).astype(int)
        mask = mask.reshape([mask.shape[i] if n == 0 else n for i, n in enumerate(sizes)])
    if mask.ndim < 2:
        return None
    if node.op_type in PRODUCTS:
        if mask.ndim > 2:  # a matrix for each of a batch
            return None
        return mask if flag(node, "transB") else mask.T
    return mask.swapaxes(0, 1) if node.op_type == "ConvTranspose" else mask


def _groups(node: onnx.NodeProto) -> int:
    if node.op_type == "ConvTranspose":  # its outputs are those of one group already
        return 1
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
