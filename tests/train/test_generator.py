from dataclasses import replace

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.data.absent import evaluation_only
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.train.batch_statistics import compared
from modelzip.train.finetune import FineTune, finetune
from modelzip.train.generator import STEPS_AN_EPOCH, Generated
from tests.stopping import Stopped

from . import tasks
from .test_synthetic import net  # noqa: F401  a trained model, for the teacher

HOW = FineTune(data="generator", steps=6, lr=0.01, distill=True, generator_warmup=3, keep="last")


def splits():
    """The task's data with nothing to train on."""
    found = evaluation_only(tasks.images(32, seed=2), classes=2)
    return replace(found, validation=tasks.images(32, seed=1))


def generated(teacher, **changes):
    settings = {
        "teacher": teacher.eval(),
        "shape": (1, 6, 6),
        "classes": 2,
        "batch_size": 16,
        "warmup": 2,
        "seed": 0,
        "device": torch.device("cpu"),
        "bfloat16": False,
    }
    return Generated(**(settings | changes))


def test_the_generator_learns_images_of_the_class_and_statistics_asked_for(net):  # noqa: F811
    source, draws = generated(net), torch.Generator().manual_seed(0)

    def judged():
        images, labels = source.step(draws)
        with torch.no_grad(), compared(net) as gap:
            wrong = nn.functional.cross_entropy(net(images), labels)
            return (wrong + gap.take()).item()

    before = judged()
    for _ in range(300):
        source.step(draws)
    assert judged() < 0.5 * before


def test_an_epoch_is_as_many_batches_as_the_paper_has(net):  # noqa: F811
    source = generated(net, warmup=0)
    batches = list(source.batches(1))
    assert len(batches) == STEPS_AN_EPOCH == source.per_epoch
    images, labels = batches[0]
    assert images.shape == (16, 1, 6, 6)
    assert not images.requires_grad
    assert set(labels.tolist()) <= {0, 1}


def test_fine_tuning_reads_no_training_data_and_holds_statistics(net):  # noqa: F811
    prepared = mz.prepare(net, [mz.FakeQuantize(bits=4)], example_inputs=torch.rand(8, 1, 6, 6))
    before = {k: v.clone() for k, v in prepared.model.state_dict().items()}
    report = finetune(prepared, splits(), HOW, batch_size=16, teacher=net, progress=False)
    after = prepared.model.state_dict()
    statistics = [k for k in before if "running_" in k or "num_batches" in k]
    assert statistics
    assert all(torch.equal(before[k], after[k]) for k in statistics)
    assert not tasks.same(before, after)
    assert report.steps == 6
    assert all(p.requires_grad for p in net.parameters())


def test_a_resumed_run_is_one_in_one_piece(net, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("modelzip.train.generator.STEPS_AN_EPOCH", 2)

    def run(name, **arguments):
        prepared = tasks.prepared()
        finetune(
            prepared,
            splits(),
            HOW,
            batch_size=16,
            teacher=net,
            checkpoint=tmp_path / name,
            progress=False,
            **arguments,
        )
        return tasks.state(prepared)

    whole = run("whole")
    steps = Generated.step

    def stop(self, draws, count=iter(range(100))):  # noqa: B008
        if next(count) == 3 + 5:  # warm-up, two epochs of two steps, and one of the third
            raise Stopped
        return steps(self, draws)

    with monkeypatch.context() as patch:
        patch.setattr(Generated, "step", stop)
        with pytest.raises(Stopped):
            run("part")
    assert tasks.same(run("part", resume=True), whole)


def test_what_is_no_image_is_refused(net):  # noqa: F811
    with pytest.raises(DataError, match=r"makes images, C x H x W, got inputs of shape \[64\]"):
        generated(net, shape=(64,))


def test_a_teacher_that_is_not_finite_is_refused(net):  # noqa: F811
    broken = tasks.model()
    broken.load_state_dict(net.state_dict())
    with torch.no_grad():
        broken[0].weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="the loss of the generator is not finite"):
        generated(broken).step(torch.Generator())


def test_a_teacher_without_batch_norm_is_refused():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ModelError, match="has no batch norm with running statistics"):
        generated(teacher)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"distill": False}, "data: generator needs distill: true"),
        ({"steps": None, "epochs": 2}, "so epochs=2 says nothing; give steps"),
        ({"augment": {"jpeg": [50, 95]}}, "augment is for training images, not for data: gen"),
        ({"data": "generated"}, "data has no choice 'generated'; did you mean 'generator'?"),
        ({"data": "train"}, "generator_warmup=3 does nothing with data='train'"),
        ({"generator_warmup": -1}, "generator_warmup must be an integer of at least 0, got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(SettingError) as raised:
        replace(HOW, **changes)
    assert text in str(raised.value)
