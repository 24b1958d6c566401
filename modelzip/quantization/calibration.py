"""Activation ranges from a few batches of representative data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating
from modelzip.errors import ModelError
from modelzip.numerics.histogram import mse_range, percentile_range
from modelzip.quantization.fake import ActivationQuantizer

Calibrator = Literal["minmax", "percentile", "mse"]
CALIBRATORS = ("minmax", "percentile", "mse")

_BINS = 2048
_COUNTABLE = 2**24  # values that one call counts exactly, as it counts in float32


def calibrate(
    graph: nn.Module,
    quantizers: Sequence[tuple[str, ActivationQuantizer]],
    batches: Sequence[Batch],
    *,
    calibrator: Calibrator,
    percentile: float,
) -> None:
    """Set the range of each quantizer from what passes through it; ModelError names a NaN.

    One run of the model over `batches` for the extremes, and one more for histograms unless the
    calibrator is "minmax".
    """
    extremes = {q: _Extremes() for _, q in quantizers}
    _observe(graph, quantizers, batches, lambda q, x: extremes[q].update(x))
    for name, quantizer in quantizers:
        found = extremes[quantizer]
        if not (math.isfinite(found.low) and math.isfinite(found.high)):
            raise ModelError(
                f"activation {name!r} is NaN or infinite, or was never computed, on the "
                "calibration data; check the weights and the data's range"
            )
        quantizer.set_range(found.low, found.high)
    if calibrator == "minmax":
        return
    counts = {q: torch.zeros(_BINS, dtype=torch.float64) for _, q in quantizers}

    def count(quantizer: ActivationQuantizer, values: Tensor) -> None:
        low, high = extremes[quantizer].span
        for part in torch.split(values.float().flatten(), _COUNTABLE):
            counts[quantizer] += torch.histc(part, _BINS, low, high).double().cpu()

    _observe(graph, quantizers, batches, count)
    for _, quantizer in quantizers:
        low, high = extremes[quantizer].span
        if calibrator == "percentile":
            chosen = percentile_range(counts[quantizer], low, high, percentile=percentile)
        else:
            chosen = mse_range(
                counts[quantizer],
                low,
                high,
                bits=quantizer.bits,
                nonnegative=quantizer.nonnegative,
            )
        quantizer.set_range(*chosen)


class _Extremes:
    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values.detach().float()))
        if math.isnan(low):  # min and max would ignore it
            low, high = math.nan, math.nan
        if not math.isnan(self.low):
            self.low = low if math.isnan(low) else min(self.low, low)
            self.high = high if math.isnan(high) else max(self.high, high)

    @property
    def span(self) -> tuple[float, float]:
        """The range, widened where it is a single value."""
        return self.low, max(self.high, self.low + 1e-6)


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
