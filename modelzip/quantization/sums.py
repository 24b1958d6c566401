"""Sums whose terms share a step with the result, so that nothing is left to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import fx

from modelzip.numerics.affine import activation_grid, levels
from modelzip.numerics.histogram import Histogram
from modelzip.quantization.fake import ActivationQuantizer
from modelzip.quantization.nodes import is_add, module_of, only_user, operands, relu_form


class _Sum(NamedTuple):
    terms: tuple[ActivationQuantizer, ActivationQuantizer]
    free: tuple[bool, bool]  # whether nothing else uses the term
    out: ActivationQuantizer


def share_steps(graph: fx.GraphModule, seen: Mapping[ActivationQuantizer, Histogram]) -> None:
    """Give a sum's quantizer and one term's the step of the other term, wherever that costs less.

    The integers then add up exactly: the sum is clipped, but not rounded. Against that stands what
    the term and the sum lose on a step that is not their own, in squared error over `seen`. On a
    residual stream of many blocks this spares every block its rounding.
    """
    for node in graph.graph.nodes:
        found = _sum(graph, node)
        if found is None:
            continue
        out, best = found.out, (0.0, found.terms)
        for (kept, moved), free in zip(
            (found.terms, found.terms[::-1]), found.free[::-1], strict=True
        ):
            if not free or not kept.bits == moved.bits == out.bits:
                continue
            step = float(kept.scale.detach())
            gain = (
                _error(seen[moved], moved, _range(moved))
                + _error(seen[out], out, _range(out))
                - _error(seen[moved], moved, _range(moved, step))
                - _error(seen[out], out, _range(out, step), rounded=False)
            )
            if gain > best[0]:
                best = (gain, (kept, moved))
        if best[0] > 0:
            kept, moved = best[1]
            for quantizer in (moved, out):
                quantizer.set_range(*_range(quantizer, float(kept.scale.detach())))
                quantizer.scale.data.copy_(kept.scale.detach())


def _sum(graph: fx.GraphModule, node: fx.Node) -> _Sum | None:
    """What an addition adds, where its terms and its result are all quantized."""
    if not is_add(node):
        return None
    user = only_user(node)
    if user is not None and relu_form(graph, user):
        user = only_user(user)
    nodes = operands(node)
    first, second, out = (module_of(graph, n) if n else None for n in (*nodes, user))
    if not isinstance(first, ActivationQuantizer) or not isinstance(second, ActivationQuantizer):
        return None
    if not isinstance(out, ActivationQuantizer):
        return None
    calls = [n.target for n in graph.graph.nodes]
    free = [only_user(n) is node and calls.count(n.target) == 1 for n in nodes]
    return _Sum((first, second), (free[0], free[1]), out)


def _range(quantizer: ActivationQuantizer, step: float | None = None) -> tuple[float, float]:
    """The range of `quantizer`; with `step`, scaled at both ends to as many steps as there are."""
    low = 0.0 if quantizer.nonnegative else min(float(quantizer.low), 0.0)
    high = max(float(quantizer.high), 0.0)
    factor = 1.0
    if step is not None:
        factor = step * levels(quantizer.bits) / max(high - low, 1e-30)
    return low * factor, high * factor


def _error(
    histogram: Histogram,
    quantizer: ActivationQuantizer,
    ends: tuple[float, float],
    *,
    rounded: bool = True,
) -> float:
    """Mean squared error of the range, of clipping alone where nothing is `rounded`."""
    counts, start, end = histogram.trimmed()
    width = (end - start) / counts.numel()
    centres = start + (torch.arange(counts.numel(), dtype=torch.float64) + 0.5) * width
    bits, nonnegative = quantizer.bits, quantizer.nonnegative
    scale, zero = activation_grid(*ends, bits=bits, nonnegative=nonnegative)
    steps = (centres / scale).round_() if rounded else centres / scale
    kept = steps.clamp_(-zero, levels(bits) - zero) * scale
    if nonnegative:
        centres = centres.clamp_min(0.0)
    return float(((kept - centres).square() * counts).sum() / counts.sum())
