"""Which values of a file follow the runtime's own arithmetic, as integer modules compute it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from modelzip.measure.file_layers import FileLayers

# they move or select values, or round them to a grid, one by one
_PLAIN = {
    "Clip", "Concat", "DequantizeLinear", "DynamicQuantizeLinear", "Expand", "Flatten", "Gather",
    "Identity", "MatMulInteger", "Max", "MaxPool", "Min", "Pad", "QuantizeLinear", "Relu",
    "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_FROM_GRID = {"Gemm", "MatMul"}  # have an integer kernel with a float output too
_FROM_GRID_TO_GRID = {"Add", "AveragePool", "Conv", "GlobalAveragePool"}
_SCALES = {"Add", "Cast", "Mul"}  # of a layer's sum, and its bias


@dataclass
class Trail:
    """What a value went through: `behind` holds operators without a rule since values were seen.

    They are named by the number of their node; `exact` is False if there ever was one.
    """

    exact: bool = True
    behind: dict[int, str] = field(default_factory=dict)


def trails(file: FileLayers, seen: Collection[str]) -> dict[str, Trail]:
    """The trail of every tensor in `seen`, and of the file's outputs."""
    known: dict[str, Trail] = {}
    wanted = {*seen, *(value.name for value in file.model.graph.output)}
    found: dict[str, Trail] = {}
    covered: set[int] = set()
    for index, node in enumerate(file.nodes):
        before = [known.get(name, Trail()) for name in file.varying(index)]
        trail = Trail(all(t.exact for t in before))
        for one in before:
            trail.behind |= one.behind
        if not before or _is_covered(file, index, covered):
            covered.add(index)
        else:
            trail.exact = False
            trail.behind[index] = node.op_type
        for name in node.output:
            known[name] = trail
            if name in wanted:
                found[name] = trail
                known[name] = Trail(trail.exact)
    return {name: found.get(name, Trail()) for name in wanted}


def _is_covered(file: FileLayers, index: int, covered: set[int]) -> bool:
    node = file.nodes[index]
    if node.op_type in _PLAIN:
        return True
    inputs = file.varying(index)
    if node.op_type in _SCALES and len(inputs) == 1 and inputs[0] in file.makers:
        maker = file.makers[inputs[0]]
        if file.nodes[maker].op_type in {*_FROM_GRID, *_SCALES, "MatMulInteger"}:
            return maker in covered and bool(file.owner[maker])
    on_grid = all(file.op(name) == "DequantizeLinear" for name in inputs)
    weights = [name for name in node.input if name in file.constant]
    whole = all(file.op(name) == "DequantizeLinear" for name in weights)
    if node.op_type in _FROM_GRID:
        return on_grid and whole
    return node.op_type in _FROM_GRID_TO_GRID and on_grid and whole and file.rounded(index)
