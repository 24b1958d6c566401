import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import ModelError, SettingError
from modelzip.train.features import attention, feature_distance, feature_names, recording
from modelzip.train.finetune import FineTune, finetune

from . import tasks

SETTINGS = FineTune(epochs=2, lr=0.05, distill=True, distill_features=("2",))


def train(student=None, settings=SETTINGS, teacher=None, **changes):
    prepared = mz.Prepared(tasks.model()) if student is None else student
    arguments = {"batch_size": 16, "progress": False, "teacher": teacher or tasks.model()} | changes
    return prepared, finetune(prepared, tasks.splits(), settings, **arguments)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_attention_by_hand():
    image = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])  # energies 9 and 4
    expected = torch.tensor([[9.0, 4.0]]) / 97**0.5
    assert torch.allclose(attention(image, channels=1), expected)
    assert torch.allclose(attention(image.flatten(2).mT, channels=2), expected)
    assert torch.equal(attention(torch.zeros(1, 2, 3), channels=2), torch.zeros(1, 2))


def test_distance_by_hand_with_other_widths():
    student = {"a": torch.tensor([[[1.0], [0.0]]]), "b": torch.tensor([[[1.0], [0.0]]])}
    teacher = {"a": torch.tensor([[[0.0, 0], [1, 1]]]), "b": torch.tensor([[[2.0, 2], [0, 0]]])}
    assert float(feature_distance(student, teacher)) == pytest.approx((2 + 0) / 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pruned_student_comes_nearer_to_its_teacher(precision):
    torch.manual_seed(1)
    teacher = tasks.model()
    images = tasks.images(32, seed=3).__getitems__(range(32))[0]

    def distance(weight: float) -> float:
        cut = mz.PruneChannels(sparsity=0.5, round_to=1)
        student = mz.prepare(tasks.model(), [cut], example_inputs=images)
        nn.init.normal_(student.model[0].weight)
        settings = dataclasses.replace(
            SETTINGS, epochs=6, feature_weight=weight, keep="last", precision=precision
        )
        train(student, settings, teacher)
        with (
            recording(student.model, ["2"]) as found,
            recording(teacher, ["2"]) as taught,
            torch.no_grad(),
        ):
            student.model(images), teacher.eval()(images)
            return float(feature_distance(found, taught))

    assert distance(20.0) < 0.8 * distance(1e-6)


def test_no_hook_survives():
    student, teacher = tasks.prepared(), tasks.model()
    train(student, teacher=teacher)
    assert hooks(student.model) == hooks(teacher) == 0
    broken = dataclasses.replace(SETTINGS, lr=1e30)
    with pytest.raises(ModelError, match=r"NaN or infinity|the loss is"):
        train(student, broken, teacher)
    assert hooks(student.model) == hooks(teacher) == 0


def test_features_change_the_run_and_resume_gives_the_same(tmp_path: Path):
    whole = tasks.state(train()[0])
    plain = train(settings=dataclasses.replace(SETTINGS, distill_features=()))[0]
    assert not tasks.same(whole, tasks.state(plain))
    train(checkpoint=tmp_path / "a")
    resumed = train(checkpoint=tmp_path / "a", resume=True)[0]
    assert tasks.same(whole, tasks.state(resumed))


def test_globs_name_modules_of_both():
    student, teacher = tasks.model(), tasks.model()
    teacher.add_module("more", nn.ReLU())
    assert feature_names(student, teacher, ["type:ReLU", "0"]) == ("0", "2")
    message = "distill_features=['mor'] matches no module that teacher and student both have"
    with pytest.raises(SettingError, match=re.escape(message)):
        feature_names(student, teacher, ["0", "mor"])
    named = nn.ModuleDict({"layer1": nn.ReLU()})
    with pytest.raises(SettingError, match="did you mean 'layer1'"):
        feature_names(named, named, ["layr1"])


def test_features_that_give_no_map_are_refused():
    for name in ("4", "6"):
        settings = dataclasses.replace(SETTINGS, distill_features=(name,))
        with pytest.raises(ModelError, match=rf"{name} gives features .* which have one place"):
            train(settings=settings)
    message = re.escape(
        "a gives features [1, 2, 4] in the student and [1, 3, 5] in the teacher; they"
    )
    with pytest.raises(ModelError, match=message):
        feature_distance({"a": torch.ones(1, 2, 4)}, {"a": torch.ones(1, 3, 5)})
    with pytest.raises(ModelError, match="they may differ in channels alone"):
        feature_distance({"a": torch.ones(1, 2, 4)}, {"a": torch.ones(1, 2, 4, 4)})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((2, 3, 4, 4), (2, 5, 4, 4)), ((2, 4, 4, 3), (2, 4, 4, 5)), ((2, 3, 9), (2, 5, 9))],
)
def test_channels_are_where_shapes_differ(ours, theirs):
    """Images, images with channels last, and signals."""
    axis = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    one = [size if i != axis else 1 for i, size in enumerate(ours)]
    places = torch.rand(one)
    student, teacher = {"a": places.expand(ours)}, {"a": places.expand(theirs)}
    assert float(feature_distance(student, teacher)) == pytest.approx(0, abs=1e-6)


def test_values_by_hand():
    student, teacher = {"a": torch.tensor([[3.0, 4.0]])}, {"a": torch.tensor([[0.0, 2.0]])}
    found = feature_distance(student, teacher, kind="values")
    assert float(found) == pytest.approx(0.6**2 + 0.2**2)
    message = (
        r"a gives features \[1, 2\] .* \[1, 3\] in the teacher; feature_kind: attention needs no"
    )
    with pytest.raises(ModelError, match=message):
        feature_distance(student, {"a": torch.ones(1, 3)}, kind="values")


def test_values_teach_too():
    settings = dataclasses.replace(SETTINGS, distill_features=("6",), feature_kind="values")
    _, report = train(settings=settings)
    assert len(report.curve) == 3


def test_modules_that_do_not_run_are_refused():
    student, teacher = tasks.model(), tasks.model()
    for model in (student, teacher):
        model[0].add_module("idle", nn.ReLU())
    settings = dataclasses.replace(SETTINGS, distill_features=("0.idle",))
    with pytest.raises(ModelError, match=r"0\.idle did not run in the student"):
        train(mz.Prepared(student), settings, teacher)


def test_feature_settings():
    with pytest.raises(SettingError, match=r"distill_features=\['a'\] needs distill: true"):
        FineTune(epochs=1, distill_features=["a"])
    with pytest.raises(SettingError, match="feature_kind has no choice 'value'; did you mean 'val"):
        FineTune(epochs=1, distill=True, distill_features=["a"], feature_kind="value")
    with pytest.raises(SettingError, match="feature_weight must be above 0, got 0"):
        FineTune(epochs=1, distill=True, distill_features=["a"], feature_weight=0)
    assert FineTune(epochs=1, distill=True, distill_features="a").distill_features == ("a",)
