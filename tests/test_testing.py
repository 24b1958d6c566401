"""`check_pass` finds each way in which a pass may break the contract."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

import modelzip as mz
from modelzip.core import registry
from modelzip.core.base import Context, Pass, PassReport
from modelzip.errors import SelectionError
from modelzip.testing import check_pass

DOC = "Prunes. https://example.org >>> 1"
CALLS = itertools.count(1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


OURS = net()  # the caller's model, where a pass meddles with it


def meddle() -> None:
    nn.init.constant_(OURS[1].bias, next(CALLS))


@dataclass(frozen=True, kw_only=True)
class Sound(mz.MagnitudePrune):
    name: ClassVar[str] = "sound"
    __doc__ = DOC


class NoExample(Sound):
    __doc__ = "https://example.org"


class NoSource(Sound):
    __doc__ = ">>> None"


class OtherRepr(Sound):
    __doc__ = DOC

    def __repr__(self) -> str:
        return "OtherRepr(sparsity=0.25)"


class OtherSettings(Sound):
    __doc__ = DOC

    def settings(self) -> dict[str, Any]:
        return {"sparsity": 0.25}


class Meddling(Sound):
    __doc__ = DOC

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        meddle()
        return super().prepare(model, context)


class Restless(Sound):
    __doc__ = DOC

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        nn.init.constant_(model[1].bias, next(CALLS))
        return super().prepare(model, context)


class Undiscerning(Sound):
    __doc__ = DOC

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        mz.MagnitudePrune(sparsity=self.sparsity).prepare(model, context)
        return model


class Hasty(Sound):
    __doc__ = DOC

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        try:
            return super().prepare(model, context)
        except SelectionError:
            meddle()
            raise


class Doubling(Sound):
    __doc__ = DOC

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        report = super().convert(model, context)
        with torch.no_grad():
            model[0].weight.mul_(2)
        return report


class Reshaping(Sound):
    __doc__ = DOC

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        report = super().convert(model, context)
        model.append(nn.Flatten(0))
        return report


class Multiplying(Sound):
    __doc__ = DOC

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        report = super().convert(model, context)
        model.append(Twice())
        return report


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Hooked(Sound):
    __doc__ = DOC

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        model[1].register_forward_hook(lambda *_: None)
        return super().prepare(model, context)


class Drifting(Sound):
    __doc__ = DOC

    def step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            model[1].bias.add_(1)


class Exploding(Sound):
    __doc__ = DOC

    def penalty(self, model: nn.Module) -> Tensor | float:
        return float("nan")


class Opposing(Sound):
    __doc__ = DOC

    def step(self, model: nn.Module, step: int) -> None:
        model.load_state_dict(self.kept)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        model = super().prepare(model, context)
        object.__setattr__(self, "kept", {n: t.clone() for n, t in model.state_dict().items()})
        return model


class Unsettled(Sound):
    __doc__ = DOC

    def settled(self, model: nn.Module, step: int) -> bool:
        return False


class Forgetful(Sound):
    __doc__ = DOC

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        model = super().restore(model, context)
        model.register_forward_hook(lambda module, args, output: output + 1)
        return model


class Misnamed(Sound):
    __doc__ = DOC
    change: ClassVar[dict[str, Any]] = {"name": "other"}

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        return replace(super().convert(model, context), **self.change)


class Silent(Misnamed):
    __doc__ = DOC
    change: ClassVar[dict[str, Any]] = {"layers": ()}


class Boasting(Sound):
    __doc__ = DOC
    change: ClassVar[dict[str, Any]] = {"nonzero": 0}

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        report = super().convert(model, context)
        first, *rest = report.layers
        return replace(report, layers=(replace(first, **self.change), *rest))


class Misremembering(Boasting):
    __doc__ = DOC
    change: ClassVar[dict[str, Any]] = {"parameters_before": 1}


class Inventing(Boasting):
    __doc__ = DOC
    change: ClassVar[dict[str, Any]] = {"name": "layer9"}


class DriftsInTheFile(Sound):
    __doc__ = DOC

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        report = super().convert(model, context)
        model.append(DiffersWhenExported())
        return report


class DiffersWhenExported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # whichever way it is written
        return x + 1 if torch.compiler.is_exporting() or isinstance(x, fx.Proxy) else x


FAULTS: list[tuple[type[Sound], str]] = [
    (NoExample, "its docstring has no example"),
    (NoSource, "its docstring names no source"),
    (OtherRepr, r"its repr gives back OtherRepr\(sparsity=0.25\)"),
    (OtherSettings, r"its settings\(\) do not give it back"),
    (Meddling, "it changed the model"),
    (Restless, "it does not repeat itself"),
    (Undiscerning, "a selector that matches nothing raises no SelectionError"),
    (Hasty, "a selector that matches nothing changed the model"),
    (Doubling, r"outputs before and after convert: they differ by .*, above "),
    (Reshaping, r"outputs before and after convert: shapes \[4\], \[2, 2\]"),
    (Multiplying, "outputs before and after convert: 2 and 1 outputs"),
    (Hooked, "convert leaves something attached to 1"),
    (Exploding, "the loss is nan in training"),
    (Opposing, "training changes no parameter"),
    (Drifting, "the same step twice is not the same as once"),
    (Unsettled, "it has not settled when training ends"),
    (Misnamed, "its report is named 'other'"),
    (Silent, "its report lists no layer"),
    (Inventing, "its report lists 'layer9', which is not in the model"),
    (Boasting, r"0 has \(20, \d+\) \(non-zero\) parameters, reported \(20, 0\)"),
    (Misremembering, "0 had 20 parameters, reported 1"),
    (Forgetful, "a model loaded from its checkpoint has other outputs"),
    (DriftsInTheFile, "it does not export: the file computes something else than the model"),
]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Pass]], None]:
    """Lets checkpoints find one more pass, as installing its package would."""

    def add(kind: type[Pass]) -> None:
        everything = {**registry.available(), kind.name: kind}
        monkeypatch.setattr(registry, "available", lambda: everything)

    return add


@pytest.mark.parametrize(
    ("kind", "problem"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_fault_is_found(
    kind: type[Sound], problem: str, register: Callable[[type[Pass]], None]
) -> None:
    register(kind)
    make_model = (lambda: OURS) if kind in (Meddling, Hasty) else net
    with pytest.raises(AssertionError, match=problem):
        check_pass(kind(sparsity=0.5), make_model, torch.ones(2, 4), training_steps=3)


def test_sound_pass_passes(register: Callable[[type[Pass]], None]) -> None:
    register(Sound)
    check_pass(Sound(sparsity=0.5), net, torch.ones(2, 4))
