"""Group sparsity: what it adds to the loss, when it ends, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.errors import ModelError, SettingError

X = torch.linspace(-1, 1, 40).reshape(10, 4)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def prepared(*passes: mz.Pass, steps: int = 20) -> mz.Prepared:
    return mz.prepare(net(), passes, example_inputs=(X,), training_steps=steps)


def norms(model: nn.Module) -> Tensor:
    """Squared norms of the 16 hidden units, written out."""
    return model[0].weight.square().sum(1) + model[2].weight.square().sum(0)


def train(zipped: mz.Prepared, steps: int, *, data: bool = True) -> list[float]:
    """The penalties of `steps` steps, with or without a loss beside them."""
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=0.1)
    penalties = []
    for _ in range(steps):
        penalty = zipped.penalty()
        penalties.append(float(torch.as_tensor(penalty).detach()))
        loss = (zipped.model(X) - 1.0).square().mean() if data else 0.0
        (loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
    return penalties


def test_penalty_is_the_formula_of_the_paper() -> None:
    found = prepared(mz.GroupSparsity(strength=0.3, contrast=3.0, growth=0.0)).penalty()
    size = norms(net()).detach()
    gamma = 2 ** (3.0 * (size.max() - size) / (size.max() - size.min()))
    assert found.item() == pytest.approx(float(0.3 / 2 * (gamma * size).sum()), rel=1e-5)


def test_strongest_channel_decays_by_strength_and_the_weakest_much_faster() -> None:
    zipped = prepared(mz.GroupSparsity(strength=0.01, contrast=4.0, growth=0.0))
    before = norms(zipped.model).detach()
    train(zipped, 1, data=False)
    shrunk = (norms(zipped.model).detach() / before).sqrt()
    assert float(shrunk[before.argmax()]) == pytest.approx(1 - 0.1 * 0.01, rel=1e-5)
    assert float(shrunk[before.argmin()]) == pytest.approx(1 - 0.1 * 0.01 * 16, rel=1e-5)


def test_penalty_grows_over_its_part_of_the_training() -> None:
    zipped = prepared(mz.GroupSparsity(growth=0.5), steps=8)
    grown = []
    for _ in range(6):
        grown.append(zipped.penalty().item())
        zipped.step()
    assert [value / grown[-1] for value in grown] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_weak_channels_fade_against_the_strong() -> None:
    zipped = prepared(mz.GroupSparsity(strength=0.05), steps=60)
    train(zipped, 60)
    zipped.convert()
    (row,) = zipped.reports[0].layers
    had, now = (float(word) for word in row.note.split() if word.replace(".", "").isdigit())
    assert row.name == "0"
    assert now < 0.5 * had


def test_no_penalty_once_channels_are_cut() -> None:
    fade, cut = mz.GroupSparsity(strength=0.1), mz.PruneChannels(sparsity=0.5)
    zipped = prepared(fade)
    order = norms(zipped.model).argsort().tolist()
    assert train(zipped, 20, data=False)[-1] > 0
    zipped.add(cut)
    assert zipped.model[0].out_features == 8
    assert train(zipped, 2) == [0.0, 0.0]
    zipped.convert()
    assert zipped.reports[0].layers[0].note.endswith("channels are gone since")
    kept = zipped.attached[1].context.record["layers"]["0"]["out"]["kept"]
    assert not set(order[:4]) & set(kept)
    assert set(order[-4:]) < set(kept)


def test_next_one_takes_over_and_the_same_one_twice_presses_once() -> None:
    fade = mz.GroupSparsity(strength=0.1)
    once = prepared(fade).penalty().item()
    assert prepared(fade, fade).penalty().item() == pytest.approx(once)
    assert prepared(mz.GroupSparsity(strength=9.0), fade).penalty().item() == pytest.approx(once)


def test_iterative_schedule_presses_on_what_is_left() -> None:
    fade, cut = mz.GroupSparsity(strength=0.1), mz.PruneChannels(sparsity=0.3)
    zipped = prepared(fade, cut)
    assert zipped.penalty() == 0.0
    zipped.add(fade, training_steps=4)
    assert all(value > 0 for value in train(zipped, 4))


def test_stopped_training_resumes_where_it_was(tmp_path: Path) -> None:
    whole = prepared(mz.GroupSparsity(strength=0.1, growth=1.0))
    train(whole, 10)
    whole.save(tmp_path / "half.safetensors")
    again = mz.load_prepared(net, tmp_path / "half.safetensors")  # no example inputs
    assert train(again, 10) == train(whole, 10)
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_pruned_after_it_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    zipped = prepared(mz.GroupSparsity(strength=0.1), mz.PruneChannels(sparsity=0.5))
    zipped.save(tmp_path / "small.safetensors")
    small = mz.load(net, tmp_path / "small.safetensors")
    assert torch.equal(small(X), zipped.convert()(X))


def test_only_the_layers_named_are_pressed_on() -> None:
    deep = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    fade = mz.GroupSparsity(targets=("2",))
    zipped = mz.prepare(deep, [fade], example_inputs=(X,), training_steps=1)
    zipped.penalty().backward()
    grads = [layer.weight.grad for layer in zipped.model if isinstance(layer, nn.Linear)]
    assert [grad is not None for grad in grads] == [False, True, True]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"strength": 0}, "strength must be above 0, got 0"),
        ({"contrast": -1}, "contrast must be at least 0, got -1"),
        ({"growth": 50}, r"growth must be a fraction in \[0, 1\], got 50; for 50 % write 0.5"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        mz.GroupSparsity(**settings)


def test_training_of_no_steps_is_refused() -> None:
    with pytest.raises(SettingError, match="training_steps must be an integer of at least 1"):
        prepared(mz.GroupSparsity(), steps=0)


def test_model_without_channels_that_may_go_is_refused() -> None:
    with pytest.raises(ModelError, match="finds no channels that may fade: '' feeds the model's"):
        mz.prepare(nn.Linear(4, 2), [mz.GroupSparsity()], example_inputs=(X,), training_steps=1)
