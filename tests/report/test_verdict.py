from dataclasses import replace

import pytest

from modelzip.measure.classes import ClassScore
from modelzip.measure.promise import Promise
from modelzip.report.measurements import Findings
from modelzip.report.requirements import parse
from modelzip.report.verdict import judge, parity_holds
from tests.report.conftest import answers, comparison, figures, latency, parity

BASELINE = figures("baseline.onnx", size_bytes=4000, correct=97)
COMPRESSED = figures("model.onnx", size_bytes=1200, correct=96)


def findings(*, rows=(), agreement=1.0, served=(), promise=None):
    return Findings(
        comparison=comparison(),
        parity=parity(agreement=agreement),
        latency=tuple(rows),
        answers=tuple(served),
        missing=(),
        promise=promise,
    )


@pytest.mark.parametrize(
    ("name", "text", "met"),
    [
        ("size", "0.3x", True),
        ("size", "1.1 KB", False),
        ("macs", "1x", True),
        ("parameters", "0.9x", False),
        ("accuracy", "96 %", True),
        ("accuracy_drop", "0.9 pp", False),
        ("agreement", "98 %", True),
        ("latency", "0.7x", True),
        ("latency", "0.6x", False),
        ("latency", "1.3 ms", False),
    ],
)
def test_requirements_are_judged_by_what_was_measured(name, text, met):
    rows = [
        latency("baseline", ratio=1.0),
        latency("compressed", ratio=0.5),
        latency("compressed", ratio=0.7, batch_size=32),
    ]
    judged = judge([parse(name, text)], BASELINE, COMPRESSED, findings(rows=rows))
    assert judged.passed is met
    assert len(judged.notes) == (0 if met else 1)


def test_f1_is_judged_where_classes_were_looked_at():
    one = ClassScore(name="spam", n=10, answers=(1, 9), precision=0.9, recall=0.9, f1=0.9)
    scored = replace(COMPRESSED, classes=(one, one))
    required = [parse("f1", "90 %"), parse("f1", "91 %")]
    judged = judge(required, BASELINE, scored, findings())
    assert [o.met for o in judged.outcomes] == [True, False]
    assert judge(required, BASELINE, COMPRESSED, findings()).notes[0].startswith("f1: not measured")


def test_a_module_in_torch_is_not_what_is_deployed():
    rows = [latency("compressed", ratio=3.0, runtime="torch")]
    judged = judge([parse("latency", "1x")], BASELINE, COMPRESSED, findings(rows=rows))
    assert judged.outcomes[0].measured == "not measured"
    assert judged.notes == ("latency: not measured, required at most 1x",)


def test_a_slower_model_is_said_and_does_not_fail():
    judged = judge([], BASELINE, COMPRESSED, findings(rows=[latency("compressed", ratio=1.2)]))
    assert judged.passed
    assert judged.notes == (
        "slower than the original: 1.2x its time in onnxruntime, batch 1 on cpu, 1 thread",
    )


def test_a_difference_within_noise_is_not_called_slower():
    rows = [latency("compressed", ratio=1.2, low=0.9), latency("compressed", ratio=1.03)]
    assert judge([], BASELINE, COMPRESSED, findings(rows=rows)).notes == ()


@pytest.mark.parametrize(
    ("text", "met"), [("0.4x", True), ("0.39x", False), ("0.8 ms", True), ("0.7 ms", False)]
)
def test_the_best_latency_is_the_fastest_way_at_the_worst_batch_size(text, met):
    rows = [
        latency("baseline", ratio=1.0),
        latency("compressed", ratio=0.7),
        latency("baseline", ratio=1.0, overall=0.9, runtime="openvino"),
        latency("compressed", ratio=0.2, overall=0.3, runtime="openvino"),
        latency("baseline", ratio=1.0, batch_size=32),
        latency("compressed", ratio=0.4, batch_size=32),
        latency("compressed", ratio=0.4, overall=0.5, batch_size=32, runtime="openvino"),
    ]
    judged = judge([parse("best_latency", text)], BASELINE, COMPRESSED, findings(rows=rows))
    assert judged.passed is met


def test_an_original_that_is_faster_elsewhere_is_said():
    rows = [
        latency("baseline", ratio=1.0),
        latency("compressed", ratio=0.5),
        latency("baseline", ratio=1.0, overall=0.3, runtime="openvino", precision="bfloat16"),
        latency("compressed", ratio=1.0, overall=0.4, runtime="openvino"),
    ]
    assert judge([], BASELINE, COMPRESSED, findings(rows=rows)).notes == (
        "the original in openvino bfloat16 is faster than the compressed model anywhere, batch 1 "
        "on cpu, 1 thread: 0.3x against 0.4x the time of the original in onnxruntime",
    )
    assert judge([], BASELINE, COMPRESSED, findings(rows=rows[:2])).notes == ()


def test_answers_that_change_in_a_runtime_are_said():
    served = [
        answers(agreement=0.98),
        answers(agreement=0.5, name="baseline"),
        answers(agreement=0.99),
    ]
    judged = judge([], BASELINE, COMPRESSED, findings(served=served))
    assert judged.passed
    assert judged.notes == (
        "openvino float32 on cpu answers as the converted module does on only 98 % of 1000 "
        "samples; accuracy there 95 %",
    )


def test_a_broken_promise_is_said():
    broken = Promise(text="sums saturate", kept=False)
    assert judge([], BASELINE, COMPRESSED, findings(promise=broken)).notes == ("sums saturate",)
    kept = Promise(text="all is well", kept=True)
    assert judge([], BASELINE, COMPRESSED, findings(promise=kept)).notes == ()


def test_lost_parity_fails_a_run():
    judged = judge([], BASELINE, COMPRESSED, findings(agreement=0.95))
    assert not judged.passed
    assert judged.notes[0].startswith("parity: the file agrees with the converted module on 95 %")


@pytest.mark.parametrize(
    ("n", "disagreeing", "holds"),
    [(100, 0, True), (100, 1, True), (100, 2, False), (2000, 2, True), (2000, 3, False)],
)
def test_parity_allows_one_sample_or_a_thousandth(n, disagreeing, holds):
    assert parity_holds(parity(n=n, agreement=1 - disagreeing / n)) is holds
