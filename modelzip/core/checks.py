"""Checks of settings, each returning the value in its proper type or raising SettingError."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from modelzip.errors import SettingError, did_you_mean


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SettingError(f"{name} must be a number, got {value!r}")
    return float(value)


def fraction(name: str, value: object, *, zero: bool = True, one: bool = False) -> float:
    """A fraction in [0, 1); `zero=False` leaves 0 out and `one=True` takes 1 in.

    >>> fraction("sparsity", 80)
    Traceback (most recent call last):
    modelzip.errors.SettingError: sparsity must be a fraction in [0, 1), got 80; for 80 % write 0.8
    """
    number = _real(name, value)
    low, high = ("[" if zero else "("), ("]" if one else ")")
    if not (0 < number < 1 or (zero and number == 0) or (one and number == 1)):
        hint = f"; for {value} % write {number / 100:g}" if 1 < number < 100 else ""
        raise SettingError(f"{name} must be a fraction in {low}0, 1{high}, got {value}{hint}")
    return number


def positive(name: str, value: object, *, zero: bool = False) -> float:
    """A finite number above 0 (at least 0 with `zero=True`)."""
    number = _real(name, value)
    if number < 0 or (number == 0 and not zero):
        raise SettingError(f"{name} must be {'at least' if zero else 'above'} 0, got {value}")
    return number


def integer(name: str, value: object, *, low: int, high: int | None = None) -> int:
    """An integer in [low, high].

    >>> integer("bits", 9, low=2, high=8)
    Traceback (most recent call last):
    modelzip.errors.SettingError: bits must be an integer from 2 to 8, got 9
    """
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"{name} must be an integer {span}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise SettingError(f"{name} must be an integer {span}, got {value}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that merely counts as such."""
    if not isinstance(value, bool):
        raise SettingError(f"{name} must be true or false, got {value!r}")
    return value


def choice(name: str, value: object, choices: Collection[str]) -> str:
    """One of `choices`.

    >>> choice("scope", "globl", ("global", "layer"))
    Traceback (most recent call last):
    modelzip.errors.SettingError: scope has no choice 'globl'; did you mean 'global'?
    """
    if not isinstance(value, str) or value not in choices:
        raise SettingError(f"{name} has no choice {value!r}{did_you_mean(str(value), choices)}")
    return value


def names(name: str, value: object) -> tuple[str, ...]:
    """A tuple of strings, from one string or a list of them."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) and i for i in items):
        raise SettingError(f"{name} must be a list of names, got {value!r}")
    return tuple(items)


def counts(name: str, value: object, *, low: int) -> dict[str, int]:
    """A mapping from names to integers of at least `low`, with at least one entry.

    >>> counts("widths", {"conv1": -1}, low=0)
    Traceback (most recent call last):
    modelzip.errors.SettingError: widths: conv1 must be an integer of at least 0, got -1
    """
    if not isinstance(value, Mapping) or not value or not all(isinstance(k, str) for k in value):
        raise SettingError(f"{name} must be a mapping from names to numbers, got {value!r}")
    return {key: integer(f"{name}: {key}", item, low=low) for key, item in value.items()}


def ratio(name: str, value: object) -> float:
    """The number before the x of a ratio to the original such as "0.4x", in (0, 1].

    >>> ratio("macs", "0.4x")
    0.4
    >>> ratio("macs", "40%")
    Traceback (most recent call last):
    modelzip.errors.SettingError: macs must be a ratio to the original such as 0.4x, got '40%'
    """
    text = value.strip() if isinstance(value, str) else ""
    try:
        number = float(text[:-1]) if text.endswith("x") else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise SettingError(f"{name} must be a ratio to the original such as 0.4x, got {value!r}")
    return number
