"""Checks of settings: what passes, and the words of each refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modelzip.core import checks
from modelzip.errors import SettingError


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 0.999])
def test_fractions_pass_as_floats(value: float) -> None:
    assert checks.fraction("f", value) == value
    assert isinstance(checks.fraction("f", value), float)


def test_ends_of_a_fraction_are_optional() -> None:
    assert checks.fraction("f", 1, one=True) == 1.0
    with pytest.raises(SettingError, match=r"f must be a fraction in \(0, 1\], got 0"):
        checks.fraction("f", 0, zero=False, one=True)
    with pytest.raises(SettingError, match=r"f must be a fraction in \[0, 1\), got 1$"):
        checks.fraction("f", 1)


@pytest.mark.parametrize("value", [-0.1, 100, 1e9])
def test_other_numbers_are_no_fractions(value: float) -> None:
    with pytest.raises(SettingError, match=r"f must be a fraction in \[0, 1\)"):
        checks.fraction("f", value)


def test_percent_gets_a_hint() -> None:
    with pytest.raises(SettingError, match=r"got 62\.5; for 62.5 % write 0.625"):
        checks.fraction("f", 62.5)


@pytest.mark.parametrize("value", ["0.5", True, None, math.nan, math.inf, [0.5]])
def test_what_is_no_number_is_refused(value: Any) -> None:
    for check in (checks.fraction, checks.positive):
        with pytest.raises(SettingError, match=r"n must be a number, got "):
            check("n", value)


def test_positive_and_its_end() -> None:
    assert checks.positive("lr", 1) == 1.0
    assert checks.positive("lr", 0, zero=True) == 0.0
    with pytest.raises(SettingError, match="lr must be above 0, got 0"):
        checks.positive("lr", 0)
    with pytest.raises(SettingError, match="lr must be at least 0, got -1"):
        checks.positive("lr", -1, zero=True)


@pytest.mark.parametrize("value", [1, 9, 2.0, "4", True, None])
def test_integers_outside_or_of_other_types_are_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="bits must be an integer from 2 to 8, got "):
        checks.integer("bits", value, low=2, high=8)


def test_integers_without_an_upper_end() -> None:
    assert checks.integer("every", 10**9, low=1) == 10**9
    with pytest.raises(SettingError, match="every must be an integer of at least 1, got 0"):
        checks.integer("every", 0, low=1)


def test_flags_are_true_or_false_alone() -> None:
    assert checks.flag("f", False) is False
    with pytest.raises(SettingError, match="f must be true or false, got 'yes'"):
        checks.flag("f", "yes")


@pytest.mark.parametrize("value", ["globl", 3, None])
def test_choices_are_listed_or_guessed(value: Any) -> None:
    assert checks.choice("scope", "layer", ("global", "layer")) == "layer"
    with pytest.raises(SettingError, match=r"scope has no choice .*; (did you mean|there are)"):
        checks.choice("scope", value, ("global", "layer"))


def test_names_are_one_or_several() -> None:
    assert checks.names("skip", "fc") == ("fc",)
    assert checks.names("skip", ["a", "b"]) == ("a", "b")
    assert checks.names("skip", []) == ()


@pytest.mark.parametrize("value", [None, 3, [3], [""], {"a": 1}, ""])
def test_other_things_are_no_names(value: Any) -> None:
    with pytest.raises(SettingError, match="skip must be a list of names, got "):
        checks.names("skip", value)


def test_ratios_end_in_x() -> None:
    assert checks.ratio("macs", " 0.25x ") == 0.25
    assert checks.ratio("macs", "1x") == 1.0


@pytest.mark.parametrize("value", ["0.4", 0.4, "40%", "0x", "1.5x", "-1x", "x", "nanx", None])
def test_other_things_are_no_ratios(value: Any) -> None:
    with pytest.raises(SettingError, match=r"macs must be a ratio to the original such as 0.4x"):
        checks.ratio("macs", value)
