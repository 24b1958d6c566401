"""What each cut alone costs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.channels.bundles import Bundle, find_bundles
from modelzip.core.channels.resize import Slot, zero_inputs
from modelzip.core.channels.sensitivity import Cut, cut_costs, edit_costs
from modelzip.errors import DataError, ModelError, SettingError


class Residual(nn.Module):
    """Branches, additions in place, views, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        y = self.second(self.twice(x))
        view = x.flatten(2)
        y += self.twice(self.act(view.view_as(x).mul_(1.5)))
        return self.head(torch.relu_(self.hidden((x + y).mean((2, 3)))))


class Branching(Residual):
    """Cannot be traced: a condition on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 1e9 else x * 1.0)


def prepared(kind: type[nn.Module] = Residual) -> tuple[nn.Module, list[Bundle], list[Batch]]:
    torch.manual_seed(0)
    model = kind().eval()
    batches = [Batch(torch.randn(n, 3, 6, 6), torch.randint(4, (n,))) for n in (6, 3)]
    eight, six = torch.arange(8).view(4, 2), torch.arange(6).view(6, 1)
    bundles = [
        Bundle({Slot("first", "out"): eight, Slot("twice", "in"): eight}),
        Bundle({Slot("twice", "out"): eight, Slot("second", "in"): eight}),
        Bundle({Slot("hidden", "out"): six, Slot("head", "in"): six}),
    ]
    return model, bundles, batches


def scored(bundles: list[Bundle]) -> dict[Bundle, Tensor]:
    return {b: torch.rand(b.units, generator=torch.Generator().manual_seed(1)) for b in bundles}


def by_hand(model: nn.Module, changed: nn.Module, batches: list[Batch]) -> Cut:
    x, y = torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])
    with torch.no_grad():
        a, b = model(x.clone()).double(), changed(x.clone()).double()
    p = torch.softmax(a / 3, 1)
    kl = nn.functional.kl_div(torch.log_softmax(b / 3, 1), p, reduction="batchmean")
    return Cut(
        kl=float(kl),
        agreement=float((a.argmax(1) == b.argmax(1)).double().mean()),
        accuracy=float((b.argmax(1) == y).double().mean()),
    )


@pytest.mark.parametrize("kind", [Residual, Branching])
def test_costs_are_those_of_the_masked_model_by_hand(kind: type[nn.Module]) -> None:
    model, bundles, batches = prepared(kind)
    scores = scored(bundles)
    found = cut_costs(
        model, bundles, scores, batches, widths={b: [2, b.units - 1] for b in bundles}
    )
    for bundle in bundles:
        assert list(found[bundle]) == [2, bundle.units - 1]
        for left, cut in found[bundle].items():
            lowest = sorted(range(bundle.units), key=lambda i: scores[bundle][i])[
                : bundle.units - left
            ]
            masked = copy.deepcopy(model)
            zero_inputs(masked, {s: c[lowest].flatten() for s, c in bundle.channels.items()})
            expected = by_hand(model, masked, batches)
            assert cut.kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-12)
            assert (cut.agreement, cut.accuracy) == (expected.agreement, expected.accuracy)


def test_what_runs_before_a_cut_is_run_once() -> None:
    layers = [nn.Linear(4, 4) for _ in range(10)]
    model = nn.Sequential(*layers)
    x = torch.randn(5, 4)
    bundles, _ = find_bundles(model, x, chosen=[str(i) for i in range(9)])
    assert len(bundles) == 9
    calls = []
    forward = nn.Linear.forward

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return forward(self, x)

    for layer in layers:
        layer.__class__ = Counting
    cut_costs(model, bundles, scored(bundles), [Batch(x, None)], widths={b: [2] for b in bundles})
    # twice whole for the comparison, once for the answers, the base walk, and 9 + 8 + ... + 1
    assert len(calls) == 4 * 10 + 45


def test_the_model_is_left_as_it_was() -> None:
    model, bundles, batches = prepared()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = [batch.inputs.clone() for batch in batches]
    cut_costs(model, bundles, scored(bundles), batches, widths={b: [1] for b in bundles})
    edit_costs(model, {"norm": lambda m: setattr(m, "norm", nn.Identity())}, batches)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(a, b.inputs) for a, b in zip(inputs, batches, strict=True))


def test_a_cut_does_not_feel_the_others() -> None:
    model, bundles, batches = prepared()
    scores = scored(bundles)
    together = cut_costs(model, bundles, scores, batches, widths={b: [1, 3] for b in bundles})
    for bundle in bundles:
        alone = cut_costs(model, [bundle], scores, batches, widths={bundle: [3]})
        assert alone[bundle][3] == together[bundle][3]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), factor=st.floats(1e-3, 1e3))
def test_only_the_order_of_scores_matters(order: list[int], factor: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 2)
    found, _ = find_bundles(model, x, chosen=["0"])
    scores = torch.tensor(order).double()
    batches = [Batch(x, None)]
    first = cut_costs(model, found, {found[0]: scores}, batches, widths={found[0]: [3]})
    scaled = {found[0]: (scores + 1) * factor}
    assert cut_costs(model, found, scaled, batches, widths={found[0]: [3]}) == first


def test_a_cut_of_channels_that_nothing_reads_costs_nothing() -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.randn(4, 2)
    nn.init.zeros_(model[1].weight[:, :2])
    found, _ = find_bundles(model, x, chosen=["0"])
    scores = {found[0]: torch.tensor([0.0, 0.0, 1.0])}
    cut = cut_costs(model, found, scores, [Batch(x, None)], widths={found[0]: [1]})[found[0]][1]
    assert cut == Cut(kl=0.0, agreement=1.0, accuracy=None)


def test_an_edit_costs_what_the_edited_model_does_by_hand() -> None:
    model, _, batches = prepared()

    def drop(changed: nn.Module) -> None:
        changed.norm = nn.Identity()

    edited = copy.deepcopy(model)
    drop(edited)
    found = edit_costs(model, {"norm": drop, "nothing": lambda m: None}, batches)
    expected = by_hand(model, edited, batches)
    assert found["norm"].kl == pytest.approx(expected.kl, rel=1e-4)
    assert (found["norm"].agreement, found["norm"].accuracy) == (
        expected.agreement,
        expected.accuracy,
    )
    assert found["nothing"].kl == 0.0
    assert isinstance(model.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("left", [0, 8, -1])
def test_widths_that_are_no_cut_are_refused(left: int) -> None:
    model, x = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 3)), torch.randn(4, 2)
    found, _ = find_bundles(model, x, chosen=["0"])
    with pytest.raises(
        SettingError, match=f"'0' has 8 units, of which 1 to 7 can be left, got {left}"
    ):
        cut_costs(model, found, scored(found), [Batch(x, None)], widths={found[0]: [left]})


def test_no_batches_are_refused() -> None:
    model, bundles, _ = prepared()
    for some in ([], bundles):
        with pytest.raises(DataError, match="tried on calibration batches; give at least one"):
            cut_costs(model, some, scored(bundles), [], widths={b: [1] for b in bundles})


def test_a_cut_that_breaks_the_model_is_named() -> None:
    class Unit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.abs().sum()

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), Unit(), nn.Linear(2, 2))
    nn.init.constant_(model[1].weight[:, 1], 0.0)
    x = torch.ones(1, 2)
    found, _ = find_bundles(model, x, chosen=["0"])
    scores = {found[0]: torch.tensor([0.0, 1.0])}
    with pytest.raises(ModelError, match="with 1 units of '0' cut, the model's output is NaN"):
        cut_costs(model, found, scores, [Batch(x, None)], widths={found[0]: [1]})
    broken = {"zero": lambda m: m.__setitem__(3, nn.Threshold(math.inf, math.nan))}
    with pytest.raises(ModelError, match="with the edit 'zero', the model's output is NaN"):
        edit_costs(model, broken, [Batch(x, None)])
