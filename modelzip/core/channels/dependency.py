"""Building Torch-Pruning's dependency graph, in bounded time.

Fang et al. 2023, https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core.channels.resize import LAYERS
from modelzip.core.running import call, tensors
from modelzip.errors import ModelError

_MOST_STEPS = 1_000_000  # ResNet-56 takes about 100; some graphs would never end


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def dependency_graph(model: nn.Module, inputs: Any) -> tuple[Any, list[str]]:
    """The graph of `model`, with hooks and gradients on, and the layers `inputs` never reach.

    Its `ends` are the autograd nodes of the outputs, its `unmapped` the nodes that no channels can
    be followed through.

    Raises:
        ModelError: the model does not run on `inputs`, or has a graph that cannot be built.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        call(model, inputs)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(
            f"{type(model).__name__} does not run on the example inputs: {first_line(error)}"
        ) from error
    ran: set[nn.Module] = set()
    outputs: list[Tensor] = []

    def forward(target: nn.Module, given: Any) -> list[Tensor]:
        hooks = [m.register_forward_hook(lambda m, *_: ran.add(m)) for m in target.modules()]
        try:
            outputs.extend(t for t in tensors(call(target, given)) if t.grad_fn is not None)
        finally:
            for hook in hooks:
                hook.remove()
        if not outputs:
            raise ModelError(
                f"{type(model).__name__} returns no tensor that depends on its parameters, so "
                "its channels cannot be followed"
            )
        return outputs

    graph = _bounded_graph()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what is protected or verified later
            try:
                graph.build_dependency(model, inputs, forward_fn=forward, verbose=False)
            except Exception:
                if not graph.linked:
                    raise
                _map_one_by_one(graph)
    except ModelError:
        raise
    except Exception as error:  # any op it does not know may surface in any way
        raise ModelError(
            f"prune_channels cannot follow the channels of {type(model).__name__}: "
            f"{first_line(error)}; leave this pass out"
        ) from error
    _mend_flattens(graph)
    graph.ends = {output.grad_fn for output in outputs}
    used = _used_parameters(outputs)
    unreached = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        and module not in ran
        and not any(id(p) in used for p in module.parameters())
    ]
    return graph, unreached


def _bounded_graph() -> Any:
    import torch_pruning as tp

    class BoundedGraph(tp.DependencyGraph):  # type: ignore[misc]
        """A graph that gives up: its search for widths takes exponential time on some models."""

        def __init__(self) -> None:
            super().__init__()
            self.steps_left = _MOST_STEPS
            self.linked = False
            self.unmapped: set[Any] = set()

        def get_out_channels(self, module_or_node: Any) -> Any:
            self._count()
            return super().get_out_channels(module_or_node)

        def get_in_channels(self, module_or_node: Any) -> Any:
            self._count()
            return super().get_in_channels(module_or_node)

        def _count(self) -> None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise RecursionError("its dependency graph does not end")

        def _build_dependency(self, module2node: Any) -> None:
            super()._build_dependency(module2node)
            self.linked = True

    return BoundedGraph()


def _map_one_by_one(graph: Any) -> None:
    """Map indices through each node by itself, so that one that fails spoils no other."""
    from torch_pruning.dependency.index_mapping import update_index_mapping

    nodes = graph.module2node
    for module, node in nodes.items():
        graph.module2node, graph.steps_left = {module: node}, _MOST_STEPS // 100
        try:
            update_index_mapping(graph)
        except Exception:  # widths are guessed, and fail on ops they do not fit in any way
            graph.unmapped.add(node)
    graph.module2node = nodes


def _mend_flattens(graph: Any) -> None:
    """Give flattening its true stride; Torch-Pruning guesses it, wrongly before a concat."""
    for node in graph.module2node.values():
        sizes = getattr(node.grad_fn, "_saved_self_sym_sizes", ())  # other nodes have none
        if node.type.name != "RESHAPE" or len(sizes) < 3:
            continue
        incoming = [d for source in node.inputs for d in source.dependencies if d.target is node]
        outgoing = [d for d in node.dependencies if d.target in node.inputs]
        for dependency in incoming + outgoing:
            mapping = dependency.index_mapping[0]
            if type(mapping).__name__ == "_FlattenIndexMapping":
                dependency.index_mapping[0] = type(mapping)(
                    stride=math.prod(sizes[2:]), reverse=mapping.reverse
                )


def _used_parameters(outputs: list[Tensor]) -> set[int]:
    used, seen = set(), set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            used.add(id(node.variable))  # type: ignore[attr-defined]
        stack.extend(following for following, _ in node.next_functions)
    return used
