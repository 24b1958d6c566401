"""What a recipe requires of its result, and whether a measurement meets it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelzip.errors import SettingError, did_you_mean

_BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "KiB": 1024, "MiB": 1024**2}


@dataclass(frozen=True)
class _Kind:
    units: Mapping[str, float]  # each with its size in the first unit of its measurement
    at_most: bool
    example: str


KINDS: Mapping[str, _Kind] = {
    "accuracy": _Kind({"%": 1}, at_most=False, example="91.6 %"),
    "accuracy_drop": _Kind({"pp": 1}, at_most=True, example="0.5 pp"),
    "agreement": _Kind({"%": 1}, at_most=False, example="99 %"),
    "archive": _Kind({"x": 1, **_BYTES}, at_most=True, example="0.05x or 100 KB"),
    "best_latency": _Kind({"x": 1, "ms": 1}, at_most=True, example="0.3x or 0.8 ms"),
    "f1": _Kind({"%": 1}, at_most=False, example="93 %"),
    "latency": _Kind({"x": 1, "ms": 1}, at_most=True, example="0.5x or 1.2 ms"),
    "macs": _Kind({"x": 1}, at_most=True, example="0.5x"),
    "parameters": _Kind({"x": 1}, at_most=True, example="0.5x"),
    "score": _Kind({"x": 1}, at_most=True, example="1.05x"),
    "size": _Kind({"x": 1, **_BYTES}, at_most=True, example="0.15x or 310 KB"),
}
"""What can be required. Latencies are the worst over devices, batch sizes and threads: `latency` in
onnxruntime, `best_latency` in whichever way to serve the model is the fastest for each of them.
`score` is what a generator is judged by, of which less is better."""


@dataclass(frozen=True)
class Requirement:
    """A limit on one figure, in `unit`: x is a ratio to the original, pp percentage points."""

    name: str
    limit: float
    unit: str

    @property
    def value(self) -> str:
        """The limit as a recipe writes it."""
        return f"{self.limit:.12g}{'' if self.unit == 'x' else ' '}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A requirement, the figure that was measured, and whether it is met."""

    name: str
    required: str
    measured: str
    met: bool


def parse(name: str, value: object) -> Requirement:
    """The requirement `name: value` of a recipe.

    Units: x (ratio to the original), % and pp (percentage points), ms, and B, KB = 1000 bytes,
    MB, KiB = 1024 bytes, MiB. SettingError for an unknown name, a missing or wrong unit.

    >>> parse("size", "310 KB")
    Requirement(name='size', limit=310.0, unit='KB')
    >>> parse("accuracy_drop", "0.5 %")
    Traceback (most recent call last):
    modelzip.errors.SettingError: accuracy_drop must be such as 0.5 pp, got '0.5 %'
    """
    if name not in KINDS:
        raise SettingError(f"{name!r} cannot be required{did_you_mean(name, KINDS)}")
    kind = KINDS[name]
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]+)", str(value).strip())
    if not isinstance(value, str) or found is None or found[2] not in kind.units:
        raise SettingError(f"{name} must be such as {kind.example}, got {value!r}")
    return Requirement(name, float(found[1]), found[2])


def judge(requirement: Requirement, measured: Mapping[str, float]) -> Outcome:
    """Compare `requirement` with `measured`, the figure in each unit: {"x": 0.3, "B": 4000}.

    A figure that is absent or NaN does not meet it.

    >>> judge(parse("size", "3 KB"), {"x": 0.1, "B": 3200}).met
    False
    """
    kind = KINDS[requirement.name]
    scale = kind.units[requirement.unit]
    in_bytes = requirement.unit in _BYTES
    figure = measured.get("B" if in_bytes else requirement.unit, math.nan) / scale
    # a last digit lost to floating point must not fail "at most 0.5 pp" at exactly 0.5
    slack = 1e-9 * max(1.0, abs(requirement.limit))
    met = (
        figure <= requirement.limit + slack if kind.at_most else figure >= requirement.limit - slack
    )
    bound = "at most" if kind.at_most else "at least"
    return Outcome(
        name=requirement.name,
        required=f"{bound} {requirement.value}",
        measured="not measured" if math.isnan(figure) else show(figure, requirement.unit),
        met=met,
    )


def ratio(compressed: float, baseline: float) -> dict[str, float]:
    """A figure as a ratio to the original's, for `judge`; absent where there is none.

    >>> ratio(1, 4), ratio(1, 0)
    ({'x': 0.25}, {})
    """
    return {"x": compressed / baseline} if baseline else {}


def show(figure: float, unit: str) -> str:
    """`figure` with its unit, to the digits that matter.

    >>> show(0.1234567, "x"), show(91.6, "%")
    ('0.1235x', '91.6 %')
    """
    digits = f"{figure:.4g}" if abs(figure) < 1000 else f"{figure:.0f}"
    return f"{digits}x" if unit == "x" else f"{digits} {unit}"
