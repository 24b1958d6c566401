"""Feature distillation: what a student computes midway is to resemble its teacher's."""

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


def attention(features: Tensor, *, channels: int) -> Tensor:
    """Maps [N, places] of unit length: the sum of squares over the axis `channels` of each place.

    >>> attention(torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]]).sqrt(), channels=2).tolist()
    [[0.8320503234863281, 0.5547001957893372, 0.0]]
    """
    return _unit(features.float().square().sum(channels))


def feature_distance(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], *, kind: str = "attention"
) -> Tensor:
    """Squared distance of normalised features: mean over samples and modules, 0 where they agree.

    "attention" compares maps of where the energy is, and channel counts need not agree; channels
    are the axis in which the two differ, else the second of images [N, C, ...] and the last of
    sequences [N, T, C]. Zagoruyko & Komodakis 2017, https://arxiv.org/abs/1612.03928. "values"
    compares all values, as Romero et al. 2015, https://arxiv.org/abs/1412.6550.

    >>> narrow, wide = {"a": torch.eye(2)[None]}, {"a": torch.eye(2, 5)[None]}
    >>> float(feature_distance(narrow, wide))
    0.0
    """
    distances = []
    for name, taught in teacher.items():
        compared = _maps if kind == "attention" else _values
        ours, theirs = compared(name, student[name], taught)
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


def _maps(name: str, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    differing = _differing(ours, theirs)
    if len(differing) > 1:
        raise ModelError(
            f"distill_features: {_shapes(name, ours, theirs)}; they may differ in channels alone"
        )
    channels = differing[0] if differing else 1 if ours.ndim > 3 else ours.ndim - 1
    if ours.ndim < 3 or ours[0].numel() == ours.shape[channels]:
        raise ModelError(
            f"distill_features: {name} gives features {list(ours.shape)}, which have one place "
            "only and so no attention map; choose a module before the pooling"
        )
    return attention(ours, channels=channels), attention(theirs, channels=channels)


def _values(name: str, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    if _differing(ours, theirs):
        raise ModelError(
            f"distill_features: {_shapes(name, ours, theirs)}; feature_kind: attention needs no "
            "equal channels"
        )
    return _unit(ours.float()), _unit(theirs.float())


def _differing(ours: Tensor, theirs: Tensor) -> list[int]:
    """The axes, less that of samples, of different sizes; all of them where counts differ."""
    if ours.ndim != theirs.ndim:
        return list(range(1, max(ours.ndim, theirs.ndim)))
    return [axis for axis in range(1, ours.ndim) if ours.shape[axis] != theirs.shape[axis]]


def _shapes(name: str, ours: Tensor, theirs: Tensor) -> str:
    shapes = f"{list(ours.shape)} in the student and {list(theirs.shape)} in the teacher"
    return f"{name} gives features {shapes}"


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.flatten(1), dim=1)
