"""Heads of nn.MultiheadAttention: what is left computes what the masked original does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import modelzip as mz
from modelzip.core.base import Context
from modelzip.core.channels.attention import PrunedAttention, attention_channels, keep_heads
from modelzip.core.channels.resize import Slot, from_record, resize, to_record, widths, zero_inputs
from modelzip.errors import ModelError, SettingError
from modelzip.runtime.session import load

WIDTH, HEADS, LEFT = 12, 4, [0, 2, 3]
KEPT = [head * 3 + i for head in LEFT for i in range(3)]


def pruned(
    original: nn.MultiheadAttention,
) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """Copies: `original` with a head cut away, and with it masked."""
    small, masked = nn.Sequential(copy.deepcopy(original)), nn.Sequential(copy.deepcopy(original))
    resize(small, {Slot("0", "out"): KEPT, Slot("0.out_proj", "in"): KEPT})
    gone = torch.tensor([i for i in range(WIDTH) if i not in KEPT])
    zero_inputs(masked, {Slot("0.out_proj", "in"): gone})
    return small[0], masked[0]


def make(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, **settings).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    return attention


SETTINGS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 7, "vdim": 5},
    {"kdim": 7, "vdim": 5, "bias": False, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_masked_original(settings: dict[str, Any], need_weights: bool) -> None:
    small, masked = pruned(make(**settings))
    assert isinstance(small, PrunedAttention)
    query, key = torch.randn(5, 2, WIDTH), torch.randn(6, 2, settings.get("kdim", WIDTH))
    value = torch.randn(6, 2, settings.get("vdim", WIDTH))
    if settings.get("batch_first"):
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    causal = torch.ones(5, 6).triu(2).bool()
    for options in (
        {},
        {"attn_mask": causal},
        {"attn_mask": torch.randn(5, 6), "key_padding_mask": padding.float()},
        {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True},
        {"attn_mask": torch.randn(2 * HEADS, 5, 6)},
    ):
        with torch.no_grad():
            ours, _ = small(query, key, value, need_weights=need_weights, **options)
            theirs, _ = masked(query, key, value, need_weights=need_weights, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_returns_the_weights_of_the_heads_left() -> None:
    small, masked = pruned(make())
    x = torch.randn(5, 2, WIDTH)
    with torch.no_grad():
        ours = small(x, x, x, average_attn_weights=False)[1]
        theirs = masked(x, x, x, average_attn_weights=False)[1][:, LEFT]
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(small(x, x, x)[1], theirs.mean(1))


def test_takes_a_sequence_without_a_batch() -> None:
    small, masked = pruned(make())
    x, padding = torch.randn(5, WIDTH), torch.tensor([False] * 4 + [True])
    with torch.no_grad():
        for options in ({}, {"key_padding_mask": padding, "average_attn_weights": False}):
            ours, weights = small(x, x, x, **options)
            theirs, others = masked(x, x, x, **options)
            torch.testing.assert_close(ours, theirs)
            assert weights.dim() == others.dim()


def test_masks_may_have_rows_for_the_heads_left_alone() -> None:
    small, _ = pruned(make())
    x, mask = torch.randn(5, 2, WIDTH), torch.randn(2, HEADS, 5, 5)
    every = small(x, x, x, attn_mask=mask.flatten(0, 1))[0]
    left = small(x, x, x, attn_mask=mask[:, LEFT].flatten(0, 1))[0]
    torch.testing.assert_close(every, left)


def test_a_causal_hint_needs_a_mask() -> None:
    small, _ = pruned(make())
    x = torch.randn(5, 2, WIDTH)
    with pytest.raises(ModelError, match="is_causal says what kind of mask attn_mask is"):
        small(x, x, x, is_causal=True)


def test_tensors_keep_their_names_and_shrink_along_the_heads() -> None:
    small, masked = pruned(make())
    assert list(small.state_dict()) == list(masked.state_dict())
    assert small.in_proj_weight.shape == (27, 12)
    assert small.out_proj.weight.shape == (12, 9)
    assert widths(small) == {"out": 9}
    assert repr(small).startswith("PrunedAttention(\n  num_heads=3 of 4, head_dim=3")


def test_loses_heads_more_than_once() -> None:
    once, _ = pruned(make())
    twice = nn.Sequential(copy.deepcopy(once))
    resize(twice, {Slot("0", "out"): [3, 4, 5], Slot("0.out_proj", "in"): [3, 4, 5]})
    assert (twice[0].num_heads, twice[0].heads, twice[0].heads_before) == (1, (2,), 4)
    zero_inputs(
        model := nn.Sequential(once), {Slot("0.out_proj", "in"): torch.tensor([0, 1, 2, 6, 7, 8])}
    )
    x, mask = torch.randn(5, 2, WIDTH), torch.randn(2 * HEADS, 5, 5)
    ours, theirs = (m[0](x, x, x, attn_mask=mask)[0] for m in (twice, model))
    torch.testing.assert_close(ours, theirs)


def test_trains_with_dropout_and_keeps_what_is_frozen() -> None:
    original = make(dropout=0.5)
    original.in_proj_bias.requires_grad_(False)
    small, _ = pruned(original)
    small.train()
    x = torch.randn(5, 2, WIDTH)
    first, second = (small(x, x, x, need_weights=False)[0] for _ in range(2))
    assert not torch.equal(first, second)
    small(x, x, x)[0].sum().backward()
    assert small.in_proj_weight.grad.shape == (27, 12)
    assert not small.in_proj_bias.requires_grad


def test_dropout_is_over_weights() -> None:
    """At probability 1 nothing but the bias of the output projection is left."""
    small, _ = pruned(make(dropout=1.0))
    x = torch.randn(5, 2, WIDTH)
    for need_weights in (True, False):
        output, _ = small.train()(x, x, x, need_weights=need_weights)
        torch.testing.assert_close(output, small.out_proj.bias.expand_as(output))


class Encoder(nn.Module):
    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 16, batch_first=True, norm_first=norm_first, dropout=0.0
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_runs_the_same_with_gradients_and_without(norm_first: bool) -> None:
    """Its fused operations, of eval mode without gradients, know no smaller attention."""
    torch.manual_seed(0)
    model = Encoder(norm_first=norm_first).eval()
    x, padding = torch.randn(2, 5, WIDTH), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    prune = mz.PruneChannels(sparsity=0.5, round_to=1, targets=("*self_attn",))
    small = prune.prepare(model, Context(example_inputs=(x, padding)))
    attention = small.encoder.layers[1].self_attn
    assert isinstance(attention, PrunedAttention)
    with torch.no_grad():
        plain = small(x, padding)
    torch.testing.assert_close(plain, small(x, padding))


def test_a_pruned_encoder_exports_and_restores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Encoder(norm_first=True).eval(), torch.randn(2, 5, WIDTH)
    zipped = mz.prepare(model, [mz.PruneChannels(sparsity=0.5, round_to=1)], example_inputs=x)
    expected = zipped.model(x)
    session = load(mz.export_onnx(zipped.model, x, tmp_path / "small.onnx"))
    answer = session.run({session.inputs[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answer), expected.detach(), rtol=1e-4, atol=1e-5)
    zipped.save(tmp_path / "small.safetensors")
    loaded = mz.load(lambda: Encoder(norm_first=True), tmp_path / "small.safetensors")
    torch.testing.assert_close(loaded.eval()(x), expected)
    torch.testing.assert_close(copy.deepcopy(loaded)(x), expected)


def test_heads_are_one_bundle_with_the_output_projection() -> None:
    found, reasons = attention_channels(make(), [""])
    assert not reasons
    assert [(s, i.shape) for s, i in found[0].items()] == [
        (Slot("", "out"), (4, 3)),
        (Slot("out_proj", "in"), (4, 3)),
    ]


class Counting(nn.MultiheadAttention):
    """A forward of the user's."""


def tied() -> nn.Module:
    model = nn.Sequential(make(), make())
    model[1].in_proj_weight = model[0].in_proj_weight
    return model


def computed() -> nn.Module:
    attention = make()
    parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity())
    return nn.Sequential(attention)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(Counting(4, 2)), "is a Counting, whose forward may count its heads"),
        (tied(), "0.in_proj_weight and 1.in_proj_weight are tied"),
        (computed(), "computes its weights; prune heads before that is attached"),
        (nn.Sequential(nn.MultiheadAttention(4, 1)), "has one head"),
    ],
)
def test_heads_that_must_stay_have_a_reason(model: nn.Module, reason: str) -> None:
    found, reasons = attention_channels(model, ["0"])
    assert not found
    assert reasons["0"] == reason


@pytest.mark.parametrize("kept", [[0, 1], [1, 2, 3], [0, 1, 3]])
def test_a_record_names_whole_heads(kept: list[int]) -> None:
    model = nn.Sequential(make())
    record = to_record(model, {Slot("0", "out"): [0, 1, 2]})
    assert from_record(model, record) == {Slot("0", "out"): [0, 1, 2]}
    record["0"]["out"]["kept"] = kept
    with pytest.raises(SettingError, match="cannot restore '0': attention loses whole heads, of 3"):
        from_record(model, record)


def test_a_record_cannot_replace_the_forward_of_a_users_class() -> None:
    record = to_record(nn.Sequential(nn.MultiheadAttention(4, 2)), {Slot("0", "out"): [0, 1]})
    with pytest.raises(SettingError, match="cannot restore '0': no such layer"):
        from_record(nn.Sequential(Counting(4, 2)), record)


def test_keep_heads_leaves_other_attention_alone() -> None:
    one, other = make(), make()
    keep_heads(one, torch.tensor(KEPT))
    assert type(other) is nn.MultiheadAttention
    assert other.num_heads == HEADS
