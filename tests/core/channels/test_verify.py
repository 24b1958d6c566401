"""Finding what must be left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip.core.channels import verify
from modelzip.core.channels.resize import Slot
from modelzip.core.channels.verify import Trial, faults
from modelzip.errors import ModelError

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


def hidden(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


def test_the_model_stays_as_it_is() -> None:
    class Counting(nn.Sequential):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x.mul_(2.0))

    model, x = Counting(*hidden(), nn.BatchNorm1d(2)).train(), torch.randn(3, 2)
    given = x.clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    for training in (True, False):
        trial = Trial(model, x, training=training)
        assert trial.fault(CUT) is None
        assert trial.fault({**CUT, Slot("2", "in"): torch.tensor([2])}) is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(x, given)
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_rounding_is_not_taken_for_a_wrong_channel() -> None:
    """The outputs are a small difference of large values, of which float32 keeps few digits."""
    model = hidden()
    with torch.no_grad():
        model[0].bias.fill_(1e4)
        model[2].weight.copy_(torch.tensor([[1.1, 0.3, -0.6, -0.8]]).expand(2, 4))
    model[0].bias.data[1] = 3.0
    assert Trial(model, torch.randn(3, 2)).fault(CUT) is None


def test_a_large_model_is_not_copied_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_SMALL", 10)
    monkeypatch.setattr(verify, "in_float64", None)  # fails if called
    assert Trial(hidden(), torch.randn(3, 2)).fault(CUT) is None
    wrong = Trial(hidden(), torch.randn(3, 2)).fault({**CUT, Slot("2", "in"): torch.tensor([2])})
    assert wrong is not None
    assert wrong.startswith("pruned, the outputs differ")


class Scaled(nn.Module):
    """A branch that adds next to nothing yet, as those of new networks do."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.full((2,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_jitter_shows_what_a_scale_hides(scale: float) -> None:
    torch.manual_seed(0)
    model, x = Scaled(scale), torch.randn(3, 2)
    wrong = {Slot("a", "out"): torch.tensor([1]), Slot("b", "in"): torch.tensor([2])}
    right = {Slot("a", "out"): torch.tensor([1]), Slot("b", "in"): torch.tensor([1])}
    trial = Trial(model, x)
    assert trial.fault(right) is None
    assert trial.fault(wrong) is not None


class Reading(nn.Module):
    """Its layers are used in three ways: called, by keyword, and by their weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = torch.tanh(self.c(input=x))
        return nn.functional.linear(x, self.d.weight, self.d.bias)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "c"), ("c", "d")])
def test_masks_reach_layers_however_they_are_used(first: str, second: str) -> None:
    torch.manual_seed(0)
    trial = Trial(Reading(), torch.randn(3, 4))
    gone = torch.tensor([1, 3])
    assert trial.fault({Slot(first, "out"): gone, Slot(second, "in"): gone}) is None
    wrong = trial.fault({Slot(first, "out"): gone, Slot(second, "in"): torch.tensor([1, 2])})
    assert wrong is not None


class Unfolding(nn.Module):
    """Encodes and decodes with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.code = nn.Linear(6, 4), nn.Linear(4, 3)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(torch.tanh(self.first(x)))
        return self.out(nn.functional.linear(code, self.code.weight.t()))


def test_a_weight_that_is_used_twice_is_masked_twice() -> None:
    torch.manual_seed(0)
    gone = torch.tensor([1, 3])
    slots = [Slot("first", "out"), Slot("code", "in"), Slot("out", "in")]
    trial = Trial(Unfolding(), torch.randn(3, 6))
    assert trial.fault(dict.fromkeys(slots, gone)) is None


def test_masks_lie_along_the_channels_of_images_without_a_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.ConvTranspose2d(5, 2, 1))
    gone = torch.tensor([0, 3])
    removed = {Slot("0", "out"): gone, Slot("2", "in"): gone}
    for shape in ((2, 3, 4, 4), (3, 4, 4)):
        assert Trial(model, torch.randn(shape)).fault(removed) is None


class Picky(nn.Sequential):
    """Takes no values that differ from whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / (x == x.round()).float().prod())


def test_jitter_is_left_out_where_the_model_does_not_take_it() -> None:
    model = Picky(*hidden())
    assert Trial(model, torch.ones(3, 2)).fault(CUT) is None


def test_a_model_that_does_not_run_is_refused() -> None:
    with pytest.raises(ModelError, match="Sequential does not run on the example inputs: mat1"):
        Trial(hidden(), torch.ones(3, 7)).fault(CUT)
