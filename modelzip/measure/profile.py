"""Where the time goes in a file: onnxruntime's own profile, operator by operator."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelzip.core import checks
from modelzip.runtime.ort_session import OrtSession

_SUFFIX = "_kernel_time"


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
