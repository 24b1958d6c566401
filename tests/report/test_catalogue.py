import re

import pytest

from modelzip.core.base import LayerReport, PassReport
from modelzip.errors import SettingError
from modelzip.report.catalogue import catalogue, describe, plan


def test_steps_are_listed_in_the_order_in_which_they_may_come():
    names = [line.split()[0] for line in catalogue().splitlines()[2:] if line]
    assert names.index("prune_channels") < names.index("magnitude_prune")
    assert names.index("magnitude_prune") < names.index("int8") < names.index("cast")


def test_one_step_shows_its_settings_and_no_doctest():
    text = describe("finetune")
    assert re.search(r"\nlr +0\.01 ", text)
    assert ">>>" not in text


def test_an_unknown_step_is_refused():
    with pytest.raises(SettingError, match=r"there is no pass 'int9'; did you mean 'int8'\?"):
        describe("int9")


def test_a_plan_counts_what_a_pass_changes():
    layer = LayerReport(
        name="fc", kind="Linear", parameters_before=2000, parameters_after=1500, nonzero=900, bits=8
    )
    report = PassReport(
        name="int8",
        settings={},
        layers=(layer,),
        protected={"head": "too small"},
        notes=("captured",),
    )
    resolved = {
        "steps": [{"finetune": {"epochs": 1, "steps": None}}, {"int8": {"mode": "auto"}}],
        "export": {"opset": 21},
        "measure": {},
        "require": {},
    }
    assert plan("a.yaml", resolved, [report]).splitlines()[:6] == [
        "a.yaml is valid; nothing was run",
        "1. finetune (epochs: 1)",
        "2. int8 (mode: auto)",
        "   1 layers: parameters 2,000 -> 1,500, 600 of them zero, in 8 bits",
        "   leaves head: too small",
        "   note: captured",
    ]
