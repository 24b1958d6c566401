"""What a pass is: settings that normalise themselves and go to YAML and back."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
from torch import nn

from modelzip.core.base import Context, Need, Pass, Stage
from modelzip.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Plain(Pass):
    name: ClassVar[str] = "plain"
    stage: ClassVar[Stage] = Stage.WEIGHT
    limit: float = 1.0


def test_selectors_become_tuples() -> None:
    assert Plain(targets="conv*", skip=["a", "b"]) == Plain(targets=("conv*",), skip=("a", "b"))


def test_selectors_of_other_types_are_refused() -> None:
    with pytest.raises(SettingError, match="targets must be a list of names, got 3"):
        Plain(targets=3)
    with pytest.raises(SettingError, match="skip must be a list of names, got None"):
        Plain(skip=None)


def test_settings_are_those_that_differ_as_yaml_holds_them() -> None:
    assert Plain().settings() == {}
    assert Plain(limit=2.0, skip=("a",)).settings() == {"limit": 2.0, "skip": ["a"]}


def test_settings_cannot_be_set_later_and_are_keywords() -> None:
    with pytest.raises(FrozenInstanceError):
        Plain().limit = 3.0
    with pytest.raises(TypeError, match="positional"):
        Plain(("conv*",))


def test_a_pass_without_schedule_or_penalty_does_nothing_there() -> None:
    model = nn.Linear(2, 2)
    plain = Plain()
    plain.step(model, 1)
    assert plain.penalty(model) == 0.0
    assert plain.settled(model, 0)
    assert plain.requires is Need.NOTHING


def test_verbs_must_be_written() -> None:
    model, context = nn.Linear(2, 2), Context()
    for verb in (Plain().prepare, Plain().convert, Plain().restore):
        with pytest.raises(NotImplementedError):
            verb(model, context)


def test_stages_are_ordered() -> None:
    assert sorted(Stage) == [Stage.STRUCTURE, Stage.WEIGHT, Stage.ACTIVATION, Stage.PRECISION]


def test_contexts_do_not_share_records() -> None:
    Context().record["a"] = 1
    assert Context().record == {}
