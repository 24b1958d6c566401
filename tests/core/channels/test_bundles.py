"""Which channels go together, by hand for small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.resize import LAYERS
from modelzip.core.channels.trace import trace
from tests.architectures import build

VECTOR = torch.ones(1, 3)


class Flow(nn.Module):
    """Layers `a`, `b`, ... and what `flow` makes of them and the input."""

    def __init__(self, flow: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.flow = flow
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *given: Tensor) -> Any:
        return self.flow(self, *given)


def find(model: nn.Module, *inputs: Tensor) -> tuple[dict[str, Bundle], dict[str, str]]:
    chosen = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    found, reasons = find_bundles(model, inputs, chosen=chosen)
    return {bundle.name: bundle for bundle in found}, reasons


def channels(bundle: Bundle) -> dict[str, list[list[int]]]:
    return {f"{slot.layer}.{slot.side}": t.tolist() for slot, t in bundle.channels.items()}


def flow(
    run: Callable[..., Any], width: int = 4, *, reads: int | None = None, **more: nn.Module
) -> Flow:
    """`a` of 3 to `width` channels, `z` of `reads` or as many to 2, and what `run` does between."""
    layers = {"a": nn.Linear(3, width), "z": nn.Linear(reads or width, 2)}
    return Flow(lambda m, *x: m.z(run(m, *x)), **layers, **more)


def test_concatenated_channels_are_read_where_they_end_up() -> None:
    model = flow(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), 2, reads=4, b=nn.Linear(3, 2))
    found, reasons = find(model, VECTOR)
    assert channels(found["a"]) == {"a.out": [[0], [1]], "z.in": [[0], [1]]}
    assert channels(found["b"]) == {"b.out": [[0], [1]], "z.in": [[2], [3]]}
    assert reasons == {"z": "feeds the model's output"}


def test_values_of_no_layer_beside_channels_do_not_hold_them() -> None:
    norm = nn.BatchNorm1d(7)
    model = flow(lambda m, x: m.n(torch.cat([x, m.a(x)], 1)), reads=7, n=norm)
    found, _ = find(model, VECTOR)
    assert channels(found["a"])["n.out"] == [[3], [4], [5], [6]]


def test_what_is_added_goes_together() -> None:
    model = flow(lambda m, x: m.a(x) + m.b(x).flip(1), b=nn.Linear(3, 4))
    found, _ = find(model, VECTOR)
    assert channels(found["a"]) == {
        "a.out": [[0], [1], [2], [3]],
        "b.out": [[3], [2], [1], [0]],
        "z.in": [[0], [1], [2], [3]],
    }


@pytest.mark.parametrize(
    "gate",
    [
        lambda y: F.glu(y, 1),
        lambda y: torch.mul(*y.chunk(2, 1)),
        lambda y: y[:, :2] * y[:, 2:],
        lambda y: y.unflatten(1, (2, 2)).unbind(1)[0] * y.unflatten(1, (2, 2)).unbind(1)[1],
        lambda y: torch.einsum("bij,bij->bj", y.view(-1, 2, 2), y.view(-1, 2, 2).flip(1)),
    ],
    ids=["glu", "chunk", "slices", "unbind", "einsum"],
)
def test_halves_that_meet_go_together(gate: Callable[[Tensor], Tensor]) -> None:
    found, reasons = find(flow(lambda m, x: gate(m.a(x)), reads=2), VECTOR)
    if "a" not in found:  # a sum over both halves counts them
        assert reasons["a"] == "is reduced over its channels"
        return
    assert channels(found["a"]) == {"a.out": [[0, 2], [1, 3]], "z.in": [[0], [1]]}


def test_parts_that_do_not_meet_lose_channels_evenly() -> None:
    def halves(m: Any, x: Tensor) -> Tensor:
        left, right = m.a(x).chunk(2, 1)
        return torch.cat([left, m.b(right)], 1)

    found, _ = find(flow(halves, 4, reads=4, b=nn.Linear(2, 2)), VECTOR)
    assert channels(found["a"]) == {
        "a.out": [[0, 2], [1, 3]],
        "b.in": [[0], [1]],
        "z.in": [[0], [1]],
    }


def test_a_shuffle_by_hand_takes_a_channel_of_each_group() -> None:
    def shuffled(m: Any, x: Tensor) -> Tensor:
        return m.a(x).view(len(x), 2, -1).transpose(1, 2).flatten(1)

    found, _ = find(flow(shuffled, 6), VECTOR)
    assert channels(found["a"]) == {
        "a.out": [[0, 3], [1, 4], [2, 5]],
        "z.in": [[0, 1], [2, 3], [4, 5]],
    }
    assert found["a"].owners == {""}


def test_pixel_shuffle_takes_the_channels_of_a_pixel() -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "z": nn.Conv2d(2, 1, 1)}
    model = Flow(lambda m, x: m.z(F.pixel_shuffle(m.a(x), 2)), **layers)
    found, _ = find(model, torch.ones(1, 3, 2, 2))
    assert channels(found["a"]) == {"a.out": [[0, 1, 2, 3], [4, 5, 6, 7]], "z.in": [[0], [1]]}


def test_a_flattened_image_is_read_pixel_by_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    found, _ = find(model, torch.ones(1, 3, 2, 2))
    assert channels(found["0"]) == {"0.out": [[0], [1]], "2.in": [[0, 1, 2, 3], [4, 5, 6, 7]]}
    assert found["0"].owners == frozenset()


def test_a_vector_laid_out_as_an_image_goes_pixels_and_all() -> None:
    layers = {"a": nn.Linear(3, 24), "z": nn.Conv2d(6, 1, 1)}
    model = Flow(lambda m, x: m.z(m.a(x).view(len(x), -1, 2, 2)), **layers)
    found, _ = find(model, VECTOR)
    assert channels(found["a"])["a.out"] == torch.arange(24).view(6, 4).tolist()


def test_pixels_of_zeros_belong_to_their_channels() -> None:
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 4, 1), "z": nn.Conv2d(4, 2, 1)}
    model = Flow(lambda m, x: m.z(F.pad(m.a(x), (1, 1, 1, 1)) + m.b(x)), **layers)
    found, _ = find(model, torch.ones(1, 3, 5, 5))
    assert list(channels(found["a"])) == ["a.out", "b.out", "z.in"]


def test_joining_large_images_takes_no_room() -> None:
    joined = [nn.Conv2d(3, 2, 1), nn.Conv2d(5, 2, 1)]
    model = Flow(lambda m, x: m.z(torch.cat([x, m.a(x)], 1)), a=joined[0], z=joined[1])
    seen, outputs = trace(model.eval(), torch.ones(1, 3, 50, 50))
    label = seen.label(outputs[0])
    assert label is not None
    assert label.untyped_storage().nbytes() < 1000
    assert channels(find(model, torch.ones(1, 3, 50, 50))[0]["a"])["z.in"] == [[3], [4]]


def test_a_norm_without_tensors_is_resized_too() -> None:
    layers = {"0": nn.Conv1d(3, 4, 1), "1": nn.InstanceNorm1d(4), "2": nn.Conv1d(4, 2, 1)}
    found, _ = find(nn.Sequential(*layers.values()), torch.ones(1, 3, 5))
    assert list(channels(found["0"])) == ["0.out", "1.out", "2.in"]


def test_functions_of_a_layers_tensors_are_the_layer() -> None:
    def by_hand(m: Any, x: Tensor) -> Tensor:
        y = (m.a.weight @ x.T).T + m.a.bias
        scale = m.n.weight / torch.sqrt(m.n.running_var + 1e-5)
        return (y - m.n.running_mean) * scale + m.n.bias

    found, _ = find(flow(by_hand, n=nn.BatchNorm1d(4)), VECTOR)
    assert list(channels(found["a"])) == ["a.out", "n.out", "z.in"]


def test_positions_are_embedded_by_slices_of_a_table() -> None:
    table = nn.Embedding(9, 4)
    model = flow(lambda m, x: m.a(x) + m.e.weight[: len(x)], e=table)
    found, _ = find(model, VECTOR)
    assert list(channels(found["a"])) == ["a.out", "e.out", "z.in"]


def test_labels_follow_writes_into_parts_of_a_tensor() -> None:
    def swapped(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = torch.empty_like(y)
        z[:, :1] = y[:, 3:]
        z[:, 1:] = y[:, :3]
        return z.relu_()

    found, _ = find(flow(swapped), VECTOR)
    read = channels(found["a"])
    pairs = zip(read["a.out"], read["z.in"], strict=True)
    assert {(c, i) for out, into in pairs for c, i in zip(out, into, strict=True)} >= {(0, 1)}
    assert sorted(c for unit in read["a.out"] for c in unit) == [0, 1, 2, 3]


class Heads(nn.Module):
    """Attention of 2 heads, 3 wide; keys and values of one for both if `shared`."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.q, self.kv, self.o = (
            nn.Linear(3, 6),
            nn.Linear(3, 6 if shared else 12),
            nn.Linear(6, 2),
        )
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, -1, 3)).movedim(2, 0).transpose(2, 3)
        if self.shared:
            k, v = (t.expand(-1, 2, -1, -1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


def test_a_head_goes_whole() -> None:
    found, _ = find(nn.Sequential(nn.Identity(), Heads()), torch.ones(1, 5, 3))
    assert channels(found["1.q"]) == {
        "1.q.out": [[0, 1, 2], [3, 4, 5]],
        "1.kv.out": [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]],
        "1.o.in": [[0, 1, 2], [3, 4, 5]],
    }
    assert found["1.q"].owners == {"1"}


def test_keys_of_all_heads_stay() -> None:
    found, reasons = find(Heads(shared=True), torch.ones(1, 5, 3))
    assert channels(found["q"]) == {
        "q.out": [[0, 1, 2], [3, 4, 5]],
        "o.in": [[0, 1, 2], [3, 4, 5]],
    }
    assert reasons["kv"] == "is broadcast over other channels"


def test_heads_that_share_keys_go_together() -> None:
    def grouped(m: Any, x: Tensor) -> Tensor:
        q, k = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in (m.a(x), m.k(x)))
        k = k.repeat_interleave(2, 1)
        return ((q @ k.transpose(2, 3)).softmax(-1) @ k).transpose(1, 2).flatten(2)

    found, _ = find(flow(grouped, 8, k=nn.Linear(3, 4)), torch.ones(1, 5, 3))
    assert channels(found["a"])["k.out"] == [[0, 1], [2, 3]]
    assert channels(found["a"])["a.out"] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda m, y: y - y.mean(1, keepdim=True), "is reduced over its channels"),
        (lambda m, y: y.softmax(1), "is reduced over its channels"),
        (lambda m, y: y.cumsum(-1), "is reduced over its channels"),
        (lambda m, y: y @ y.T @ y, "is reduced over its channels"),
        (lambda m, y: y * m.scale, "is combined with a parameter that belongs to no layer"),
        (lambda m, y: y * m.scale.exp(), "meets values that belong to no layer"),
        (lambda m, y: y + torch.zeros(4), "meets values that belong to no layer"),
        (lambda m, y: y @ m.square, "is combined with a parameter that belongs to no layer"),
        (lambda m, y: F.pad(y, (1, 1))[:, 1:5], "is padded with zeros"),
        (lambda m, y: torch.fft.fft(y).real, "cannot be followed through _fft_r2c"),
        (lambda m, y: F.layer_norm(y, [4]), "is reduced over its channels"),
        (lambda m, y: m.norm(y), "cannot be pruned through LayerNorm 'norm'"),
        (lambda m, y: m.grouped(y), "cannot be pruned through GroupNorm 'grouped'"),
        (lambda m, y: m.conv(y[:, None])[:, 0], "cannot be pruned through Conv1d 'conv'"),
    ],
)
def test_what_depends_on_all_channels_holds_them(run: Callable[..., Tensor], reason: str) -> None:
    more = {
        "norm": nn.LayerNorm(4),
        "grouped": nn.GroupNorm(2, 4),
        "conv": nn.Conv1d(1, 1, 3, padding=1),
    }
    model = flow(lambda m, x: run(m, m.a(x)), **more)
    model.scale = nn.Parameter(torch.ones(4))
    model.square = nn.Parameter(torch.eye(4))
    found, reasons = find(model, VECTOR)
    assert found == {}
    assert reason in reasons["a"]


def _top_row(y: Tensor) -> Tensor:
    y[:, :, :1] = y[:, :, :1].roll(1, 1)
    return y


def _positive(y: Tensor) -> Tensor:
    y[y > 0] = 0.0
    return y


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_top_row, "is mixed with other channels by copy_"),
        (_positive, "cannot be followed through index_put"),
    ],
)
def test_a_write_is_blamed_and_no_module_after_it(write: Any, reason: str) -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return write(self.a(x))

    rest = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)
    _, reasons = find(nn.Sequential(Writing(), *rest), torch.ones(1, 3, 3, 3))
    assert reasons["0.a"] == f"{reason} in the forward of '0'"
    model = Flow(lambda m, x: write(m.a(x)).mean((2, 3)), a=nn.Conv2d(3, 4, 1))
    _, reasons = find(model, torch.ones(1, 3, 3, 3))
    assert reasons["a"] == f"{reason} in the model's forward"


def test_heads_written_one_by_one_are_not_mixed() -> None:
    def heads(m: Any, x: Tensor) -> Tensor:
        both = torch.empty(len(x), 2, 2, 5)
        both[:, 0] = m.a(x).transpose(1, 2)
        both[:, 1] = m.b(x).transpose(1, 2)
        return m.norm(both.flatten(1, 2).transpose(1, 2))

    more = {"b": nn.Linear(3, 2), "norm": nn.LayerNorm(4)}
    _, reasons = find(flow(heads, 2, reads=4, **more), torch.ones(1, 5, 3))
    assert reasons["a"] == "cannot be pruned through LayerNorm 'norm'"


def test_a_channel_broadcast_over_the_others_stays() -> None:
    found, _ = find(flow(lambda m, x: m.a(x) * m.a(x)[:, 2:3]), VECTOR)
    assert channels(found["a"])["a.out"] == [[0], [1], [3]]


def test_tokens_beside_a_learnt_one_stay() -> None:
    def with_first(m: Any, x: Tensor) -> Tensor:
        return torch.cat([m.first.expand(len(x), -1, -1), m.a(x)], 1)

    model = flow(with_first)
    model.first = nn.Parameter(torch.ones(1, 1, 4))
    found, reasons = find(model, torch.ones(1, 5, 3))
    assert found == {}
    assert reasons["a"] == "is combined with a parameter that belongs to no layer"


def test_layers_over_tokens_do_not_hold_channels_they_repeat() -> None:
    mixer = nn.Linear(5, 7)
    model = flow(lambda m, x: m.mix(m.a(x).transpose(1, 2)).mean(2), mix=mixer)
    found, reasons = find(model, torch.ones(1, 5, 3))
    assert reasons["a"] == "cannot be pruned through Linear 'mix'"
    assert reasons["mix"] == "is reduced over its channels"
    assert found == {}


def test_sparse_tensors_do_not_stop_the_trace() -> None:
    def sparse(m: Any, x: Tensor) -> Tensor:
        graph = torch.eye(len(x)).to_sparse()
        return graph @ m.a(x)

    found, reasons = find(flow(sparse), VECTOR)
    assert found == {}
    assert "cannot be followed through" in reasons["a"]


def test_a_model_of_a_fixed_batch_is_run_on_that() -> None:
    model = flow(lambda m, x: m.a(x).view(6, 4))
    found, _ = find(model, torch.ones(6, 3))
    assert list(found) == ["a"]


def test_leaves_the_model_as_it_was() -> None:
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            self.get_buffer("seen").add_(1)
            return super().forward(x)

    model = Counting(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)).train()
    model.register_buffer("seen", torch.zeros(()))
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find(model, torch.ones(2, 3, 4))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 4
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.calls == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_that_return_more_than_tensors_are_followed() -> None:
    class Labelled(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"y": super().forward(x)}

    model = Flow(lambda m, x: m.z(m.a(x)["y"]), a=Labelled(3, 4), z=nn.Linear(4, 2))
    assert list(find(model, VECTOR)[0]) == ["a"]


@pytest.mark.parametrize("name", ["resnet_b", "dense", "depthwise", "grouped", "transposed"])
def test_units_share_no_channel(name: str) -> None:
    model, inputs = build(name)
    taken: set[tuple[str, str, int]] = set()
    for bundle in find(model, inputs)[0].values():
        for slot, index in bundle.channels.items():
            here = {(*slot, i) for i in index.flatten().tolist()}
            assert len(here) == index.numel()
            assert not taken & here
            taken |= here
