"""Fewer samples: without duplicates, or a coreset that a model chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from modelzip.core import checks
from modelzip.core.running import call, evaluating, tensors
from modelzip.data.arrays import ArrayDataset
from modelzip.data.base import Augmented, length, loader
from modelzip.data.pipeline import Pipeline
from modelzip.errors import DataError, SettingError

CHOICES = ("loss", "embedding", "random")
NEAR = 0.98
_SIDE = 16  # of the small images that are compared
_HASH_BITS = 32  # of 256 in which near duplicates may differ
_BATCH = 500


def without_duplicates(dataset: Dataset[Any], *, near: float | None = None) -> Dataset[Any]:
    """`dataset` without samples that an earlier one repeats, inputs and label; order is kept.

    The same inputs under another label stay, since one of the labels would be lost.

    Args:
        near: also leave out images whose pixels, at 16 x 16, correlate by at least this much with
            an earlier one of their label, such as 0.98, where at most 32 bits of their 256-bit
            difference hashes differ (dHash, Krawetz 2013). Time grows with the square of a class.

    Raises:
        DataError: samples change from epoch to epoch, or with `near` are not images of one size.
        SettingError: `near` is not in (0, 1].

    >>> data = ArrayDataset(torch.tensor([[1.0], [2.0], [1.0], [1.0]]), torch.tensor([0, 0, 0, 1]))
    >>> [(float(x), y) for x, y in without_duplicates(data)]
    [(1.0, 0), (2.0, 0), (1.0, 1)]
    """
    if near is not None:
        checks.fraction("near", near, zero=False, one=True)
    still = unchanging(dataset)
    kept = _distinct(still)
    if near is not None:
        kept = _without_near(Subset(still, kept), kept, near)
    return take(dataset, kept)


def coreset(
    models: nn.Module | Sequence[nn.Module],
    dataset: Dataset[Any],
    fraction: float,
    *,
    by: str = "loss",
    skip: float = 0.0,
    seed: int = 0,
) -> Dataset[Any]:
    """The `fraction` of each class that matters most to a model; order is kept.

    Args:
        models: that look at the un-augmented samples; several are averaged. For "loss" those of
            a few epochs of training say most, for "embedding" a trained one.
        by: "loss" keeps what is hardest, by the norm of the error, softmax less one-hot label
            (EL2N; Paul et al. 2021, https://arxiv.org/abs/2107.07075). "embedding" spreads over
            what the last linear layer sees, each time taking the sample that is farthest from all
            those taken (k-center greedy; Sener & Savarese 2018, https://arxiv.org/abs/1708.00489).
            "random" is what both should beat.
        skip: with "loss", leave out this fraction of a class first, its hardest, as wrong labels
            are among them (Paul et al., section 4).
        seed: of "random".

    Raises:
        DataError: the dataset is empty, or its samples change from epoch to epoch.
        SettingError: a setting is wrong, or `fraction` and `skip` are more than all.

    >>> from modelzip.data import digits
    >>> from modelzip.zoo import digits_cnn
    >>> len(coreset(digits_cnn(width=4), digits(limit=100).train, 0.5))  # rounded in each class
    52
    """
    checks.fraction("fraction", fraction, zero=False, one=True)
    checks.choice("by", by, CHOICES)
    checks.fraction("skip", skip, one=True)
    if fraction + skip > 1:
        raise SettingError(f"fraction {fraction} and skip {skip} are together more than all")
    still = unchanging(dataset)
    models = [models] if isinstance(models, nn.Module) else list(models)
    targets, found = _seen(models, still, by=by)
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in sorted(set(targets.tolist())):
        (here,) = torch.where(targets == label)
        count = max(1, round(fraction * len(here)))
        if by == "random":
            chosen = torch.randperm(len(here), generator=generator)[:count]
        elif by == "loss":
            start = min(round(skip * len(here)), len(here) - count)
            chosen = found[here].argsort(descending=True, stable=True)[start : start + count]
        else:
            chosen = k_center_greedy(found[here], count)
        kept.append(here[chosen])
    return take(dataset, torch.cat(kept).sort().values.tolist())


def k_center_greedy(points: Tensor, count: int) -> Tensor:
    """Indices of `count` of `points` [N, D], each the farthest from all before it: [count].

    The first is the one nearest the mean.

    >>> k_center_greedy(torch.tensor([[0.0], [1.0], [9.0], [4.0]]), 3).tolist()
    [3, 2, 0]
    """
    checks.integer("count", count, low=1, high=len(points))
    chosen = [int((points - points.mean(dim=0)).square().sum(dim=1).argmin())]
    squares = points.square().sum(dim=1)
    nearest = torch.full((len(points),), torch.inf)
    while len(chosen) < count:
        last = chosen[-1]
        nearest = nearest.minimum(squares - 2 * (points @ points[last]) + squares[last])
        nearest[last] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def unchanging(dataset: Dataset[Any]) -> Dataset[Any]:
    """`dataset` without augmentation; DataError where only itself knows how to leave it out."""
    if isinstance(dataset, Subset):
        return Subset(unchanging(dataset.dataset), dataset.indices)
    if isinstance(dataset, Pipeline):
        return dataset.plain()
    if isinstance(dataset, Augmented):
        raise DataError(
            f"{type(dataset).__name__} augments its samples itself, so that each epoch has others; "
            "only what an ArrayDataset or PackedArrays holds before that can be chosen and kept"
        )
    return dataset


def take(dataset: Dataset[Any], indices: Sequence[int]) -> Dataset[Any]:
    """These samples of `dataset` alone, still augmented where it is an `ArrayDataset`."""
    return dataset.take(indices) if isinstance(dataset, ArrayDataset) else Subset(dataset, indices)


def _distinct(dataset: Dataset[Any]) -> list[int]:
    seen, kept = set(), []
    for index, (inputs, label) in enumerate(_items(dataset)):
        digest = hashlib.blake2b(repr(int(label)).encode(), digest_size=16)
        parts = [inputs] if isinstance(inputs, bytes) else list(tensors(inputs))
        for part in parts:
            if isinstance(part, Tensor):
                digest.update(f"{part.dtype} {list(part.shape)}".encode())
                part = part.contiguous().numpy().tobytes()
            digest.update(part)
        if digest.digest() not in seen:
            seen.add(digest.digest())
            kept.append(index)
    return kept


def _items(dataset: Dataset[Any]) -> Iterator[tuple[Any, Any]]:
    """Every sample; of what is held in memory as it is held."""
    if isinstance(dataset, ArrayDataset):
        yield from zip(dataset.inputs, dataset.targets.tolist(), strict=True)
        return
    for index in range(length(dataset)):
        yield dataset[index]


def _without_near(dataset: Dataset[Any], numbers: Sequence[int], near: float) -> list[int]:
    """Those of `numbers`, of the samples in `dataset`, that are like no earlier one."""
    hashes, rows, labels = [], [], []
    for index, (inputs, label) in enumerate(_items(dataset)):
        if not isinstance(inputs, Tensor) or inputs.ndim != 3:
            raise DataError(f"near compares images [C, H, W], and sample {index} is none")
        hashes.append(_difference_hash(inputs))
        rows.append(_small(inputs))
        labels.append(int(label))
    if len({row.shape for row in rows}) > 1:
        raise DataError("near compares images of as many channels, and these have different ones")
    signs, pixels = torch.stack(hashes), torch.stack(rows)
    kept: list[int] = []
    targets = torch.tensor(labels)
    for label in sorted(set(targets.tolist())):
        (here,) = torch.where(targets == label)
        kept += here[_unlike(signs[here], pixels[here], near)].tolist()
    return sorted(numbers[index] for index in kept)


def _unlike(signs: Tensor, pixels: Tensor, near: float) -> Tensor:
    """Bool [N]: samples that are not like an earlier one that is kept."""
    keep = torch.ones(len(signs), dtype=torch.bool)
    most = signs.shape[1] - 2 * _HASH_BITS
    for start in range(0, len(signs), _BATCH):
        stop = min(start + _BATCH, len(signs))
        like = (signs[start:stop] @ signs[:stop].T >= most) & (
            pixels[start:stop] @ pixels[:stop].T >= near - 1e-6
        )
        for row, other in like.tril(start - 1).nonzero().tolist():  # row by row
            if keep[other]:
                keep[start + row] = False
    return keep


def _difference_hash(image: Tensor) -> Tensor:
    """Where an image [C, H, W] becomes brighter to the right, 1, else -1: [256]."""
    grey = image.float().mean(dim=0)[None, None]
    small = F.interpolate(grey, size=(_SIDE, _SIDE + 1), mode="area")
    return (small.diff(dim=-1) > 0).flatten().float() * 2 - 1


def _small(image: Tensor) -> Tensor:
    """An image [C, H, W] at 16 x 16, less its mean, of length 1."""
    small = F.interpolate(image[None].float(), size=(_SIDE, _SIDE), mode="area").flatten()
    return F.normalize(small - small.mean(), dim=0)


def _seen(models: list[nn.Module], dataset: Dataset[Any], *, by: str) -> tuple[Tensor, Tensor]:
    """Labels [N], and what `by` goes by: EL2N [N], embeddings [N, D], or nothing."""
    targets = []
    found: list[Tensor] = []
    for inputs, labels in loader(dataset, batch_size=_BATCH):
        targets.append(labels)
        if by == "loss":
            found.append(torch.stack([_error(model, inputs, labels) for model in models]).mean(0))
        elif by == "embedding":
            found.append(torch.cat([_embedding(model, inputs) for model in models], dim=1))
    return torch.cat(targets), torch.cat(found) if found else torch.empty(0)


def _error(model: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    with evaluating(model):
        chances = call(model, inputs).softmax(dim=1)
    chances[torch.arange(len(labels)), labels] -= 1
    norms: Tensor = chances.norm(dim=1)
    return norms


def _embedding(model: nn.Module, inputs: Any) -> Tensor:
    """What the last linear layer takes, or the outputs where there is none: [N, D]."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    taken: list[Tensor] = []
    handle = None
    if linear:
        handle = linear[-1].register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    try:
        with evaluating(model):
            outputs = call(model, inputs)
    finally:
        if handle is not None:
            handle.remove()
    return (taken[-1] if taken else outputs).flatten(1).float()
