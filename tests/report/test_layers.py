from modelzip.measure.accuracy import Accuracy
from modelzip.measure.layers import LayerComparison, LayerMatch, Uncovered
from modelzip.report.layers import conclusion, layer_table, verification


def row(name, *, values=100, equal=100, largest=0.0, steps=True, exact=True, behind=()):
    return LayerMatch(
        name=name, values=values, equal=equal, largest=largest, steps=steps, exact=exact,
        behind=behind,
    )  # fmt: skip


def comparison(*rows, uncovered=(), unmatched=(), agreement=1.0, observed=0.0):
    return LayerComparison(
        n=10, layers=rows, uncovered=uncovered, unmatched=unmatched, agreement=agreement,
        observed=observed,
    )  # fmt: skip


def test_equal_values_are_said_to_be_identical():
    found = comparison(row("activation_quantizers.x_in"), row("integer_operations.add"))
    assert conclusion(found) == ["identical on 10 samples"]
    assert layer_table(found).splitlines()[-2].startswith("quantizer x_in ")
    assert layer_table(found).splitlines()[-1].split() == ["add", "100", "100", "%"]


def test_the_first_layer_that_must_not_differ_is_named_before_one_that_may():
    found = comparison(
        row("norm", equal=99, largest=1e-7, steps=False, exact=False),
        row("layer2.0.conv1", values=65536, equal=65533, largest=1.0),
        agreement=0.9,
    )
    assert conclusion(found) == [
        "first differing layer: layer2.0.conv1, 3 of 65536 values, by at most 1 step",
        "same answer on 90.00 % of them",
    ]


def test_what_has_no_exact_rule_is_named_with_its_gap():
    gap = Uncovered(op="LayerNormalization", count=5, largest=2.0, steps=True)
    quiet = Uncovered(op="Softmax", count=2, largest=0.0, steps=False)
    different = row(
        "up", equal=98, largest=2.0, exact=False, behind=("LayerNormalization", "Softmax")
    )
    lines = conclusion(comparison(different, uncovered=(gap, quiet), unmatched=("q", "k")))
    assert lines == [
        "first differing layer: up, 2 of 100 values, by at most 2 steps, behind "
        "LayerNormalization, Softmax without an exact rule",
        "same answer on 100 % of them",
        "not covered by the exact rules, and the difference right behind: "
        "LayerNormalization (5): 2 steps; Softmax (2): none",
        "not found in the file, so not compared: q, k",
    ]


def test_a_file_fused_otherwise_when_looked_at_is_said_to_be():
    lines = conclusion(comparison(row("conv1"), observed=0.00012))
    assert lines[-1].endswith(
        "which the runtime fuses otherwise: its outputs differ by up to 0.00012"
    )


def test_the_verdict_comes_last():
    accuracy = Accuracy(top1=0.9, low=0.8, high=0.95, correct=9, n=10)
    found = comparison(row("conv1"))
    good = verification(found, accuracy, "promised on x86", ())
    assert good.splitlines()[-3:] == [
        "promised on x86",
        "accuracy in onnxruntime: 90.00 % of 10 samples",
        "PASS: the file computes what its model does, as reported",
    ]
    bad = verification(found, accuracy, "", ("model.onnx is missing",))
    assert bad.splitlines()[-2:] == ["! model.onnx is missing", "FAIL"]
