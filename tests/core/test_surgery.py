"""Copies, parametrizations, swaps and ties."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from modelzip.core import surgery
from modelzip.errors import ModelError


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class AddOne(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1


def linear() -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, 3.0)
    return layer


def first(layer: nn.Module) -> float:
    return float(layer.weight.detach()[0, 0])


def test_copy_of_a_parametrized_model_leaves_the_original_its_weights() -> None:
    model = nn.Sequential(linear())
    surgery.attach(model[0], Double())
    surgery.detach(surgery.clone(model)[0])
    assert first(model[0]) == 6.0


def test_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.cache = model(torch.ones(1, 2))
    with pytest.raises(
        ModelError, match=r"Linear cannot be copied .*detach computed tensors from it"
    ):
        surgery.clone(model)


def test_attached_finds_the_parametrization_of_a_class() -> None:
    layer = linear()
    assert surgery.attached(layer, Double) is None
    surgery.attach(layer, AddOne())
    surgery.attach(layer, Double())
    assert first(layer) == 8.0
    assert isinstance(surgery.attached(layer, Double), Double)
    assert [name for name, _, _ in surgery.all_attached(nn.Sequential(layer), Double)] == ["0"]


def test_bake_applies_one_and_keeps_the_others() -> None:
    layer = linear()
    surgery.attach(layer, AddOne())
    surgery.attach(layer, Double())
    surgery.bake(layer, AddOne)
    assert float(surgery.original_tensor(layer).detach()[0, 0]) == 4.0
    assert surgery.attached(layer, AddOne) is None
    assert first(layer) == 8.0


def test_detach_all_leaves_the_stored_values() -> None:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, 3.0)
    surgery.attach(layer, Double())
    surgery.attach(layer, AddOne(), tensor="bias")
    surgery.detach_all(layer)
    assert first(layer) == 3.0
    assert not parametrize.is_parametrized(layer)
    surgery.detach_all(layer)  # nothing left to do


def test_own_tensors_are_those_of_the_module_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("mean", torch.zeros(1))
    assert list(surgery.own_tensors(model)) == ["mean"]
    surgery.attach(model[0], Double())
    assert set(surgery.own_tensors(model[0])) == {"weight", "bias"}


def test_parameter_counts_are_of_weights_and_biases() -> None:
    norm = nn.BatchNorm1d(3)  # weights 1, biases 0, running statistics beside
    assert surgery.parameter_counts(norm) == (6, 3)
    integers = nn.Module()
    integers.register_buffer("weight", torch.tensor([0, 1, 2], dtype=torch.int8))
    integers.register_buffer("weight_scale", torch.ones(3))
    assert surgery.parameter_counts(integers) == (3, 2)
    layer = linear()
    surgery.attach(layer, Double())
    assert surgery.parameter_counts(layer) == (4, 4)


def test_replace_swaps_every_alias() -> None:
    layer = linear()
    model = nn.Sequential(layer, nn.Sequential(layer), nn.ReLU())
    new = nn.Identity()
    surgery.replace(model, "0", new)
    assert model[0] is new
    assert model[1][0] is new


def test_ties_are_found_across_modules() -> None:
    a, b = linear(), linear()
    b.weight = a.weight
    model = nn.Sequential(a, b, a)  # the shared module itself is no tie
    assert surgery.tied_parameters(model) == [("0.weight", "1.weight")]
    assert surgery.tied_parameters(nn.Sequential(a, a)) == []


def test_ties_are_refused_where_they_are_touched() -> None:
    a, b = linear(), linear()
    b.weight = a.weight
    model = nn.Sequential(a, b, linear())
    name = "it"
    surgery.refuse_tied(model, {"2": model[2]}, pass_name=name)
    text = r"it would untie 0.weight and 1.weight; add skip: \[0, 1\] to leave the tied layers"
    with pytest.raises(ModelError, match=text):
        surgery.refuse_tied(model, {"0": a, "1": b}, pass_name=name)


def test_tensors_that_the_user_computes_are_refused() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), linear())
    surgery.attach(model[1], Double())
    name = "it"
    surgery.refuse_computed({"1": surgery.clone(model)[1]}, pass_name=name)
    text = r"it cannot change 0.weight, which _WeightNorm computes; .*, or add skip: \[0\]"
    with pytest.raises(ModelError, match=text):
        surgery.refuse_computed({"1": model[1], "0": model[0]}, pass_name=name)


def test_foreign_parametrizations_survive_a_copy() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))
    x = torch.ones(1, 2)
    assert torch.equal(surgery.clone(model)(x), model(x))


def test_a_sharing_clone_has_the_same_tensors_in_modules_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[0].bias = model[1].bias  # tied
    copied = surgery.clone(model, share=True)
    tensors, originals = ({**m.state_dict(keep_vars=True)} for m in (copied, model))
    assert all(tensors[name] is originals[name] for name in originals)
    copied[1] = nn.Identity()
    assert isinstance(model[1], nn.BatchNorm2d)


class Restored(nn.Module):
    """Copies in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.restored = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"restored": True})


class Holder(nn.Module):
    """Holds what a copy must not share, and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.own = nn.Linear(2, 2), Restored()
        self.cache, self.same = [torch.ones(1)], self.inner
        self.last = [self, self.inner]
        self.register_buffer("mean", torch.zeros(2), persistent=False)
        self.register_forward_hook(print)
        self.inner.weight.requires_grad_(False)
        self.eval()


def test_a_copy_is_what_deepcopy_makes() -> None:
    model = Holder()
    model.call_count = torch.nn.Parameter(torch.ones(3))
    for copied in (surgery.clone(model), copy.deepcopy(model)):
        assert [list(vars(m)) for m in copied.modules()] == [list(vars(m)) for m in model.modules()]
        assert copied.same is copied.inner is copied.last[1] is not model.inner
        assert copied.last[0] is copied
        assert copied.own.restored
        assert copied.cache[0] is not model.cache[0]
        assert [p.requires_grad for p in copied.parameters()] == [
            p.requires_grad for p in model.parameters()
        ]
        assert not any(m.training for m in copied.modules())
        assert list(copied._forward_hooks.values()) == [print]
        assert copied._forward_hooks is not model._forward_hooks
        assert "mean" not in copied.state_dict()
        pairs = zip(copied.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)
