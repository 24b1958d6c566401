"""How much each unit of channels matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.resize import LAYERS, Slot, axes
from modelzip.core.running import call, tensors
from modelzip.errors import DataError, ModelError

METHODS = ("l1", "l2", "bn_scale", "taylor", "random")


def score(
    model: nn.Module,
    bundles: Sequence[Bundle],
    *,
    method: str,
    calibration: Sequence[Batch] = (),
    seed: int = 0,
) -> dict[Bundle, Tensor]:
    """Scores of the units of each bundle, (units,) float64 with mean 1; higher matters more.

    l1, l2: norms of the weights that make and read a channel, each layer's divided by their mean,
    averaged over the layers (Li et al. 2017, https://arxiv.org/abs/1608.08710, on groups as Fang
    et al. 2023). bn_scale: |scale| of the BatchNorm (Liu et al. 2017, https://arxiv.org/abs/1708.06519);
    bundles without one are left out. taylor: the squared first-order change of the loss
    (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771). random: uniform.

    Raises:
        DataError: taylor without labels.
        ModelError: scores are not finite.
    """
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        kind = torch.float64
        return {b: torch.rand(b.units, generator=generator, dtype=kind) for b in bundles}
    modules = dict(model.named_modules())
    slot_scores = _taylor(model, calibration) if method == "taylor" else _norms(modules, method)
    result = {}
    for bundle in bundles:
        parts = []
        for slot, channels in bundle.channels.items():
            values = slot_scores(slot)
            if values is not None:
                part = values.cpu().double()[channels].sum(1)
                parts.append(part / part.mean().clamp(min=1e-30))
        if not parts:
            continue
        result[bundle] = torch.stack(parts).mean(0)
        if not bool(torch.isfinite(result[bundle]).all()):
            raise ModelError(f"the weights or gradients of {bundle.name!r} hold NaN or infinity")
    return result


def _norms(modules: dict[str, nn.Module], method: str) -> Callable[[Slot], Tensor | None]:
    power = 2 if method == "l2" else 1

    def slot_scores(slot: Slot) -> Tensor | None:
        module = modules[slot.layer]
        if isinstance(module, _BatchNorm):
            return module.weight.detach().abs().pow(power) if module.affine else None
        if method == "bn_scale" or not isinstance(module, LAYERS):
            return None
        return _along(module, slot, module.weight.detach().double().abs().pow(power))

    return slot_scores


def _along(module: nn.Module, slot: Slot, values: Tensor) -> Tensor | None:
    """`values`, shaped as the weight, summed over all axes but the slot's own."""
    along = axes(module)["weight"]
    return (
        values.movedim(along.index(slot.side), 0).flatten(1).sum(1) if slot.side in along else None
    )


def _taylor(model: nn.Module, calibration: Sequence[Batch]) -> Callable[[Slot], Tensor | None]:
    model = surgery.clone(model).eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    totals: dict[Slot, Tensor] = {}
    for number, batch in enumerate(calibration):
        if batch.targets is None:
            raise DataError(
                f"calibration batch {number} has no labels; importance: taylor needs "
                "(inputs, targets)"
            )
        model.zero_grad()
        with torch.enable_grad():
            logits = next(tensors(call(model, batch.inputs)))
            F.cross_entropy(logits, batch.targets.to(logits.device)).backward()  # type: ignore[no-untyped-call]
        for name, layer in layers.items():
            if layer.weight.grad is None:
                continue
            change = (layer.weight.detach() * layer.weight.grad).double()
            for side in ("out", "in"):
                slot = Slot(name, side)
                if (part := _along(layer, slot, change)) is not None:
                    totals[slot] = totals.get(slot, torch.zeros_like(part)) + part.square()
    return totals.get
