"""Which layers globs and class names select."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.utils import parametrizations

from modelzip.core.selection import candidates, matches, select
from modelzip.errors import SelectionError

KINDS = (nn.Conv2d, nn.Linear)


class Own(nn.Conv2d):
    pass


def net() -> nn.Module:
    model = nn.Module()
    model.stem = nn.Conv2d(1, 2, 3)
    model.body = nn.Sequential(Own(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    model.head = nn.Linear(2, 2)
    return model


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["stem", "body.0", "body.2", "head"]),
        ({"targets": ["body.*"]}, ["body.0", "body.2"]),
        ({"targets": ["type:Own", "head"]}, ["body.0", "head"]),
        ({"targets": ["type:Conv2d"], "skip": ["stem"]}, ["body.0", "body.2"]),
        ({"skip": ["type:*Conv*"]}, ["head"]),
    ],
)
def test_globs_and_types_select(settings: dict[str, Any], names: list[str]) -> None:
    assert list(select(net(), kinds=KINDS, **settings)) == names


def test_case_and_dots_count() -> None:
    assert not matches("body.0", nn.ReLU(), "Body.*")
    assert matches("body.0.conv", nn.ReLU(), "body.*")  # a glob crosses dots
    assert not matches("body", nn.ReLU(), "type:Module")


@pytest.mark.parametrize("setting", ["targets", "skip"])
def test_pattern_that_matches_nothing_lists_the_layers(setting: str) -> None:
    text = (
        rf"{setting}=\['fc'\] matches none of the 4 Conv2d/Linear layers: stem, body.0, body.2, h"
    )
    with pytest.raises(SelectionError, match=text):
        select(net(), kinds=KINDS, **{setting: ["fc"]})


def test_long_lists_are_cut() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)])
    with pytest.raises(SelectionError, match=r"20 Linear layers: 0, 1, .* 10, \.\.\. 19$"):
        select(model, kinds=(nn.Linear,), targets=["x"])


def test_skipping_everything_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"targets=\['head'\] less skip=\['h\*'\] leaves none"):
        select(net(), kinds=KINDS, targets=["head"], skip=["h*"])


def test_model_without_such_layers_is_refused() -> None:
    with pytest.raises(SelectionError, match="the model has no Conv2d/Linear layer"):
        select(nn.ReLU(), kinds=KINDS)


def test_where_narrows_what_counts() -> None:
    found = select(net(), kinds=KINDS, where=lambda m: not isinstance(m, nn.Linear))
    assert "head" not in found


def test_shared_module_is_selected_once() -> None:
    layer = nn.Linear(2, 2)
    assert list(select(nn.Sequential(layer, layer), kinds=KINDS)) == ["0"]


def test_parametrizations_are_no_layers() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))
    assert [name for name, _ in candidates(model, kinds=(nn.Module,))] == ["", "0"]
