"""Layers ranked by what cutting the channels of each alone costs, as a table and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from modelzip.core import checks
from modelzip.core.base import Batch
from modelzip.core.channels.bundles import find_bundles
from modelzip.core.channels.resize import LAYERS
from modelzip.core.channels.scores import METHODS, score
from modelzip.core.channels.sensitivity import Cut, cut_costs
from modelzip.core.selection import select
from modelzip.errors import MissingExtraError, ModelError, SettingError
from modelzip.report.text import Rows, percent

CHANNELS = ["layer", "channels", "left", "KL", "same answer", "accuracy"]
_SHARES = (0.75, 0.5, 0.25)
_SAMPLES = 256
_FORMATS = (".png", ".svg")
_LEAST = 1e-6  # nats; below it there is rounding alone
_NAMED = 8  # curves that the legend names


@dataclass(frozen=True, kw_only=True)
class LayerCuts:
    """What it costs to leave a layer, and all that hangs together with it, fewer channels.

    Attributes:
        layer: the first layer whose output channels these are.
        channels: how many it has.
        cuts: what each number of channels left costs, falling.
    """

    layer: str
    channels: int
    cuts: dict[int, Cut]


def rank_channels(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    example_inputs: Any,
    importance: str = "l1",
    seed: int = 0,
) -> tuple[LayerCuts, ...]:
    """The layers that can lose channels, each with 75, 50 and 25 % of them, the dearest first.

    Args:
        batches: (inputs, targets), of which about 256 samples are used.
        importance: says which channels go first, one of `METHODS`.

    Raises:
        SettingError: there is no such importance.
        ModelError: the model does not run or cannot be followed, or no layer can lose channels.
        DataError: the importance needs labels, and a batch has none.

    >>> import torch
    >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)), torch.randn(4, 2)
    >>> (found,) = rank_channels(model, [(x, None)], example_inputs=x)
    >>> found.layer, found.channels, list(found.cuts)
    ('0', 8, [6, 4, 2])
    """
    checks.choice("importance", importance, METHODS)
    few = _first([Batch(*batch) for batch in batches])
    found, reasons = find_bundles(model, example_inputs, chosen=select(model, kinds=LAYERS))
    scores = score(model, found, method=importance, calibration=few, seed=seed)
    widths = {
        bundle: sorted({max(1, round(bundle.units * share)) for share in _SHARES}, reverse=True)
        for bundle in scores
        if bundle.units > 1
    }
    widths = {b: [left for left in lefts if left < b.units] for b, lefts in widths.items()}
    if not widths:
        reason = next((f": {name!r} {why}" for name, why in reasons.items()), "")
        raise ModelError(f"no layer can lose channels{reason}")
    costs = cut_costs(model, list(widths), scores, few, widths=widths)
    rows = [
        LayerCuts(
            layer=bundle.name,
            channels=bundle.units * bundle.channels_per_unit,
            cuts={left * bundle.channels_per_unit: cut for left, cut in cuts.items()},
        )
        for bundle, cuts in costs.items()
    ]
    return tuple(sorted(rows, key=lambda row: -_middle(row)))


def channel_rows(rows: Sequence[LayerCuts]) -> Rows:
    """Cells under the headers of `CHANNELS`."""
    return [
        [
            row.layer,
            row.channels,
            left,
            f"{cut.kl:.2e}",
            percent(cut.agreement),
            "" if cut.accuracy is None else percent(cut.accuracy),
        ]
        for row in rows
        for left, cut in row.cuts.items()
    ]


def plottable(path: str | Path) -> Path:
    """`path`, where a plot can be written to it.

    Raises:
        SettingError: the name of the file ends in neither .png nor .svg.
        MissingExtraError: matplotlib is not installed.

    >>> plottable("cuts.jpg")
    Traceback (most recent call last):
    modelzip.errors.SettingError: a plot is written as .png or .svg, got 'cuts.jpg'
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise SettingError(f"a plot is written as .png or .svg, got {path.name!r}")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="plot", purpose="plotting")
    return path


def plot_channels(rows: Sequence[LayerCuts], path: str | Path) -> Path:
    """Draw divergence and agreement over the channels left, a curve for each layer.

    The first eight layers are named and coloured, the others grey.

    Raises as `plottable` does.
    """
    path = plottable(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    divergence, agreement = figure.subplots(1, 2)
    for number, row in reversed(list(enumerate(rows))):  # the dearest on top
        named = number < _NAMED
        style: dict[str, Any] = {
            "color": f"C{number}" if named else "0.8",
            "label": row.layer if named else None,
            "marker": "." if named else None,
        }
        left = [100 * channels / row.channels for channels in row.cuts]
        divergence.plot(left, [cut.kl or None for cut in row.cuts.values()], **style)
        agreement.plot(
            [100.0, *left], [100.0, *(100 * cut.agreement for cut in row.cuts.values())], **style
        )
    divergence.set_yscale("log")
    divergence.set_ylim(bottom=max(_LEAST, divergence.get_ylim()[0]))
    divergence.set_ylabel("KL divergence of the softened outputs [nats]")
    agreement.set_ylabel("same answer as the whole model [%]")
    for axes in (divergence, agreement):
        axes.set_xlabel("channels left of this layer alone [%]")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    handles, labels = agreement.get_legend_handles_labels()
    agreement.legend(handles[::-1], labels[::-1], fontsize="small")
    with rc_context({"svg.hashsalt": "modelzip"}):  # the same figures make the same file
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    return path


def _middle(row: LayerCuts) -> float:
    costs = list(row.cuts.values())
    return costs[len(costs) // 2].kl


def _first(batches: Sequence[Batch]) -> list[Batch]:
    found: list[Batch] = []
    seen = 0
    for batch in batches:
        if seen >= _SAMPLES:
            break
        found.append(batch)
        seen += _SAMPLES if batch.targets is None else len(batch.targets)
    return found
