"""Which channels hang together, read off Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al. 2023, https://arxiv.org/abs/2301.12900) says which channels of one layer
are tied to which of the next. Here single channels are the vertices: those tied to each other form
a unit, which can only be removed as a whole, and units of the same make-up form a bundle, whose
units compete. Nothing here is trusted: `verify` runs what comes of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.channels.dependency import dependency_graph
from modelzip.core.channels.resize import LAYERS, Slot, axes, groups, widths

_MOST_STEPS = 1_000_000  # channels followed from one layer on; some graphs never end


@dataclass(frozen=True, eq=False)
class Bundle:
    """Interchangeable units. `channels[slot]` is (units, channels a unit has there), int64.

    The first slot is the output of the layer that gives the bundle its name.
    """

    channels: Mapping[Slot, Tensor]

    @property
    def name(self) -> str:
        """The first layer whose output channels these are."""
        return next(iter(self.channels)).layer

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(next(iter(self.channels.values())))

    @property
    def channels_per_unit(self) -> int:
        """Output channels of the first layer that go with one unit."""
        return next(iter(self.channels.values())).shape[1]


class _Pair(NamedTuple):
    """A channel, and the channel of the starting layer that it hangs on."""

    idx: int
    root_idx: int


@dataclass
class _Atoms:
    """Every channel of every slot as one number, and what is known to tie or forbid it."""

    first: dict[Slot, int]
    width: dict[Slot, int]
    ties: list[tuple[int, int]]
    forbidden: dict[int, str]

    def of(self, slot: Slot) -> range:
        return range(self.first[slot], self.first[slot] + self.width[slot])


def find_bundles(
    model: nn.Module, inputs: Any, *, chosen: Iterable[str]
) -> tuple[list[Bundle], dict[str, str]]:
    """Bundles of the output channels of the layers `chosen`, and why other chosen layers have none.

    Args:
        inputs: one batch of inputs as `call` takes them.

    Raises:
        ModelError: the model does not run on `inputs`, or its graph cannot be built in time.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found, protected = find_bundles(model, torch.ones(1, 2), chosen=["0", "2"])
    >>> [(b.name, b.units) for b in found], protected
    ([('0', 4)], {'2': "feeds the model's output"})
    """
    model = surgery.clone(model).eval()  # tracing needs gradients on, and hooks
    graph, unreached = dependency_graph(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    atoms = _atoms(model, graph, names)
    _forbid(atoms, model, chosen)
    for node in list(graph.module2node.values()):
        if isinstance(node.module, LAYERS) and widths(node.module)["out"] > 1:
            _follow(graph, node, names, atoms)
    found, reasons = _group(atoms, _components(atoms))
    found = _away_from_unreached(found, reasons, unreached, model)
    covered = {slot.layer for b in found for slot in b.channels if slot.side == "out"}
    default = "does not run as a layer of its own on the example inputs"
    return found, {n: reasons.get(n, default) for n in chosen if n not in covered}


def _atoms(model: nn.Module, graph: Any, names: Mapping[nn.Module, str]) -> _Atoms:
    """Atoms of the layers in the graph; the groups of a grouped convolution are tied inside."""
    atoms, total = _Atoms({}, {}, [], {}), 0
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


def _forbid(atoms: _Atoms, model: nn.Module, chosen: Iterable[str]) -> None:
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
    children = list(module.children())  # parametrizations are children
    return not children and "weight" in module._parameters


def _follow(graph: Any, start: Any, names: Mapping[nn.Module, str], atoms: _Atoms) -> None:
    """Tie every channel reachable from the output channels of `start` to the one it hangs on."""
    slot = Slot(names[start.module], "out")
    own = atoms.of(slot)
    fn = graph.get_pruner_of_module(start.module).prune_out_channels
    pairs = [_Pair(i, i) for i in range(len(own))]
    seen: dict[Any, set[_Pair]] = defaultdict(set)
    seen[start, fn].update(pairs)
    stack = [(start, fn, pairs)]
    steps = 0
    while stack:
        node, fn, pairs = stack.pop()
        steps += len(pairs)
        if steps > _MOST_STEPS:
            reason = "its channels cannot be followed through the model in bounded time"
            atoms.forbidden.update((atom, reason) for atom in own)
            return
        if not _record(graph, node, fn, pairs, names, atoms, own):
            continue
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(fn):
                continue
            mapped = _through(dependency, pairs)
            if mapped is None:
                reason = f"cannot be followed through {node.name}"
                atoms.forbidden.update((own[pair.root_idx], reason) for pair in pairs)
                continue
            key = (dependency.target, dependency.handler)
            new = [_Pair(*p) for p in mapped if p not in seen[key]]
            if new:
                seen[key].update(new)
                stack.append((*key, new))


def _through(dependency: Any, pairs: list[_Pair]) -> list[_Pair] | None:
    """`pairs` at the other end of `dependency`; None where its index mapping fails."""
    for mapping in dependency.index_mapping:
        try:
            pairs = pairs if mapping is None else mapping(pairs)
        except Exception:  # mappings are guessed, and fail on ops they do not fit in any way
            return None
    return pairs


def _record(
    graph: Any,
    node: Any,
    fn: Any,
    pairs: list[_Pair],
    names: Mapping[nn.Module, str],
    atoms: _Atoms,
    own: range,
) -> bool:
    """Tie `pairs` at this node to `own`, or forbid them; False where the trail ends."""
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
        return True
    if slot is None:
        return True
    channels = atoms.of(slot)
    if side == "out" and len(channels) == 1 and len(own) > 1:
        return False  # one channel broadcast over these, such as a spatial gate: not tied to them
    for pair in pairs:
        if 0 <= pair.idx < len(channels):
            atoms.ties.append((own[pair.root_idx], channels[pair.idx]))
        else:
            atoms.forbidden.setdefault(
                own[pair.root_idx],
                f"is traced to channel {pair.idx} of {name!r}, which has {len(channels)}",
            )
    return True


def _components(atoms: _Atoms) -> list[int]:
    """For each atom the smallest atom tied to it, through any number of ties."""
    parent = list(range(sum(atoms.width.values())))

    def find(atom: int) -> int:
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    for a, b in atoms.ties:
        a, b = sorted((find(a), find(b)))
        parent[b] = a
    return [find(atom) for atom in range(len(parent))]


def _group(atoms: _Atoms, label: list[int]) -> tuple[list[Bundle], dict[str, str]]:
    """Components with an output channel as units, in bundles of the same make-up."""
    members: dict[int, dict[Slot, list[int]]] = defaultdict(dict)
    for slot in atoms.first:
        for index, atom in enumerate(atoms.of(slot)):
            members[label[atom]].setdefault(slot, []).append(index)
    forbidden: dict[int, str] = {}
    for atom, reason in atoms.forbidden.items():
        forbidden.setdefault(label[atom], reason)
    reasons: dict[str, str] = {}
    alike: dict[tuple[tuple[Slot, int], ...], list[dict[Slot, list[int]]]] = defaultdict(list)
    for unit, slots in members.items():
        if unit in forbidden:
            for slot in slots:
                if slot.side == "out":
                    reasons.setdefault(slot.layer, forbidden[unit])
        else:
            alike[tuple((slot, len(index)) for slot, index in slots.items())].append(slots)
    found = []
    for units in alike.values():
        order = sorted(units[0], key=lambda slot: slot.side == "in")  # outputs first, else in order
        if order[0].side == "out":
            found.append(Bundle({s: torch.tensor([unit[s] for unit in units]) for s in order}))
    return found, reasons


def _away_from_unreached(
    found: list[Bundle], reasons: dict[str, str], unreached: list[str], model: nn.Module
) -> list[Bundle]:
    """Drop bundles as wide as a layer that other inputs may reach: it may hang on them."""
    width_of: dict[int, str] = {}
    for name in unreached:
        for width in widths(model.get_submodule(name)).values():
            width_of.setdefault(width, name)
    kept = []
    for bundle in found:
        layers = [slot.layer for slot in bundle.channels]
        sizes = [w for n in layers for w in [widths(model.get_submodule(n))]]
        own = {sizes[i][slot.side] for i, slot in enumerate(bundle.channels)}
        if clash := own & width_of.keys():
            other = width_of[min(clash)]
            for name in layers:
                reasons.setdefault(
                    name,
                    f"may hang together with {other!r}, which is as wide and which the example "
                    "inputs never reach",
                )
        else:
            kept.append(bundle)
    return kept
