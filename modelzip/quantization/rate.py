"""Weights rounded for the fewest entropy-coded bits: a step for each layer, by what it costs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.core.answers import TEMPERATURE, Tally, log_probabilities
from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import SettingError
from modelzip.numerics.rate import TOP, code_lengths, rate_distortion_integers
from modelzip.quantization.blocks import BlockQuantizer
from modelzip.quantization.nodes import module_of
from modelzip.quantization.pairs import Pairs, walk
from modelzip.quantization.rounding import moments

log = logging.getLogger(__name__)

_SENSED = 256  # samples that sensitivities are measured on
_LEVELS = 8  # of the largest |w|, where a layer's sensitivity is tried
_LEAST = 1e-6  # nats: what a layer that cost nothing on these samples is taken to cost
_MANTISSA = 8  # bits of a stored bias
_CHANNEL_BITS = 24  # of an output channel's scale and bias
_FITTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_START = 5e-4  # of the amount that all steps follow
_TURNS = 8
_NEAR = 0.02  # of a target


class Rounding:
    """Roundings of the `layers` of `graph`, which have quantizers, at any amount of loss."""

    def __init__(
        self,
        graph: fx.GraphModule,
        layers: Sequence[str],
        batches: Sequence[Batch],
        *,
        price: float,
    ) -> None:
        self._graph, self._batches, self._price = graph, batches, price
        self._layers = {name: graph.get_submodule(name) for name in layers}
        self._whole = 32 * sum(p.numel() for p in graph.parameters())
        with _unrounded(self._layers), evaluating(graph):
            self._original = answers(graph, batches, temperature=1.0)
            self._curvature = curvatures(graph, self._layers, _first(batches, _SENSED))
        self._before = {key: value.clone() for key, value in graph.state_dict().items()}

    def round(self, amount: float) -> tuple[float, float]:
        """Round by steps that follow `amount`; the bytes as a fraction of float32's, and KL."""
        self._graph.load_state_dict(self._before)
        steps = steps_for(self._layers, self._curvature, amount=amount)
        bits = quantize(self._graph, self._batches, steps, price=self._price)
        kl = divergence(self._graph, self._batches, self._original, temperature=1.0)
        log.info("  %.4fx of the bytes at KL %.4f", bits / self._whole, kl)
        return bits / self._whole, kl

    def solve(self, *, size: float | None = None, kl: float | None = None) -> None:
        """Round so that no more is left of the bytes than `size`, or so that it costs at most `kl`.

        SettingError where that is not found.
        """
        which, limit = (0, size) if size is not None else (1, kl)
        if limit is None:
            raise TypeError("size or kl")
        target, slope = math.log(limit), (-0.7, 2.0)[which]  # bytes fall, and KL rises
        met: float | None = None
        missed: float | None = None
        amount = math.log(_START)
        points: list[tuple[float, float]] = []
        for _ in range(_TURNS):
            points.append((amount, math.log(max(self.round(math.exp(amount))[which], 1e-12))))
            if points[-1][1] > target:
                missed = amount
            else:
                met = amount
                if points[-1][1] >= target - _NEAR:
                    return
            amount = _next(points, target - _NEAR / 2, slope, met, missed)
        if met is None:
            least = math.exp(min(found for _, found in points))
            asked = (f"size={limit:g}x", f"kl={limit:g}")[which]
            found = (f"{least:.3f}x", f"{least:.2g}")[which]
            raise SettingError(f"{asked} is out of reach: {found} is the least that was found")
        self.round(math.exp(met))


def _next(
    points: Sequence[tuple[float, float]],
    target: float,
    slope: float,
    met: float | None,
    missed: float | None,
) -> float:
    """Where the line through the last two points meets `target`, or halfway between the bounds."""
    (x, y), *_ = reversed(points)
    if len(points) > 1 and points[-2][0] != x:
        steepness = (points[-2][1] - y) / (points[-2][0] - x)
        slope = min(slope / 4, steepness) if slope < 0 else max(slope / 4, steepness)
    wanted = x + max(-3.0, min(3.0, (target - y) / slope))
    if met is not None and missed is not None and not min(met, missed) < wanted < max(met, missed):
        return (met + missed) / 2
    return wanted


@contextmanager
def _unrounded(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    for layer in layers.values():
        _quantizer(layer).observing = True
    try:
        yield
    finally:
        for layer in layers.values():
            _quantizer(layer).observing = False


def curvatures(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
) -> dict[str, float]:
    """What a squared error of 1 in every weight of each layer alone costs, in nats, by name.

    Measured by rounding its weights to an eighth of the largest, on softened answers.
    """
    found = {}
    original = answers(model, batches, temperature=TEMPERATURE)
    for name, layer in layers.items():
        weight = surgery.original_tensor(layer)
        before = weight.detach().clone()
        step = before.abs().max().clamp_min(1e-30) / _LEVELS
        weight.data.copy_((before / step).round() * step)
        error = float((weight.detach() - before).square().mean())
        kl = divergence(model, batches, original, temperature=TEMPERATURE)
        weight.data.copy_(before)
        found[name] = max(kl, _LEAST) / max(error, 1e-30)
    return found


def _first(batches: Sequence[Batch], samples: int) -> Sequence[Batch]:
    """As many of the `batches` as have that many samples, and at least one."""
    sizes = list(accumulate(len(next(tensors(batch.inputs))) for batch in batches))
    return batches[: 1 + sum(size < samples for size in sizes)]


def answers(model: nn.Module, batches: Sequence[Batch], *, temperature: float) -> list[Tensor]:
    """Log-probabilities of what `model` answers, batch by batch."""
    with evaluating(model):
        return [
            log_probabilities(call(model, b.inputs), b.targets, temperature=temperature)
            for b in batches
        ]


def divergence(
    model: nn.Module, batches: Sequence[Batch], original: Sequence[Tensor], *, temperature: float
) -> float:
    """Mean Kullback-Leibler divergence from the `original` answers, in nats."""
    tally = Tally()
    for before, after in zip(
        original, answers(model, batches, temperature=temperature), strict=True
    ):
        tally.add(before, after)
    return tally.kl


def steps_for(
    layers: Mapping[str, nn.Module], curvature: Mapping[str, float], *, amount: float
) -> dict[str, float]:
    """The step of each layer, so that one more bit spent on any of them gains the same.

    Bits fall with the logarithm of the step, once for each weight, and the cost rises with its
    square: steps are `amount` times the root of weights over curvature.
    """
    steps = {}
    for name, layer in layers.items():
        weight = surgery.original_tensor(layer).detach()
        step = amount * math.sqrt(weight.numel() / curvature[name])
        largest = float(weight.abs().max())
        steps[name] = min(max(step, largest / TOP), largest) or 1.0
    return steps


def quantize(
    graph: fx.GraphModule, batches: Sequence[Batch], steps: Mapping[str, float], *, price: float
) -> float:
    """Round the weights of the layers of `graph` that have `steps`, in place; the bits they take.

    Layers come one after another, each fitted to the float model's output on what the layers before
    it, rounded already, feed it; biases make up for what is left on average. Layers that run twice,
    or not as modules of their own, are rounded to the nearest.
    """
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for name, step in steps.items():
        quantizer = _quantizer(graph.get_submodule(name))
        quantizer.keep(torch.full_like(quantizer.scale, step))

    def visit(pairs: Pairs, node: fx.Node) -> None:
        name, layer = str(node.target), module_of(graph, node)
        if name in steps and calls[name] == 1 and isinstance(layer, _FITTED):
            _fit(pairs, node, layer, step=steps[name], price=price)
            if layer.bias is not None:
                _centre(pairs, node, layer)

    walk(graph, batches, before=visit)
    return sum(coded_bits(graph.get_submodule(name)) for name in steps)


def _fit(pairs: Pairs, node: fx.Node, layer: nn.Module, *, step: float, price: float) -> None:
    weight = surgery.original_tensor(layer)
    seen = pairs.at(node.all_input_nodes[0])
    gram, cross = moments(layer, seen, centred=layer.bias is not None)
    parts = [
        rate_distortion_integers(rows.flatten(1), g, step=step, price=price, cross=c)
        for rows, g, c in zip(weight.detach().chunk(len(gram)), gram, cross, strict=True)
    ]
    scale = torch.cat([s for _, s in parts])
    integers = torch.cat([q for q, _ in parts])
    weight.data.copy_((integers * scale[:, None]).view_as(weight))
    _quantizer(layer).keep(scale)


def _centre(pairs: Pairs, node: fx.Node, layer: nn.Module) -> None:
    """Give the channels of the layer's output the mean that they have in the float model."""
    pairs.run(node, quantized=True)
    bias = surgery.original_tensor(layer, tensor="bias")
    channels = -1 if isinstance(layer, nn.Linear) else 1
    lost = [(exact - rounded).double() for exact, rounded in pairs.at(node)]
    means = torch.stack([each.movedim(channels, 0).flatten(1).mean(1) for each in lost])
    bias.data.copy_(shortened(bias + means.mean(0).to(bias), bits=_MANTISSA))


def shortened(values: Tensor, *, bits: int) -> Tensor:
    """`values` rounded to `bits` binary digits each.

    >>> shortened(torch.tensor([1.03, 100.1]), bits=4).tolist()
    [1.0, 104.0]
    """
    fraction, exponent = torch.frexp(values)
    return torch.ldexp((fraction * 2**bits).round() / 2**bits, exponent)


def coded_bits(layer: nn.Module) -> float:
    """Of the weights in an ideal static code, and of the scales and biases."""
    integers, scale = _quantizer(layer).integers(surgery.original_tensor(layer))
    codes = integers.double()
    lengths = code_lengths(codes, top=TOP)
    return float(lengths[(codes.flatten() + TOP).long()].sum()) + _CHANNEL_BITS * scale.numel()


def _quantizer(layer: nn.Module) -> BlockQuantizer:
    found = surgery.attached(layer, BlockQuantizer)
    if found is None:
        raise TypeError(f"{type(layer).__name__} has no BlockQuantizer")
    return found
