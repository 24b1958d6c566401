"""Removing whole channels, so that the model is smaller and faster in any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from modelzip.core import checks
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.channels.attributes import attributes_from_record, attributes_to_record
from modelzip.core.channels.blocks import drop
from modelzip.core.channels.choice import search
from modelzip.core.channels.plan import ChannelPlan, make_plan
from modelzip.core.channels.resize import PRUNABLE, from_record, resize, to_record
from modelzip.core.channels.scores import METHODS, NEEDS
from modelzip.core.channels.search import Search
from modelzip.core.channels.survey import Goal, Survey, survey
from modelzip.core.selection import select
from modelzip.core.surgery import original_tensor
from modelzip.errors import SettingError
from modelzip.numerics.normalize import NORMALIZERS

_GOALS = ("sparsity", "widths", "macs", "params", "latency")
_RATIOS = {"macs", "params", "latency"}


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove the least important output channels, with everything that hangs on them.

    What hangs together, as in the groups of Fang et al. 2023 (https://arxiv.org/abs/2301.12900),
    is found by following channels through one run of the model. Nothing is believed: the pruned
    model has been run and equals the original with the channels masked, or the layers concerned are
    protected. The model's outputs, tied weights, and channels that a LayerNorm or GroupNorm spans
    are kept. How much goes is said by sparsity, by widths, or by one or more of macs, params and
    latency, which are then all met.

    Attributes:
        sparsity: fraction of the channels of prunable layers to remove, in (0, 1).
        macs: multiply-accumulates to leave at most, such as "0.5x" of the original's.
        params: parameters to leave at most, such as "0.5x".
        latency: time to leave at most, such as "0.5x" of the original file's, later passes
            included. Widths are measured on this machine, in a recipe or by `compress`.
        widths: channels to leave of each layer by name, 0 for a residual block that goes whole.
        blocks: whole residual blocks may go too; with latency, or with scope "sensitivity".
        importance: of a channel: "l1" or "l2" norm of the weights around it, "geometric_median",
            "bn_scale", "activation", "taylor", "hessian" or "random"; some need calibration.
        normalize: how the importance of channels is made comparable between layers: "mean", "max",
            "sum", "standard", "gaussian", "lamp" or "none".
        scope: rank channels of all layers together ("global"), shrink all layers alike ("layer"),
            or cut where the answers on the calibration data change least ("sensitivity").
        round_to: widths are left at multiples of this: runtimes compute channels in blocks of 8
            or 16, and odd widths can be slower than the dense model.
        max_sparsity: no layer loses more than this fraction of its channels.
        targets: layers whose output channels may go; their inputs follow the layer before.

    >>> import modelzip as mz
    >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
    >>> prune = mz.PruneChannels(sparsity=0.5)
    >>> mz.prepare(model, [prune], example_inputs=torch.ones(1, 3, 8, 8)).convert()
    Sequential(
      (0): Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
      (2): Conv2d(16, 8, kernel_size=(3, 3), stride=(1, 1))
    )
    """

    name: ClassVar[str] = "prune_channels"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    needs: ClassVar[Need] = Need.EXAMPLE_INPUTS
    kinds: ClassVar[tuple[type[nn.Module], ...]] = PRUNABLE

    sparsity: float | None = None
    macs: str | None = None
    params: str | None = None
    latency: str | None = None
    widths: Mapping[str, int] | None = field(default=None, hash=False)
    blocks: bool = False
    importance: str = "l1"
    normalize: str = "mean"
    scope: str = "global"
    round_to: int = 8
    max_sparsity: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in _GOALS if getattr(self, n) is not None]
        if not given or (len(given) > 1 and not _RATIOS.issuperset(given)):
            raise SettingError(
                "prune_channels needs sparsity, or widths, or one or more of macs, params and "
                f"latency, got {' and '.join(given) or 'none'}"
            )
        if self.sparsity is not None:
            self._set("sparsity", checks.fraction("sparsity", self.sparsity, zero=False))
        if self.widths is not None:
            self._set("widths", checks.counts("widths", self.widths, low=0))
        for name in _RATIOS.intersection(given):
            checks.ratio(name, getattr(self, name))
        checks.choice("importance", self.importance, METHODS)
        checks.choice("normalize", self.normalize, NORMALIZERS)
        checks.choice("scope", self.scope, ("global", "layer", "sensitivity"))
        checks.integer("round_to", self.round_to, low=1)
        limit = checks.fraction("max_sparsity", self.max_sparsity, zero=False)
        self._set("max_sparsity", limit)
        checks.flag("blocks", self.blocks)
        if self.scope == "sensitivity" and given[0] in ("sparsity", "widths"):
            raise SettingError(f"scope='sensitivity' needs macs, params or latency, got {given[0]}")
        if self.blocks and self.latency is None and self.scope != "sensitivity":
            raise SettingError("blocks=True needs latency, or scope='sensitivity'")

    @property
    def requires(self) -> Need:
        """Calibration batches as well where something is measured on them."""
        calibration = self.scope == "sensitivity" or NEEDS[self.importance].inputs
        return self.needs | Need.CALIBRATION if calibration else self.needs

    def plan(self, model: nn.Module, context: Context) -> ChannelPlan:
        """What `prepare` would do; `model` stays as it is.

        Raises:
            SelectionError: targets and skip leave no layer.
            ModelError: the model does not run or cannot be followed, or every layer is protected.
            SettingError: the target cannot be met, or rounding leaves nothing to remove; or it is
                a latency.
            DataError: the importance needs labels, and a calibration batch has none.
        """
        if self.latency is not None:
            raise SettingError(
                "latency is met by timing files, which a recipe and modelzip.compress do; here "
                "give macs, params, sparsity or widths"
            )
        return make_plan(model, context.example_inputs, self._goal(), **self._how(model, context))

    def search(self, model: nn.Module, context: Context) -> tuple[Goal, Survey, Search]:
        """The goal, what could be cut, and what that costs: for settling `latency`."""
        goal = self._goal()
        there = survey(model, context.example_inputs, goal, **self._how(model, context))
        return goal, there, search(model, goal, there, context.calibration)

    def _goal(self) -> Goal:
        return Goal(
            sparsity=self.sparsity,
            ratios={
                name: checks.ratio(name, getattr(self, name))
                for name in _GOALS
                if name in _RATIOS and getattr(self, name) is not None
            },
            widths=self.widths or {},
            scope=self.scope,
            round_to=1 if self.widths else self.round_to,
            max_sparsity=self.max_sparsity,
            blocks=self.blocks,
        )

    def _how(self, model: nn.Module, context: Context) -> dict[str, Any]:
        return {
            "chosen": select(model, kinds=self.kinds, targets=self.targets, skip=self.skip),
            "importance": self.importance,
            "normalize": self.normalize,
            "calibration": context.calibration,
            "seed": context.seed,
        }

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Narrow `model` in place, once the plan has been tried on copies; see `plan`."""
        plan = self.plan(model, context)
        context.record.update(
            layers=to_record(model, plan.kept),
            attributes=attributes_to_record(model, plan.attributes),
            dropped={name: _parameters(model.get_submodule(name)) for name in plan.dropped},
            protected=dict(plan.protected),
            macs=list(plan.macs),
            params=list(plan.params),
        )
        drop(model, plan.dropped)
        resize(model, plan.kept, plan.attributes)
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        """Narrow a freshly built `model` to the recorded widths."""
        dropped = context.record.get("dropped", {})
        drop(model, dropped)
        if context.record.get("layers") or not dropped:
            attributes = attributes_from_record(model, context.record.get("attributes", {}))
            resize(model, from_record(model, context.record.get("layers")), attributes)
        return model

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        """Report the layers narrowed; the work was done in `prepare`."""
        modules = dict(model.named_modules())
        layers = tuple(
            _layer_report(name, modules[name], entry)
            for name, entry in context.record["layers"].items()
            if name in modules  # a later pass may have folded a BatchNorm away
        )
        gone = tuple(
            LayerReport(
                name=name,
                kind="block",
                parameters_before=count,
                parameters_after=0,
                nonzero=0,
                note="the block is gone",
            )
            for name, count in context.record.get("dropped", {}).items()
        )
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=layers + gone,
            protected=context.record.get("protected", {}),
        )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _layer_report(name: str, module: nn.Module, entry: Mapping[str, Any]) -> LayerReport:
    tensors = {n: original_tensor(module, tensor=n) for n in _parameter_names(module)}
    notes = []
    for side, word in (("out", "channels"), ("in", "channels in")):
        if isinstance(change := entry.get(side), dict):
            notes.append(f"{change['of']} -> {len(change['kept'])} {word}")
    with torch.no_grad():
        nonzero = sum(int(torch.count_nonzero(getattr(module, n))) for n in tensors)
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        parameters_before=entry["parameters"],
        parameters_after=sum(t.numel() for t in tensors.values()),
        nonzero=nonzero,
        bits=8.0 * max((t.element_size() for t in tensors.values()), default=4),
        note=", ".join(notes),
    )


def _parameter_names(module: nn.Module) -> list[str]:
    computed = list(cast(nn.ModuleDict, module.parametrizations)) if is_parametrized(module) else []
    return [n for n, p in module._parameters.items() if p is not None] + computed
