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
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.channels.dependency import dependency_graph
from modelzip.core.channels.resize import LAYERS, Slot, widths
from modelzip.core.channels.trails import Atoms, follow, forbid, make_atoms


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
    atoms = make_atoms(model, graph, names)
    forbid(atoms, model, chosen)
    for node in list(graph.module2node.values()):
        if isinstance(node.module, LAYERS) and widths(node.module)["out"] > 1:
            follow(graph, node, names, atoms)
    found, reasons = _group(atoms, _components(atoms))
    found = _away_from_unreached(found, reasons, unreached, model)
    covered = {slot.layer for b in found for slot in b.channels if slot.side == "out"}
    default = "does not run as a layer of its own on the example inputs"
    return found, {n: reasons.get(n, default) for n in chosen if n not in covered}


def _components(atoms: Atoms) -> list[int]:
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


def _group(atoms: Atoms, label: list[int]) -> tuple[list[Bundle], dict[str, str]]:
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
