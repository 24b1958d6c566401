"""A module and its file layer by layer, as text."""

from __future__ import annotations

from collections.abc import Sequence

from modelzip.measure.accuracy import Accuracy
from modelzip.measure.layers import LayerComparison, LayerMatch, Uncovered
from modelzip.report.text import Rows, percent, table

LAYERS = ["layer", "values", "equal", "largest difference"]
# where converted models keep what has no layer's name, and what a reader calls it
_CONTAINERS = {"activation_quantizers.": "quantizer ", "integer_operations.": ""}


def layer_table(found: LayerComparison) -> str:
    """A row for each layer compared, in the file's order."""
    rows: Rows = [
        [
            layer_name(row.name),
            row.values,
            share(row.equal, row.values),
            difference(row.largest, steps=row.steps) if row.equal < row.values else "",
        ]
        for row in found.layers
    ]
    return table(rows, LAYERS)


def verification(
    layers: LayerComparison, accuracy: Accuracy, promise: str, problems: Sequence[str]
) -> str:
    """The table, what follows from it, and whether the run still is what its report says."""
    lines = [
        *conclusion(layers),
        *filter(None, [promise]),
        f"accuracy in onnxruntime: {percent(accuracy.top1)} of {accuracy.n} samples",
        *(f"! {problem}" for problem in problems),
        "FAIL" if problems else "PASS: the file computes what its model does, as reported",
    ]
    return f"{layer_table(layers)}\n\n" + "\n".join(lines)


def conclusion(found: LayerComparison) -> list[str]:
    """Whether file and module are the same, the first layer that differs, and what has no rule."""
    first = found.faulty or found.first
    if first is None:
        lines = [f"identical on {found.n} samples"]
    else:
        lines = [f"first differing layer: {describe(first)}"]
        if not first.exact:
            lines[0] += f", behind {', '.join(first.behind) or 'operators'} without an exact rule"
        lines.append(f"same answer on {share(round(found.agreement * found.n), found.n)} of them")
    if found.uncovered:
        lines.append(without_rule(found))
    if found.unmatched:
        names = ", ".join(map(layer_name, found.unmatched))
        lines.append(f"not found in the file, so not compared: {names}")
    if found.observed:
        lines.append(
            "the values are those of a copy of the file, which the runtime fuses otherwise: its "
            f"outputs differ by up to {found.observed:.2g}"
        )
    return lines


def without_rule(found: LayerComparison) -> str:
    """The operators that have no exact rule, each kind with the largest difference behind one."""
    gaps = "; ".join(map(_gap, found.uncovered))
    return f"not covered by the exact rules, and the difference right behind: {gaps}"


def describe(row: LayerMatch) -> str:
    """How one layer differs, as in "conv1, 3 of 65536 values, by at most 1 step"."""
    return (
        f"{layer_name(row.name)}, {row.values - row.equal} of {row.values} values, by at most "
        f"{difference(row.largest, steps=row.steps)}"
    )


def difference(largest: float, *, steps: bool) -> str:
    """A difference with its unit.

    >>> difference(1.0, steps=True), difference(0.00123, steps=False)
    ('1 step', '0.0012')
    """
    return f"{largest:.0f} step{'' if largest == 1 else 's'}" if steps else f"{largest:.2g}"


def share(part: int, whole: int) -> str:
    """A percentage that is 100 only where all of it is meant, and 0 where none is.

    >>> share(1, 1), share(99999, 100000), share(1, 100000)
    ('100 %', '99.99 %', '0.01 %')
    """
    if part in (0, whole):
        return "100 %" if part else "0 %"
    return f"{min(99.99, max(0.01, 100 * part / whole)):.2f} %"


def layer_name(name: str) -> str:
    """A module's name without the container that conversion put it in.

    >>> layer_name("integer_operations.add_1"), layer_name("layer1.0.conv1")
    ('add_1', 'layer1.0.conv1')
    """
    for container, word in _CONTAINERS.items():
        if name.startswith(container):
            return word + name.removeprefix(container)
    return name


def _gap(row: Uncovered) -> str:
    gap = difference(row.largest, steps=row.steps) if row.largest else "none"
    return f"{row.op} ({row.count}): {gap}"
