"""`repeat`: steps written out several times, each on the model as the last left it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import modelzip as mz
from modelzip.data import digits
from modelzip.errors import SettingError
from modelzip.recipe import latency
from modelzip.recipe.keep_float import Serving
from modelzip.recipe.loader import dump, load, validate
from modelzip.recipe.schema import Plan
from modelzip.recipe.steps import carry_out, rehearsal
from modelzip.recipe.workshop import Workshop, open_workshop
from modelzip.run import rehearse, run
from modelzip.zoo import digits_cnn
from tests.recipe.test_latency import Weighed
from tests.stopping import Stopped, stop_after

RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 8, train: {epochs: 1, lr: 0.1}}
data: {build: "modelzip.data:digits", batch_size: 64, calibration: 64}
steps:
  - repeat:
      times: 3
      steps:
        - prune_channels: {macs: 0.8x, round_to: 1}
        - finetune: {steps: 12, lr: 0.02}
  - magnitude_prune: {sparsity: 0.5}
measure: {runtimes: [onnxruntime], batch_sizes: [2]}
"""
PRUNE = mz.PruneChannels(macs="0.8x", round_to=1)
TRAIN = mz.FineTune(steps=12, lr=0.02, distill=True)
TIMED = mz.PruneChannels(latency="0.7x", round_to=16, targets=("3",))
STEPS = (PRUNE, TRAIN) * 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repeat") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def shop() -> Workshop:
    serving = Serving(batch_sizes=(1,))
    return open_workshop(digits(), batch_size=64, calibration=128, seed=0, serving=serving)


def model() -> nn.Module:
    torch.manual_seed(0)
    return digits_cnn(width=8)


def plan(*entries: object) -> Plan:
    found: Plan = validate(Plan, {"steps": list(entries)})
    return found


def macs(model: nn.Module, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / 2


# what is written


def test_steps_are_written_out() -> None:
    steps = [{"prune_channels": {"macs": "0.8x"}}, {"finetune": {"epochs": 2}}]
    found = plan("cast", {"repeat": {"times": 2, "steps": ["cast"]}}, "cast")
    assert found.steps == (mz.Cast(),) * 4
    found = plan({"repeat": {"times": 4, "steps": steps}})
    assert found.steps == (mz.PruneChannels(macs="0.8x"), mz.FineTune(epochs=2)) * 4


def test_what_is_dumped_is_the_flat_list(recipe: Path, tmp_path: Path) -> None:
    found = load(recipe, overrides=["steps.0.repeat.times=2"])
    names = ["prune_channels", "finetune", "prune_channels", "finetune", "magnitude_prune"]
    assert [name for step in found.resolved()["steps"] for name in step] == names
    (tmp_path / "flat.yaml").write_text(dump(found))
    assert load(tmp_path / "flat.yaml").steps == found.steps


GOOD = {"times": 2, "steps": [{"prune_channels": {"macs": "0.8x"}}]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("repeat", "steps[1].repeat must be a mapping of settings, got None"),
        ({"repeat": 4}, "steps[1].repeat must be a mapping of settings, got 4"),
        (
            {"repeat": {**GOOD, "times": 1}},
            "steps[1].repeat.times must be greater than or equal to 2, got 1",
        ),
        (
            {"repeat": {**GOOD, "times": 101}},
            "steps[1].repeat.times must be less than or equal to 100, got 101",
        ),
        ({"repeat": {**GOOD, "times": "4x"}}, "steps[1].repeat.times must be an integer, got '4x'"),
        ({"repeat": {"steps": ["cast"]}}, "steps[1].repeat.times is missing"),
        ({"repeat": {"times": 2}}, "steps[1].repeat.steps is missing"),
        ({"repeat": {**GOOD, "steps": []}}, "steps[1].repeat.steps is empty; give at least one"),
        ({"repeat": {**GOOD, "steps": 3}}, "steps[1].repeat.steps must be a list, got 3"),
        (
            {"repeat": {**GOOD, "time": 3}},
            "steps[1].repeat has no setting 'time'; did you mean 'times'?",
        ),
        (
            {"repeat": {"times": 2, "steps": ["cast", {"prune_channels": {"mac": "0.8x"}}]}},
            "steps[1].repeat.steps[1]: prune_channels has no setting 'mac'; did you mean 'macs'?",
        ),
        (
            {"repeat": {"times": 2, "steps": [{"repeat": GOOD}]}},
            "steps[1].repeat.steps[0]: a repeat cannot stand in another; write out the inner one",
        ),
        (
            {"repeat": GOOD, "times": 3},
            "steps[1]: a step is one name with its settings, got {'repeat': ",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(entry: object, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        plan({"prune_channels": {"sparsity": 0.5}}, entry)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_order_is_that_of_the_steps_written_out() -> None:
    steps = [{"prune_channels": {"macs": "0.8x"}}, {"magnitude_prune": {"sparsity": 0.5}}]
    with pytest.raises(SettingError, match=r"prune_channels .* must come before magnitude_prune"):
        plan({"repeat": {"times": 2, "steps": steps}})


def test_a_pass_at_the_end_of_a_repeat_needs_training_after_it() -> None:
    gradual = {"magnitude_prune": {"sparsity": 0.5, "schedule": "cubic"}}
    repeat = {"repeat": {"times": 2, "steps": [{"finetune": {"epochs": 1}}, gradual]}}
    with pytest.raises(SettingError, match=r"^steps: the last magnitude_prune needs training"):
        plan(repeat)
    assert len(plan(repeat, {"finetune": {"epochs": 1}}).steps) == 5


# what is done


def test_check_prints_every_step(recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modelzip", "check", recipe.name],
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    numbered = [line.split(" (")[0] for line in done.stdout.splitlines() if line[0].isdigit()]
    names = ["prune_channels", "finetune"] * 3 + ["magnitude_prune"]
    assert numbered == [f"{number}. {name}" for number, name in enumerate(names, start=1)]
    assert [p.name for p in recipe.parent.iterdir()] == [recipe.name]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cluster_weights", {"bits": 2}, "clustered already; give cluster_weights once a layer"),
        ("movement_prune", {"sparsity": 0.5}, "has a movement_prune already; give it one alone"),
    ],
)
def test_a_pass_that_stands_alone_is_refused_twice_before_the_run(
    recipe: Path, tmp_path: Path, name: str, given: dict[str, object], message: str
) -> None:
    repeat = {"times": 2, "steps": [{name: given}, {"finetune": {"epochs": 1}}]}
    path = tmp_path / "twice.yaml"
    head = RECIPE.partition("steps:")[0]
    path.write_text(f"{head}steps: {json.dumps([{'repeat': repeat}])}\n")
    with pytest.raises(mz.ModelzipError, match=message):
        rehearse(load(path))


def test_each_time_prunes_the_model_of_that_moment(shop: Workshop, tmp_path: Path) -> None:
    steps = (PRUNE, TRAIN) * 4
    start, x = model(), shop.example_inputs
    prepared, _ = carry_out(steps, start, shop, tmp_path, progress=False)
    counted = [a.context.record["macs"] for a in prepared.attached]
    assert [before for before, _ in counted[1:]] == [after for _, after in counted[:-1]]
    assert all(0.7 < after / before <= 0.8 for before, after in counted)
    left = macs(prepared.convert(), x) / macs(start.eval(), x)
    assert 0.3 < left <= 0.8**4


@pytest.fixture(scope="module")
def whole(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    return carry_out(STEPS, model(), shop, folder, progress=False)[0].convert().state_dict()


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 4, 5])
def test_a_stopped_schedule_goes_on_to_the_same_weights(
    shop: Workshop, whole: dict[str, Tensor], tmp_path: Path, checkpoints: int
) -> None:
    """Two checkpoints each time: at the end of its epoch, and of its fine-tuning."""
    with pytest.raises(Stopped), stop_after(checkpoints):
        carry_out(STEPS, model(), shop, tmp_path, progress=False)
    prepared, done = carry_out(STEPS, model(), shop, tmp_path, progress=False)
    state = prepared.convert().state_dict()
    assert len(done) == 6
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_a_stopped_run_ends_in_the_same_files(recipe: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    found = load(recipe)
    record = run(found, out=one, progress=False)
    with pytest.raises(Stopped), stop_after(4):  # at the end of the second fine-tuning's epoch
        run(found, out=two, progress=False)
    resumed = run(found, out=two, resume=True, progress=False)
    assert [step.name for step in resumed.steps] == [step.name for step in record.steps]
    assert resumed.hashes["model.onnx"] == record.hashes["model.onnx"]
    files = [load_file(folder / "checkpoint.safetensors") for folder in (one, two)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


# widths that were measured


def broad() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Upsample(scale_factor=3),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def test_widths_that_were_measured_outlive_a_stop(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "Bench", Weighed)
    steps = (TIMED, mz.FineTune(steps=1))
    with pytest.raises(Stopped), stop_after(1):
        carry_out(steps, broad(), shop, tmp_path, progress=False)
    (path,) = tmp_path.glob("*.settled.json")
    assert path.name == "step-1.settled.json"
    entry = json.loads(path.read_text())
    assert dict(entry["settings"]["widths"])["3"] in (16, 32, 48)
    entry["settings"]["widths"] = {"3": 24}  # no measurement would say again
    path.write_text(json.dumps(entry))
    (tmp_path / "step-2.training").unlink()  # trained with the widths of before
    prepared, done = carry_out(steps, broad(), shop, tmp_path, progress=False)
    assert prepared.model[3].out_channels == 24
    assert done[0].fit is not None
    assert done[0].fit.target == 0.7
    again, _ = carry_out(steps, broad(), shop, tmp_path, progress=False)
    assert torch.equal(
        again.convert()(shop.example_inputs), prepared.convert()(shop.example_inputs)
    )


def test_damaged_widths_are_refused(shop: Workshop, tmp_path: Path) -> None:
    steps = (TIMED, mz.FineTune(steps=1))
    (tmp_path / "step-1.settled.json").write_text('{"name": "prune_channels"}')
    with pytest.raises(SettingError, match=r"step-1\.settled\.json is damaged .*; remove "):
        carry_out(steps, broad(), shop, tmp_path, progress=False)


def timed(target: str) -> mz.PruneChannels:
    return mz.PruneChannels(latency=target, round_to=8, targets=("3",))


def test_a_schedule_may_have_falling_latencies(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is met by the file of that moment: what later steps will cut does not count."""
    monkeypatch.setattr(latency, "Bench", Weighed)
    steps = (timed("0.8x"), mz.FineTune(steps=1), timed("0.5x"), mz.FineTune(steps=1))
    rehearsal(steps, broad(), shop)
    prepared, done = carry_out(steps, broad(), shop, tmp_path, progress=False)
    measured = [step.fit.measured for step in done if step.fit]
    assert 0.5 < measured[0] <= 0.8
    assert measured[1] <= 0.5
    widths = [dict(a.pass_.settings()["widths"])["3"] for a in prepared.attached]
    assert 64 > widths[0] > widths[1] == prepared.model[3].out_channels


@pytest.mark.parametrize("after", [timed("0.6x"), timed("0.7x"), mz.LowRank(latency="0.6x")])
def test_latencies_that_do_not_fall_are_refused_before_the_run(
    shop: Workshop, after: mz.Pass
) -> None:
    steps = (timed("0.6x"), mz.FineTune(steps=1), after)
    with pytest.raises(
        SettingError,
        match=rf"{after.name}: latency=0\..x is met by the 0.6x of an earlier step, as",
    ):
        rehearsal(steps, broad(), shop)
