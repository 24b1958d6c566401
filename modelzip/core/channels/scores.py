"""How much each unit of channels matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.channels import importance
from modelzip.core.channels.bundles import Bundle
from modelzip.errors import DataError, ModelError
from modelzip.numerics import normalize as normal
from modelzip.numerics.normalize import NORMALIZERS


class Data(NamedTuple):
    """What a method needs besides the model: calibration batches, and labels for them."""

    inputs: bool
    labels: bool


NEEDS: Mapping[str, Data] = {
    "l1": Data(inputs=False, labels=False),
    "l2": Data(inputs=False, labels=False),
    "geometric_median": Data(inputs=False, labels=False),
    "bn_scale": Data(inputs=False, labels=False),
    "taylor": Data(inputs=True, labels=True),
    "hessian": Data(inputs=True, labels=True),
    "activation": Data(inputs=True, labels=False),
    "random": Data(inputs=False, labels=False),
}
METHODS = tuple(NEEDS)


def score(
    model: nn.Module,
    bundles: Sequence[Bundle],
    *,
    method: str,
    normalize: str = "mean",
    calibration: Sequence[Batch] = (),
    seed: int = 0,
) -> dict[Bundle, Tensor]:
    """Scores of the units of each bundle, (units,) float64; higher matters more.

    l1, l2: norms, squared for l2, of the weights that make and read a channel (Li et al. 2017,
    https://arxiv.org/abs/1608.08710, on groups as Fang et al. 2023).
    geometric_median: sum of the distances of a filter to the others of its layer (He et al. 2019,
    https://arxiv.org/abs/1811.00250).
    bn_scale: |scale| of the BatchNorm (Liu et al. 2017, https://arxiv.org/abs/1708.06519).
    taylor: the squared first-order change of the loss on each batch (Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771).
    hessian: half the sum of w^2 h, the second-order change of the loss (LeCun et al. 1989, Optimal
    Brain Damage), with h the mean squared gradient of a sample's loss: the diagonal of the
    empirical Fisher matrix (Theis et al. 2018, https://arxiv.org/abs/1801.05787). Samples are run
    one by one.
    activation: mean magnitude of what the next layers read, past any norm and activation function
    (after Hu et al. 2016, https://arxiv.org/abs/1607.03250).
    random: uniform.

    Where several layers score a unit, its score is their mean, each divided by its own mean over
    the bundle unless `normalize` is "none". A bundle in which there is nothing to score by, such
    as a BatchNorm, is left out.

    Args:
        method: one of `METHODS`; `NEEDS` says what it needs.
        normalize: one of `NORMALIZERS`, which makes the scores of different bundles comparable:
            division by the "mean", "max" or "sum" of the bundle; "standard", to between 0 and 1;
            "gaussian", to mean 0 and variance 1; "lamp", division by the sum of all scores at
            least as large (Lee et al. 2021, https://arxiv.org/abs/2010.07611, who square weights,
            as l2 does); or "none".

    Raises:
        DataError: no calibration batches or no labels for a method that needs them.
        ModelError: scores are not finite.

    >>> from modelzip.core.channels.bundles import find_bundles
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found, _ = find_bundles(model, torch.ones(1, 2), chosen=["0"])
    >>> float(score(model, found, method="l2", normalize="max")[found[0]].max())
    1.0
    """
    if method == "random":
        parts = _random(bundles, seed)
    else:
        parts = _parts(model, bundles, method, calibration)
    result = {}
    for bundle, found in parts.items():
        if not all(bool(torch.isfinite(part).all()) for part in found):
            raise ModelError(f"the weights or gradients of {bundle.name!r} hold NaN or infinity")
        if normalize != "none":  # else a layer of large weights would outweigh the others
            found = [normal.mean(part) for part in found]
        result[bundle] = NORMALIZERS[normalize](torch.stack(found).mean(0))
    return result


def _parts(
    model: nn.Module, bundles: Sequence[Bundle], method: str, calibration: Sequence[Batch]
) -> dict[Bundle, list[Tensor]]:
    """The scores of the units of each bundle by each of its layers that `method` has any for."""
    if NEEDS[method].inputs and not calibration:
        raise DataError(f"importance: {method} needs calibration batches; give at least one")
    if method == "taylor":
        slot_scores = importance.first_order(model, _labelled(method, calibration))
    elif method == "hessian":
        slot_scores = importance.curvature(model, _labelled(method, calibration))
    elif method == "activation":
        slot_scores = importance.activations(model, [batch.inputs for batch in calibration])
    elif method == "bn_scale":
        slot_scores = importance.scales(model)
    elif method == "geometric_median":
        slot_scores = importance.distances(model)
    else:
        slot_scores = importance.norms(model, power=2 if method == "l2" else 1)
    parts: dict[Bundle, list[Tensor]] = {}
    for bundle in bundles:
        for slot, channels in bundle.channels.items():
            if (values := slot_scores(slot)) is not None:
                parts.setdefault(bundle, []).append(values.cpu().double()[channels].sum(1))
    return parts


def _labelled(method: str, calibration: Sequence[Batch]) -> list[tuple[Any, Tensor]]:
    pairs = []
    for number, batch in enumerate(calibration):
        if batch.targets is None:
            raise DataError(
                f"calibration batch {number} has no labels; importance: {method} needs "
                "(inputs, targets)"
            )
        pairs.append((batch.inputs, batch.targets))
    return pairs


def _random(bundles: Sequence[Bundle], seed: int) -> dict[Bundle, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.float64
    return {b: [torch.rand(b.units, generator=generator, dtype=kind)] for b in bundles}
