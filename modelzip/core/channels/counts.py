"""Finding the integers in modules that count the units of a bundle, such as a number of heads.

Nothing says what an attribute counts, so sets of those with a telling value are tried, small and
likely ones first, until the pruned model equals the masked one.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from modelzip.core.channels import choose
from modelzip.core.channels.attention import plain_attention
from modelzip.core.channels.attributes import integers
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.slots import Slot
from modelzip.core.channels.verify import Trial
from modelzip.core.running import call, evaluating

Counting = tuple[str, str]  # a module and its attribute
_TRIALS = 32  # sets of attributes tried of one module
_HEADS = re.compile(r"heads|(?:^|_)(?:num|n)_?heads?(?:$|_)", re.IGNORECASE)


def attributes_after(taken: Sequence[Chunk]) -> dict[str, dict[str, int]]:
    """What the attributes that count units of bundles are once the chunks `taken` are gone."""
    left: dict[Bundle, int] = {}
    for chunk in taken:
        left[chunk.bundle] = left.get(chunk.bundle, chunk.bundle.units) - len(chunk.units)
    result: dict[str, dict[str, int]] = {}
    for bundle, units in left.items():
        for (owner, attribute), each in bundle.counts.items():
            result.setdefault(owner, {})[attribute] = each * units
    return result


def with_counts(
    model: nn.Module, inputs: Any, trial: Trial, probes: Sequence[Chunk]
) -> tuple[list[Chunk], dict[Bundle, str]]:
    """`probes` with what counts the units of their bundles, and why others cannot shrink.

    What is found for one bundle is taken over for those of modules of the same class with the same
    integers: each is tried again by whoever tries all probes together.
    """
    known: dict[object, list[int] | str] = {}
    found: list[Chunk] = []
    fixed: dict[Bundle, str] = {}
    for probe in probes:
        each = _candidates(model, probe.bundle)
        alike = _alike(model, probe.bundle)
        if each and alike not in known:
            known[alike] = _search(_stages(model, inputs, trial, probe.bundle), probe, each)
        counting = known.get(alike, []) if each else []
        if isinstance(counting, str):
            fixed[probe.bundle] = counting
        elif counting:
            counts = {key: each[key] for key in (list(each)[index] for index in counting)}
            found.append(probe._replace(bundle=replace(probe.bundle, counts=counts)))
        else:
            found.append(probe)
    return found, fixed


def because(bundle: Bundle, problem: str) -> str:
    """`problem`, said as what stands in the way of a bundle that its owners lay out."""
    if not bundle.owners or bundle.counts:
        return problem
    what = "head" if bundle.channels_per_unit > 1 else "channel"
    owners = " and ".join(repr(owner) for owner in sorted(bundle.owners))
    return f"its {what} count is written into the forward of {owners or 'the model'}: {problem}"


def _candidates(model: nn.Module, bundle: Bundle) -> dict[Counting, int]:
    """Attributes of the owners that may count units, and how many each unit may count for."""
    widths = [index.numel() for index in bundle.channels.values()]
    return {
        (owner, attribute): value // bundle.units
        for owner in sorted(bundle.owners)
        for attribute, value in integers(model.get_submodule(owner)).items()
        if value > 1 and value % bundle.units == 0
        if any(width % value == 0 for width in widths)
    }


def _alike(model: nn.Module, bundle: Bundle) -> object:
    """The same for bundles of which the same attributes count the units."""
    owners = [model.get_submodule(owner) for owner in sorted(bundle.owners)]
    shapes = tuple((slot.side, tuple(index.shape)) for slot, index in bundle.channels.items())
    return tuple((type(m), tuple(sorted(integers(m).items()))) for m in owners), shapes


_Stage = tuple[Trial, str]  # of a part of the model, and its name with a dot


def _stages(model: nn.Module, inputs: Any, trial: Trial, bundle: Bundle) -> Iterator[_Stage]:
    """Trials of the module around the bundle, which is quick, and of the whole model."""
    names = [slot.layer for slot in bundle.channels] + sorted(bundle.owners)
    parts = [name.split(".") for name in names if name]
    common = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    root = ".".join(level[0] for level in common)
    module = model.get_submodule(root)
    if module is not model and "" not in names:
        given = _given_to(model, module, inputs)
        if given is not None:
            yield Trial(module, given, training=False), f"{root}."
    yield trial, ""


class _ReachedError(Exception):
    """Stops a run that is of no further use."""


def _given_to(model: nn.Module, module: nn.Module, inputs: Any) -> Any:
    """The arguments of the first call of `module`; None if it is not called, or by keywords."""
    found: list[Any] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(None if kwargs else args)
        raise _ReachedError

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with evaluating(model), plain_attention(), contextlib.suppress(_ReachedError):
            call(model, inputs)
    finally:
        handle.remove()
    return found[0] if found else None


def _search(
    stages: Iterable[_Stage], probe: Chunk, each: Mapping[Counting, int]
) -> list[int] | str:
    """Which of the attributes `each` follow the units of `probe`, or why none do."""
    order, problem = list(each), None
    for trial, prefix in stages:
        removed = {
            Slot(slot.layer.removeprefix(prefix), slot.side): index
            for slot, index in choose.removed([probe]).items()
        }
        for some in itertools.islice(_sets(probe.bundle, each), _TRIALS):
            bundle = replace(probe.bundle, counts={key: each[key] for key in some})
            after = attributes_after([probe._replace(bundle=bundle)])
            inside = {f"{owner}.".removeprefix(prefix).rstrip("."): v for owner, v in after.items()}
            found = trial.fault(removed, inside)
            if found is None:
                return [order.index(key) for key in some]
            problem = problem or found
    return because(probe.bundle, str(problem))


def _sets(bundle: Bundle, each: Mapping[Counting, int]) -> Iterator[list[Counting]]:
    """Sets of attributes to try: none, those like a number of heads, like a width, and so on."""
    widths = {index.shape[1] for index in bundle.channels.values()}  # of one unit
    counts = [key for key, value in each.items() if value == 1]
    named = [key for key in counts if _HEADS.search(key[1])]
    inner = [key for key, value in each.items() if value in widths and key not in counts]
    heads = [key for key in each if _HEADS.search(key[1])]  # more than units where they share keys
    likely = [[], named, counts, inner, named + inner, counts + inner, heads, heads + inner]
    every = (
        list(c) for size in range(1, len(each) + 1) for c in itertools.combinations(each, size)
    )
    tried: set[frozenset[Counting]] = set()
    for some in itertools.chain(likely, every):
        unique = list(dict.fromkeys(some))
        if frozenset(unique) not in tried:
            tried.add(frozenset(unique))
            yield unique
