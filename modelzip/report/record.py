"""The record of a run: what `report.json` holds. docs/report.md describes every field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from modelzip.core.base import PassReport
from modelzip.errors import OutputError, SettingError
from modelzip.measure.accuracy import Accuracy, Comparison
from modelzip.measure.classes import ClassScore
from modelzip.measure.latency import LatencyRow
from modelzip.measure.machine import Machine
from modelzip.measure.memory import Memory
from modelzip.measure.parity import Parity, ParityRow
from modelzip.measure.robustness import RobustnessRow
from modelzip.report.requirements import Outcome
from modelzip.report.widths import LatencyFit
from modelzip.train.state import Epoch

SCHEMA = 3
FILE = "report.json"
BASELINE, COMPRESSED = "baseline", "compressed"  # names in rows of latency and of answers

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of a run. `accuracy` is on the validation slice, a fraction, after the step.

    `fit` is how a latency target was met; `curve` how a fine-tuning went, and `kept` the number of
    the epoch whose model it left.
    """

    name: str
    settings: dict[str, Any]
    seconds: float
    accuracy: float
    fit: LatencyFit | None = None
    curve: tuple[Epoch, ...] = ()
    kept: int | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured on one ONNX file. Accuracy is on the whole test set, in onnxruntime.

    So are the scores of `classes`, of which there are none where there are over 100 classes.
    `archive_bytes` are those of the file packed; it was unpacked again to the same bytes.
    """

    file: str
    sha256: str
    size_bytes: int
    parameters: int
    nonzero: int
    bits: float
    macs: int
    uncounted: tuple[str, ...]
    accuracy: Accuracy
    memory: Memory | None
    archive_bytes: int | None = None
    classes: tuple[ClassScore, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """What the passes together made of one layer."""

    name: str
    kind: str
    parameters_before: int
    parameters_after: int
    nonzero: int
    bits: float
    note: str


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """What quantizing one layer alone to `bits` costs: KL in nats of softened outputs, agreement.

    `size_share` and `time_share` are its parts of the file, in [0, 1]; None where it is not there.
    """

    layer: str
    bits: int
    kl: float
    agreement: float
    size_share: float | None
    time_share: float | None


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """The training data as a recipe's `store` kept them.

    `bytes_before` are those of all samples as arrays, `bytes_after` those of the file. Samples a
    second are read by one process. `original` is the accuracy of the model that the same steps
    made of the original data, with the same seed and as many optimizer steps, and `comparison`
    that of the compressed model with it; None where the recipe did not ask.
    """

    file: str
    settings: dict[str, Any]
    samples_before: int
    duplicates: int
    left_out: int
    samples: int
    bytes_before: int
    bytes_after: int
    lossless: bool
    shuffled_per_s: float
    random_per_s: float
    original: Accuracy | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything a run found out. `notes` are what a reader must not miss, worst first."""

    schema: int = SCHEMA
    name: str
    passed: bool
    notes: tuple[str, ...]
    seed: int
    seconds: float
    machine: Machine
    steps: tuple[StepRecord, ...]
    baseline: Figures
    compressed: Figures
    comparison: Comparison
    parity: Parity
    latency: tuple[LatencyRow, ...]
    answers: tuple[ParityRow, ...]
    missing: tuple[str, ...]
    promise: str
    layers: tuple[LayerRow, ...]
    protected: dict[str, dict[str, str]]
    requirements: tuple[Outcome, ...]
    zeros: str = ""
    sensitivity: tuple[SensitivityRow, ...] = ()
    robustness: tuple[RobustnessRow, ...] = ()
    data: StoredData | None = None
    hashes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of `report.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


def read(path: str | Path) -> Record:
    """The record in a run's folder, or in the `report.json` at `path`.

    Raises:
        SettingError: there is none, it is damaged, or of another schema.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError(f"there is no {path}; give the folder of a finished run") from error
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} is not a readable report: {error}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise SettingError(f"{path} has schema {found!r}; this modelzip reads {SCHEMA}")
    try:
        return decode(Record, data)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} is damaged: {error}") from error


def write(path: Path, text: str) -> None:
    """Write `text` to `path` at once or not at all; OutputError where it cannot."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def merge_layers(reports: Sequence[PassReport]) -> tuple[LayerRow, ...]:
    """One row a layer over all passes: as the first found it, as the last left it."""
    rows: dict[str, LayerRow] = {}
    for report in reports:
        for layer in report.layers:
            before = rows.get(layer.name)
            if layer.replaces is not None:
                before = rows.pop(layer.replaces, before)
            notes = [before.note if before else "", layer.note]
            rows[layer.name] = LayerRow(
                name=layer.name,
                kind=before.kind if before and layer.replaces is None else layer.kind,
                parameters_before=(before or layer).parameters_before,
                parameters_after=layer.parameters_after,
                nonzero=layer.nonzero,
                bits=min(before.bits, layer.bits) if before else layer.bits,
                note="; ".join(dict.fromkeys(n for n in notes if n)),
            )
    return tuple(rows.values())


def decode(kind: type[T], data: Any) -> T:
    """The dataclass `kind` from what `dataclasses.asdict` made of one, by its annotations."""
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - names):
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}")
    return kind(**{name: _value(hints[name], value) for name, value in data.items()})


def _value(hint: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _value(arguments[0], data)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), data)
    if origin is tuple:
        return tuple(_value(arguments[0], item) for item in data)
    if origin is dict and isinstance(data, Mapping):
        return {key: _value(arguments[1], item) for key, item in data.items()}
    if hint in (int, float, str, bool) and not isinstance(
        data, (int if hint is float else hint, hint)
    ):
        raise ValueError(f"{data!r} is not of type {hint.__name__}")
    return data
