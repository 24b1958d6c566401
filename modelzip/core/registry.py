"""Passes by name, found through the entry-point group `modelzip.passes`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from modelzip.core.base import Pass
from modelzip.errors import SettingError, did_you_mean

GROUP = "modelzip.passes"


@functools.cache
def available() -> Mapping[str, type[Pass]]:
    """Every installed pass by name, built-in or not, in alphabetical order."""
    found: dict[str, type[Pass]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            kind = point.load()
        except Exception as error:  # importing someone else's module raises what it likes
            raise SettingError(
                f"entry point {point.name!r} of {GROUP}, {point.value!r}, cannot be loaded: "
                f"{error}; mend or uninstall its package"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Pass)) or kind.name != point.name:
            raise SettingError(
                f"entry point {point.name!r} of {GROUP} is {point.value!r}, which is not a Pass "
                f"whose name is {point.name!r}"
            )
        if found.get(point.name, kind) is not kind:
            raise SettingError(f"two installed packages define a pass named {point.name!r}")
        found[point.name] = kind
    return found


def build(name: str, settings: Mapping[str, Any]) -> Pass:
    """The pass `name` with `settings`; SettingError for a name or setting there is not.

    >>> build("magnitude_prune", {"sparsty": 0.5})
    Traceback (most recent call last):
    modelzip.errors.SettingError: magnitude_prune has no setting 'sparsty'; did you mean 'sparsity'?
    """
    passes = available()
    if name not in passes:
        raise SettingError(f"there is no pass {name!r}{did_you_mean(name, passes)}")
    known = [f.name for f in fields(passes[name])]
    for setting in settings:
        if setting not in known:
            hint = did_you_mean(str(setting), known)
            raise SettingError(f"{name} has no setting {setting!r}{hint}")
    try:
        return passes[name](**settings)
    except TypeError as error:  # a required setting is missing
        raise SettingError(f"{name}: {str(error).split('() ')[-1]}") from error
