"""The ONNX graph of a model that fx can follow, written operator by operator.

A model of integer modules needs no exporter: each of its calls is a few operators that are known.
Two trial runs at different batch sizes give every shape, and the outputs to check the file by.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from modelzip.core.running import evaluating
from modelzip.core.tracing import Tracer
from modelzip.export.arguments import input_names, numbered
from modelzip.export.operations import Rule
from modelzip.export.rules import EXACT, FUNCTIONS, LAYERS, METHODS, MODULES
from modelzip.export.trial import Inputs, Shaped, Trial, trial_inputs
from modelzip.export.writer import Call, Graph, NoRuleError, Shape, Value, float32
from modelzip.quantization.dynamic import DynamicQuantizedLinear
from modelzip.quantization.integer import Quantize

LONE = "model"  # what a model that is a single layer is called in its file
VARYING = object()  # in place of a length that follows the batch


@dataclass(frozen=True)
class Written:
    """A graph and the trial runs it must repeat.

    With `exact`, it must to the last bit. With `rounds`, values are rounded to a grid on the way.
    """

    proto: onnx.ModelProto
    cases: tuple[tuple[Inputs, Inputs], ...]
    exact: bool
    rounds: bool


def write(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    opset: int,
    dynamic_batch: bool,
) -> Written:
    """`model`, in eval mode, as an ONNX graph; NoRuleError where a part of it has no rule."""
    traced = _trace(model)
    wanted = [str(node.target) for node in traced.graph.find_nodes(op="placeholder")]
    given = dict(zip(wanted, args, strict=False)) | kwargs
    if [*given] != wanted or len(given) != len(args) + len(kwargs):
        raise NoRuleError(f"the graph takes {wanted}, not {[*given]}")
    inputs = tuple(float32(value, name) for name, value in given.items())
    cases = trial_inputs(inputs, dynamic_batch=dynamic_batch)
    with evaluating(traced):
        trials = [_run(traced, case) for case in cases]
    names = input_names(args, kwargs)
    outputs = numbered("output", len(trials[0].outputs))
    author = _Author(traced, trials, Graph([*names, *outputs]))
    author.write(names, outputs)
    answers = [trial.outputs for trial in trials]
    batches = [len(case[0]) for case in cases]
    ends = _described(names, cases, batches), _described(outputs, answers, batches)
    proto = _model(author.graph, *ends, opset)
    pairs = tuple(zip(cases, answers, strict=True))
    rounds = any(
        isinstance(module, (Quantize, DynamicQuantizedLinear)) for module in traced.modules()
    )
    return Written(proto, pairs, exact=author.exact, rounds=rounds)


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        return model
    if type(model) in LAYERS or type(model) in MODULES:
        return _around(model)
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # fx raises whatever the model's own forward raises
        raise NoRuleError(f"fx cannot follow it: {error}") from error


def _around(layer: nn.Module) -> fx.GraphModule:
    """A graph that calls a single layer."""
    graph = fx.Graph()
    argument = next(iter(inspect.signature(layer.forward).parameters))
    graph.output(graph.call_module(LONE, (graph.placeholder(argument),)))
    return fx.GraphModule({LONE: layer}, graph)


def _run(traced: fx.GraphModule, inputs: Inputs) -> Trial:
    try:
        return Trial(traced, inputs)
    except NoRuleError:
        raise
    except Exception as error:  # whatever the model's own forward raises
        raise NoRuleError(f"it cannot be run on {len(inputs[0])} samples: {error}") from error


class _Author:
    """Writes the nodes of `traced` one by one into `graph`."""

    def __init__(self, traced: fx.GraphModule, trials: list[Trial], graph: Graph) -> None:
        self.traced = traced
        self.trials = trials
        self.graph = graph
        self.values: dict[fx.Node, Any] = {}
        self.exact = True
        self._labels: set[str] = set()

    def write(self, names: list[str], outputs: list[str]) -> None:
        unused = iter(names)
        for node in self.traced.graph.nodes:
            if node.op == "output":
                self._finish(node, names, outputs)
                continue
            results = [trial.results[node] for trial in self.trials]
            if node.op == "placeholder":
                self.values[node] = Value(next(unused), _merged(results))
            elif isinstance(results[0], Shaped) or _several(results[0]):
                self.values[node] = self._write(node, results)
            elif any(isinstance(leaf, Shaped) for leaf in tree_leaves(results)):
                raise NoRuleError(f"{node.name} gives more than tensors")
            else:  # a length, or arithmetic with lengths
                same = all(result == results[0] for result in results)
                self.values[node] = results[0] if same else VARYING

    def _write(self, node: fx.Node, results: list[Any]) -> Value | list[Value]:
        if node.op == "get_attr":
            name = str(node.target)
            tensor = self.trials[0].fetch_attr(name)
            # it may be called like an input
            name = name if "." in name else f"{LONE}.{name}"
            return Value(self.graph.constant(tensor, name), _merged(results))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self.values.__getitem__)
        if node.target is operator.getitem and isinstance(args[0], list):
            found: Value = args[0][int(args[1])]  # type: ignore[arg-type]
            return found
        parts: Sequence[Sequence[Any]] = [results]
        if _several(results[0]):
            if len({len(result) for result in results}) > 1:
                raise NoRuleError(f"{node.name} gives as many results as there are samples")
            parts = list(zip(*results, strict=True))
        shapes = tuple(_merged(part) for part in parts)
        module = None
        if node.op == "call_module":
            module = self.traced.get_submodule(str(node.target))
        rule, first, settings = _rule(node, module)
        self.exact &= rule in EXACT
        call = Call(self.graph, self._label(node), shapes)
        try:
            names = rule(call, *first, *args, **kwargs, **settings)
        except (TypeError, ValueError, IndexError) as error:  # arguments that no rule has
            raise NoRuleError(f"{call.label}: {error}") from error
        if isinstance(names, str):
            return Value(names, shapes[0])
        return [Value(name, shape) for name, shape in zip(names, shapes, strict=True)]

    def _label(self, node: fx.Node) -> str:
        """The name of the module it calls the first time that is called, else its own."""
        label = str(node.target) if node.op == "call_module" else node.name
        label = node.name if label in self._labels else label
        self._labels.add(label)
        return label

    def _finish(self, node: fx.Node, inputs: list[str], outputs: list[str]) -> None:
        """Call what the model returns by the names of outputs."""
        renamed: dict[str, str] = {}
        returned = fx.node.map_arg(node.args[0], self.values.__getitem__)
        leaves = tree_leaves(returned)
        if len(leaves) != len(outputs) or not all(isinstance(leaf, Value) for leaf in leaves):
            raise NoRuleError("the model returns more than tensors")
        # in the order in which they are found in a module's output
        for value, output in zip(leaves, outputs, strict=True):
            name = renamed.get(value.name, value.name)
            if name in outputs or name in inputs or name in self.graph.initializers:
                self.graph.nodes.append(helper.make_node("Identity", [name], [output]))
            else:
                self.graph.rename(name, output)
                renamed[name] = output


def _several(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(part, Shaped) for part in result)


def _merged(shapes: Sequence[Any]) -> Shape:
    """The lengths that are the same in every trial, and None for the others."""
    if not all(isinstance(shape, Shaped) and len(shape) == len(shapes[0]) for shape in shapes):
        raise NoRuleError("a value is not a float32 tensor of as many dimensions each time")
    return tuple(
        n if all(m == n for m in others) else None for n, *others in zip(*shapes, strict=True)
    )


def _rule(
    node: fx.Node, module: nn.Module | None
) -> tuple[Rule, tuple[nn.Module, ...], dict[str, Any]]:
    """The rule for a node, and what it takes before the node's arguments and after them."""
    if module is None:
        table: Mapping[Any, Rule] = METHODS if node.op == "call_method" else FUNCTIONS
        if node.target not in table:
            raise NoRuleError(f"there is no rule for {node.target}")
        return table[node.target], (), {}
    kind = type(module)
    if module._forward_hooks or module._forward_pre_hooks:
        raise NoRuleError(f"{node.target} has hooks")
    if kind in LAYERS:
        return LAYERS[kind], (module,), {}
    if kind in MODULES:
        rule, names = MODULES[kind]
        return rule, (), {name: getattr(module, name) for name in names}
    raise NoRuleError(f"there is no rule for a {kind.__name__}")


def _model(
    graph: Graph, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], opset: int
) -> onnx.ModelProto:
    written = helper.make_graph(
        graph.nodes, "model", inputs, outputs, list(graph.initializers.values())
    )
    proto = helper.make_model(written, opset_imports=[helper.make_opsetid("", opset)])
    try:
        proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    except ValueError as error:
        raise NoRuleError(f"there is no opset {opset}") from error
    return proto


def _described(
    names: list[str], runs: Sequence[Inputs], batches: list[int]
) -> list[onnx.ValueInfoProto]:
    """Names and shapes of inputs or outputs; a length that follows the batch is called so."""
    found = []
    for name, *tensors in zip(names, *runs, strict=True):
        shape: list[int | str | None] = []
        for lengths in zip(*[tensor.shape for tensor in tensors], strict=True):
            if all(length == lengths[0] for length in lengths):
                shape.append(lengths[0])
            else:
                shape.append("batch" if list(lengths) == batches else None)
        found.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return found
