import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import modelzip as mz
from modelzip.data import Texts, digits
from modelzip.errors import DataError, ModelError
from modelzip.measure.conditions import Robustness
from modelzip.measure.robustness import (
    Answers,
    Served,
    answers,
    by_class,
    calibration_error,
    check_fits,
    measure_robustness,
)


class Table:
    """A session whose outputs are given."""

    inputs = ()

    def __init__(self, outputs):
        self.outputs = np.asarray(outputs, np.float32)

    def run(self, inputs):
        return [self.outputs]

    def bind(self, inputs):
        return lambda: None


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    data = digits()
    inputs, labels = data.train.__getitems__(range(500))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.eval()
    small = mz.prepare(
        model, [mz.Int8()], example_inputs=inputs[:4], calibration=[(inputs, labels)]
    ).convert()
    pairs = [(model, folder / "float.onnx"), (small, folder / "int8.onnx")]
    for module, path in pairs:
        mz.export_onnx(module, (inputs[:4],), path)
    return [Served(*pair) for pair in pairs]


def measured(served, **settings):
    fewer = {"fgsm": {"attack_samples": 60}, "bit_flips": {"draws": 2}}
    for kind in fewer.keys() & settings.keys():
        settings |= fewer[kind]
    found = Robustness(samples=100, **settings)
    return measure_robustness(found, *served, digits().test, classes=10, batch_size=50, seed=1)


def test_there_is_a_row_for_clean_data_and_each_condition(served):
    rows = measured(
        served, jpeg=[50], bits=[8, 1], gaussian=[0.1], fgsm=[0.1], pgd=[0.1], bit_flips=[1e-3]
    )
    assert [str(row) for row in rows] == [
        "clean",
        "jpeg 50",
        "bits 8",
        "bits 1",
        "gaussian 0.1",
        "fgsm 0.1",
        "fgsm transfer 0.1",
        "pgd 0.1",
        "pgd transfer 0.1",
        "bit flips 0.001",
    ]
    assert [row.n for row in rows] == [100] * 5 + [60] * 4 + [200]
    clean, attacked = rows[0], rows[7]
    assert clean.baseline.accuracy.top1 > 0.85
    assert attacked.baseline.accuracy.top1 < clean.baseline.accuracy.top1 - 0.2
    assert attacked.compressed.accuracy.top1 < clean.compressed.accuracy.top1 - 0.2
    assert rows == measured(
        served, jpeg=[50], bits=[8, 1], gaussian=[0.1], fgsm=[0.1], pgd=[0.1], bit_flips=[1e-3]
    )


def test_a_row_agrees_with_the_files_answers(served):
    (clean, _) = measured(served, brightness=[0.1])
    inputs, labels = digits().test.__getitems__([int(3.6 * i) for i in range(100)])
    classes = [served[i].module(inputs).argmax(1) for i in (0, 1)]
    for found, model in zip((clean.baseline, clean.compressed), classes, strict=True):
        assert found.accuracy.correct == int((model == labels).sum())
        seven = labels == 7
        assert found.by_class[7] == pytest.approx(float((model == labels)[seven].float().mean()))
    assert clean.flip_rate == pytest.approx(float((classes[0] != classes[1]).float().mean()))
    changes = [
        100 * (new - old)
        for old, new in zip(clean.baseline.by_class, clean.compressed.by_class, strict=True)
    ]
    assert clean.worst_change == min(changes) == changes[clean.worst_class]


def test_samples_are_spread_to_the_end_of_data_in_order_of_class(served):
    test = digits().test  # 360 samples, of which 200 are taken
    in_order = test.take(test.targets.argsort(stable=True).tolist())
    settings = Robustness(samples=200, brightness=[0.1])
    clean, _ = measure_robustness(settings, *served, in_order, classes=10, seed=1)
    assert clean.n == 200
    assert None not in clean.baseline.by_class


def test_a_model_against_itself_never_flips(served):
    rows = measured([served[0], served[0]], webp=[50], fgsm=[0.05], bit_flips=[1e-3])
    assert {row.flip_rate for row in rows} == {0.0}
    assert {row.worst_change for row in rows} == {0.0}


def test_answers_that_are_not_finite_are_wrong():
    batch = (None, torch.tensor([0, 0, 1]))
    found = answers(Table([[2, 2], [np.nan, 1], [np.inf, 0]]), [batch])
    assert found.classes.tolist() == [0, -1, -1]
    assert found.confidence.tolist() == [0.5, 0, 0]
    assert found.right.tolist() == [True, False, False]


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # four samples 0.2 over their accuracy of 0.75, two 0.05 over theirs of 0.5
    expected = (4 * 0.2 + 2 * 0.05) / 6
    assert calibration_error(confidence, right, bins=10) == pytest.approx(expected)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_a_class_without_samples_has_no_accuracy():
    labels = np.array([0, 0, 2])
    found = Answers(classes=np.array([0, 1, 2]), confidence=np.ones(3), labels=labels)
    assert by_class(found, classes=3) == (0.5, None, 1.0)


def test_what_cannot_be_measured_is_told_or_raised(served):
    stuck = Served(nn.Sequential(served[0].module, nn.Threshold(1e9, 0.0)), served[0].path)
    lines = []
    rows = measure_robustness(
        Robustness(fgsm=[0.1], jpeg=[50], samples=20),
        stuck,
        served[1],
        digits().test,
        classes=10,
        failed=lines.append,
    )
    assert [row.condition for row in rows] == ["clean", "jpeg"]
    assert lines == ["fgsm 0.1: Sequential gives no gradients: they are all zero"]
    with pytest.raises(ModelError, match="Sequential gives no gradients"):
        measured([stuck, served[1]], fgsm=[0.1])


def test_conditions_are_checked_against_the_data():
    check_fits(Robustness(jpeg=[50], fgsm=[0.1]), digits().test)
    tokens = [(torch.zeros(4).long(), 0)] * 2
    for settings in ({"jpeg": [50]}, {"fgsm": [0.1]}):
        with pytest.raises(DataError, match="corruptions are for images"):
            check_fits(Robustness(**settings), tokens)
    check_fits(Robustness(bit_flips=[0.1]), tokens)
    with pytest.raises(DataError, match=r"typos 0.1 is for texts, which list does not have; let"):
        check_fits(Robustness(typos=[0.1]), tokens)


class Counted(Texts):
    """Texts as the counts of their vowels."""

    def __init__(self, texts, labels):
        self.texts, self.labels = tuple(texts), list(labels)

    def rewritten(self, indices, texts):
        return Counted(texts, [self.labels[i] for i in indices])

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        text = self.texts[index]
        return torch.tensor([float(text.count(v)) for v in "aeiou"]), self.labels[index]


def test_texts_are_corrupted_before_they_are_tokens(tmp_path):
    model = nn.Linear(5, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 5, [1.0, 0, 0, 0, 0]]))
        model.bias.copy_(torch.tensor([0.5, 0.0]))
    path = mz.export_onnx(model, (torch.zeros(2, 5),), tmp_path / "a.onnx")
    data = Counted(["none", "so a", "we do", "so a", "we do"], [0, 1, 0, 1, 0])
    rows = measure_robustness(
        Robustness(truncated=[1, 2], samples=4),
        *[Served(model, path)] * 2,
        Subset(data, [1, 2, 3, 4]),
        classes=2,
    )
    # "a" is the second word of the texts of class 1
    assert [(str(row), row.baseline.accuracy.correct) for row in rows] == [
        ("clean", 4), ("truncated 1", 2), ("truncated 2", 4),
    ]  # fmt: skip
