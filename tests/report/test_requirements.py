import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip.errors import SettingError
from modelzip.report.requirements import KINDS, Requirement, judge, parse


@pytest.mark.parametrize(
    ("name", "text", "limit", "unit"),
    [
        ("accuracy_drop", "0.5 pp", 0.5, "pp"),
        ("accuracy", "91.6 %", 91.6, "%"),
        ("f1", "93 %", 93.0, "%"),
        ("size", "0.15x", 0.15, "x"),
        ("size", "310KB", 310.0, "KB"),
        ("latency", ".5x", 0.5, "x"),
        ("latency", "1.2 ms", 1.2, "ms"),
    ],
)
def test_limits_are_read_with_their_units(name, text, limit, unit):
    assert parse(name, text) == Requirement(name, limit, unit)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("accuracy_drop", "0.5 %", "accuracy_drop must be such as 0.5 pp, got '0.5 %'"),
        ("size", 0.2, "size must be such as 0.15x or 310 KB, got 0.2"),
        ("size", "310", "size must be such as 0.15x or 310 KB, got '310'"),
        ("macs", "-1x", "macs must be such as 0.5x, got '-1x'"),
        ("acuracy", "1 %", "'acuracy' cannot be required; did you mean 'accuracy'?"),
    ],
)
def test_wrong_names_and_units_are_refused(name, text, message):
    with pytest.raises(SettingError) as caught:
        parse(name, text)
    assert str(caught.value) == message


@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1e9), st.data())
def test_the_value_reads_back(name, limit, data):
    limit = float(f"{limit:.6g}")
    unit = data.draw(st.sampled_from(sorted(KINDS[name].units)))
    if "e" in f"{limit:.12g}":  # written in full, a recipe has no exponents
        return
    requirement = Requirement(name, limit, unit)
    assert parse(name, requirement.value) == requirement


@pytest.mark.parametrize(
    ("name", "text", "measured", "met"),
    [
        ("size", "310 KB", {"B": 310_000}, True),
        ("size", "310 KB", {"B": 310_001}, False),
        ("size", "1 KiB", {"B": 1024}, True),
        ("accuracy", "91.6 %", {"%": 91.6}, True),
        ("accuracy", "91.6 %", {"%": 91.59}, False),
        ("accuracy_drop", "0.3 pp", {"pp": 0.1 + 0.2}, True),
        ("accuracy_drop", "0.3 pp", {"pp": -2.0}, True),
        ("latency", "0.5x", {"x": math.nan}, False),
        ("macs", "0.5x", {}, False),
    ],
)
def test_limits_are_kept_or_missed(name, text, measured, met):
    assert judge(parse(name, text), measured).met is met


def test_an_outcome_says_both_figures():
    outcome = judge(parse("size", "310 KB"), {"B": 361_000})
    assert (outcome.required, outcome.measured) == ("at most 310 KB", "361 KB")
    assert judge(parse("macs", "0.5x"), {}).measured == "not measured"
