"""PruneChannels: right or protected on every architecture, targets met, errors that say why."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import modelzip as mz
from modelzip.core.base import Batch, Context
from modelzip.core.running import call, evaluating, rows, tensors
from modelzip.errors import DataError, ModelError, SelectionError, SettingError
from modelzip.passes.prune_channels import PruneChannels
from tests.architectures import MODELS, Block, Tied, build, head, resnet

PROTECTED = {  # layers that must stay as wide as they are, besides the last ones
    "resnet_a": {"0.0", "1.conv2", "2.conv2"},
    "zero_scale": {"0.0", "1.conv2", "2.conv2"},
    "encoder": {"attention.o", "down"},
    "encoder_torch": {"attention.out_proj", "down"},
    "tied": {"stem", "a", "b"},
    "shuffle_unit": {"stem.0", "a.0", "b.0"},
    "lstm": {"more"},
    "gru": {"more"},
    "branch": {"stem.0", "a.0", "b.0"},
    "spatial_gate": {"gate"},
    "channel_mean": {"stem.0"},
    "scaled": {"stem.0"},
    "unregistered": {"stem.0"},
    "group_norm": {"0"},
    "parametrized": {"0"},
}


def prune(name: str, **settings: Any) -> tuple[nn.Module, nn.Module, Any, Context]:
    """The original, the pruned model, example inputs, and the context with its record."""
    return copy.deepcopy(_prune(name, **settings))


@functools.cache
def _prune(name: str, **settings: Any) -> tuple[nn.Module, nn.Module, Any, Context]:
    original, inputs = build(name)
    model, _ = build(name)
    context = Context(example_inputs=inputs)
    settings = {"sparsity": 0.5, "round_to": 4, "scope": "layer", **settings}
    return original, PruneChannels(**settings).prepare(model, context), inputs, context


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with evaluating(model):
        return list(tensors(call(model, inputs)))


def mask_removed_inputs(model: nn.Module, record: dict[str, Any]) -> None:
    """Zero, on the way into each layer, the channels that the record says it no longer reads."""

    def masking(kept: list[int], axis: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            mask = torch.zeros(given[0].shape[axis])
            mask[kept] = 1
            return (given[0] * (mask if axis == -1 else mask[:, None, None]),)

        return hook

    for name, entry in record["layers"].items():
        module = model.get_submodule(name)
        if "in" in entry and name.endswith("out_proj"):  # attention reads its weight
            mask = torch.zeros(module.in_features)
            mask[entry["in"]["kept"]] = 1
            module.weight.data *= mask
        elif "in" in entry:
            axis = -1 if isinstance(module, nn.Linear) else 1
            module.register_forward_pre_hook(masking(entry["in"]["kept"], axis))


def macs(model: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call(model, inputs)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_masked_original(name: str) -> None:
    original, pruned, inputs, context = prune(name)
    mask_removed_inputs(original, context.record)
    for ours, theirs in zip(outputs(pruned, inputs), outputs(original, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_shrinks_and_trains(name: str) -> None:
    original, pruned, inputs, _ = prune(name)
    count = [sum(p.numel() for p in m.parameters()) for m in (original, pruned)]
    assert count[1] < count[0]
    pruned.train()
    sum(t.square().sum() for t in tensors(call(pruned, inputs))).backward()
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in pruned.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("name", MODELS)
def test_protects_what_it_cannot_prune_and_says_why(name: str) -> None:
    original, pruned, _, context = prune(name)
    protected = context.record["protected"]
    assert PROTECTED.get(name, set()) <= protected.keys()
    assert all(protected.values())
    for layer in protected:
        before, after = original.get_submodule(layer), pruned.get_submodule(layer)
        attribute = "out_features" if isinstance(before, nn.Linear) else "out_channels"
        assert getattr(before, attribute) == getattr(after, attribute)


@pytest.mark.parametrize("name", MODELS)
def test_restores_in_a_fresh_model(name: str) -> None:
    _, pruned, inputs, context = prune(name)
    record = json.loads(json.dumps(context.record))
    fresh = PruneChannels(sparsity=0.5).restore(build(name, seed=1)[0], Context(record=record))
    fresh.load_state_dict(pruned.state_dict(), strict=True)
    if name == "unregistered":  # its hidden layer is in no state_dict
        return
    for ours, theirs in zip(outputs(fresh, inputs), outputs(pruned, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["resnet_b", "dense", "grouped", "flatten", "depthwise"])
def test_every_layer_is_prunable_but_the_last(name: str) -> None:
    original, _, _, context = prune(name)
    layers = [n for n, m in original.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert context.record["protected"] == {layers[-1]: "feeds the model's output"}


def test_option_a_loses_only_inner_channels() -> None:
    _, pruned, _, context = prune("resnet_a")
    narrowed = {n for n, entry in context.record["layers"].items() if "out" in entry}
    assert narrowed == {"1.conv1", "1.bn1", "2.conv1", "2.bn1"}
    assert pruned.get_submodule("2.conv1").out_channels == 16


def test_a_reason_names_the_layer_in_the_way() -> None:
    _, _, _, context = prune("encoder")
    assert context.record["protected"]["down"] == "cannot be pruned through LayerNorm 'norm2'"
    _, _, _, context = prune("branch")
    assert "'b.0', which is as wide and which the example" in context.record["protected"]["a.0"]
    _, _, _, context = prune("tied")
    assert context.record["protected"]["a"] == "a.weight and b.weight are tied"


def test_tied_weights_stay_tied() -> None:
    _, pruned, _, _ = prune("tied")
    assert isinstance(pruned, Tied)
    assert pruned.a.weight is pruned.b.weight


def test_grouped_convolutions_lose_whole_groups() -> None:
    _, pruned, _, _ = prune("grouped")
    conv = pruned.get_submodule("1.0")
    assert (conv.in_channels, conv.out_channels, conv.groups) == (16, 32, 4)
    _, pruned, _, _ = prune("depthwise")
    conv = pruned.get_submodule("3.0")  # it had 32 in, 64 out, 32 groups
    assert (conv.in_channels, conv.out_channels, conv.groups) == (16, 32, 16)


def test_halves_of_a_gated_layer_go_together() -> None:
    _, _, _, context = prune("gated")
    kept = context.record["layers"]["up"]["out"]["kept"]
    assert [i + 16 for i in kept if i < 16] == [i for i in kept if i >= 16]


def test_removes_the_channels_with_the_smallest_norms() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3, 1, 4, 1.5, 5, 9, 2, 6])[:, None].expand(8, 4))
        model[2].weight.fill_(1.0)
    for importance in ("l1", "l2"):
        context = Context(example_inputs=torch.ones(1, 4))
        pass_ = PruneChannels(sparsity=0.5, round_to=1, importance=importance)
        plan = pass_.plan(model, context)
        assert next(iter(plan.kept.values())) == [2, 4, 5, 7]  # by hand: 4, 5, 9, 6


def test_bn_scale_ranks_by_the_batch_norm_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), head(8))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.1]))
    pass_ = PruneChannels(sparsity=0.5, round_to=1, importance="bn_scale")
    plan = pass_.plan(model, Context(example_inputs=torch.ones(1, 3, 4, 4)))
    assert next(iter(plan.kept.values())) == [1, 2]
    assert plan.protected["2"] == "has no BatchNorm scale to rank by"


def test_taylor_removes_the_channels_the_loss_does_not_feel() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(1.0)
        model[1].weight.copy_(torch.tensor([[9.0, 1.0, 9.0, 0.0], [9.0, -1.0, 9.0, 1.0]]))
    batch = Batch(torch.ones(2, 3), torch.tensor([0, 1]))
    pass_ = PruneChannels(sparsity=0.5, round_to=1, importance="taylor")
    plan = pass_.plan(model, Context(example_inputs=torch.ones(1, 3), calibration=(batch,)))
    # channels 0 and 2 add the same to both classes, so the loss does not change with them
    assert next(iter(plan.kept.values())) == [1, 3]


def test_taylor_needs_labelled_calibration() -> None:
    pass_ = PruneChannels(sparsity=0.5, importance="taylor")
    model, x = build("resnet_b")
    with pytest.raises(SettingError, match="prune_channels needs calibration"):
        mz.prepare(model, [pass_], example_inputs=x)
    with pytest.raises(DataError, match="calibration batch 0 has no labels; importance: taylor"):
        mz.prepare(model, [pass_], example_inputs=x, calibration=[x])


def test_random_follows_the_seed_alone() -> None:
    def kept(seed: int) -> Any:
        model, x = build("resnet_b")
        torch.manual_seed(seed + 7)
        pass_ = PruneChannels(sparsity=0.5, importance="random", round_to=4)
        return pass_.plan(model, Context(example_inputs=x, seed=seed)).kept

    state = torch.get_rng_state()
    assert kept(0) == kept(0)
    torch.set_rng_state(state)
    assert kept(0) != kept(1)


def test_leaves_the_global_random_state_alone() -> None:
    model, x = build("resnet_b")
    state = torch.get_rng_state()
    PruneChannels(sparsity=0.5).plan(model, Context(example_inputs=x))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(("setting", "value"), [("macs", "0.5x"), ("params", "0.4x")])
def test_meets_a_target_closely(setting: str, value: str, scope: str) -> None:
    settings = {"sparsity": None, setting: value, "scope": scope, "round_to": 2}
    original, pruned, inputs, context = prune("resnet_b", **settings)
    count = {
        "macs": [macs(m, rows(inputs, 1)) for m in (original, pruned)],
        "params": [sum(p.numel() for p in m.parameters()) for m in (original, pruned)],
    }
    assert context.record["macs"] == count["macs"]
    assert context.record["params"] == count["params"]
    ratio = count[setting][1] / count[setting][0]
    goal = float(value[:-1])
    assert goal - 0.03 <= ratio <= goal


@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
def test_widths_are_multiples_of_round_to(round_to: int) -> None:
    _, pruned, _, context = prune("resnet_b", scope="global", round_to=round_to)
    narrowed = [n for n, entry in context.record["layers"].items() if "out" in entry]
    convs = [m for n in narrowed for m in [pruned.get_submodule(n)] if isinstance(m, nn.Conv2d)]
    assert convs
    assert all(conv.out_channels % round_to == 0 for conv in convs)


def test_layer_scope_shrinks_all_layers_alike() -> None:
    _, _, _, context = prune("resnet_b", sparsity=0.25)
    parts = [entry["out"] for entry in context.record["layers"].values() if "out" in entry]
    assert {len(part["kept"]) / part["of"] for part in parts} == {0.75}


def test_global_sparsity_is_the_fraction_of_all_prunable_channels() -> None:
    _, _, _, context = prune("resnet_b", scope="global", round_to=1, sparsity=0.3)
    layers = context.record["layers"]
    # residual channels count once: 16 + 32, and 16 + 32 inside the blocks
    parts = [layers[name]["out"] for name in ("0.0", "2.conv2", "1.conv1", "2.conv1")]
    gone = sum(part["of"] - len(part["kept"]) for part in parts)
    assert gone == round(0.3 * 96)


def test_no_layer_loses_more_than_max_sparsity() -> None:
    _, _, _, context = prune("resnet_b", scope="global", sparsity=0.7, max_sparsity=0.75)
    parts = [e["out"] for e in context.record["layers"].values() if "out" in e]
    assert min(len(part["kept"]) / part["of"] for part in parts) >= 0.25


def test_skip_and_targets_choose_the_layers() -> None:
    _, _, _, context = prune("resnet_b", skip=("*.conv1",))
    assert "out" not in context.record["layers"].get("1.conv1", {})
    _, _, _, context = prune("resnet_b", targets=("*.conv1",))
    assert {n for n, e in context.record["layers"].items() if "out" in e} == {
        "1.conv1",
        "1.bn1",
        "2.conv1",
        "2.bn1",
    }
    _, _, _, context = prune("resnet_b", skip=("0.0",))
    assert context.record["protected"]["1.conv2"] == (
        "hangs together with '0.0', which targets and skip leave out"
    )
    with pytest.raises(SelectionError, match=r"targets=\['fc'\] matches none of the"):
        prune("resnet_b", targets=("fc",))


def test_report_says_what_each_layer_lost() -> None:
    model, x = build("resnet_b")
    zipped = mz.prepare(
        model, [PruneChannels(sparsity=0.5, round_to=4, scope="layer")], example_inputs=x
    )
    converted = zipped.convert()
    (report,) = zipped.reports
    assert report.protected == {"3.2": "feeds the model's output"}
    rows = {row.name: row for row in report.layers}
    assert rows["1.conv1"].note == "16 -> 8 channels, 16 -> 8 channels in"
    assert rows["1.conv1"].parameters_before == 16 * 16 * 9
    for name, row in rows.items():
        parameters = list(converted.get_submodule(name).parameters())
        assert row.parameters_after == sum(p.numel() for p in parameters)
        assert row.nonzero == sum(int((p != 0).sum()) for p in parameters)
        assert row.bits == 32
    total = [sum(p.numel() for p in m.parameters()) for m in (model, converted)]
    lost = sum(row.parameters_before - row.parameters_after for row in report.layers)
    assert total[0] - total[1] == lost


def test_a_plan_changes_nothing() -> None:
    model, x = build("squeeze_excite")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = PruneChannels(sparsity=0.5, round_to=4).plan(model, Context(example_inputs=x))
    assert plan.channels["reduce"][0] == 16
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_parameters_stay_frozen() -> None:
    model, x = build("resnet_b")
    model.requires_grad_(False)
    zipped = mz.prepare(model, [PruneChannels(sparsity=0.5)], example_inputs=x)
    assert not any(p.requires_grad for p in zipped.model.parameters())


def test_half_precision_models_are_pruned() -> None:
    model, x = build("resnet_b")
    zipped = mz.prepare(
        model.bfloat16(), [PruneChannels(sparsity=0.5)], example_inputs=x.bfloat16()
    )
    assert {p.dtype for p in zipped.model.parameters()} == {torch.bfloat16}


def test_a_failure_leaves_the_model_whole() -> None:
    model, x = build("resnet_b")
    with pytest.raises(SettingError, match=r"macs=0.001x cannot be met: 0\.\d{3}x is the least"):
        mz.prepare(model, [PruneChannels(macs="0.001x")], example_inputs=x, inplace=True)
    assert model.get_submodule("1.conv1").out_channels == 16


class Fixed(nn.Module):
    """Its width is written into forward, and nothing else can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, 16))


class NoTensor(Fixed):
    def forward(self, x: Tensor) -> Any:
        return str(super().forward(x))


class Infinite(Fixed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


def attempt(model: nn.Module, inputs: Any, **settings: Any) -> None:
    settings = settings or {"sparsity": 0.5, "round_to": 4}
    PruneChannels(**settings).prepare(model, Context(example_inputs=inputs))


@pytest.mark.parametrize(
    ("make", "inputs", "text"),
    [
        (Fixed, torch.ones(2, 6), "can prune none of the layers: 'a' pruned, it fails: mat1"),
        (Fixed, torch.ones(2, 7), "Fixed does not run on the example inputs: mat1 and mat2"),
        (NoTensor, torch.ones(2, 6), "NoTensor returns no tensor that depends on its parameters"),
        (Infinite, torch.ones(2, 6), "does not run on the example inputs: its outputs are not fin"),
    ],
)
def test_refuses_by_name(make: type[nn.Module], inputs: Tensor, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        attempt(make(), inputs)


def test_refuses_nan_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    nn.init.constant_(model[0].bias, float("nan"))
    with pytest.raises(ModelError, match="its outputs are not finite"):
        attempt(model, torch.ones(2, 6))


class Adapted(nn.Linear):
    """A Linear with a low-rank addition of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.low = nn.Parameter(torch.ones(1, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x, self.low)


def test_a_layer_with_tensors_of_its_own_is_protected() -> None:
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), Adapted(16, 16), nn.ReLU(), nn.Linear(16, 32), nn.Linear(32, 5)
    )
    pass_ = PruneChannels(sparsity=0.5, round_to=4)
    plan = pass_.plan(model, Context(example_inputs=torch.ones(2, 6)))
    assert plan.channels == {"4": (32, 16)}
    assert plan.protected["2"] == "has tensors of its own: low"
    assert plan.protected["0"] == "feeds '2', which has tensors of its own: low"


def test_rounding_everything_away_is_an_error() -> None:
    model, x = build("resnet_b")
    with pytest.raises(SettingError, match=r"sparsity=0\.01 removes no channel with round_to=16"):
        attempt(model, x, sparsity=0.01, round_to=16)
    with pytest.raises(SettingError, match="macs=1x removes no channel with round_to=8"):
        attempt(model, x, macs="1x")
    with pytest.raises(ModelError, match="has nothing to remove of 32 channels with round_to=64"):
        attempt(model, x, sparsity=0.5, round_to=64)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "needs sparsity, or widths, or one or more of macs, params and latency, got none"),
        ({"sparsity": 0.5, "macs": "0.5x"}, "got sparsity and macs"),
        ({"sparsity": 80}, r"sparsity must be a fraction in \(0, 1\), got 80; for 80 % write 0.8"),
        ({"macs": 0.5}, "macs must be a ratio to the original such as 0.4x, got 0.5"),
        ({"params": "2x"}, "params must be a ratio to the original such as 0.4x, got '2x'"),
        ({"sparsity": 0.5, "importance": "l3"}, "importance has no choice 'l3'"),
        ({"sparsity": 0.5, "scope": "locl"}, "scope has no choice 'locl'"),
        ({"sparsity": 0.5, "round_to": 0}, "round_to must be an integer of at least 1, got 0"),
        ({"sparsity": 0.5, "max_sparsity": 1}, "max_sparsity must be a fraction in"),
    ],
)
def test_checks_its_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        PruneChannels(**settings)


def test_settings_survive_repr_and_yaml() -> None:
    pass_ = PruneChannels(macs="0.5x", skip=("fc",))
    assert eval(repr(pass_)) == pass_  # noqa: S307
    assert pass_.settings() == {"macs": "0.5x", "skip": ["fc"]}
    assert dataclasses.replace(pass_, macs="0.4x").macs == "0.4x"


def damage(record: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    damaged: dict[str, Any] = json.loads(json.dumps(record))
    entry = damaged
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return damaged


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("layers",), {}, "the record of prune_channels is damaged: it names no layer"),
        (("layers", "nowhere"), {"parameters": 1}, "cannot restore 'nowhere': no such layer"),
        (("layers", "0.0", "parameters"), None, "cannot restore '0.0': no such layer, or a damag"),
        (("layers", "0.1", "in"), {}, "cannot restore '0.1': no side 'in'"),
        (("layers", "0.0", "out", "of"), 64, "it has 32 channels out, and had 64 when it was"),
        (("layers", "0.0", "out", "kept"), [0, 99], "not ascending numbers from 0 to 31"),
        (("layers", "0.0", "out", "kept"), [1, 0], "not ascending numbers from 0 to 31"),
        (("layers", "0.0", "out", "kept"), ["0"], "not ascending numbers from 0 to 31"),
        (("layers", "1.0", "out", "kept"), [0, 1], "a grouped convolution loses whole groups"),
        (("layers", "1.0", "in", "kept"), [0, 1, 2, 3], "a grouped convolution loses whole gr"),
    ],
)
def test_a_strangers_record_is_checked(path: tuple[str, ...], value: Any, text: str) -> None:
    _, _, _, context = prune("grouped")
    record = damage(context.record, path, value)
    fresh, _ = build("grouped")
    with pytest.raises(SettingError, match=text):
        PruneChannels(sparsity=0.5).restore(fresh, Context(record=record))
    assert fresh.get_submodule("0.0").out_channels == 32


def test_saves_and_loads_in_a_fresh_model(tmp_path: Any) -> None:
    model, x = build("resnet_b")
    zipped = mz.prepare(model, [PruneChannels(sparsity=0.5)], example_inputs=x)
    zipped.save(tmp_path / "small.safetensors")
    loaded = mz.load(lambda: resnet("B"), tmp_path / "small.safetensors")
    torch.testing.assert_close(outputs(loaded, x), outputs(zipped.model, x))


def test_a_hidden_wrong_channel_is_found() -> None:
    """With scales at zero the branch adds nothing, and any cut would look right."""
    original, pruned, inputs, _ = prune("zero_scale")
    blocks = [m for m in pruned.modules() if isinstance(m, Block)]
    assert [b.conv2.out_channels for b in blocks] == [16, 32]
    torch.testing.assert_close(outputs(pruned, inputs), outputs(original, inputs))
