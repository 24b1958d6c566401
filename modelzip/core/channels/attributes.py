"""Integer attributes of modules, such as the number of heads, that follow the channels cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modelzip.core.channels.slots import widths
from modelzip.errors import SettingError

Attributes = Mapping[str, Mapping[str, int]]  # name of a module -> its attributes


def integers(module: nn.Module) -> dict[str, int]:
    """The plain integers that a user's module keeps; none of a layer that is cut by its slots.

    >>> integers(nn.Conv2d(2, 3, 1)), integers(nn.Flatten())
    ({}, {'start_dim': 1, 'end_dim': -1})
    """
    if widths(module):
        return {}
    return {name: value for name, value in vars(module).items() if type(value) is int}


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Give modules these attributes, in place."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for attribute, value in values.items():
            setattr(module, attribute, value)


def attributes_to_record(model: nn.Module, attributes: Attributes) -> dict[str, Any]:
    """`attributes` as JSON, with what they were: call it before they are set."""
    return {
        name: {
            attribute: {"of": integers(model.get_submodule(name))[attribute], "now": value}
            for attribute, value in values.items()
        }
        for name, values in attributes.items()
    }


def attributes_from_record(model: nn.Module, record: object) -> Attributes:
    """What `attributes_to_record` wrote; SettingError where it does not fit `model`."""
    modules = dict(model.named_modules())
    if not isinstance(record, dict):
        raise SettingError(f"the record of prune_channels is damaged: attributes are {record!r}")
    found: dict[str, dict[str, int]] = {}
    for name, values in record.items():
        if name not in modules or not isinstance(values, dict):
            raise SettingError(
                f"prune_channels cannot restore attributes of {name!r}: no such module, or a "
                "damaged entry"
            )
        there = integers(modules[name])
        found[name] = {key: _checked(name, key, entry, there) for key, entry in values.items()}
    return found


def _checked(name: str, attribute: str, entry: object, there: Mapping[str, int]) -> int:
    of, now = (entry.get("of"), entry.get("now")) if isinstance(entry, dict) else (None, None)
    if attribute not in there or type(of) is not int or of != there[attribute]:
        raise SettingError(
            f"prune_channels cannot restore {attribute!r} of {name!r}: it is "
            f"{there.get(attribute, 'no plain integer')}, and was {of!r} when it was pruned; build "
            "the model as it was then"
        )
    if type(now) is not int or not 1 <= now <= of:
        raise SettingError(
            f"prune_channels cannot restore {attribute!r} of {name!r}: {now!r} is not a number "
            f"from 1 to {of}"
        )
    return now
