import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.core.channels.cost import count_macs
from modelzip.core.factors.layers import Factored
from modelzip.core.running import evaluating
from modelzip.errors import DataError, ModelError, SelectionError, SettingError
from modelzip.report.record import merge_layers


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32, padding=1),
        nn.Conv2d(32, 64, 1), nn.ReLU(),
        nn.ConvTranspose2d(64, 8, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()  # fmt: skip


X = random(2, 3, 8, 8)


def prepare(model, pass_, x=X, **given):
    return mz.prepare(model, [pass_], example_inputs=x, calibration=[x], **given)


def report(model, pass_, x=X):
    zipped = prepare(model, pass_, x)
    return zipped.convert(), zipped.reports[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"needs exactly one of energy, macs, params, ranks and latency, got none$"),
        ({"energy": 0.9, "macs": "0.5x"}, "got energy and macs$"),
        ({"energy": 90}, r"energy must be a fraction in \(0, 1\), got 90; for 90 % write 0.9"),
        ({"energy": 0}, r"energy must be a fraction in \(0, 1\), got 0"),
        ({"macs": 0.5}, "macs must be a ratio to the original such as 0.4x, got 0.5"),
        ({"params": "2x"}, "params must be a ratio to the original such as 0.4x, got '2x'"),
        ({"latency": "fast"}, "latency must be a ratio to the original such as 0.4x, got 'fast'"),
        ({"ranks": 8}, "ranks must map layer names to ranks, got 8"),
        ({"ranks": {"0": 0}}, "ranks: 0 must be an integer of at least 1, got 0"),
        ({"ranks": {"0": [8, "x"]}}, "ranks: 0 must be an integer of at least 1, got 'x'"),
        ({"energy": 0.9, "whiten": 1}, "whiten must be true or false, got 1"),
        ({"energy": 0.9, "round_to": 0}, "round_to must be an integer of at least 1, got 0"),
        ({"energy": 0.9, "keep": ["0"]}, r"keep must map layer names to reasons, got \['0'\]"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        mz.LowRank(**settings)


def test_a_budget_of_macs_is_met_and_reported():
    small, found = report(net(), mz.LowRank(macs="0.6x"))
    before, after = count_macs(net(), X), count_macs(small, X)
    assert after <= 0.6 * before
    assert found.notes == (f"multiply-accumulates: {before:,} -> {after:,}, {after / before:.2f}x",)


def test_a_budget_of_parameters_is_met():
    def count(model):
        return sum(p.numel() for p in model.parameters())

    small, found = report(net(), mz.LowRank(params="0.7x"))
    assert count(small) <= 0.7 * count(net())
    change = sum(row.parameters_before - row.parameters_after for row in found.layers)
    assert count(net()) - count(small) == change


def test_the_report_names_ranks_energy_and_what_stays_whole():
    small, found = report(net(), mz.LowRank(ranks={"2": [8, 16], "6": 16, "type:Conv*": 4}))
    assert isinstance(small[2], Factored)
    shapes = [tuple(part.weight.shape) for part in small[2]]
    assert shapes == [(8, 32, 1, 1), (16, 8, 3, 3), (32, 16, 1, 1)]
    assert [part.bias is not None for part in small[2]] == [False, False, True]
    rows = {row.name: row for row in found.layers}
    assert list(rows) == ["0.0", "0.1", "2.0", "2.1", "2.2", "6.0", "6.1"]  # all 3 channels of 0
    assert rows["2.0"].note.startswith("2 at ranks 8 and 16, ")
    assert rows["2.0"].note.endswith("% of its energy")
    assert (rows["2.0"].parameters_before, rows["2.1"].parameters_before) == (9248, 0)
    assert rows["2.0"].replaces == "2"
    assert found.protected["5"] == "a convolution of 32 groups is small already"
    assert found.protected["8"] == "a transposed convolution"


def test_layers_whose_factors_save_nothing_stay_whole_with_the_reason():
    _, found = report(net(), mz.LowRank(ranks={"2": 30, "6": 8}))
    assert found.protected == {"2": "ranks 30 and 30 of 32 and 32 would cost more than it saves"}
    _, found = report(net(), mz.LowRank(energy=0.9))
    assert found.protected["11"] == "rank 8 of 4 would cost more than it saves"
    assert found.protected["2"] == "keeping 0.9 of its energy would cost more than it saves"
    _, found = report(net(), mz.LowRank(macs="0.95x"))
    assert "macs=0.95x is met with it whole" in found.protected.values()


def test_a_model_whose_layers_all_stay_whole_is_refused_with_the_reasons():
    pass_ = mz.LowRank(energy=0.999, round_to=1, targets=("2", "5", "6"), keep={"6": "slow"})
    with pytest.raises(
        ModelError,
        match=r"low_rank leaves every layer whole: 6: slow; 5: a convolution of 32 groups is small "
        r"already; 2: keeping 0.999 of its energy would cost more than it saves",
    ):
        prepare(net(), pass_)
    with pytest.raises(ModelError, match="low_rank leaves every layer whole: 5: a conv"):
        prepare(net(), mz.LowRank(macs="0.5x", targets=("5",)))


def test_a_budget_below_the_least_says_the_least():
    least = r"macs=0.01x cannot be met by low rank: 0\.\d+x is the least, with ranks of 8 in 4 "
    with pytest.raises(SettingError, match=least):
        prepare(net(), mz.LowRank(macs="0.01x"))


def test_a_latency_is_left_to_recipes():
    with pytest.raises(SettingError, match=r"latency='0.7x' is settled by timing files, which mod"):
        prepare(net(), mz.LowRank(latency="0.7x"))


def test_names_that_are_not_there_are_refused():
    with pytest.raises(SelectionError, match="ranks: 'fc' matches none of the 6 layers to factor"):
        prepare(net(), mz.LowRank(ranks={"fc": 8}))
    with pytest.raises(SelectionError, match="keep: there is no layer '3' to factor"):
        prepare(net(), mz.LowRank(energy=0.9, keep={"3": "slow"}))


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ({"2": [8, 40]}, r"ranks: 2 takes two ranks, in and out, up to 32 and 32, got \[8, 40\]"),
        ({"6": [8, 8]}, r"ranks: 6 takes one rank, up to 32, got \[8, 8\]"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(rank, message):
    with pytest.raises(SettingError, match=message):
        prepare(net(), mz.LowRank(ranks=rank))


def test_weights_that_are_not_finite_are_refused():
    model = net()
    with torch.no_grad():
        model[6].weight[0] = torch.nan
    with pytest.raises(ModelError, match=r"6.weight holds NaN or infinity, which has no factors"):
        prepare(model, mz.LowRank(energy=0.9))


def test_tied_and_parametrized_weights_are_refused_by_name():
    tied = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tied[1].weight = tied[0].weight
    x = random(2, 16)
    with pytest.raises(ModelError, match=r"low_rank would untie 0.weight and 1.weight; add skip"):
        prepare(tied, mz.LowRank(energy=0.5), x)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
    with pytest.raises(
        ModelError, match=r"low_rank cannot change 0.weight, which _WeightNorm comp"
    ):
        prepare(normed, mz.LowRank(energy=0.5), x)


def test_calibration_is_needed_unless_weights_alone_count():
    with pytest.raises(SettingError, match="low_rank needs calibration"):
        mz.prepare(net(), [mz.LowRank(energy=0.5)], example_inputs=X)
    mz.prepare(net(), [mz.LowRank(energy=0.5, whiten=False)], example_inputs=X)


def test_weighing_by_inputs_loses_less_of_the_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    x = random(256, 32) @ torch.diag(torch.logspace(0.5, -1.5, 32))
    errors = {}
    for whiten in (True, False):
        small, _ = report(model, mz.LowRank(ranks={"0": 8}, whiten=whiten), x)
        errors[whiten] = float((small(x) - model(x)).detach().square().sum())
    assert errors[True] < 0.5 * errors[False]


def test_a_shared_layer_stays_shared():
    torch.manual_seed(0)
    shared = nn.Linear(32, 32)
    small, found = report(
        nn.Sequential(shared, nn.ReLU(), shared), mz.LowRank(ranks={"0": 8}), random(4, 32)
    )
    assert small[0] is small[2]
    assert len(found.layers) == 2


def test_a_model_that_is_the_layer_itself_is_factored(tmp_path):
    torch.manual_seed(0)
    x = random(4, 32)
    zipped = prepare(nn.Linear(32, 32), mz.LowRank(ranks={"*": 8}), x)
    small = zipped.convert()
    assert isinstance(small, Factored)
    assert [row.name for row in zipped.reports[0].layers] == ["0", "1"]
    zipped.save(tmp_path / "a.safetensors")
    assert torch.equal(mz.load(lambda: nn.Linear(32, 32), tmp_path / "a.safetensors")(x), small(x))


def test_attention_projections_that_torch_reads_itself_stay_whole():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(32, 32)).eval()
    x = random(2, 5, 32)
    small, found = report(model, mz.LowRank(ranks={"*": 8}), x)
    assert found.protected["0.self_attn.out_proj"] == "never called as a module"
    assert found.protected["0.linear1"].startswith("the model does not run with factors in its")
    assert isinstance(small[1], Factored)
    with evaluating(small):
        assert small(x).shape == x.shape


def test_a_failure_leaves_the_callers_model_as_it_was():
    model = net()
    before = {name: id(module) for name, module in model.named_modules()}
    with torch.no_grad():
        model[3].bias.fill_(torch.inf)
    with pytest.raises(DataError, match="6 takes in NaN or infinity on the calibration data"):
        prepare(model, mz.LowRank(energy=0.5), inplace=True)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_pruning_before_and_int8_after_compose(tmp_path):
    x = random(8, 3, 8, 8)
    passes = [mz.PruneChannels(sparsity=0.3), mz.LowRank(macs="0.8x", round_to=4), mz.Int8()]
    zipped = mz.prepare(net(), passes, example_inputs=x, calibration=[x])
    small = zipped.convert()
    rows = {row.name: row for row in merge_layers(zipped.reports)}
    factored = [row.name for row in zipped.reports[1].layers]
    assert rows[factored[0]].bits == 8.0
    assert factored[0].rpartition(".")[0] not in rows
    zipped.save(tmp_path / "a.safetensors")
    assert torch.equal(mz.load(net, tmp_path / "a.safetensors")(x), small(x))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "the checkpoint's ranks are damaged: None"),
        ({"9": {"ranks": [8]}}, "has factors of '9', which is no linear layer or convolution"),
        ({"5": {"ranks": [8, 8]}}, "has factors of '5', which is no linear layer or convolution"),
        ({"6": {"ranks": [0]}}, "the checkpoint's ranks of '6' are damaged"),
        ({"6": {"ranks": "8"}}, "the checkpoint's ranks of '6' are damaged"),
        ({"6": 8}, "the checkpoint's ranks of '6' are damaged"),
        ({"6": {"ranks": [64]}}, "ranks: 6 takes one rank, up to 32, got"),
    ],
)
def test_a_strangers_record_is_checked(layers, message):
    from modelzip.core.base import Context

    with pytest.raises(SettingError, match=message):
        mz.LowRank(energy=0.9).restore(net(), Context(record={"layers": layers}))
