"""Activation ranges from a few batches of representative data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn

from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating
from modelzip.errors import ModelError
from modelzip.numerics.histogram import Histogram, entropy_range, mse_range, percentile_range
from modelzip.quantization.fake import ActivationQuantizer
from modelzip.quantization.representative import compared_with_training
from modelzip.quantization.sums import share_steps

Calibrator = Literal["minmax", "percentile", "mse", "mse_batch", "entropy"]
CALIBRATORS = ("minmax", "percentile", "mse", "mse_batch", "entropy")


def calibrate(
    graph: nn.Module,
    quantizers: Sequence[tuple[str, ActivationQuantizer]],
    batches: Sequence[Batch],
    *,
    calibrator: Calibrator,
    percentile: float,
) -> None:
    """Set the range of each quantizer from what passes through it, in one run over `batches`.

    ModelError names an activation that is not finite; a warning says where the data are far from
    what batch norms saw in training.
    """
    seen = {q: _Seen(q, calibrator, percentile) for _, q in quantizers}
    with compared_with_training(graph):
        _observe(graph, quantizers, batches, lambda q, x: seen[q].update(x))
    for name, quantizer in quantizers:
        found = seen[quantizer]
        if not (math.isfinite(found.low) and math.isfinite(found.high)):
            raise ModelError(
                f"activation {name!r} is NaN or infinite, or was never computed, on the "
                "calibration data; check the weights and the data's range"
            )
        quantizer.set_range(*found.chosen())
    if calibrator == "mse" and isinstance(graph, fx.GraphModule):
        share_steps(graph, {q: found.histogram for q, found in seen.items()})


class _Seen:
    """What a quantizer saw: the extremes, and what its calibrator needs besides."""

    def __init__(
        self, quantizer: ActivationQuantizer, calibrator: Calibrator, percentile: float
    ) -> None:
        self.quantizer = quantizer
        self.calibrator = calibrator
        self.percentile = percentile
        self.low, self.high = math.inf, -math.inf
        self.histogram = Histogram()
        self.ranges: list[tuple[float, float]] = []  # one a batch, for "mse_batch"

    def update(self, values: Tensor) -> None:
        if not values.numel() or math.isnan(self.low):
            return
        low, high = (float(v) for v in torch.aminmax(values.detach().float()))
        if math.isnan(low):  # min and max would ignore it
            self.low = self.high = math.nan
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.calibrator == "minmax" or not math.isfinite(high - low):
            return
        self.histogram.add(values)
        if self.calibrator == "mse_batch":
            self.ranges.append(self._fitted())
            self.histogram = Histogram()

    def chosen(self) -> tuple[float, float]:
        """The range to quantize, no wider than the extremes."""
        if self.calibrator == "minmax":
            return self.low, self.high
        if self.calibrator == "mse_batch":
            lows, highs = zip(*self.ranges, strict=True)
            low, high = sum(lows) / len(lows), sum(highs) / len(highs)
        else:
            low, high = self._fitted()
        return max(low, self.low), min(high, self.high)

    def _fitted(self) -> tuple[float, float]:
        counts, low, high = self.histogram.trimmed()
        if self.calibrator == "percentile":
            return percentile_range(counts, low, high, percentile=self.percentile)
        choose = entropy_range if self.calibrator == "entropy" else mse_range
        return choose(
            counts,
            low,
            high,
            bits=self.quantizer.bits,
            nonnegative=self.quantizer.nonnegative,
        )


def _observe(
    graph: nn.Module,
    quantizers: Sequence[tuple[str, ActivationQuantizer]],
    batches: Sequence[Batch],
    see: Callable[[ActivationQuantizer, Tensor], None],
) -> None:
    handles = []
    for _, quantizer in quantizers:
        quantizer.observing = True
        handles.append(quantizer.register_forward_pre_hook(lambda q, args: see(q, args[0])))
    try:
        with evaluating(graph):
            for batch in batches:
                call(graph, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
        for _, quantizer in quantizers:
            quantizer.observing = False
