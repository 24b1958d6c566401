"""Applying passes: copies, order, needs, steps, and what stays of the caller's model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.base import Context, Need, Pass, PassReport, Stage
from modelzip.core.prepare import check_needs, check_order
from modelzip.errors import DataError, ModelError, SelectionError, SettingError

X = torch.ones(2, 4)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    states = [m.state_dict() for m in (a, b)]
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][n], states[1][n]) for n in states[0]
    )


@dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    """Multiplies weights, and writes down what it is told."""

    name: ClassVar[str] = "scale"
    stage: ClassVar[Stage] = Stage.WEIGHT
    by: float = 2.0
    fails: bool = False

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        with torch.no_grad():
            model[0].weight.mul_(self.by)
        if self.fails:
            raise ModelError("half way through")
        context.record.update(steps=[], inputs=context.example_inputs is X, seed=context.seed)
        model.heard = context.record["steps"]
        return model

    def step(self, model: nn.Module, step: int) -> None:
        model.heard.append((self.by, step))

    def settled(self, model: nn.Module, step: int) -> bool:
        return step >= self.by

    def penalty(self, model: nn.Module) -> Tensor | float:
        return self.by * model[0].weight.sum()

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        return PassReport(name=self.name, settings=self.settings(), layers=())


# the caller's model


def test_caller_keeps_its_model() -> None:
    model = net()
    before = copy.deepcopy(model)
    mz.prepare(model, [Scale()])
    assert same(model, before)


def test_inplace_works_on_the_model_itself() -> None:
    model = net()
    assert mz.prepare(model, [Scale()], inplace=True).model is model
    assert same(model, mz.prepare(net(), [Scale()]).model)


@pytest.mark.parametrize("inplace", [False, True])
def test_failure_leaves_the_model_whole(inplace: bool) -> None:
    model = net()
    with pytest.raises(ModelError, match="half way through"):
        mz.prepare(model, [Scale(), Scale(fails=True)], inplace=inplace)
    assert same(model, net())


def test_converting_leaves_the_prepared_model_to_train_on() -> None:
    zipped = mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.5)])
    first = zipped.convert()
    zipped.model(X).sum().backward()
    assert same(zipped.convert(), first)
    assert not first.training
    assert zipped.model.training
    assert all(p.grad is None for p in first.parameters())


# what passes are told


def test_passes_get_inputs_seed_and_a_record_each() -> None:
    zipped = mz.prepare(net(), [Scale(), Scale(by=3.0)], example_inputs=X, seed=7)
    records = [a.context.record for a in zipped.attached]
    assert [(r["inputs"], r["seed"]) for r in records] == [(True, 7), (True, 7)]
    assert records[0] is not records[1]


def test_steps_count_from_where_a_pass_was_added() -> None:
    zipped = mz.prepare(net(), [Scale()])
    zipped.step()
    zipped.add(Scale(by=3.0))
    zipped.step()
    assert zipped.model.heard == [(2.0, 2), (3.0, 1)]
    assert not zipped.settled()
    zipped.step()
    zipped.step()
    assert zipped.settled()


def test_penalties_add_up() -> None:
    zipped = mz.prepare(net(), [Scale(), Scale(by=3.0)])
    assert torch.isclose(torch.as_tensor(zipped.penalty()), 5 * zipped.model[0].weight.sum())
    assert mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.5)]).penalty() == 0.0


def test_reports_come_in_order() -> None:
    zipped = mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.5), mz.Cast()])
    assert zipped.reports == ()
    zipped.convert()
    assert [r.name for r in zipped.reports] == ["magnitude_prune", "cast"]


def test_calibration_may_be_read_once_alone() -> None:
    passes = [mz.MagnitudePrune(sparsity=0.5), mz.Int8()]
    zipped = mz.prepare(net(), passes, calibration=iter([torch.randn(2, 4)]))
    assert all(len(a.context.calibration) == 1 for a in zipped.attached)


# refusals


def test_no_passes_are_refused() -> None:
    with pytest.raises(SettingError, match="passes is empty; give at least one"):
        mz.prepare(net(), [])


def test_illegal_order_names_both_passes() -> None:
    text = (
        r"magnitude_prune \(WEIGHT\) must come before cast \(PRECISION\): stages run in the order "
        "STRUCTURE, WEIGHT, ACTIVATION, PRECISION"
    )
    passes = [mz.Cast(), mz.MagnitudePrune(sparsity=0.5)]
    with pytest.raises(SettingError, match=text):
        mz.prepare(net(), passes)
    with pytest.raises(SettingError, match=text):
        mz.prepare(net(), passes[:1]).add(passes[1])


def test_equal_stages_go_in_any_order() -> None:
    check_order([Scale(), mz.MagnitudePrune(sparsity=0.5), Scale()])


def test_an_earlier_stage_may_follow_what_changes_values_alone() -> None:
    cut, rewind, mask = mz.PruneChannels(sparsity=0.5), mz.Rewind(weights="a"), Scale()
    check_order([cut, rewind, cut, rewind, mask, rewind])
    with pytest.raises(SettingError, match=r"prune_channels .* must come before scale"):
        check_order([mask, rewind, cut])
    with pytest.raises(SettingError, match=r"rewind \(WEIGHT\) must come before cast"):
        check_order([mz.Cast(), rewind])


@pytest.mark.parametrize(
    ("need", "argument"),
    [
        (
            Need.EXAMPLE_INPUTS,
            r"needs example inputs with these settings; pass example_inputs=\.\.\.",
        ),
        (
            Need.CALIBRATION,
            "needs calibration with these settings; pass calibration=batches to pre",
        ),
        (
            Need.TRAINING,
            r"needs training with these settings; pass training_steps=\.\.\. to prepare",
        ),
    ],
)
def test_unmet_need_names_the_argument(need: Need, argument: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy(Scale):
        needs = need

    with pytest.raises(SettingError, match=f"scale {argument}"):
        check_needs(Needy(), Context())
    given: dict[str, Any] = {"example_inputs": X, "calibration": [X], "training_steps": 1}
    mz.prepare(net(), [Needy()], **given)


def test_errors_of_data_and_selectors_come_through() -> None:
    prune = mz.MagnitudePrune(sparsity=0.5, targets=("fc",))
    with pytest.raises(SelectionError, match=r"targets=\['fc'\] matches none of the 2"):
        mz.prepare(net(), [prune])
    with pytest.raises(DataError, match="the calibration data are empty"):
        mz.prepare(net(), [mz.Int8()], calibration=[])
