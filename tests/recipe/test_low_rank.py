from dataclasses import replace

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.data import digits
from modelzip.errors import ModelError, SettingError
from modelzip.measure.profile import LayerTime
from modelzip.measure.rounds import Latency
from modelzip.recipe import low_rank
from modelzip.recipe.keep_float import Serving
from modelzip.recipe.latency import Later
from modelzip.recipe.low_rank import settle, slower
from modelzip.recipe.steps import carry_out, rehearsal
from modelzip.recipe.workshop import open_workshop


class Wide(nn.Module):
    """A layer that is far quicker at rank 16, and a small one that two calls make slower."""

    def __init__(self):
        super().__init__()
        self.small, self.wide = nn.Linear(16, 16), nn.Linear(640, 640)
        self.head = nn.Linear(640, 10)

    def forward(self, x):
        x = torch.relu(self.small(x.flatten(1)[:, :16]))
        return self.head(torch.relu(self.wide(x.repeat(1, 40))))


def wide():
    torch.manual_seed(0)
    return Wide().eval()


@pytest.fixture(scope="module")
def shop():
    serving = Serving(batch_sizes=(8,))
    return open_workshop(digits(), batch_size=64, calibration=64, seed=0, serving=serving)


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    monkeypatch.setattr(low_rank, "_BUDGET_S", 0.3)


@pytest.fixture
def by_size(monkeypatch):
    """Whole files as slow as they are large, and no layer slower: no busy machine is in the way."""

    def time(self, file, than, *, seed=0):
        ratio = file.stat().st_size / than.stat().st_size
        times = {"median_ms": 1.0, "p95_ms": 1.0, "rounds": 1, "repeats": 1}
        return Latency(ratio=ratio, ratio_low=ratio, ratio_high=ratio, **times)

    monkeypatch.setattr(low_rank.Bench, "time", time)
    monkeypatch.setattr(low_rank, "slower", lambda before, after, layers: {})


@pytest.fixture
def small_is_slow(by_size, monkeypatch):
    def slower(before, after, layers):
        return {name: "1.50x slower" for name in layers if name == "small"}

    monkeypatch.setattr(low_rank, "slower", slower)


def later(shop, *passes):
    return Later(
        passes=passes,
        example_inputs=shop.example_inputs,
        calibration=shop.calibration,
        training_steps=None,
        serving=shop.serving,
        seed=0,
    )


def settled(step, shop, *passes):
    return settle(step, wide(), original=wide(), later=later(shop, *passes))


def row(layer, time_ms):
    return LayerTime(layer=layer, ops=("Conv",), time_ms=time_ms, share=0.0)


def test_factors_together_are_compared_with_their_layer_at_every_batch_size():
    before = {1: [row("a", 1.0), row("a2", 1.0), row("b", 2.0)], 8: [row("a", 8.0), row("b", 9.0)]}
    after = {
        1: [row("a.0", 0.6), row("a.1", 0.6), row("a2.0", 1.04), row("b.0", 1.0)],
        8: [row("a.0", 2.0), row("a.1", 2.0), row("b.0", 5.0), row("b.1", 8.5), row("", 99.0)],
    }
    assert slower(before, after, ["a", "a2", "b", "gone"]) == {
        "a": "1.20x slower factored on this machine",
        "b": "1.50x slower factored on this machine",
    }


@pytest.fixture
def clear_times(by_size, monkeypatch):
    """Factors of `small` a thousand times slower than they are measured, of `wide` faster."""

    def factored(before, after, layers):
        by = {"small": 1e3, "wide": 1e-3}
        timed = {
            size: [
                replace(row, time_ms=row.time_ms * by.get(row.layer.split(".")[0], 1.0))
                for row in rows
            ]
            for size, rows in after.items()
        }
        return slower(before, timed, layers)

    monkeypatch.setattr(low_rank, "slower", factored)


@pytest.mark.parametrize("later_passes", [(), (mz.Int8(),)])
def test_layers_that_are_slower_factored_are_left_whole(shop, clear_times, later_passes):
    step = settled(mz.LowRank(ranks={"small": 7, "wide": 16}), shop, *later_passes)
    assert step.ranks == {"wide": [16]}
    assert list(step.keep) == ["small"]
    assert step.keep["small"].endswith("x slower factored on this machine")


def test_a_budget_is_met_by_the_layers_that_are_faster(shop, small_is_slow):
    step = settled(mz.LowRank(macs="0.3x", round_to=1), shop)
    assert step.macs is None
    assert "small" not in step.ranks
    found = mz.prepare(
        wide(), [step], example_inputs=shop.example_inputs, calibration=shop.calibration
    )
    before, after = found.attached[0].context.record["macs"]
    assert after <= 0.3 * before


def test_a_budget_that_needs_slow_layers_names_them(shop, small_is_slow):
    # at rank 1 everywhere 0.0047x; 0.0053x with the slow one whole
    step = mz.LowRank(macs="0.005x", round_to=1)
    with pytest.raises(SettingError, match=r"cannot be met by low rank.*Left whole: small: 1.50x"):
        settled(step, shop)


def test_a_model_of_slow_layers_alone_is_refused(shop, small_is_slow):
    with pytest.raises(ModelError, match=r"low_rank leaves every layer whole: small: 1.50x slower"):
        settled(mz.LowRank(ranks={"small": 7}), shop)


def test_a_latency_is_met_nearly_by_what_is_measured(shop, by_size):
    step = settled(mz.LowRank(latency="0.6x"), shop)
    assert step.latency is None
    weights = sum(8 * rank * 160 for (rank,) in [step.ranks["wide"]])
    assert 0.9 * 0.6 * 640 * 640 < weights < 0.6 * 640 * 640


def test_a_latency_leaves_slow_layers_whole(shop, small_is_slow):
    step = settled(mz.LowRank(latency="0.6x", round_to=1), shop)
    assert "small" not in step.ranks


def test_a_file_that_is_slower_though_its_layers_are_not_is_refused(shop, by_size, monkeypatch):
    slow = low_rank.Bench.time
    monkeypatch.setattr(low_rank.Bench, "time", lambda self, a, b, seed=0: slow(self, b, a))
    with pytest.raises(ModelError, match=r"low_rank makes the file \d+\.\d\dx slower on this mach"):
        settled(mz.LowRank(ranks={"wide": 16}), shop)


def test_a_latency_that_cannot_be_met_says_the_least(shop, by_size, monkeypatch):
    monkeypatch.setattr(low_rank, "_TURNS", 2)
    with pytest.raises(SettingError, match=r"latency=0.001x cannot be met by low_rank: 0\.\d+x is"):
        settled(mz.LowRank(latency="0.001x"), shop)


def test_a_latency_that_is_met_already_is_refused(shop, by_size):
    fast = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(SettingError, match=r"latency=1x is met without low_rank: the file takes"):
        settle(mz.LowRank(latency="1x"), fast, original=wide(), later=later(shop))


def test_a_recipe_settles_what_is_slow_and_rehearses_a_latency(shop, tmp_path):
    (report,) = rehearsal([mz.LowRank(latency="0.6x")], wide(), shop)
    assert report.name == "low_rank"
    steps = [mz.LowRank(ranks={"small": 7, "wide": 16}), mz.FineTune(steps=2)]
    prepared, done = carry_out(steps, wide(), shop, tmp_path, progress=False)
    prepared.convert()
    assert prepared.reports[0].protected["small"].endswith("x slower factored on this machine")
    assert [step.name for step in done] == ["low_rank", "finetune"]
