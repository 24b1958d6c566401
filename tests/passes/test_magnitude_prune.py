"""Magnitude pruning: exact counts, patterns, schedules, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.running import call, evaluating, tensors
from modelzip.core.surgery import all_attached
from modelzip.errors import ModelError, SettingError
from modelzip.passes.magnitude_prune import Mask
from tests.architectures import MODELS, build


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(1))


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def pruned(model: nn.Module, **settings: Any) -> nn.Module:
    return mz.prepare(model, [mz.MagnitudePrune(**settings)]).convert()


def train(zipped: mz.Prepared, steps: int, inputs: Tensor) -> list[int]:
    """Zeros of every mask after each step of a training that pulls all weights about."""
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    counts = []
    for step in range(steps):
        loss = (zipped.model(inputs) - float(step)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
        counts.append(sum(int((~m.mask).sum()) for _, _, m in all_attached(zipped.model, Mask)))
    return counts


# counts and scope


def test_global_scope_removes_the_smallest_of_all_layers() -> None:
    model = net()
    every = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).abs()
    threshold = every.sort().values[round(0.7 * 248) - 1]
    small = pruned(model, sparsity=0.7)
    for i in (0, 2):
        expected = torch.where(model[i].weight.abs() > threshold, model[i].weight, 0.0)
        assert torch.equal(small[i].weight, expected)
        assert torch.equal(small[i].bias, model[i].bias)


def test_layer_scope_removes_the_same_fraction_of_each() -> None:
    small = pruned(net(), sparsity=0.75, scope="layer")
    assert [zeros(small[i].weight) for i in (0, 2)] == [162, 24]


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 8, 3), nn.Conv3d(4, 8, 2), nn.ConvTranspose2d(8, 4, 3), nn.Linear(16, 8)],
    ids=lambda layer: type(layer).__name__,
)
def test_every_kind_of_layer_is_pruned(layer: nn.Module) -> None:
    small = pruned(layer, sparsity=0.5)
    assert zeros(small.weight) == layer.weight.numel() // 2


def test_only_the_layers_named_are_pruned() -> None:
    small = pruned(net(), sparsity=0.5, targets=("type:Conv2d",), skip=("0",))
    assert (zeros(small[0].weight), zeros(small[2].weight)) == (0, 16)


def test_report_counts_weights_and_biases() -> None:
    zipped = mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.5, scope="layer")])
    zipped.convert()
    first, second = zipped.reports[0].layers
    assert (first.name, first.kind, first.bits) == ("0", "Conv2d", 32.0)
    assert (first.parameters_before, first.parameters_after, first.nonzero) == (224, 224, 116)
    assert (second.nonzero, second.note) == (20, "50.0 % of the weights are zero")


# patterns


def test_two_of_four_inputs_stay() -> None:
    small = pruned(net(), pattern="2:4")
    assert zeros(small[0].weight) == 0  # 3 inputs
    groups = (small[2].weight != 0).reshape(4, 2, 4).sum(-1)
    assert bool((groups == 2).all())


def test_layers_that_do_not_divide_are_protected_by_name() -> None:
    zipped = mz.prepare(net(), [mz.MagnitudePrune(pattern="2:4")])
    zipped.convert()
    assert zipped.reports[0].protected == {"0": "3 inputs are not a multiple of 4"}


def test_no_pattern_straddles_groups() -> None:
    grouped = nn.Sequential(
        nn.Conv2d(8, 8, 1, groups=4), nn.ConvTranspose2d(8, 8, 1, groups=4), nn.Conv2d(8, 4, 1)
    )
    zipped = mz.prepare(grouped, [mz.MagnitudePrune(pattern="4x4", sparsity=0.5)])
    zipped.convert()
    assert zipped.reports[0].protected == {
        "0": "2 inputs are not a multiple of 4",
        "1": "2 inputs are not a multiple of 4",
    }


def test_transposed_convolution_groups_its_inputs() -> None:
    small = pruned(nn.ConvTranspose1d(8, 3, 2), pattern="1:4")
    groups = (small.weight != 0).reshape(2, 4, 3, 2).sum(1)  # inputs come first
    assert bool((groups == 1).all())


def test_blocks_of_outputs_die_together() -> None:
    layer = nn.Linear(3, 8, bias=False)
    small = pruned(layer, sparsity=0.5, pattern="4x1")
    norms = layer.weight.reshape(2, 4, 3).norm(dim=1)
    alive = (norms > norms.flatten().sort().values[2]).repeat_interleave(4, 0)
    assert torch.equal(small.weight, torch.where(alive, layer.weight, 0.0))


def test_pattern_fixes_the_sparsity() -> None:
    prune = mz.MagnitudePrune(pattern="1:4")
    assert prune.sparsity == 0.75
    assert mz.MagnitudePrune(pattern="1:4", sparsity=0.75) == prune


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("parametrized", "tied")])
def test_every_architecture_converts_to_what_it_was_masked_to(name: str) -> None:
    model, x = build(name)
    zipped = mz.prepare(model, [mz.MagnitudePrune(sparsity=0.5)])
    small = zipped.convert()
    with evaluating(zipped.model), evaluating(small):
        ours, theirs = tensors(call(small, x)), tensors(call(zipped.model, x))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    weights = [small.get_submodule(row.name).weight for row in zipped.reports[0].layers]
    assert sum(map(zeros, weights)) == round(0.5 * sum(w.numel() for w in weights))


# training


def test_pruned_weights_stay_zero_under_momentum() -> None:
    zipped = mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.5)])
    before = [m.mask.clone() for _, _, m in all_attached(zipped.model, Mask)]
    train(zipped, 5, torch.randn(2, 3, 4, 4))
    small = zipped.convert()
    for mask, i in zip(before, (0, 2), strict=True):
        assert torch.equal(small[i].weight != 0, mask)


def test_cubic_schedule_reaches_its_sparsity_at_its_end() -> None:
    prune = mz.MagnitudePrune(sparsity=0.8, schedule="cubic", begin=0.2, end=0.8, every=2)
    zipped = mz.prepare(net(), [prune], training_steps=10)
    counts = train(zipped, 10, torch.randn(2, 3, 4, 4))
    at = [round(248 * 0.8 * (1 - (1 - (k - 2) / 6) ** 3)) for k in (2, 4, 6, 8)]
    assert counts == [0, at[0], at[0], at[1], at[1], at[2], at[2], at[3], at[3], at[3]]


def test_cubic_schedule_settles_when_it_ends() -> None:
    prune = mz.MagnitudePrune(sparsity=0.8, schedule="cubic", end=0.5)
    zipped = mz.prepare(net(), [prune], training_steps=6)
    settled = []
    for _ in range(4):
        zipped.step()
        settled.append(zipped.settled())
    assert settled == [False, False, True, True]
    assert mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.8)]).settled()


def test_no_weight_comes_back() -> None:
    prune = mz.MagnitudePrune(sparsity=0.9, schedule="cubic", every=1)
    zipped = mz.prepare(net(), [prune], training_steps=8)
    dead = torch.zeros(248, dtype=torch.bool)
    for _ in range(8):
        train(zipped, 1, torch.randn(2, 3, 4, 4))
        now = torch.cat([~m.mask.flatten() for _, _, m in all_attached(zipped.model, Mask)])
        assert not bool((dead & ~now).any())
        dead = now


def test_stopped_training_resumes_where_it_was(tmp_path: Path) -> None:
    prune = mz.MagnitudePrune(sparsity=0.8, schedule="cubic", every=1)
    inputs = torch.randn(2, 3, 4, 4)
    whole = mz.prepare(net(), [prune], training_steps=8)
    train(whole, 4, inputs)
    whole.save(tmp_path / "half.safetensors")
    again = mz.load_prepared(net, tmp_path / "half.safetensors")
    assert train(again, 4, inputs) == train(whole, 4, inputs)
    assert again.settled()


def test_later_pass_takes_over_and_keeps_the_zeros() -> None:
    zipped = mz.prepare(
        net(), [mz.MagnitudePrune(sparsity=0.5), mz.MagnitudePrune(sparsity=0.8, skip=("2",))]
    )
    dead = [~m.mask for _, _, m in all_attached(zipped.model, Mask)]
    small = zipped.convert()
    first, second = zipped.reports
    assert [row.name for row in first.layers] == ["2"]
    assert [row.name for row in second.layers] == ["0"]
    assert zeros(small[0].weight) == round(0.8 * 216)
    assert all(zeros(small[i].weight[d]) == int(d.sum()) for d, i in zip(dead, (0, 2), strict=True))


# refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "sparsity is missing; give a fraction such as 0.8"),
        ({"sparsity": 80}, r"sparsity must be a fraction in \(0, 1\), got 80; for 80 % write 0.8"),
        ({"sparsity": 0}, r"sparsity must be a fraction in \(0, 1\), got 0"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "'2:4' has a sparsity of 0.5 by itself, got 0.6"),
        ({"sparsity": 0.5, "pattern": "4:2"}, "pattern must be 'unstructured', N:M"),
        ({"sparsity": 0.5, "scope": "globl"}, "did you mean 'global'"),
        ({"sparsity": 0.5, "schedule": "qubic"}, "did you mean 'cubic'"),
        ({"sparsity": 0.5, "every": 5}, "every belongs to schedule='cubic'; oneshot has no course"),
        ({"sparsity": 0.5, "begin": 0.5}, "begin belongs to schedule='cubic'"),
        (
            {"sparsity": 0.5, "schedule": "cubic", "begin": 0.5, "end": 0.5},
            "begin must be below end, got 0.5 and 0.5",
        ),
        (
            {"sparsity": 0.5, "schedule": "cubic", "every": 0},
            "every must be an integer of at least",
        ),
        ({"sparsity": 0.5, "schedule": "cubic", "end": 1.5}, r"end must be a fraction in \(0, 1\]"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        mz.MagnitudePrune(**settings)


def test_training_of_no_steps_is_refused() -> None:
    prune = mz.MagnitudePrune(sparsity=0.5, schedule="cubic")
    with pytest.raises(
        SettingError, match="training_steps must be an integer of at least 1, got 0"
    ):
        mz.prepare(net(), [prune], training_steps=0)


def test_pattern_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(
        ModelError, match="'2:4' fits none of the layers: the model: 6 inputs are not"
    ):
        pruned(nn.Linear(6, 2), pattern="2:4")


def test_weights_that_are_not_numbers_are_named() -> None:
    model = net()
    model[2].weight.data[0] = torch.nan
    with pytest.raises(
        ModelError, match=r"2\.weight holds NaN or infinity, which cannot be ranked"
    ):
        pruned(model, sparsity=0.5)


def test_sparsity_that_removes_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"sparsity=0.001 removes none of the 248 weights of 0, 2"):
        pruned(net(), sparsity=0.001)
    with pytest.raises(ModelError, match=r"sparsity=0.5 removes none .* beyond those already"):
        mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.8), mz.MagnitudePrune(sparsity=0.5)])


def test_layer_that_would_die_is_named() -> None:
    model = net()
    model[2].weight.data.mul_(1e-3)
    with pytest.raises(ModelError, match=r"sparsity=0.5 would remove every weight of 2; lower it"):
        pruned(model, sparsity=0.5)


def test_weights_that_the_user_computes_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"cannot change 0.weight, which _WeightNorm computes"):
        pruned(build("parametrized")[0], sparsity=0.5)


def test_tied_weights_are_refused_by_name() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    with pytest.raises(ModelError, match=r"untie 0.weight and 1.weight; add skip: \[0, 1\]"):
        pruned(nn.Sequential(a, b), sparsity=0.5)
