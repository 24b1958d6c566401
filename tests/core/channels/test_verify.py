"""Finding what must be left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip.core.channels.resize import Slot
from modelzip.core.channels.verify import Trial, faults

CUT = {Slot("0", "out"): torch.tensor([1]), Slot("2", "in"): torch.tensor([1])}


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=6))
def test_finds_exactly_the_bad_ones(count: int, bad: set[int]) -> None:
    items = list(range(count))
    found = faults(items, lambda some: "bad" if bad & set(some) else None)
    assert found.keys() == bad & set(items)


def test_few_faults_take_few_trials() -> None:
    trials = []

    def fault(some: Sequence[int]) -> str | None:
        trials.append(some)
        return "bad" if 700 in some else None

    assert faults(range(1000), fault) == {700: "bad"}
    assert len(trials) <= 2 * 10 + 2


def test_a_pair_that_fails_only_together_loses_one() -> None:
    assert faults([1, 2, 3], lambda some: "clash" if {1, 3} <= set(some) else None) == {3: "clash"}


def test_a_wrong_channel_is_a_fault() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    trial = Trial(model, torch.randn(3, 2))
    assert trial.fault(CUT) is None
    wrong = trial.fault({**CUT, Slot("2", "in"): torch.tensor([2])})
    assert wrong is not None
    assert wrong.startswith("pruned, the outputs differ from the masked model's by")


def test_an_output_that_shrinks_is_a_fault() -> None:
    trial = Trial(nn.Sequential(nn.Linear(2, 4)), torch.ones(1, 2))
    wrong = trial.fault({Slot("0", "out"): torch.tensor([0])})
    assert wrong == "pruned, an output is [2, 3] instead of [2, 4]"


class ArgMax(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_integer_outputs_are_compared_exactly() -> None:
    model = ArgMax(nn.Linear(1, 2, bias=False), nn.Identity(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    trial = Trial(model, torch.ones(1, 1))
    assert trial.fault(CUT) is None
    wrong = trial.fault({**CUT, Slot("2", "in"): torch.tensor([0])})
    assert wrong == "pruned, an integer output differs from the masked model's"


class Auxiliary(nn.Sequential):
    """Reads its hidden channels by number, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self[0](x)
        if self.training:
            hidden = hidden + torch.ones(4)
        return self[2](hidden)


def test_a_model_that_could_not_train_any_more_is_a_fault() -> None:
    model = Auxiliary(nn.Linear(2, 4), nn.Identity(), nn.Linear(4, 2))
    assert Trial(model, torch.ones(1, 2)).fault(CUT) == "pruned, it fails in training mode"


class OneRow(nn.Sequential):
    """A batch size written in, and a type."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(1, 2) + torch.ones(1, 2, dtype=torch.float32))


def test_a_fixed_batch_size_is_respected() -> None:
    model = OneRow(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    assert Trial(model, torch.ones(1, 2)).fault(CUT) is None
