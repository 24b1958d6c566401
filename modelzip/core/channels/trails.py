"""Single channels, what is tied to them along the dependency graph, and what forbids them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from modelzip.core import surgery
from modelzip.core.channels.resize import LAYERS, Slot, axes, groups, widths

_MOST_STEPS = 300_000  # channels followed from one layer on; some graphs never end
_MOST_STEPS_IN_ALL = 10_000_000  # convnext_tiny takes 400,000


class _Pair(NamedTuple):
    """A channel, and the channel of the starting layer that it hangs on."""

    idx: int
    root_idx: int


@dataclass
class Atoms:
    """Every channel of every slot as one number, and what is known to tie or forbid it."""

    first: dict[Slot, int]
    width: dict[Slot, int]
    ties: list[tuple[int, int]]
    forbidden: dict[int, str]
    reached: set[int]  # output channels on some trail already
    steps: int = 0  # channels followed so far, from all layers

    def of(self, slot: Slot) -> range:
        """The atoms of a slot, in the order of its channels."""
        return range(self.first[slot], self.first[slot] + self.width[slot])


def make_atoms(model: nn.Module, graph: Any, names: Mapping[nn.Module, str]) -> Atoms:
    """Atoms of the layers in the graph; the groups of a grouped convolution are tied inside."""
    atoms, total = Atoms({}, {}, [], {}, set()), 0
    for name, module in model.named_modules():
        if module not in graph.module2node:
            continue
        sides = widths(module)
        for side, width in sides.items():
            slot = Slot(name, side)
            atoms.first[slot], atoms.width[slot] = total, width
            total += width
        if (count := groups(module)) > 1:
            into, out = atoms.of(Slot(name, "in")), atoms.of(Slot(name, "out"))
            for group in range(count):
                head = out[group * (sides["out"] // count)]
                for channels, width in ((out, sides["out"] // count), (into, sides["in"] // count)):
                    atoms.ties += [(head, a) for a in channels[group * width : (group + 1) * width]]
    return atoms


def forbid(atoms: Atoms, model: nn.Module, chosen: Iterable[str]) -> None:
    """Forbid slots by what their layers are: not chosen, tied, parametrized, or unknown."""
    tied = {
        name.rpartition(".")[0]: " and ".join(group)
        for group in surgery.tied_parameters(model)
        for name in group
    }
    chosen = set(chosen)
    for slot in atoms.first:
        module = model.get_submodule(slot.layer)
        reason = ""
        if slot.layer in tied:
            reason = f"{tied[slot.layer]} are tied"
        elif extra := sorted(_own_tensors(module) - axes(module).keys()):
            reason = f"{slot.layer!r} has tensors of its own: {', '.join(extra)}"
        elif "weight" in axes(module) and not _plain(module):
            reason = f"{slot.layer!r} computes its weight; prune channels before that is attached"
        elif slot.side == "out" and isinstance(module, LAYERS) and atoms.width[slot] == 1:
            reason = "has one output channel"
        elif slot.side == "out" and isinstance(module, LAYERS) and slot.layer not in chosen:
            reason = f"hangs together with {slot.layer!r}, which targets and skip leave out"
        if reason:
            atoms.forbidden.update((atom, reason) for atom in atoms.of(slot))


def _own_tensors(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers} - {"num_batches_tracked"}


def _plain(module: nn.Module) -> bool:
    return not is_parametrized(module) and "weight" in module._parameters


def follow(graph: Any, start: Any, names: Mapping[nn.Module, str], atoms: Atoms) -> None:
    """Tie every channel reachable from the output channels of `start` to the one it hangs on."""
    slot = Slot(names[start.module], "out")
    own = atoms.of(slot)
    if atoms.reached.issuperset(own):  # ties run both ways, so this trail is known
        return
    fn = graph.get_pruner_of_module(start.module).prune_out_channels
    pairs = [_Pair(i, i) for i in range(len(own))]
    seen: dict[Any, set[_Pair]] = defaultdict(set)
    seen[start, fn].update(pairs)
    stack = [(start, fn, pairs)]
    steps = 0
    while stack:
        node, fn, pairs = stack.pop()
        if steps > _MOST_STEPS or atoms.steps > _MOST_STEPS_IN_ALL:
            reason = "its channels cannot be followed through the model in bounded time"
            atoms.forbidden.update((atom, reason) for atom in own)
            return
        pairs = _record(graph, node, fn, pairs, names, atoms, own)
        for dependency in node.dependencies:
            if not pairs or not dependency.is_triggered_by(fn):
                continue
            mapped = _through(graph, dependency, pairs)
            steps += len(mapped or ())
            atoms.steps += len(mapped or ())
            if mapped is None:
                name = names.get(node.module)
                op = node.grad_fn.name() if name is None else f"{name!r}"
                reason = f"cannot be followed through {op}"
                atoms.forbidden.update((own[pair.root_idx], reason) for pair in pairs)
                continue
            key = (dependency.target, dependency.handler)
            new = [_Pair(*p) for p in mapped if p not in seen[key]]
            if new:
                seen[key].update(new)
                stack.append((*key, new))


def _through(graph: Any, dependency: Any, pairs: list[_Pair]) -> list[_Pair] | None:
    """`pairs` at the other end of `dependency`; None where its index mapping fails."""
    if not graph.unmapped.isdisjoint((dependency.source, dependency.target)):
        return None
    for mapping in dependency.index_mapping:
        try:
            pairs = pairs if mapping is None else mapping(pairs)
        except Exception:  # mappings are guessed, and fail on ops they do not fit in any way
            return None
    if any(pair.root_idx is None for pair in pairs):  # repeated heads lose where they came from
        return None
    return pairs


def _record(
    graph: Any,
    node: Any,
    fn: Any,
    pairs: list[_Pair],
    names: Mapping[nn.Module, str],
    atoms: Atoms,
    own: range,
) -> list[_Pair]:
    """Tie `pairs` at this node to `own`, or forbid them; those that the trail goes on with."""
    pruner = graph.get_pruner_of_module(node.module)
    side = "in" if fn == pruner.prune_in_channels != pruner.prune_out_channels else "out"
    name = names.get(node.module)
    slot = Slot(name, side) if name is not None else None
    reason = ""
    if side == "out" and node.grad_fn in graph.ends:
        reason = "feeds the model's output"
    elif slot is not None and slot not in atoms.first:
        reason = f"cannot be pruned through {type(node.module).__name__} {name!r}"
    elif isinstance(node.module, nn.Parameter):
        reason = "is combined with a parameter that belongs to no layer"
    if reason:
        for pair in pairs:
            atoms.forbidden.setdefault(own[pair.root_idx], reason)
        return pairs
    if slot is None:
        return pairs
    channels = atoms.of(slot)
    if side == "out" and len(channels) == 1 and len(own) > 1:
        return []  # one channel broadcast over these, such as a spatial gate: not tied to them
    inside = [pair for pair in pairs if 0 <= pair.idx < len(channels)]
    for pair in inside:
        atoms.ties.append((own[pair.root_idx], channels[pair.idx]))
    if side == "out":
        atoms.reached.update(channels[pair.idx] for pair in inside)
    if len(inside) < len(pairs):
        reason = f"is traced to channels that {name!r} does not have"
        for pair in set(pairs).difference(inside):
            atoms.forbidden.setdefault(own[pair.root_idx], reason)
    return inside
