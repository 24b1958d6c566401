import dataclasses
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modelzip.core.prepare import Prepared
from modelzip.data import ArrayDataset, digits, loader
from modelzip.errors import DataError, ModelError, OutputError, SettingError
from modelzip.train.finetune import FineTune, finetune, training_steps
from modelzip.zoo import digits_cnn

from . import tasks

SETTINGS = FineTune(epochs=4, lr=0.1)


def run(prepared=None, settings=SETTINGS, data=None, **changes):
    prepared = tasks.prepared() if prepared is None else prepared
    arguments = {"batch_size": 16, "progress": False} | changes
    return prepared, finetune(prepared, data or tasks.splits(), settings, **arguments)


def curve(report):
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in report.curve]


def test_the_digits_are_learned_in_seconds():
    torch.manual_seed(0)
    splits = digits()
    prepared = Prepared(digits_cnn())
    settings = FineTune(epochs=12, lr=0.1, warmup=0.1)
    report = finetune(prepared, splits, settings, batch_size=64, progress=False)
    inputs, targets = next(iter(loader(splits.test, batch_size=360)))
    with torch.no_grad():
        accuracy = (prepared.model(inputs).argmax(dim=1) == targets).float().mean()
    assert accuracy >= 0.97
    assert report.seconds < 30


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_optimizer_and_precision_learns(optimizer, precision):
    lr = 0.1 if optimizer == "sgd" else 0.01
    settings = FineTune(epochs=15, lr=lr, optimizer=optimizer, precision=precision, clip_norm=5.0)
    _, report = run(settings=settings)
    assert report.kept.validation_accuracy > 0.9
    assert report.precision == precision


def test_the_curve_starts_before_training_and_has_a_point_an_epoch():
    prepared, report = run(settings=FineTune(epochs=2.5, lr=0.1))
    assert [e.step for e in report.curve] == [0, 4, 8, 10]
    assert report.curve[0].train_loss is None
    assert report.steps == prepared.steps == 10
    assert report.curve[-1].train_loss < report.curve[1].train_loss


def test_steps_are_counted_in_full_batches():
    data = tasks.splits()
    assert training_steps(FineTune(epochs=3), data, batch_size=20) == 9
    assert training_steps(FineTune(steps=7), data, batch_size=20) == 7
    assert training_steps(FineTune(epochs=2), data, batch_size=500) == 2
    _, report = run(settings=FineTune(epochs=2), batch_size=500)
    assert report.steps == 2


def test_two_runs_with_one_seed_are_the_same_and_another_seed_differs():
    one, two, other = run()[0], run()[0], run(seed=1)[0]
    assert tasks.same(tasks.state(one), tasks.state(two))
    assert not tasks.same(tasks.state(one), tasks.state(other))


def test_the_callers_generators_are_left_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    run(settings=FineTune(steps=2))
    assert draw() == expected


def test_the_model_comes_back_plain():
    prepared, _ = run()
    assert not prepared.model.training
    assert all(p.grad is None for p in prepared.model.parameters())
    assert prepared.model[0].weight.is_contiguous()


def test_the_best_settled_epoch_is_kept():
    prepared, report = run(settings=FineTune(epochs=8, lr=0.1))
    best = max(report.curve[1:], key=lambda e: (e.validation_accuracy, e.number))
    assert report.kept == best
    inputs, targets = tasks.splits().validation.__getitems__(range(32))
    with torch.no_grad():
        found = (prepared.model(inputs).argmax(dim=1) == targets).float().mean()
    assert float(found) == pytest.approx(report.kept.validation_accuracy)


def test_the_start_is_kept_where_it_counts_and_no_epoch_is_as_good():
    prepared, _ = run(settings=FineTune(epochs=8, lr=0.1))
    before = tasks.state(prepared)
    settings = FineTune(epochs=2, lr=3.0, keep="best_or_start")  # which ruins it
    prepared, report = run(prepared, settings=settings)
    assert report.kept == report.curve[0]
    assert tasks.same(tasks.state(prepared), before)
    _, report = run(settings=FineTune(epochs=8, lr=0.1, keep="best_or_start"))
    assert report.kept.number > 0


def test_the_last_epoch_is_kept_where_asked_for():
    settings = FineTune(epochs=5, lr=0.3, schedule="constant")  # too high to end well
    accuracy = [e.validation_accuracy for e in run(settings=settings)[1].curve]
    assert max(accuracy) > accuracy[-1]
    _, report = run(settings=dataclasses.replace(settings, keep="last"))
    assert report.kept == report.curve[-1]
    assert report.kept.validation_accuracy == accuracy[-1]


def test_an_epoch_before_the_schedule_ended_is_never_kept():
    prepared = tasks.prepared()
    prepared.add(tasks.Scheduled(end=28))
    _, report = run(prepared, settings=FineTune(epochs=8, lr=0.1))
    assert [e.settled for e in report.curve] == [False] * 7 + [True] * 2
    assert report.kept.number >= 7


def test_without_a_settled_epoch_the_last_one_stands():
    prepared = tasks.prepared()
    prepared.add(tasks.Scheduled(end=1000))
    _, report = run(prepared)
    assert report.kept == report.curve[-1]


def test_the_penalty_is_part_of_the_loss():
    free, held = tasks.prepared(), tasks.prepared()
    free.add(tasks.Scheduled())
    held.add(tasks.Scheduled(weight=0.1))
    run(free), run(held)
    norms = [
        sum(float(p.detach().square().sum()) for p in r.model.parameters()) for r in (free, held)
    ]
    assert norms[1] < 0.7 * norms[0]


def test_one_dimensional_parameters_do_not_decay():
    from modelzip.train.loop import make_optimizer

    groups = make_optimizer(tasks.model(), FineTune(epochs=1, weight_decay=0.1)).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [len(g["params"]) for g in groups] == [2, 3]


def test_distillation_follows_the_teacher_rather_than_the_labels():
    data = tasks.splits()
    teacher, _ = run(settings=FineTune(epochs=15, lr=0.1))
    swapped = ArrayDataset(data.train.inputs, 1 - data.train.targets)
    settings = FineTune(epochs=15, lr=0.1, distill=True, distill_weight=1.0)
    before = tasks.state(teacher)
    _, report = run(settings=settings, data=tasks.splits(train=swapped), teacher=teacher.model)
    assert report.kept.validation_accuracy > 0.8
    assert tasks.same(before, tasks.state(teacher))


def test_distilling_needs_a_teacher():
    with pytest.raises(SettingError, match="distill is true, but there is no teacher"):
        run(settings=FineTune(epochs=1, distill=True))


def test_a_run_in_pieces_equals_a_run_in_one(tmp_path: Path):
    whole, report = run(checkpoint=tmp_path / "a.safetensors")

    class Stops(ArrayDataset):
        left = 10  # batches: the third epoch is cut short

        def __getitems__(self, indices):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    data = tasks.images(64, seed=0, crop=1)
    data.__class__ = Stops
    path = tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(data=tasks.splits(train=data), checkpoint=path)
    resumed, again = run(checkpoint=path, resume=True)
    assert curve(again) == curve(report)
    assert resumed.steps == whole.steps
    assert tasks.same(tasks.state(resumed), tasks.state(whole))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_resumes_to_the_same_result(tmp_path: Path, optimizer, monkeypatch):
    settings = FineTune(epochs=4, lr=0.01, optimizer=optimizer)
    whole, _ = run(settings=settings)
    path = tmp_path / "a.safetensors"
    prepared = tasks.prepared()
    prepared.add(tasks.Scheduled())
    steps = iter(range(11))
    monkeypatch.setattr(prepared, "step", lambda: next(steps))
    with pytest.raises(StopIteration):
        run(prepared, settings, checkpoint=path)
    resumed, _ = run(settings=settings, checkpoint=path, resume=True)
    assert tasks.same(tasks.state(resumed), tasks.state(whole))


def test_a_killed_process_resumes_to_the_same_result(tmp_path: Path):
    path = tmp_path / "killed.safetensors"
    code = f"from tests.train.tasks import killed_run; killed_run({str(path)!r}, 11)"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert ended.returncode == -9
    assert [p.name for p in tmp_path.iterdir()] == ["killed.safetensors"]
    resumed, report = run(checkpoint=path, resume=True)
    whole, expected = run()
    assert curve(report) == curve(expected)
    assert tasks.same(tasks.state(resumed), tasks.state(whole))


def test_a_finished_run_resumes_to_its_end(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    whole, report = run(checkpoint=path)
    again, same = run(checkpoint=path, resume=True)
    assert same.curve == report.curve
    assert same.kept == report.kept
    assert tasks.same(tasks.state(again), tasks.state(whole))


def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path):
    _, report = run(checkpoint=tmp_path / "a.safetensors", resume=True)
    assert len(report.curve) == 5


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    run(checkpoint=path)
    with pytest.raises(SettingError, match=r"run with other settings .*batch_size 16 -> 32"):
        run(checkpoint=path, resume=True, batch_size=32)


def test_a_loss_that_is_not_finite_names_step_and_rate(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    data = tasks.images(64, seed=0)
    prepared = tasks.prepared()
    run(prepared, FineTune(epochs=1, lr=0.1), checkpoint=path)
    written = path.read_bytes()
    data.inputs[:] = math.nan
    with pytest.raises(ModelError, match=r"the loss is nan at step 1 of 4 \(learning rate 0.1\)"):
        run(prepared, FineTune(epochs=1, lr=0.1), tasks.splits(train=data), checkpoint=path)
    assert path.read_bytes() == written


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    prepared = tasks.prepared()
    prepared.model[0].weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(ModelError, match=r"0.weight holds NaN or infinity at step 1 of 1"):
        run(prepared, FineTune(steps=1), checkpoint=tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_label_out_of_range_is_named():
    data = tasks.images(64, seed=0)
    data.targets[5] = 7
    with pytest.raises(DataError, match="a training label is 7; with 2 classes it must be 0 to 1"):
        run(data=tasks.splits(train=data), settings=FineTune(epochs=1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, SettingError, "batch_size must be at least 1, got 0"),
        ({"checkpoint": Path("/no/such/a")}, SettingError, "there is no folder /no/such"),
        ({"data": tasks.splits(validation=[])}, DataError, "the validation data are empty"),
        ({"prepared": Prepared(nn.Flatten())}, ModelError, "Flatten has no parameter that requ"),
        (
            {"prepared": Prepared(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))},
            ModelError,
            r"Sequential returns shape \[32, 3\]; with 2 classes",
        ),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        run(**changes)


def test_a_checkpoint_that_cannot_be_written_is_an_output_error(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        run(checkpoint=tmp_path / "a")


def test_progress_goes_to_stderr(capsys):
    run(settings=FineTune(steps=2), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 1/1" in captured.err
    assert "accuracy" in captured.err
