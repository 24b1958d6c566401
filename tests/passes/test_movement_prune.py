"""Movement pruning: what scores sum up, who may come back, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.core import surgery
from modelzip.errors import ModelError, SettingError
from modelzip.passes.movement_prune import ScoreMask

STEPS = {"training_steps": 8}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(1))


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def masks(zipped: mz.Prepared) -> list[ScoreMask]:
    return [mask for _, _, mask in surgery.all_attached(zipped.model, ScoreMask)]


def sgd(zipped: mz.Prepared, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(zipped.model.parameters(), **{"lr": 0.05, **settings})


def train(zipped: mz.Prepared, steps: int, optimizer: torch.optim.Optimizer) -> list[int]:
    """Zeros of every mask after each step."""
    counts = []
    for _ in range(steps):
        inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(zipped.steps))
        (zipped.model(inputs) - 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
        counts.append(sum(zeros(mask.mask) for mask in masks(zipped)))
    return counts


# scores


def test_score_is_the_sum_of_minus_gradient_times_weight() -> None:
    """Equation 2 of the paper, with the gradients worked out by hand: y = w x, L = y."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, -3.0]])
    prune = mz.MovementPrune(sparsity=0.5, end=1.0)
    zipped = mz.prepare(layer, [prune], training_steps=10)
    optimizer = sgd(zipped, lr=0.1)
    weight, score = torch.tensor([2.0, -3.0]), torch.zeros(2)
    for x in (torch.tensor([1.0, 1.0]), torch.tensor([3.0, -2.0])):
        zipped.model(x[None]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        score -= 0.1 * x * weight
        weight -= 0.1 * x
    assert torch.allclose(masks(zipped)[0].scores.detach(), score)


def test_weights_pulled_towards_zero_go_whatever_their_size() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[5.0, -4.0, 0.2, -0.1]])
    zipped = mz.prepare(layer, [mz.MovementPrune(sparsity=0.5, every=1)], training_steps=4)
    optimizer = sgd(zipped, lr=0.01)
    for _ in range(4):
        # the loss falls as the first two shrink and as the last two grow
        zipped.model(torch.tensor([[1.0, -1.0, -1.0, 1.0]])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
    assert (zipped.convert().weight != 0).tolist() == [[False, False, True, True]]


def test_masked_weight_has_no_gradient_and_its_score_has() -> None:
    zipped = mz.prepare(nn.Linear(2, 1, bias=False), [mz.MovementPrune(sparsity=0.5)], **STEPS)
    (mask,) = masks(zipped)
    mask.mask.copy_(torch.tensor([[True, False]]))
    zipped.model(torch.ones(1, 2)).sum().backward()
    weight = surgery.original_tensor(zipped.model)
    assert weight.grad.tolist() == [[1.0, 0.0]]
    assert torch.equal(mask.scores.grad, weight.detach().flatten())


def test_pruned_weight_comes_back_when_its_score_rises() -> None:
    prune = mz.MovementPrune(sparsity=0.5, begin=0, end=1, every=1)
    zipped = mz.prepare(nn.Linear(2, 1, bias=False), [prune], **STEPS)
    (mask,) = masks(zipped)
    seen = []
    for step in range(1, 9):
        mask.scores.data = torch.tensor([float(step), 4.5])
        zipped.step()
        seen.append(mask.mask.tolist()[0])
    assert seen[1] == [False, True]
    assert seen[-1] == [True, False]


def test_mask_stands_after_the_end() -> None:
    zipped = mz.prepare(net(), [mz.MovementPrune(sparsity=0.5, end=0.5)], **STEPS)
    optimizer = sgd(zipped)
    train(zipped, 4, optimizer)
    before = [mask.mask.clone() for mask in masks(zipped)]
    scores = [mask.scores.detach().clone() for mask in masks(zipped)]
    assert zipped.settled()
    train(zipped, 4, optimizer)
    for mask, old, score in zip(masks(zipped), before, scores, strict=True):
        assert torch.equal(mask.mask, old)
        assert torch.equal(mask.scores, score)


def test_scores_escape_weight_decay_as_biases_do() -> None:
    zipped = mz.prepare(net(), [mz.MovementPrune(sparsity=0.5)], **STEPS)
    assert all(mask.scores.ndim == 1 for mask in masks(zipped))


# schedule, scope and patterns


def test_schedule_reaches_its_sparsity_in_each_layer() -> None:
    prune = mz.MovementPrune(sparsity=0.8, begin=0.25, end=0.75, every=2)
    zipped = mz.prepare(net(), [prune], **STEPS)
    counts = train(zipped, 8, sgd(zipped, momentum=0.9))
    at = [round(216 * s) + round(32 * s) for s in (0.8 * 7 / 8, 0.8)]
    assert counts == [0, 0, 0, at[0], at[0], at[1], at[1], at[1]]
    small = zipped.convert()
    assert [zeros(small[i].weight) for i in (0, 2)] == [round(216 * 0.8), round(32 * 0.8)]
    first, _ = zipped.reports[0].layers
    assert (first.name, first.nonzero) == ("0", 216 - 173 + 8)


def test_global_scope_ranks_all_layers_together() -> None:
    zipped = mz.prepare(net(), [mz.MovementPrune(sparsity=0.5, scope="global", every=1)], **STEPS)
    assert train(zipped, 8, sgd(zipped))[-1] == round(248 * 0.5)


def test_two_of_four_inputs_stay_and_layers_that_do_not_divide_are_named() -> None:
    zipped = mz.prepare(net(), [mz.MovementPrune(pattern="2:4")], **STEPS)
    train(zipped, 8, sgd(zipped))
    small = zipped.convert()
    assert bool(((small[2].weight != 0).reshape(4, 2, 4).sum(-1) == 2).all())
    assert zipped.reports[0].protected == {"0": "3 inputs are not a multiple of 4"}


def test_blocks_go_whole() -> None:
    zipped = mz.prepare(net(), [mz.MovementPrune(pattern="4x1", sparsity=0.5)], **STEPS)
    train(zipped, 8, sgd(zipped))
    alive = (zipped.convert()[0].weight != 0).reshape(2, 4, 3, 3, 3)
    assert torch.equal(alive.any(1), alive.all(1))


def test_zeros_of_an_earlier_pass_count_and_stay() -> None:
    passes = [mz.MagnitudePrune(sparsity=0.5, scope="layer"), mz.MovementPrune(sparsity=0.75)]
    zipped = mz.prepare(net(), passes, **STEPS)
    dead = [~mask.mask for mask in masks(zipped)]
    train(zipped, 8, sgd(zipped))
    small = zipped.convert()
    for i, gone in zip((0, 2), dead, strict=True):
        assert zeros(small[i].weight) == round(0.75 * small[i].weight.numel())
        assert zeros(small[i].weight[gone]) == int(gone.sum()) == gone.numel() // 2


def test_stopped_training_resumes_where_it_was(tmp_path: Path) -> None:
    whole = mz.prepare(net(), [mz.MovementPrune(sparsity=0.8, every=1)], **STEPS)
    train(whole, 4, sgd(whole))
    whole.save(tmp_path / "half.safetensors")
    again = mz.load_prepared(net, tmp_path / "half.safetensors")
    assert train(again, 4, sgd(again)) == train(whole, 4, sgd(whole))
    for ours, theirs in zip(
        again.model.state_dict().values(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


# refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, r"sparsity is missing; give a fraction such as 0.8"),
        ({"sparsity": 80}, r"sparsity must be a fraction in \(0, 1\), got 80; for 80 % write 0.8"),
        ({"sparsity": 0.6, "pattern": "2:4"}, r"'2:4' has a sparsity of 0.5 by itself, got 0.6"),
        ({"sparsity": 0.5, "scope": "globl"}, "did you mean 'global'"),
        ({"sparsity": 0.5, "begin": 0.8}, r"begin must be below end, got 0.8 and 0.75"),
        ({"sparsity": 0.5, "every": 0}, "every must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        mz.MovementPrune(**settings)


@pytest.mark.parametrize(
    ("prune", "steps", "error", "text"),
    [
        ({"sparsity": 0.5}, 0, SettingError, "training_steps must be an integer of at least 1"),
        ({"sparsity": 0.001}, 8, ModelError, r"sparsity=0.001 removes none of the 248 weights"),
        ({"sparsity": 0.99}, 8, ModelError, r"sparsity=0.99 would remove every weight of 2"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    prune: dict[str, Any], steps: int, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        mz.prepare(net(), [mz.MovementPrune(**prune)], training_steps=steps)


def test_layer_that_dies_in_training_is_named() -> None:
    prune = mz.MovementPrune(sparsity=0.5, scope="global", begin=0, end=1, every=1)
    zipped = mz.prepare(net(), [prune], training_steps=2)
    for mask, score in zip(masks(zipped), (1.0, -1.0), strict=True):
        mask.scores.data.fill_(score)
    with pytest.raises(ModelError, match=r"would remove every weight of 2; lower it"):
        zipped.step()


def test_second_movement_prune_of_a_layer_is_refused() -> None:
    twice = [mz.MovementPrune(sparsity=0.5), mz.MovementPrune(sparsity=0.8)]
    with pytest.raises(ModelError, match=r"0 has a movement_prune already; .* skip: \[0\]"):
        mz.prepare(net(), twice, **STEPS)
