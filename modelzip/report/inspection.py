"""Measuring an ONNX file by itself, or against another, on random inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelzip.measure.latency import latency_table
from modelzip.measure.layer_size import layer_sizes
from modelzip.measure.memory import peak_memory
from modelzip.measure.profile import layer_times
from modelzip.measure.size import file_size
from modelzip.measure.sparsity import file_zeros
from modelzip.report.text import count, kilobytes, table, times
from modelzip.report.zeros import zeros_line
from modelzip.runtime.inputs import Array, InputSpec
from modelzip.runtime.session import FILE_RUNTIMES, Serving, Session, load, missing

_SAMPLES = 16


def inspect(
    path: Path, *, against: Path | None, batch_sizes: Sequence[int], threads: int, seed: int = 0
) -> str:
    """Size, memory, latency and zeros of the file, in each runtime, beside another's if given.

    Inputs are drawn from a standard normal distribution, integers are zeros, and dimensions of
    any length other than the first are 1.

    Raises:
        ExportError: a file cannot be read or run.
        DataError: the two files take different inputs.
    """
    files = [path] if against is None else [against, path]
    sessions = [load(file, threads=threads) for file in files]
    inputs = random_inputs(sessions[-1].inputs, samples=_SAMPLES, seed=seed)
    sizes = [file_size(file, example_inputs=inputs) for file in files]
    memories = [peak_memory(file, _first(inputs), threads=threads) for file in files]
    rows: list[list[str]] = [
        ["file", *(kilobytes(s.size_bytes) for s in sizes)],
        ["parameters", *(count(s.parameters) for s in sizes)],
        ["non-zero", *(count(s.nonzero) for s in sizes)],
        ["bits a parameter", *(f"{s.bits:.2f}" for s in sizes)],
        ["MACs", *(count(s.macs) for s in sizes)],
        ["peak memory", *(f"{m.peak_mb:.1f} MB" for m in memories)],
    ]
    ratios = [
        times(sizes[-1].size_bytes, sizes[0].size_bytes),
        times(sizes[-1].parameters, sizes[0].parameters),
        times(sizes[-1].nonzero, sizes[0].nonzero),
        times(sizes[-1].bits, sizes[0].bits),
        times(sizes[-1].macs, sizes[0].macs),
        times(memories[-1].peak_mb, memories[0].peak_mb),
    ]
    servings = [Serving(runtime=name) for name in FILE_RUNTIMES if not missing(name, "cpu")]
    failures: list[str] = []
    timed = latency_table(
        {str(index): file for index, file in enumerate(files)},
        inputs,
        servings=servings,
        batch_sizes=batch_sizes,
        threads=(threads,),
        failed=failures.append,
    )
    for size, serving in itertools.product(batch_sizes, servings):
        found = [r for r in timed if (r.batch_size, r.runtime) == (size, serving.runtime)]
        if found:
            label = f"latency, {serving.runtime}, batch {size}"
            rows.append([label, *(f"{r.median_ms:.3f} ms" for r in found)])
            last = found[-1]
            ratios.append(f"{last.ratio:.2f}x ({last.ratio_low:.2f} to {last.ratio_high:.2f})")
    said = filter(None, [zeros_line(file_zeros(path)), *dict.fromkeys(failures)])
    notes = "".join(f"\n\n{line}" for line in said)
    if against is None:
        return table(rows, ["", path.name]) + notes
    rows = [[*row, ratio] for row, ratio in zip(rows, ratios, strict=True)]
    headers = ["", str(against), str(path), "ratio"]
    return f"{table(rows, headers)}\n\n{_outputs(sessions, inputs)}{notes}"


def inspect_layers(
    path: Path, *, against: Path | None, batch_size: int, threads: int, seed: int = 0
) -> str:
    """Bits, bytes and time of each layer of the file, beside its time in another if one is given.

    Operators that belong to no layer, such as additions, are in brackets, a row for each kind.
    Inputs are those of `inspect`; the errors are its own too.
    """
    inputs = random_inputs(load(path).inputs, samples=batch_size, seed=seed)
    stored = layer_sizes(path, example_inputs=inputs)
    total = sum(size.size_bytes for size in stored.values())
    rows = []
    timed = layer_times(path, inputs, threads=threads)
    for row in timed:
        size = stored.get(row.layer)
        rows.append(
            [
                row.layer or f"({row.ops[0]})",
                " ".join(row.ops),
                f"{size.bits:.1f}" if size else "",
                f"{size.size_bytes / 1000:.2f}" if size else "",
                f"{size.size_bytes / total:.1%}" if size else "",
                f"{row.time_ms:.4f}",
                f"{row.share:.1%}",
            ]
        )
    headers = ["layer", "operators", "bits", "KB", "of size", "ms", "of time"]
    if against is not None:
        headers += [f"ms in {against.name}", "ratio"]
        there = {r.layer: r.time_ms for r in layer_times(against, inputs, threads=threads)}
        for cells, row in zip(rows, timed, strict=True):
            other = there.get(row.layer) if row.layer else None
            cells += [f"{other:.4f}", times(row.time_ms, other)] if other else ["", ""]
    return table(rows, headers)


def random_inputs(specs: Sequence[InputSpec], *, samples: int, seed: int = 0) -> dict[str, Array]:
    """Inputs that fit `specs`, by name: normal floats, and zeros for every other type."""
    rng = np.random.default_rng(seed)
    found = {}
    for spec in specs:
        shape = [samples if i == 0 and n is None else n or 1 for i, n in enumerate(spec.shape)]
        is_float = spec.dtype.startswith("float")
        found[spec.name] = (rng.standard_normal(shape) if is_float else np.zeros(shape)).astype(
            spec.dtype
        )
    return found


def _outputs(sessions: Sequence[Session], inputs: dict[str, Array]) -> str:
    first, second = (session.run(inputs)[0] for session in sessions)
    if first.shape != second.shape:
        return f"outputs differ in shape: {list(first.shape)} and {list(second.shape)}"
    largest = float(np.abs(first.astype(np.float64) - second).max())
    same = float((first.argmax(-1) == second.argmax(-1)).mean())
    return f"on {_SAMPLES} random inputs: same answer {same:.0%}, largest difference {largest:.3g}"


def _first(inputs: dict[str, Array]) -> dict[str, Array]:
    return {name: array[:1] if array.ndim else array for name, array in inputs.items()}
