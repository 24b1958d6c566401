"""Heads of hand-written attention: the integers that count them are found by trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import modelzip as mz
from modelzip.core.base import Context
from modelzip.core.channels import verify
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.counts import attributes_after, because
from modelzip.core.channels.resize import Slot
from modelzip.runtime.session import load


class Attention(nn.Module):
    """Queries, keys and values of `kept` heads are `width` wide; what `split` does is open."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.set_up(width, heads)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def set_up(self, width: int, heads: int) -> None:
        self.n_head = heads

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_head, -1).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.o(self.join(F.scaled_dot_product_attention(q, k, v)))


class Sized(Attention):
    """Three sizes, of which two count heads, and a number that only looks like one."""

    def set_up(self, width: int, heads: int) -> None:
        self.layers, self.num_attention_heads = heads, heads
        self.head_size, self.all_head_size = width // heads, width

    def split(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.num_attention_heads, self.head_size)
        return x.view(shape).transpose(1, 2) * math.cos(self.layers)

    def join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(*x.shape[::2], self.all_head_size)


class Square(Attention):
    """As many heads as a head is wide."""

    def set_up(self, width: int, heads: int) -> None:
        self.d, self.h = 4, 4

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.h, self.d).transpose(1, 2)


class Unmarked(Attention):
    """Only the width of a head is said, so nothing counts them."""

    def set_up(self, width: int, heads: int) -> None:
        self.head_dim = width // heads

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class Written(Attention):
    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 4, 4).transpose(1, 2)


class Grouped(Attention):
    """Four heads of queries share two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(16, 8), nn.Linear(16, 8)

    def set_up(self, width: int, heads: int) -> None:
        self.num_heads, self.kv_heads = heads, heads // 2

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
        k, v = (
            layer(x).view(*x.shape[:2], self.kv_heads, 4).transpose(1, 2)
            for layer in (self.k, self.v)
        )
        k, v = (t.repeat_interleave(self.num_heads // self.kv_heads, 1) for t in (k, v))
        return self.o(self.join(F.scaled_dot_product_attention(q, k, v)))


class Telling(Attention):
    """Returns its weights too, of which nothing is made."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = (q @ k.transpose(2, 3) / 2).softmax(-1)
        return self.o(self.join(weights @ v)), weights


class Net(nn.Module):
    def __init__(self, make: Callable[[], nn.Module], depth: int = 2) -> None:
        super().__init__()
        self.attention = nn.ModuleList(make() for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.attention:
            y = layer(self.norm(x))
            x = x + (y[0] if isinstance(y, tuple) else y)
        return self.head(self.norm(x))


def pruned(make: Callable[[], nn.Module], depth: int = 2) -> tuple[Net, Net, Context]:
    """A model, the same with half its heads, and the context with the record of that."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Net(make, depth).eval())
    context = Context(example_inputs=torch.randn(2, 5, 16))
    prune = mz.PruneChannels(sparsity=0.5, scope="layer", round_to=1, targets=("*.q", "*.k", "*.v"))
    prune.prepare(models[1], context)
    return models[0], models[1], context


def masked(model: Net, context: Context) -> Net:
    for name, entry in context.record["layers"].items():
        if "in" in entry:
            weight = model.get_submodule(name).weight
            mask = torch.zeros(weight.shape[1])
            mask[entry["in"]["kept"]] = 1
            weight.data *= mask
    return model


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (Attention, {"n_head": 2}),
        (Sized, {"num_attention_heads": 2, "all_head_size": 8}),
        (Square, {"h": 2}),
        (Unmarked, {}),
        (Grouped, {"num_heads": 2, "kv_heads": 1}),
        (Telling, {"n_head": 2}),
    ],
)
def test_attention_loses_heads(
    make: Callable[[], nn.Module], counts: dict[str, int], tmp_path: Path
) -> None:
    original, small, context = pruned(make)
    names = [f"attention.{i}" for i in range(2)]
    recorded = context.record["attributes"]
    assert {n: {k: e["now"] for k, e in values.items()} for n, values in recorded.items()} == {
        name: counts for name in names if counts
    }
    assert [small.get_submodule(f"{name}.q").out_features for name in names] == [8, 8]
    x = context.example_inputs
    expected = masked(original, context)(x)
    torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    small(x).sum().backward()
    session = load(mz.export_onnx(small, x, tmp_path / "small.onnx"))
    answer = torch.from_numpy(session.run({session.inputs[0].name: x.numpy()})[0])
    torch.testing.assert_close(answer, expected.detach(), rtol=1e-4, atol=1e-5)
    fresh = mz.PruneChannels(sparsity=0.5).restore(Net(make), Context(record=context.record))
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh(x), expected, rtol=1e-5, atol=1e-5)


def test_a_head_count_in_the_code_protects_its_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16), Net(Written))
    context = Context(example_inputs=torch.randn(2, 5, 16))
    mz.PruneChannels(sparsity=0.5, round_to=1).prepare(model, context)
    reason = context.record["protected"]["2.attention.0.q"]
    assert reason.startswith("its head count is written into the forward of '2.attention.0': ")
    assert model[2].attention[0].q.out_features == 16


def test_layers_of_one_class_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    fault = verify.Trial.fault

    def counted(self: verify.Trial, *given: Any) -> str | None:
        tried.append(given)
        return fault(self, *given)

    monkeypatch.setattr(verify.Trial, "fault", counted)
    pruned(Sized, depth=2)
    few = len(tried)
    pruned(Sized, depth=6)
    assert len(tried) == 2 * few
    assert few < 12


UNITS = Bundle(
    {Slot("q", "out"): torch.arange(32).view(4, 8)},
    frozenset({"b", "a"}),
    {("a", "heads"): 1, ("a", "inner"): 8},
)


def test_attributes_follow_what_all_chunks_of_a_bundle_leave() -> None:
    chunks = [Chunk(UNITS, torch.tensor(gone), (0.0, 0.0)) for gone in ([2], [0])]
    assert attributes_after(chunks) == {"a": {"heads": 2, "inner": 16}}
    assert attributes_after([]) == {}


def test_a_reason_names_the_owners_if_nothing_counts_for_them() -> None:
    bare = Bundle(UNITS.channels, UNITS.owners)
    assert because(UNITS, "it fails") == "it fails"
    assert because(bare, "it fails") == (
        "its head count is written into the forward of 'a' and 'b': it fails"
    )
    single = Bundle({Slot("q", "out"): torch.arange(4).view(4, 1)}, frozenset({""}))
    assert because(single, "it fails").startswith("its channel count is written into the forward")
