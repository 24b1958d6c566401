"""Where the time goes in a file: onnxruntime's own profile, by operator and by layer."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from modelzip.core import checks
from modelzip.measure.file_layers import FileLayers
from modelzip.runtime.ort_session import OrtSession

_SUFFIX = "_kernel_time"
_MARK = re.compile(r"node(\d+)")  # the runtime may put words before it and behind


@dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """One operator as onnxruntime runs it, after its fusions.

    `time_ms` is the median over runs, `share` its part of the sum of all rows, in [0, 1].
    """

    name: str
    op: str
    time_ms: float
    share: float


def profile(path: str | Path, inputs: Any, *, runs: int = 20, threads: int = 1) -> list[ProfileRow]:
    """Time of each operator of the file `path` on the CPU, for one batch, in execution order.

    Profiling slows small operators: compare shares, and take times from `latency`.

    Raises:
        ExportError: the file cannot be loaded or run.
        DataError: the inputs do not fit it.
    """
    checks.integer("runs", runs, low=1)
    warm_up = 3
    with tempfile.TemporaryDirectory() as folder:
        session = OrtSession(Path(path), threads=threads, profile=Path(folder) / "profile")
        try:
            for _ in range(warm_up + runs):
                session.run(inputs)
        finally:  # closes the profile, so that the folder can go
            written = session.native.end_profiling()
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = (event["name"].removesuffix(_SUFFIX), event["args"]["op_name"])
            times[key].append(event["dur"] / 1e3)  # microseconds
    medians = {key: statistics.median(values[warm_up:]) for key, values in times.items()}
    total = sum(medians.values())
    return [
        ProfileRow(name=name, op=op, time_ms=time_ms, share=time_ms / total if total else 0.0)
        for (name, op), time_ms in medians.items()
    ]


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """What the operators of one layer take together, those that quantize around it included.

    `layer` is "" for operators that belong to none, with a row for each kind; `ops` are the kinds
    that ran, `time_ms` a median for one batch, `share` its part of the whole, in [0, 1].
    """

    layer: str
    ops: tuple[str, ...]
    time_ms: float
    share: float


def layer_times(
    path: str | Path, inputs: Any, *, runs: int = 20, threads: int = 1
) -> list[LayerTime]:
    """Time of each layer of the file `path` on the CPU, for one batch, in execution order.

    An operator that the runtime made of several counts for the layer of one of them. Arguments
    and errors are those of `profile`.
    """
    file = FileLayers(Path(path))
    with tempfile.TemporaryDirectory() as folder:
        marked = Path(folder) / Path(path).name
        onnx.save(_marked(file), marked)
        rows = profile(marked, inputs, runs=runs, threads=threads)
    outputs = {value.name for value in file.model.graph.output}
    ends = {name: i for i, n in enumerate(file.nodes) for name in n.output if name in outputs}
    grouped: dict[tuple[str, str], list[ProfileRow]] = defaultdict(list)
    for row in rows:
        layer = _owner(file, row, ends)
        grouped[layer, "" if layer else row.op].append(row)
    return [
        LayerTime(
            layer=layer,
            ops=tuple(dict.fromkeys(row.op for row in group)),
            time_ms=sum(row.time_ms for row in group),
            share=sum(row.share for row in group),
        )
        for (layer, _), group in grouped.items()
    ]


def _marked(file: FileLayers) -> onnx.ModelProto:
    """The file with its nodes, and the tensors between them, named by the nodes' numbers.

    What the runtime fuses or inserts it names after a node or a tensor that was there.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(file.model)
    outputs = {value.name for value in marked.graph.output}
    nested = any(a.HasField("g") for node in marked.graph.node for a in node.attribute)
    names = {
        name: f"node{index}_{place}"
        for index, node in enumerate(marked.graph.node)
        for place, name in enumerate(node.output)
        if name and name not in outputs and not nested  # a subgraph may use a tensor by its name
    }
    del marked.graph.value_info[:]
    for index, node in enumerate(marked.graph.node):
        node.name = f"node{index}"
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    return marked


def _owner(file: FileLayers, row: ProfileRow, ends: dict[str, int]) -> str:
    found = _MARK.search(row.name)
    if found is not None:
        return file.owner[int(found[1])]
    ending = next((index for name, index in ends.items() if row.name.startswith(name)), None)
    return "" if ending is None else file.owner[ending]
