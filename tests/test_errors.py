"""Errors: one family, with hints."""

from __future__ import annotations

import pytest

from modelzip import errors
from modelzip.errors import MissingExtraError, ModelzipError, SettingError, did_you_mean


def test_every_error_is_a_modelzip_error() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) == 9
    assert all(issubclass(k, ModelzipError) and k.__name__ in str(errors.__doc__) for k in kinds)


def test_some_are_built_in_errors_too() -> None:
    assert issubclass(SettingError, ValueError)
    assert issubclass(MissingExtraError, ImportError)


def test_missing_extra_names_the_command() -> None:
    error = MissingExtraError("Pillow", extra="images", purpose="reading images")
    assert str(error) == "reading images needs Pillow: pip install 'modelzip[images]'"


@pytest.mark.parametrize(
    ("name", "ending"),
    [("beginn", "; did you mean 'begin'?"), ("zzz", "; there are: begin, end")],
)
def test_hint_is_the_nearest_or_all(name: str, ending: str) -> None:
    assert did_you_mean(name, ["end", "begin"]) == ending
