"""Layers ranked by what quantizing each alone costs, beside their share of size and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from modelzip.measure.layer_size import layer_sizes
from modelzip.measure.profile import layer_times
from modelzip.quantization.sensitivity import sensitivity
from modelzip.report.record import SensitivityRow
from modelzip.report.text import Rows, percent
from modelzip.runtime.inputs import resized

SENSITIVITY = ["layer", "bits", "KL", "same answer", "of size", "of time"]
_SAMPLES = 256  # 57 layers of ResNet-56 take half a minute at one bit width


def rank(
    model: nn.Module,
    path: Path,
    batches: Sequence[Any],
    *,
    bits: Mapping[str, int] | int,
    example_inputs: Any,
) -> tuple[SensitivityRow, ...]:
    """The layers of the float `model`, the most sensitive first.

    Args:
        path: the file whose layers' sizes, and times at batch 1, are looked at.
        batches: (inputs, targets), of which about 256 samples are used.
        bits: of all layers, or of each by name; layers without any are left out.
        example_inputs: one batch.
    """
    few = _first(batches, _SAMPLES)
    if isinstance(bits, int):
        found = sensitivity(model, few, bits=(bits,))
    else:
        found = []
        for width in sorted(set(bits.values())):
            layers = [name for name, of_layer in bits.items() if of_layer == width]
            found += sensitivity(model, few, bits=(width,), layers=layers)
    inputs = resized(example_inputs, 1)
    sizes = layer_sizes(path, example_inputs=inputs)
    total = sum(size.size_bytes for size in sizes.values())
    times = {row.layer: row.share for row in layer_times(path, inputs)}
    rows = [
        SensitivityRow(
            layer=row.layer,
            bits=row.bits,
            kl=row.kl,
            agreement=row.agreement,
            size_share=sizes[row.layer].size_bytes / total if row.layer in sizes else None,
            time_share=times.get(row.layer),
        )
        for row in found
    ]
    return tuple(sorted(rows, key=lambda row: -row.kl))


def sensitivity_rows(rows: Sequence[SensitivityRow]) -> Rows:
    """Cells under the headers of `SENSITIVITY`."""
    return [
        [r.layer, r.bits, f"{r.kl:.2e}", percent(r.agreement), *map(_share, _shares(r))]
        for r in rows
    ]


def _shares(row: SensitivityRow) -> tuple[float | None, float | None]:
    return row.size_share, row.time_share


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _first(batches: Sequence[Any], samples: int) -> list[Any]:
    """The first of (inputs, targets) batches that together have `samples` or more."""
    found, seen = [], 0
    for batch in batches:
        if seen >= samples:
            break
        found.append(batch)
        seen += len(batch[1])
    return found
