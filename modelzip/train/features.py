"""Feature distillation: a student looks where its teacher looks, whatever its widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core.running import tensors
from modelzip.core.selection import candidates, matches
from modelzip.errors import ModelError, SettingError, did_you_mean

Features = dict[str, Tensor]


def feature_names(
    student: nn.Module, teacher: nn.Module, patterns: Sequence[str]
) -> tuple[str, ...]:
    """Modules of both models that a pattern names; SettingError where one names none.

    >>> student, teacher = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 8))
    >>> feature_names(student, teacher, ["type:Linear"])
    ('0',)
    """
    there = {name for name, _ in candidates(student, kinds=(nn.Module,)) if name}
    both = {n: m for n, m in candidates(teacher, kinds=(nn.Module,)) if n in there}
    for pattern in patterns:
        if not any(matches(n, m, pattern) for n, m in both.items()):
            raise SettingError(
                f"distill_features={[pattern]} matches no module that teacher and student both "
                f"have{did_you_mean(pattern, both)}"
            )
    return tuple(n for n, m in both.items() if any(matches(n, m, p) for p in patterns))


@contextmanager
def recording(model: nn.Module | None, names: Sequence[str]) -> Iterator[Features]:
    """Inside, a dict that each forward pass fills with the named modules' first outputs.

    >>> model = nn.Sequential(nn.ReLU())
    >>> with recording(model, ["0"]) as found:
    ...     _ = model(torch.tensor([-1.0, 2.0]))
    ...     found
    {'0': tensor([0., 2.])}
    """
    found: Features = {}

    def keep(name: str, output: Any) -> None:
        first = next(tensors(output), None)
        if first is not None:
            found[name] = first

    handles = []
    try:
        for name in names if model is not None else ():
            module = model.get_submodule(name)  # type: ignore[union-attr]
            handles.append(module.register_forward_hook(lambda _m, _i, out, n=name: keep(n, out)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
        found.clear()  # they hold the graph of the last step


def attention(features: Tensor) -> Tensor:
    """Maps [N, places] of unit length: the sum of squares over channels at each place.

    Channels are the second axis of images [N, C, ...], and the last of sequences [N, T, C].

    >>> attention(torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]]).sqrt()).tolist()
    [[0.8320503234863281, 0.5547001957893372, 0.0]]
    """
    axis = 1 if features.ndim > 3 else -1
    return F.normalize(features.float().square().sum(axis).flatten(1), dim=1)


def attention_transfer(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Squared distance of the attention maps, from 0 to 2: mean over samples and modules.

    Channel counts need not agree. Zagoruyko & Komodakis 2017, https://arxiv.org/abs/1612.03928.

    >>> found = attention_transfer({"a": torch.eye(2)[None]}, {"a": torch.eye(2, 5)[None]})
    >>> float(found)
    0.0
    """
    distances = []
    for name, taught in teacher.items():
        ours, theirs = _map(name, student[name]), _map(name, taught)
        if ours.shape != theirs.shape:
            raise ModelError(
                f"distill_features: {name} has {ours.shape[1]} places in the student and "
                f"{theirs.shape[1]} in the teacher; choose modules of equal height and width"
            )
        distances.append((ours - theirs).square().sum(dim=1).mean())
    return torch.stack(distances).mean()


def check_ran(names: Sequence[str], found: Mapping[str, Tensor], whose: str) -> None:
    """ModelError where a named module gave no features."""
    for name in names:
        if name not in found:
            raise ModelError(
                f"distill_features: {name} did not run in the {whose}, or gave no tensor; "
                "in a traced model only the innermost modules run"
            )


def _map(name: str, features: Tensor) -> Tensor:
    if features.ndim < 3 or features[0].numel() == features.shape[1 if features.ndim > 3 else -1]:
        raise ModelError(
            f"distill_features: {name} gives features {list(features.shape)}, which have one place "
            "only and so no attention map; choose a module before the pooling"
        )
    return attention(features)
