"""What passes there are and what they would do, as text."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from modelzip.core import registry
from modelzip.core.base import Need, Pass, PassReport
from modelzip.errors import SettingError, did_you_mean
from modelzip.report.record import merge_layers
from modelzip.report.text import table
from modelzip.train.settings import FineTune

FINETUNE = "finetune"


def catalogue() -> str:
    """Every step a recipe may name, a line each, in the order in which they may come."""
    passes = sorted(registry.available().values(), key=lambda kind: (kind.stage, kind.name))
    rows = [[kind.name, kind.stage.name.lower(), _summary(kind)] for kind in passes]
    rows.append([FINETUNE, "any", _summary(FineTune)])
    return table(rows, ["step", "stage", ""]) + "\n\nmodelzip passes NAME shows the settings of one"


def describe(name: str) -> str:
    """The step `name`: what it does, its settings with units and defaults, and its source.

    Raises:
        SettingError: there is no such step.
    """
    kinds: dict[str, type[Any]] = {**registry.available(), FINETUNE: FineTune}
    if name not in kinds:
        raise SettingError(f"there is no pass {name!r}{did_you_mean(name, kinds)}")
    kind = kinds[name]
    prose = (inspect.getdoc(kind) or "").partition("\n>>> ")[0].strip()
    lines = [f"{name}: {prose}"]
    if issubclass(kind, Pass):
        lines.append(f"Stage: {kind.stage.name.lower()}. Needs at least: {_needs(kind.needs)}.")
    rows = [[f.name, _default(f), f.type] for f in dataclasses.fields(kind)]
    lines.append(table(rows, ["setting", "default", "type"]))
    return "\n\n".join(lines)


def plan(name: str, resolved: Mapping[str, Any], reports: Sequence[PassReport]) -> str:
    """What a recipe would do: each step with its settings, and what its pass changes."""
    waiting = list(reports)
    lines = [f"{name} is valid; nothing was run"]
    for index, step in enumerate(resolved["steps"], start=1):
        ((kind, settings),) = step.items()
        given = ", ".join(f"{k}: {v}" for k, v in settings.items() if v is not None)
        lines.append(f"{index}. {kind} ({given})")
        if waiting and waiting[0].name == kind:
            lines += [f"   {line}" for line in _effect(waiting.pop(0))]
    lines += [f"{key}: {resolved[key]}" for key in ("export", "measure", "require")]
    return "\n".join(lines)


def _effect(report: PassReport) -> list[str]:
    rows = merge_layers([report])
    before = sum(row.parameters_before for row in rows)
    after = sum(row.parameters_after for row in rows)
    zeros = after - sum(row.nonzero for row in rows)
    bits = sorted({row.bits for row in rows})
    width = " and ".join(f"{b:g}" for b in bits)
    counts = f"{before:,} -> {after:,}, {zeros:,} of them zero, in {width} bits"
    lines = [f"{len(rows)} layers: parameters {counts}"] if rows else []
    lines += [f"leaves {layer}: {why}" for layer, why in report.protected.items()]
    return lines + [f"note: {note}" for note in report.notes]


def _summary(kind: type[Any]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _needs(needs: Need) -> str:
    names = [str(need.name).lower().replace("_", " ") for need in Need if need in needs and need]
    return ", ".join(names) or "the model"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value is None else str(value)
