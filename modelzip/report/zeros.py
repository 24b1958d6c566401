"""What the zeros of a file are worth, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from modelzip.measure.semi_structured import SparseTime
from modelzip.measure.sparsity import WeightZeros, holding

_WORTH_SAYING = 0.3  # of the weights; fewer are zero in any file of few bits
_WORTH = (
    "onnxruntime multiplies by zeros as by any other number, so on a CPU they save no time, and "
    "bytes only in an archive"
)


def zeros_line(rows: Sequence[WeightZeros]) -> str:
    """How many weights are zero, which patterns hold in how many layers; "" where few are zero.

    >>> half = WeightZeros(layer="fc", weight="w", elements=8, zeros=4, patterns=("2:4",))
    >>> zeros_line([half]).partition("; onnxruntime")[0]
    '50.0 % of the weights in the file are zero: 2:4 holds in 1 of 1 layers'
    """
    elements, zeros = sum(row.elements for row in rows), sum(row.zeros for row in rows)
    patterns = [f"{text} holds in {count} of {len(rows)} layers" for text, count in holding(rows)]
    if not elements or (zeros < _WORTH_SAYING * elements and not patterns):
        return ""
    held = ", ".join(patterns) or "they hold no N:M or block pattern"
    return f"{100 * zeros / elements:.1f} % of the weights in the file are zero: {held}; {_WORTH}"


def kernels_line(found: SparseTime) -> str:
    """What 2:4 kernels made of the module's time on a GPU."""
    latency, layers = found.latency, f"{found.layers} Linear layer{'s' * (found.layers != 1)}"
    return (
        f"on {found.device} in float16, torch's 2:4 kernels for {layers} take "
        f"{latency.ratio:.2f}x ({latency.ratio_low:.2f} to {latency.ratio_high:.2f}) the time of "
        "dense ones"
    )
