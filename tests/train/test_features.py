import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import ModelError, SettingError
from modelzip.train.features import attention, attention_transfer, feature_names, recording
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
    assert torch.allclose(attention(image), expected)
    assert torch.allclose(attention(image.flatten(2).mT), expected)
    assert torch.equal(attention(torch.zeros(1, 2, 3)), torch.zeros(1, 2))


def test_distance_by_hand_with_other_widths():
    student = {"a": torch.tensor([[[1.0], [0.0]]]), "b": torch.tensor([[[1.0], [0.0]]])}
    teacher = {"a": torch.tensor([[[0.0, 0], [1, 1]]]), "b": torch.tensor([[[2.0, 2], [0, 0]]])}
    assert float(attention_transfer(student, teacher)) == pytest.approx((2 + 0) / 2)


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
            return float(attention_transfer(found, taught))

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
    with pytest.raises(ModelError, match="a has 2 places in the student and 3 in the teacher"):
        attention_transfer({"a": torch.ones(1, 2, 4)}, {"a": torch.ones(1, 3, 4)})


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
    with pytest.raises(SettingError, match="feature_weight must be above 0, got 0"):
        FineTune(epochs=1, distill=True, distill_features=["a"], feature_weight=0)
    assert FineTune(epochs=1, distill=True, distill_features="a").distill_features == ("a",)
