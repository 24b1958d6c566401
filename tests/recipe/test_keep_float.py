import dataclasses

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.data import digits
from modelzip.measure.profile import LayerTime
from modelzip.recipe.keep_float import Bench, Serving, costly, groups, settle, slower
from modelzip.recipe.schema import Measure
from modelzip.recipe.steps import carry_out, rehearsal
from modelzip.recipe.workshop import open_workshop
from modelzip.report.requirements import parse


def several_filters_a_channel():
    """Its grouped convolution has no quick integer kernel in onnxruntime: 10x slower than float."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, groups=32), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def one_wide_range():
    """A layer whose input is spoiled by one huge constant feature; the other layer is harmless."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(9, 4)
            with torch.no_grad():
                self.second.weight[:, 8] = 0.0

        def forward(self, x):
            x = self.first(x)
            return self.second(torch.cat([x, torch.full_like(x[:, :1], 1e4)], 1))

    return Net().eval()


def bench(model, inputs, **serving):
    return Bench(
        mz.Int8(mode="static", keep_float="auto"),
        model,
        example_inputs=inputs,
        calibration=[(inputs, None)],
        serving=Serving(batch_sizes=(1,), **serving),
        seed=0,
    )


@pytest.fixture(scope="module")
def shop():
    return open_workshop(digits(), batch_size=64, calibration=64, seed=0)


def row(layer, time_ms):
    return LayerTime(layer=layer, ops=("Conv",), time_ms=time_ms, share=0.0)


def test_a_layer_that_is_slower_in_int8_is_timed_and_kept_in_float():
    inputs = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = slower(bench(several_filters_a_channel(), inputs))
    assert "2" in kept
    assert "4" not in kept
    assert kept["2"].endswith("x slower in int8 on this machine")
    times = float(kept["2"].split(": ")[1].split("x")[0])
    assert times > 2


def test_neighbours_make_a_group_and_the_most_to_gain_comes_first():
    before = {1: [row("a", 1.0), row("b", 1.0), row("c", 1.0), row("d", 1.0), row("", 9.0)]}
    after = {1: [row("a", 1.2), row("b", 1.1), row("c", 0.5), row("d", 3.0), row("", 1.0)]}
    found = groups(before, after, ["a", "b", "c", "d"])
    assert [list(group) for group in found] == [["d"], ["a", "b"]]
    assert found[0]["d"] == "kept in float: 3.0x slower in int8 on this machine"


def test_what_no_timing_of_the_file_would_show_is_left_alone():
    before = {1: [row("a", 1.0), row("b", 100.0)], 32: [row("a", 1.0), row("b", 100.0)]}
    after = {1: [row("a", 2.0), row("b", 60.0)], 32: [row("a", 1.5), row("b", 60.0)]}
    assert groups(before, after, ["a", "b"]) == []


def test_a_layer_that_costs_too_much_accuracy_is_kept_in_float():
    model = one_wide_range()
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(inputs).argmax(1)

    def accuracy(found):
        with torch.no_grad():
            return float((found(inputs).argmax(1) == labels).float().mean())

    kept = costly(bench(model, inputs), {}, accuracy=accuracy)
    assert list(kept) == ["second"]
    assert "of the divergence that int8 causes; validation accuracy is " in kept["second"]
    assert costly(bench(model, inputs, drop=100.0), {}, accuracy=accuracy) == {}


def test_nothing_to_keep_leaves_the_step_without_it():
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    step = settle(bench(model, inputs), accuracy=lambda model: 1.0)
    assert step == mz.Int8(mode="static")


def test_a_run_says_what_is_kept_and_a_fresh_process_rebuilds_it(shop, tmp_path):
    quick = dataclasses.replace(shop, serving=Serving(batch_sizes=(16,)))
    steps = [mz.Int8(keep_float="auto")]
    assert rehearsal(steps, several_filters_a_channel(), quick)[0].protected == {}
    prepared, done = carry_out(steps, several_filters_a_channel(), quick, tmp_path, progress=False)
    module = prepared.convert()
    reasons = prepared.reports[0].protected
    assert "slower in int8 on this machine" in reasons["2"]
    assert isinstance(module.get_submodule("2"), nn.Conv2d)
    assert done[0].settings["keep_float"] == "auto"
    prepared.save(tmp_path / "small.safetensors")
    again = mz.load(several_filters_a_channel, tmp_path / "small.safetensors")
    x = quick.example_inputs
    assert torch.equal(again(x), module(x))


def test_what_the_model_is_to_do_follows_from_the_recipe():
    measure = Measure(batch_sizes=(2, 8), threads=(4, 1))
    required = [parse("accuracy_drop", "0.5 pp"), parse("size", "0.3x")]
    assert Serving.of(measure, required) == Serving(batch_sizes=(2, 8), threads=4, drop=0.5)
    assert Serving.of(measure, []).drop == 1.0
