"""Passes by name, and what is wrong with entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import modelzip as mz
from modelzip.core import registry
from modelzip.errors import SettingError


def test_built_in_passes_are_there() -> None:
    built_in = {"cast", "fake_quantize", "int8", "magnitude_prune", "prune_channels"}
    assert built_in <= set(registry.available())
    assert list(registry.available()) == sorted(registry.available())


def test_build_makes_the_pass() -> None:
    built = registry.build("magnitude_prune", {"sparsity": 0.5, "skip": ["fc"]})
    assert built == mz.MagnitudePrune(sparsity=0.5, skip=("fc",))


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("magnitud_prune", {}, "there is no pass 'magnitud_prune'; did you mean 'magnitude_prune'"),
        ("cast", {"dtpe": 1}, "cast has no setting 'dtpe'; did you mean 'dtype'"),
        ("cast", {1: 1}, "cast has no setting 1; there are: "),
        ("cast", {"name": "x"}, "cast has no setting 'name'; "),
    ],
)
def test_unknown_names_are_guessed(name: str, settings: dict[Any, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        registry.build(name, settings)


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points that `available` finds in place of the installed ones."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry.available.cache_clear()
    yield points
    registry.available.cache_clear()


@pytest.mark.parametrize("value", ["modelzip.passes.cast:Cast", "json:loads", "json:JSONDecoder"])
def test_entry_point_that_is_no_such_pass_is_named(
    entry_points: list[EntryPoint], value: str
) -> None:
    entry_points.append(EntryPoint(name="mine", value=value, group=registry.GROUP))
    with pytest.raises(
        SettingError, match=f"entry point 'mine' .* is '{value}', which is not a Pass"
    ):
        registry.available()


def test_entry_point_that_cannot_be_loaded_is_named(entry_points: list[EntryPoint]) -> None:
    entry_points.append(EntryPoint(name="mine", value="no_such_module:X", group=registry.GROUP))
    with pytest.raises(
        SettingError, match=r"'mine' .* 'no_such_module:X', cannot be loaded: No modu"
    ):
        registry.available()


def test_same_pass_twice_is_one(entry_points: list[EntryPoint]) -> None:
    point = EntryPoint(name="cast", value="modelzip.passes.cast:Cast", group=registry.GROUP)
    entry_points.extend([point, point])
    assert dict(registry.available()) == {"cast": mz.Cast}


def test_two_passes_of_one_name_are_refused(entry_points: list[EntryPoint]) -> None:
    for value in ("modelzip.passes.cast:Cast", f"{__name__}:Cast"):
        entry_points.append(_Loaded(name="cast", value=value, group=registry.GROUP))
    with pytest.raises(SettingError, match="two installed packages define a pass named 'cast'"):
        registry.available()


class _Loaded(EntryPoint):
    def load(self) -> Any:
        return mz.Cast if self.value.startswith("modelzip") else type("Cast", (mz.Cast,), {})


def test_missing_setting_is_named(entry_points: list[EntryPoint]) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Needy(mz.Pass):
        name = "needy"
        amount: int

    class Point(EntryPoint):
        def load(self) -> Any:
            return Needy

    entry_points.append(Point(name="needy", value="x:Needy", group=registry.GROUP))
    with pytest.raises(
        SettingError, match=r"needy: missing 1 required keyword-only argument: 'amo"
    ):
        registry.build("needy", {})
