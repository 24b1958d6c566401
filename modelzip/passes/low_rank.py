"""Layers as products of smaller ones, where that takes fewer multiplications."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from modelzip.core import checks, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.factors.geometry import KINDS, TRANSPOSED, Ranks, rank_limits, stored
from modelzip.core.factors.layers import replaced, whole_reasons
from modelzip.core.factors.plan import Goal, from_record, make_plan
from modelzip.core.selection import matches, select
from modelzip.errors import ModelError, SelectionError, SettingError, did_you_mean

_TARGETS = ("energy", "macs", "params", "ranks", "latency")


@dataclass(frozen=True, kw_only=True)
class LowRank(Pass):
    """Replace layers by two or three smaller ones in a row: their weights' truncated products.

    Linear layers and 1 x 1 convolutions become two by truncated SVD; other convolutions become
    three, 1 x 1, k x k and 1 x 1, by Tucker-2: Kim et al. 2016, https://arxiv.org/abs/1511.06530.
    What is dropped is what the outputs miss least on the calibration inputs: Wang et al. 2024,
    https://arxiv.org/abs/2403.07378. Give exactly one of the first five settings.

    Attributes:
        energy: fraction of the squared singular values that each layer keeps, in (0, 1); or
        macs: multiply-accumulates of the model to leave at most, such as "0.6x"; or
        params: parameters to leave at most, such as "0.6x". Both choose the ranks of all layers
            together, by the largest product of the energies kept; or
        ranks: the rank of some layers, by glob over their names; [in, out] for the core of a
            convolution, or one for both, as far as the layer is that wide; or
        latency: time of the file to leave at most, such as "0.7x"; a recipe settles it by timing.
        whiten: weigh errors by the inputs of each layer, which needs calibration batches; without,
            errors of the weights count alike.
        round_to: ranks that are not given are multiples of this, as runtimes compute channels in
            blocks. Layers whose factors would then save nothing are left whole.
        keep: layers to leave whole, by name, each with the reason; a recipe adds those that would
            be slower in its runtime.

    >>> import modelzip as mz
    >>> model, x = nn.Sequential(nn.Linear(64, 64)), torch.ones(1, 64)
    >>> mz.prepare(model, [mz.LowRank(ranks={"0": 8}, whiten=False)], example_inputs=x).model
    Sequential(
      (0): Factored(
        (0): Linear(in_features=64, out_features=8, bias=False)
        (1): Linear(in_features=8, out_features=64, bias=True)
      )
    )
    """

    name: ClassVar[str] = "low_rank"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    needs: ClassVar[Need] = Need.EXAMPLE_INPUTS
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (*KINDS, *TRANSPOSED)

    energy: float | None = None
    macs: str | None = None
    params: str | None = None
    ranks: Mapping[str, int | list[int]] | None = field(default=None, hash=False)
    latency: str | None = None
    whiten: bool = True
    round_to: int = 8
    keep: Mapping[str, str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        found = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(found) != 1:
            raise SettingError(
                f"low_rank needs exactly one of {', '.join(_TARGETS[:-1])} and {_TARGETS[-1]}, got "
                f"{' and '.join(found) or 'none'}"
            )
        if self.energy is not None:
            self._set("energy", checks.fraction("energy", self.energy, zero=False))
        for name in {"macs", "params", "latency"}.intersection(found):
            checks.ratio(name, getattr(self, name))
        if self.ranks is not None:
            self._set("ranks", _checked_ranks(self.ranks))
        checks.flag("whiten", self.whiten)
        checks.integer("round_to", self.round_to, low=1)
        self._set("keep", _reasons(self.keep))

    @property
    def requires(self) -> Need:
        """Calibration batches as well, to weigh errors by."""
        return self.needs | Need.CALIBRATION if self.whiten else self.needs

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Factor layers in place, once all factors are there.

        Raises:
            SelectionError: targets, skip, ranks or keep name no layer.
            ModelError: every layer stays whole, or a weight is tied, computed or not finite.
            SettingError: the target cannot be met, or is a latency.
            DataError: the calibration data make an input of a layer NaN or infinite.
        """
        if self.latency is not None:
            raise SettingError(
                f"latency={self.latency!r} is settled by timing files, which modelzip run and "
                "compress do; here give energy, macs, params or ranks"
            )
        layers, protected = self._layers(model)
        plan = make_plan(
            model,
            context.example_inputs,
            self._goal(layers),
            chosen=layers,
            protected=protected,
            batches=context.calibration if self.whiten else (),
        )
        context.record.update(
            layers={
                name: {
                    "ranks": list(plan.ranks[name]),
                    "kept": plan.kept[name],
                    "parameters": surgery.parameter_counts(layers[name])[0],
                }
                for name in plan.parts
            },
            protected=dict(plan.protected),
            macs=list(plan.macs),
        )
        return replaced(model, plan.parts)

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        """Give a freshly built `model` empty factors of the recorded ranks."""
        return replaced(model, from_record(model, context.record.get("layers")))

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        """Report the layers factored; the work was done in `prepare`."""
        there = dict(model.named_modules())
        rows = [
            row
            for name, entry in context.record["layers"].items()
            for row in _rows(name, entry, there)
        ]
        before, after = context.record["macs"]
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(rows),
            protected=context.record["protected"],
            notes=(f"multiply-accumulates: {before:,} -> {after:,}, {after / before:.2f}x",),
        )

    def _layers(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """The layers that may be factored, and why others that were selected may not."""
        chosen = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        protected = dict(self.keep or {})
        for name in protected:
            if name not in chosen:
                near = did_you_mean(name, chosen)
                raise SelectionError(f"keep: there is no layer {name!r} to factor{near}")
        layers = {name: layer for name, layer in chosen.items() if name not in protected}
        if self.ranks is not None:
            layers = {name: layers[name] for name in _named(layers, self.ranks)}
        surgery.refuse_tied(model, layers, pass_name=self.name)
        surgery.refuse_computed(layers, pass_name=self.name)
        protected |= whole_reasons(model, layers)
        layers = {name: layer for name, layer in layers.items() if name not in protected}
        for name, layer in layers.items():
            if not bool(torch.isfinite(stored(layer)).all()):
                raise ModelError(
                    f"{name or 'model'}.weight holds NaN or infinity, which has no factors"
                )
        return layers, protected

    def _goal(self, layers: Mapping[str, nn.Module]) -> Goal:
        if self.ranks is not None:
            return Goal("ranks", 0.0, given=_named(layers, self.ranks))
        if self.energy is not None:
            return Goal("energy", self.energy, round_to=self.round_to)
        kind = "macs" if self.macs is not None else "params"
        return Goal(kind, checks.ratio(kind, getattr(self, kind)), round_to=self.round_to)


def _named(
    layers: Mapping[str, nn.Module], ranks: Mapping[str, int | list[int]]
) -> dict[str, Ranks]:
    """The ranks of those of `layers` that a pattern names, the first of several."""
    found: dict[str, Ranks] = {}
    for pattern, rank in ranks.items():
        hit = [name for name, layer in layers.items() if matches(name, layer, pattern)]
        if not hit:
            raise SelectionError(
                f"ranks: {pattern!r} matches none of the {len(layers)} layers to factor"
                f"{did_you_mean(pattern, layers)}"
            )
        for name in hit:
            limits = rank_limits(layers[name])
            wanted = tuple(rank) if isinstance(rank, list) else tuple(min(rank, n) for n in limits)
            found.setdefault(name, wanted)
    return {name: found[name] for name in layers if name in found}


def _rows(
    name: str, entry: Mapping[str, Any], there: Mapping[str, nn.Module]
) -> Iterator[LayerReport]:
    """A row for each factor of a layer; the first has what the layer was."""
    factors = [n for n in there if n.rpartition(".")[0] == name and n.rpartition(".")[2].isdigit()]
    text = " and ".join(map(str, entry["ranks"]))
    kind = "rank" if len(entry["ranks"]) == 1 else "ranks"
    note = f"{name or 'the model'} at {kind} {text}, {entry['kept']:.1%} of its energy"
    for index, factor in enumerate(factors):
        count, nonzero = surgery.parameter_counts(there[factor])
        yield LayerReport(
            name=factor,
            kind=type(there[factor]).__name__,
            parameters_before=0 if index else entry["parameters"],
            parameters_after=count,
            nonzero=nonzero,
            bits=8.0 * surgery.original_tensor(there[factor]).element_size(),
            note="" if index else note,
            replaces=None if index else name,
        )


def _checked_ranks(given: object) -> dict[str, int | list[int]]:
    if not isinstance(given, Mapping) or not given or not all(isinstance(k, str) for k in given):
        raise SettingError(f"ranks must map layer names to ranks, got {given!r}")
    found: dict[str, int | list[int]] = {}
    for name, rank in given.items():
        many = isinstance(rank, (list, tuple))
        values = [checks.integer(f"ranks: {name}", r, low=1) for r in (rank if many else [rank])]
        found[name] = values if many else values[0]
    return found


def _reasons(kept: object) -> dict[str, str] | None:
    """The setting `keep` in its proper type, or SettingError; None where it is empty."""
    if kept is None or kept == {}:
        return None
    if not isinstance(kept, Mapping):
        raise SettingError(
            f"keep must map layer names to reasons, got {kept!r}; skip takes patterns"
        )
    return {str(name): str(reason) for name, reason in kept.items()}
