"""Which layers a pass works on: globs over module names, or over class names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from modelzip.errors import SelectionError

_SHOWN = 12  # layer names listed in an error


def matches(name: str, module: nn.Module, pattern: str) -> bool:
    """Whether `pattern` names this module: a glob over its name, or "type:" and a class name.

    >>> matches("layer1.0.conv1", nn.Conv2d(1, 1, 1), "layer1.*")
    True
    >>> matches("fc", nn.Linear(1, 1), "type:Conv*d")
    False
    """
    if pattern.startswith("type:"):
        classes = [c.__name__ for c in type(module).__mro__ if c not in (nn.Module, object)]
        return any(fnmatchcase(c, pattern.removeprefix("type:")) for c in classes)
    return fnmatchcase(name, pattern)


def candidates(
    model: nn.Module, *, kinds: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of everything of `kinds`, but for what is inside a parametrization.

    >>> [name for name, _ in candidates(nn.Sequential(nn.ReLU()), kinds=(nn.Module,))]
    ['', '0']
    """
    for name, module in model.named_modules():
        if isinstance(module, kinds) and "parametrizations" not in name.split("."):
            yield name, module


def select(
    model: nn.Module,
    *,
    kinds: tuple[type[nn.Module], ...],
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    where: Callable[[nn.Module], bool] = lambda module: True,
) -> dict[str, nn.Module]:
    """Modules of `kinds` that some target names and no skip does, by name, in model order.

    Modules for which `where` does not hold do not count, nor do those inside a parametrization.
    A pattern that names no such module raises SelectionError, which lists the ones there are.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2))
    >>> list(select(model, kinds=(nn.Conv2d, nn.Linear), skip=["type:Linear"]))
    ['0']
    """
    layers = {n: m for n, m in candidates(model, kinds=kinds) if where(m)}
    kind_names = "/".join(k.__name__ for k in kinds)
    if not layers:
        raise SelectionError(f"the model has no {kind_names} layer")
    for setting, patterns in (("targets", targets), ("skip", skip)):
        for pattern in patterns:
            if not any(matches(n, m, pattern) for n, m in layers.items()):
                raise SelectionError(
                    f"{setting}={[pattern]} matches none of the {len(layers)} {kind_names} "
                    f"layers: {_listing(list(layers))}"
                )
    chosen = {
        n: m
        for n, m in layers.items()
        if any(matches(n, m, p) for p in targets) and not any(matches(n, m, p) for p in skip)
    }
    if not chosen:
        raise SelectionError(
            f"targets={list(targets)} less skip={list(skip)} leaves none of the {len(layers)} "
            f"{kind_names} layers: {_listing(list(layers))}"
        )
    return chosen


def _listing(names: list[str]) -> str:
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _SHOWN - 1])}, ... {names[-1]}"
