"""Integer attributes that follow the channels cut: setting, recording and restoring them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from modelzip.core.channels.attributes import (
    attributes_from_record,
    attributes_to_record,
    integers,
    set_attributes,
)
from modelzip.errors import SettingError


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.width, self.scale, self.causal = 4, 32, 0.5, True
        self.query = nn.Linear(32, 32)


def test_integers_are_those_of_a_users_module() -> None:
    assert integers(Heads()) == {"num_heads": 4, "width": 32}
    for layer in (nn.Linear(2, 3), nn.BatchNorm2d(2), nn.MultiheadAttention(4, 2)):
        assert integers(layer) == {}


def test_what_is_recorded_is_set_again() -> None:
    attributes = {"": {"num_heads": 3, "width": 24}}
    record = json.loads(json.dumps(attributes_to_record(Heads(), attributes)))
    assert record == {"": {"num_heads": {"of": 4, "now": 3}, "width": {"of": 32, "now": 24}}}
    fresh = Heads()
    set_attributes(fresh, attributes_from_record(fresh, record))
    assert integers(fresh) == {"num_heads": 3, "width": 24}


DAMAGED: list[tuple[Any, str]] = [
    (None, "the record of prune_channels is damaged: attributes are None"),
    ({"gone": {}}, "cannot restore attributes of 'gone': no such module, or a damaged entry"),
    ({"": 3}, "cannot restore attributes of '': no such module, or a damaged entry"),
    ({"": {"depth": {"of": 4, "now": 3}}}, "'depth' of '': it is no plain integer, and was 4"),
    ({"": {"scale": {"of": 0.5, "now": 1}}}, "'scale' of '': it is no plain integer, and was 0.5"),
    ({"": {"causal": {"of": True, "now": 1}}}, "'causal' of '': it is no plain integer"),
    ({"query": {"in_features": {"of": 32, "now": 1}}}, "'in_features' of 'query': it is no plain"),
    ({"": {"forward": {"of": 4, "now": 3}}}, "'forward' of '': it is no plain integer"),
    ({"": {"num_heads": 3}}, "'num_heads' of '': it is 4, and was None when it was pruned"),
    ({"": {"num_heads": {"of": 8, "now": 3}}}, "it is 4, and was 8 when it was pruned; build the"),
    ({"": {"num_heads": {"of": 4.0, "now": 3}}}, "it is 4, and was 4.0 when it was pruned"),
    ({"": {"num_heads": {"of": 4, "now": 0}}}, "0 is not a number from 1 to 4"),
    ({"": {"num_heads": {"of": 4, "now": 5}}}, "5 is not a number from 1 to 4"),
    ({"": {"num_heads": {"of": 4, "now": True}}}, "True is not a number from 1 to 4"),
    ({"": {"num_heads": {"of": 4, "now": "3"}}}, "'3' is not a number from 1 to 4"),
]


@pytest.mark.parametrize(("record", "text"), DAMAGED)
def test_a_strangers_record_is_checked(record: Any, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        attributes_from_record(Heads(), record)
