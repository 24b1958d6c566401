"""A model and its quantized self run side by side, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.running import evaluating
from modelzip.quantization.fake import ActivationQuantizer, WeightQuantizer
from modelzip.quantization.nodes import module_of


class Pairs:
    """For each batch, the values at every node of the float model and of the quantized one."""

    def __init__(self, graph: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self.graph = graph
        self.runs = [(_start(graph, b.inputs), _start(graph, b.inputs)) for b in batches]

    def at(self, node: fx.Node) -> list[tuple[Tensor, Tensor]]:
        """Float and quantized value of `node`, batch by batch; only while a user is to come."""
        return [(exact.env[node], rounded.env[node]) for exact, rounded in self.runs]

    def run(self, node: fx.Node, *, quantized: bool) -> None:
        """Compute `node` for every batch, in one of the two models."""
        with _in_float(module_of(self.graph, node), not quantized):
            for pair in self.runs:
                pair[quantized].env[node] = pair[quantized].run_node(node)


def walk(
    graph: fx.GraphModule,
    batches: Sequence[Batch],
    *,
    before: Callable[[Pairs, fx.Node], None],
) -> None:
    """Run both models, and call `before` when only the quantized value of a node is missing.

    What `before` changes there is seen by everything after it.
    """
    pairs = Pairs(graph, batches)
    last_use = {n: user for user in graph.graph.nodes for n in user.all_input_nodes}
    spent: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last_use.items():
        spent.setdefault(user, []).append(node)
    with evaluating(graph):
        for node in graph.graph.nodes:
            if node.op == "output":
                return
            pairs.run(node, quantized=False)
            before(pairs, node)
            pairs.run(node, quantized=True)
            for old in spent.get(node, ()):
                for pair in pairs.runs:
                    del pair[0].env[old], pair[1].env[old]


def _start(graph: fx.GraphModule, inputs: Any) -> fx.Interpreter:
    run = fx.Interpreter(graph, garbage_collect_values=False)
    if isinstance(inputs, dict):
        names = [n for n in graph.graph.nodes if n.op == "placeholder"]
        values = [inputs.get(str(n.target), n.args[0] if n.args else None) for n in names]
    else:
        values = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    run.args_iter = iter(values)
    return run


@contextmanager
def _in_float(module: nn.Module | None, active: bool) -> Iterator[None]:
    """Inside, `module` does not round, if `active`."""
    weights = surgery.attached(module, WeightQuantizer) if module is not None else None
    quantizer = module if isinstance(module, ActivationQuantizer) else weights
    if quantizer is None or not active:
        yield
        return
    quantizer.observing = True
    try:
        yield
    finally:
        quantizer.observing = False
