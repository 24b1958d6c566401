"""Running many small changes of one model, each from the first layer that it changes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from modelzip.core.base import Context
from modelzip.core.graph import notes_of, trace
from modelzip.core.running import call, tensors
from modelzip.core.tracing import given_arguments
from modelzip.errors import ModelzipError


class Change(NamedTuple):
    """Inside the context `made()`, tensors of the modules `layers` have other values."""

    layers: Collection[str]
    made: Callable[[], AbstractContextManager[None]]


class Shared:
    """Runs `model`, in eval mode, under each of `changes` of its tensors.

    Where the model can be traced, what comes before a change is run once for all of them.

    >>> from contextlib import nullcontext
    >>> shared = Shared(nn.Linear(2, 1), [Change(["0"], nullcontext)], torch.ones(3, 2))
    >>> [(number, outputs.shape) for number, outputs in shared.outputs(torch.ones(5, 2))]
    [(0, torch.Size([5, 1]))]
    """

    def __init__(self, model: nn.Module, changes: Sequence[Change], example_inputs: Any) -> None:
        self._model = model
        self._changes = changes
        self._graph = _traced(model, example_inputs)
        self._starts: dict[fx.Node, list[int]] = {}
        if self._graph is not None:
            first = _first_uses(self._graph)
            nodes = list(self._graph.graph.nodes)
            for number, change in enumerate(changes):
                start = min((first.get(name, 0) for name in change.layers), default=0)
                self._starts.setdefault(nodes[start], []).append(number)

    def outputs(self, inputs: Any) -> Iterator[tuple[int, Any]]:
        """The number of each change and the model's outputs under it, in any order."""
        if self._graph is None or not _equal(run(self._graph, inputs), run(self._model, inputs)):
            for number, change in enumerate(self._changes):
                with change.made():
                    yield number, run(self._model, inputs)
            return
        base = _Walk(self._graph, inputs)
        for node in self._graph.graph.nodes:
            for number in self._starts.get(node, ()):
                with self._changes[number].made():
                    outputs = base.rest(node)
                yield number, outputs
            base.visit(node)


class _Walk(fx.Interpreter):
    """A run of a graph that can be left at any node."""

    def __init__(self, graph: fx.GraphModule, inputs: Any) -> None:
        super().__init__(graph)
        self._given = given_arguments(graph, _copied(inputs))
        self._nodes = list(graph.graph.nodes)

    def visit(self, node: fx.Node) -> Any:
        """Run `node`, and forget the values that no later one takes."""
        self.env[node] = result = self.run_node(node)
        for done in self.user_to_last_uses.get(node, ()):
            del self.env[done]
        return result

    def rest(self, start: fx.Node) -> Any:
        """The outputs, with `start` and all after it run on copies of the values so far."""
        kept = dict(self.env)
        # one copy of all of them, as some may be views of others that a later node writes into
        self.env = dict(zip(kept, copy.deepcopy(list(kept.values())), strict=True))
        try:
            for node in self._nodes[self._nodes.index(start) :]:
                result = self.visit(node)
        finally:
            self.env = kept
        return result

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = target.lstrip("*")
        return self._given[name] if name in self._given or not args else args[0]


def run(model: nn.Module, inputs: Any) -> Any:
    """The outputs of `model` on `inputs` as `call` takes them, which stay as they are."""
    return call(model, _copied(inputs))


def _traced(model: nn.Module, inputs: Any) -> fx.GraphModule | None:
    """The graph of `model`; None where it cannot be traced, or for its example inputs alone."""
    context = Context(example_inputs=inputs)
    try:
        graph = trace(model, context)
    except ModelzipError:
        return None
    return None if notes_of(context.record) else graph


def _first_uses(graph: fx.GraphModule) -> Mapping[str, int]:
    """The number of the first node that uses each module, its parts, and each parameter."""
    first: dict[str, int] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in graph.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for number, node in enumerate(graph.graph.nodes):
        if node.op == "call_module":
            for module in graph.get_submodule(node.target).modules():
                for name in names[module]:
                    first.setdefault(name, number)
        elif node.op == "get_attr":
            first.setdefault(node.target.rpartition(".")[0], number)
    return first


def _copied(inputs: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, inputs)  # a model may write into what it is given


def _equal(ours: Any, theirs: Any) -> bool:
    a, b = list(tensors(ours)), list(tensors(theirs))
    return len(a) == len(b) and all(map(torch.equal, a, b))
