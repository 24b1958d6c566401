"""Where a file and its module part: every layer's values, side by side."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import DataError, ExportError
from modelzip.measure.exactness import Trail, trails
from modelzip.measure.file_layers import FileLayers, Place
from modelzip.measure.recording import Call, recording
from modelzip.runtime.inputs import Array, as_array
from modelzip.runtime.ort_session import OrtSession


@dataclass(frozen=True, kw_only=True)
class LayerMatch:
    """One layer's values in the module and in the file.

    Attributes:
        name: the module's name; that of an output of the file for what the model returns.
        values: how many were compared.
        equal: how many of them are the same to the last bit.
        largest: the largest absolute difference, in steps of the grid where `steps` is True.
        steps: the values are integers, in the file and in the module.
        exact: everything before it follows the runtime's own arithmetic, so that any difference
            is a fault.
        behind: operators without such a rule between the last values compared and these.
    """

    name: str
    values: int
    equal: int
    largest: float
    steps: bool
    exact: bool
    behind: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Uncovered:
    """Operators of a kind that have no exact rule, and the largest difference right behind one."""

    op: str
    count: int
    largest: float
    steps: bool


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """A module against its file on the same samples, layer by layer in the file's order.

    Attributes:
        n: samples.
        layers: what could be compared; the last are the model's outputs.
        unmatched: layers whose values could not be found in the file.
        uncovered: operators without an exact rule.
        agreement: fraction of the samples whose largest output is the same.
        observed: the largest difference between the outputs of the file and of its copy that
            shows the layers' values; 0.0 where the values are those of the file itself.
    """

    n: int
    layers: tuple[LayerMatch, ...]
    unmatched: tuple[str, ...]
    uncovered: tuple[Uncovered, ...]
    agreement: float
    observed: float

    @property
    def first(self) -> LayerMatch | None:
        """The first layer where file and module part, or None."""
        return next((row for row in self.layers if row.equal < row.values), None)

    @property
    def faulty(self) -> LayerMatch | None:
        """The first layer that differs although it must not, or None."""
        return next((r for r in self.layers if r.exact and r.equal < r.values), None)


def compare_layers(
    module: nn.Module, path: str | Path, batches: Iterable[Any], *, threads: int = 1
) -> LayerComparison:
    """Run `module`, which the file `path` was made from, and the file, and compare every layer.

    Values are looked at in a copy of the file that has them as outputs: integers on their grids,
    which every quantized layer, addition and pool rounds to, and floats that layers return.

    Args:
        module: the converted module; run in eval mode, on the CPU.
        path: the file made from it.
        batches: inputs alone, in batches: a tensor, a tuple, or a dict by name.

    Raises:
        DataError: there are no batches, or the outputs differ in number or shape.
        ExportError: the file cannot be read or run.
    """
    path = Path(path)
    file, untouched = FileLayers(path), OrtSession(path, threads=threads)
    watched = _Watched(file)
    with (
        tempfile.TemporaryDirectory() as folder,
        evaluating(module),
        recording(module) as calls,
    ):
        observed = Path(folder) / path.name
        _save(file.showing(watched.tensors), observed)
        session = OrtSession(observed, threads=threads)
        for inputs in batches:
            calls.clear()
            ours = [as_array(t) for t in tensors(call(module, inputs))]
            watched.add(ours, list(calls), untouched.run(inputs), session.run(inputs))
    return watched.comparison()


class _Watched:
    """Adds up, batch by batch, how the values of each layer compare."""

    def __init__(self, file: FileLayers) -> None:
        self.file = file
        places = [*file.integers(), *file.floats()]
        self.places = [p for p in places if p.tensor in file.known]
        self.tensors = list(dict.fromkeys(p.tensor for p in self.places))
        names = {p.tensor: p.layer for p in places}
        self.outputs = {v.name: names.get(v.name, v.name) for v in file.model.graph.output}
        self.totals: dict[str, tuple[str, bool]] = {}
        self.values: Counter[str] = Counter()
        self.equal: Counter[str] = Counter()
        self.largest: dict[str, float] = {}
        self.unmatched: dict[str, None] = {}
        self.n = self.agreeing = 0
        self.observed = 0.0

    def add(
        self, ours: list[Array], calls: list[Call], theirs: list[Array], seen: list[Array]
    ) -> None:
        if [a.shape for a in ours] != [b.shape for b in theirs]:
            raise DataError(
                f"the module's outputs have shapes {[list(a.shape) for a in ours]}, the file's "
                f"{[list(b.shape) for b in theirs]}"
            )
        self.n += len(ours[0])
        self.agreeing += int(_same_answers(ours, theirs).sum())
        shown = seen[: len(theirs)]
        self.observed = max(self.observed, *map(_difference, theirs, shown))
        inner = dict(zip(self.tensors, seen[len(theirs) :], strict=True))
        found, unmatched = _matched(calls, self.places, inner)
        self.unmatched |= dict.fromkeys(unmatched)
        for one, place in found:
            self._compare(place.tensor, one.name, one.values, inner[place.tensor], one.steps)
        for (tensor, name), mine, its in zip(self.outputs.items(), ours, theirs, strict=True):
            self._compare(tensor, name, mine, its, False)

    def _compare(self, tensor: str, name: str, ours: Array, theirs: Array, steps: bool) -> None:
        self.totals[tensor] = name, steps
        self.values[tensor] += ours.size
        self.equal[tensor] += int(np.count_nonzero(ours == theirs))
        self.largest[tensor] = max(self.largest.get(tensor, 0.0), _difference(ours, theirs))

    def comparison(self) -> LayerComparison:
        if not self.n:
            raise DataError("there are no samples to compare on; give at least one batch")
        walked = trails(self.file, self.totals)
        end = len(self.file.nodes)
        order = {p.tensor: p.node for p in self.places}
        keys = sorted(self.totals, key=lambda tensor: order.get(tensor, end))
        rows = tuple(self._row(tensor, walked[tensor]) for tensor in keys)
        return LayerComparison(
            n=self.n,
            layers=rows,
            unmatched=tuple(n for n in self.unmatched if n not in self.outputs.values()),
            uncovered=_uncovered(rows, walked),
            agreement=self.agreeing / self.n,
            observed=self.observed,
        )

    def _row(self, tensor: str, trail: Trail) -> LayerMatch:
        name, steps = self.totals[tensor]
        return LayerMatch(
            name=name,
            values=self.values[tensor],
            equal=self.equal[tensor],
            largest=self.largest[tensor],
            steps=steps,
            exact=trail.exact,
            behind=tuple(sorted(set(trail.behind.values()))),
        )


def _uncovered(rows: tuple[LayerMatch, ...], walked: dict[str, Trail]) -> tuple[Uncovered, ...]:
    nodes = {index: op for trail in walked.values() for index, op in trail.behind.items()}
    found = []
    for op, count in Counter(nodes.values()).items():
        after = [row for row in rows if op in row.behind]
        worst = max(after, key=lambda row: (row.steps, row.largest))
        found.append(Uncovered(op=op, count=count, largest=worst.largest, steps=worst.steps))
    return tuple(found)


def _matched(
    calls: list[Call], places: list[Place], values: dict[str, Array]
) -> tuple[list[tuple[Call, Place]], list[str]]:
    """Calls of modules with the places in the file where the same values are."""
    found: list[tuple[Call, Place]] = []
    lost: list[str] = []
    grids = [c for c in calls if c.steps]
    stored = [p for p in places if values[p.tensor].dtype == np.uint8]
    if len(grids) == len(stored):  # a file is written in the order in which modules run
        found += zip(grids, stored, strict=True)
    else:
        lost += _by_name(grids, stored, found)
    lost += _by_name(
        [c for c in calls if not c.steps], [p for p in places if p not in stored], found
    )
    fits = [(c, p) for c, p in found if c.values.shape == values[p.tensor].shape]
    return fits, lost + [c.name for c, p in found if c.values.shape != values[p.tensor].shape]


def _by_name(calls: list[Call], places: list[Place], found: list[tuple[Call, Place]]) -> list[str]:
    """Match each call of a layer to the place of the same name and turn; return those left."""
    waiting: dict[str, list[Place]] = {}
    for place in places:
        waiting.setdefault(place.layer, []).append(place)
    lost = []
    for one in calls:
        if waiting.get(one.name):
            found.append((one, waiting[one.name].pop(0)))
        else:
            lost.append(one.name)
    return lost


def _difference(ours: Array, theirs: Array) -> float:
    if not ours.size:
        return 0.0
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())


def _same_answers(ours: list[Array], theirs: list[Array]) -> Array:
    same = np.ones(len(ours[0]), dtype=bool)
    for mine, its in zip(ours, theirs, strict=True):
        if mine.ndim > 1:
            hits = mine.argmax(axis=-1) == its.argmax(axis=-1)
            same &= hits.reshape(len(same), -1).all(axis=1)
    return same


def _save(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.save(model, path)
    except ValueError as error:  # over protobuf's 2 GB
        raise ExportError(f"{path.name} is too large to be compared layer by layer") from error
