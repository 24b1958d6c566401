"""What goes under a goal: chunks of channels, and whole blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from modelzip.core.base import Batch
from modelzip.core.channels import choose
from modelzip.core.channels.blocks import inside
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.choose import Chunk
from modelzip.core.channels.cost import Cost
from modelzip.core.channels.cuts import Candidate, Group, every
from modelzip.core.channels.resize import Slot
from modelzip.core.channels.search import Search
from modelzip.core.channels.survey import Goal, Survey
from modelzip.errors import ModelError, SettingError, did_you_mean

_TURNS = 6  # of corrections, as savings do not quite add up

Taken = tuple[Sequence[Chunk], Sequence[str]]  # chunks that go, and blocks that go whole


def taker(
    model: nn.Module, goal: Goal, there: Survey, calibration: Sequence[Batch]
) -> Callable[[], Taken]:
    """What goes under `goal`, as often as it is asked after bundles turned out to be broken."""
    if goal.widths:
        return lambda: _to_widths(goal, there)
    if goal.scope != "sensitivity":
        return lambda: (_in_order(goal, there), ())
    return lambda: _by_sensitivity(goal, there, search(model, goal, there, calibration))


def search(model: nn.Module, goal: Goal, there: Survey, calibration: Sequence[Batch]) -> Search:
    """Every cut that `goal` allows, tried on the calibration batches."""
    _refuse_nothing(there.scores or there.blocks, there)
    return Search(
        model,
        there.scores,
        calibration,
        round_to=goal.round_to,
        max_sparsity=goal.max_sparsity,
        blocks=there.blocks,
    )


def _refuse_nothing(ordered: object, there: Survey) -> None:
    if not ordered:
        raise ModelError(f"prune_channels can prune none of the layers: {there.protection}")


def _in_order(goal: Goal, there: Survey) -> Sequence[Chunk]:
    ordered = choose.chunks(
        there.scores, scope=goal.scope, round_to=goal.round_to, max_sparsity=goal.max_sparsity
    )
    _refuse_nothing(ordered, there)
    if goal.sparsity is not None:
        taken: Sequence[Chunk] | None = choose.by_sparsity(ordered, goal.sparsity, scope=goal.scope)
    else:
        taken = choose.by_cost(ordered, lambda chunks: _excess(goal, there, chunks, ()))
    if taken is None:
        raise _unreachable(goal, there, ordered, ())
    if not taken:
        raise _nothing(goal)
    return taken


def _excess(goal: Goal, there: Survey, chunks: Sequence[Chunk], dropped: Sequence[str]) -> float:
    """The largest of what is left by what may be left; at most 1 where the goal is met."""
    found = left(goal, there.cost, chunks, dropped)
    return max(each / goal.ratios[kind] for kind, each in found.items())


def left(
    goal: Goal, cost: Cost, chunks: Sequence[Chunk], dropped: Sequence[str]
) -> dict[str, float]:
    """What is left of the "macs" and "params" that `goal` names, as fractions."""
    counts = choose.counts(chunks)
    found = {}
    for kind in goal.ratios:
        if kind != "latency":
            count = cost.macs if kind == "macs" else cost.params
            found[kind] = count(counts, dropped=dropped) / count({})
    return found


def _nothing(goal: Goal) -> SettingError:
    return SettingError(
        f"{goal} removes no channel with round_to={goal.round_to}; ask for more, or lower round_to"
    )


def _unreachable(
    goal: Goal, there: Survey, chunks: Sequence[Chunk], dropped: Sequence[str]
) -> SettingError:
    least = [
        f"{math.ceil(1000 * each) / 1000:.3f}x"
        for each in left(goal, there.cost, chunks, dropped).values()
    ]
    return SettingError(
        f"{goal} cannot be met: {' and '.join(least)} is the least with "
        f"round_to={goal.round_to}, max_sparsity={goal.max_sparsity:g} and these layers "
        f"protected: {there.protection}"
    )


def _by_sensitivity(goal: Goal, there: Survey, found: Search) -> Taken:
    """The cheapest cuts; as savings do not quite add up, more or fewer are taken until it fits."""
    alone = {
        (cut.layer, cut.width): [
            1 - each for each in left(goal, there.cost, *split([cut])).values()
        ]
        for cut in every(found.groups)
    }
    aims = list(goal.ratios.values())
    needed = [1 - aim for aim in aims]
    best: list[Candidate] | None = None
    for _ in range(_TURNS):
        cuts = found.choose(lambda cut: alone[cut.layer, cut.width], needed=needed)
        if cuts is None:
            break
        reached = list(left(goal, there.cost, *split(cuts)).values())
        if all(each <= aim + 1e-9 for each, aim in zip(reached, aims, strict=True)):
            best = cuts if best is None or divergence(cuts) < divergence(best) else best
        needed = [n + each - aim for n, each, aim in zip(needed, reached, aims, strict=True)]
    if best is None:
        raise _unreachable(goal, there, *split(largest(found.groups)))
    if not best:
        raise _nothing(goal)
    return split(best)


def divergence(cuts: Sequence[Candidate]) -> float:
    """What the cuts cost, one by one."""
    return sum(cut.cost.kl for cut in cuts)


def largest(groups: Sequence[Group]) -> list[Candidate]:
    """The largest cut of each group."""
    return [
        cut
        for group in groups
        for cut in ([group.block] if group.block else [b[-1] for b in group.bundles])
    ]


def split(cuts: Sequence[Candidate]) -> Taken:
    """The chunks of channels and the whole blocks among `cuts`."""
    return (
        [cut.chunk for cut in cuts if cut.chunk is not None],
        [cut.layer for cut in cuts if cut.chunk is None],
    )


def _to_widths(goal: Goal, there: Survey) -> Taken:
    """The chunks that leave the widths asked for."""
    dropped = [name for name, width in goal.widths.items() if width == 0]
    for name in dropped:
        if name not in there.blocks:
            raise SettingError(
                f"widths: {name!r} cannot go whole: only residual blocks can, here "
                f"{', '.join(there.blocks) or 'none'}{did_you_mean(name, there.blocks)}"
            )
    left: dict[Bundle, int] = {}
    for name, width in goal.widths.items():
        if width == 0:
            continue
        if block := next((b for b in dropped if inside(name, b)), None):
            raise SettingError(
                f"widths: {name!r} lies in {block!r}, which goes whole; leave it out"
            )
        bundle, units = _units_left(name, width, there)
        if left.setdefault(bundle, units) != units:
            raise SettingError(
                f"widths: {name!r} hangs together with {bundle.name!r}, which is given another "
                "width; give one of them"
            )
    chunks = [
        Chunk(bundle, there.scores[bundle].argsort(stable=True)[: bundle.units - units], (0.0, 0.0))
        for bundle, units in left.items()
        if units < bundle.units
    ]
    if not chunks and not dropped:
        raise SettingError("widths removes no channel; give a layer fewer than it has")
    return chunks, dropped


def _units_left(name: str, width: int, there: Survey) -> tuple[Bundle, int]:
    """The bundle of the layer `name`, and its units when that layer has `width` channels."""
    slot = Slot(name, "out")
    bundle = next((bundle for bundle in there.scores if slot in bundle.channels), None)
    if bundle is None:
        reason = there.protection.reasons(set()).get(name)
        known = [bundle.name for bundle in there.scores]
        if reason is None:
            reason = f"is no layer that can be narrowed{did_you_mean(name, known)}"
        raise SettingError(f"widths: {name!r} {reason}")
    each = bundle.channels[slot].shape[1]
    units, rest = divmod(width, each)
    if rest or units > bundle.units:
        raise SettingError(
            f"widths: {name!r} can have a multiple of {each} channels up to "
            f"{each * bundle.units}, got {width}"
        )
    return bundle, units
