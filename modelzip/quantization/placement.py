"""Where activation quantizers go in a traced graph, so that the runtime fuses what follows.

Rules, in topological order; "on a grid" means quantized, or only moved about since then:

1. The input of a quantized layer must be on a grid; a quantizer is added where it is not.
2. A layer's output is quantized after the batch norm and ReLU that follow it alone. A convolution
   always, unless it is the model's output; a linear layer if something integer uses it.
3. An addition of two values on grids, an average pool of one and a concatenation of some are
   quantized after the ReLU that follows, unless they are the model's output. So are products of
   two (squeeze and excite) and curves (sigmoid, SiLU, hard-swish, leaky ReLU) of one, if something
   integer uses them.
4. A value that was moved about (padded, sliced, reshaped) is quantized again on its own grid
   before it enters an integer operation: no value changes, but the runtime sees the pair it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx, nn

from modelzip.quantization.fake import ActivationQuantizer, Form, Method
from modelzip.quantization.nodes import (
    average_pool,
    curve,
    is_add,
    is_batch_norm,
    is_cat,
    is_product,
    is_quantizer,
    keeps_values,
    module_of,
    only_user,
    operands,
    relu_form,
)

CONTAINER = "activation_quantizers"


def place(
    graph: fx.GraphModule,
    layers: Collection[str],
    *,
    bits: int,
    method: Method,
    everywhere: bool,
    input_bits: Mapping[str, int] | None = None,
) -> list[tuple[str, ActivationQuantizer]]:
    """Insert quantizers for the integer `layers`, by module name, and list them by node name.

    Those at the inputs of layers that `input_bits` names have at least as many bits as it says.
    `everywhere=False` quantizes the inputs of layers alone, and leaves every output in float.
    """
    placer = _Placer(graph, layers, bits=bits, method=method)
    for node in list(graph.graph.nodes):
        placer.visit(node, everywhere=everywhere)
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target in (input_bits or {}):
            _widen(module_of(graph, node.all_input_nodes[0]), (input_bits or {})[node.target])
    graph.graph.lint()
    graph.recompile()
    return placer.placed


class _Placer:
    def __init__(
        self, graph: fx.GraphModule, layers: Collection[str], *, bits: int, method: Method
    ) -> None:
        self.graph = graph
        self.layers = layers
        self.bits = bits
        self.method = method
        self.placed: list[tuple[str, ActivationQuantizer]] = []
        self._requantized: dict[fx.Node, fx.Node] = {}
        self._taken: set[str] = set()
        graph.add_submodule(CONTAINER, nn.Module())

    def visit(self, node: fx.Node, *, everywhere: bool) -> None:
        if node.op == "call_module" and node.target in self.layers:
            self._put_on_grid(node, node.all_input_nodes[0])
            tail = self._tail(node, batch_norm=True)
            float_out = isinstance(module_of(self.graph, node), nn.Linear)
            wanted = self._feeds_integer(tail) or not (float_out or _is_output(tail))
            if everywhere and wanted:
                self._quantize_after(tail, name=node.name)
        elif everywhere and self._is_integer_operation(node):
            tail = self._tail(node, batch_norm=False)
            if not _is_output(tail):
                for source in operands(node):
                    self._put_on_grid(node, source)
                self._quantize_after(tail, name=node.name)

    def _is_integer_operation(self, node: fx.Node) -> bool:
        on_grid = all(self._source(n) is not None for n in operands(node))
        if is_product(node) or curve(self.graph, node):
            # a curve in float is no slower by itself, only between integers
            return on_grid and self._feeds_integer(self._tail(node, batch_norm=False))
        pools = average_pool(self.graph, node) is not None
        return on_grid and (is_add(node) or is_cat(node) or pools)

    def _source(self, node: fx.Node) -> fx.Node | None:
        """The quantizer whose grid the value of `node` is on, or None."""
        while not is_quantizer(self.graph, node):
            if not (node.all_input_nodes and keeps_values(self.graph, node)):
                return None
            node = node.all_input_nodes[0]
        return node

    def _put_on_grid(self, user: fx.Node, value: fx.Node) -> None:
        if is_quantizer(self.graph, value):
            return
        if value not in self._requantized:
            source = self._source(value)
            if source is None:
                form = relu_form(self.graph, value) or "any"
                target = self._new_quantizer(f"{value.name}_in", form)
            else:
                target = str(source.target)
            with self.graph.graph.inserting_after(value):
                self._requantized[value] = self.graph.graph.call_module(target, (value,))
        user.replace_input_with(value, self._requantized[value])

    def _tail(self, node: fx.Node, *, batch_norm: bool) -> fx.Node:
        """The last of the nodes that the runtime fuses behind `node`."""
        user = only_user(node)
        if batch_norm and user is not None and is_batch_norm(self.graph, user, after=node):
            node, user = user, only_user(user)
        return user if user is not None and relu_form(self.graph, user) else node

    def _quantize_after(self, tail: fx.Node, *, name: str) -> None:
        gate = curve(self.graph, tail) in ("sigmoid", "hardsigmoid")
        target = self._new_quantizer(name, "unit" if gate else relu_form(self.graph, tail) or "any")
        with self.graph.graph.inserting_after(tail):
            quantizer = self.graph.graph.call_module(target, (tail,))
        tail.replace_all_uses_with(quantizer, delete_user_cb=lambda user: user is not quantizer)

    def _new_quantizer(self, name: str, form: Form) -> str:
        bits = (
            8 if form == "unit" else self.bits
        )  # few bits of a gate would cost much, and save none
        quantizer = ActivationQuantizer(bits=bits, form=form, method=self.method)
        while f"{CONTAINER}.{name}" in self._taken:
            name += "_"
        target = f"{CONTAINER}.{name}"
        self._taken.add(target)
        self.graph.add_submodule(target, quantizer)
        self.placed.append((name, quantizer))
        return target

    def _feeds_integer(self, node: fx.Node) -> bool:
        for user in node.users:
            if user.op == "call_module" and user.target in self.layers:
                return True
            if (is_add(user) or is_cat(user)) and self._may_be_on_grid(user):
                return True
            if is_product(user) and self._may_be_on_grid(user) and self._feeds_integer(user):
                return True
            passes_on = keeps_values(self.graph, user) or curve(self.graph, user)
            if (passes_on or average_pool(self.graph, user)) and self._feeds_integer(user):
                return True
        return False

    def _may_be_on_grid(self, node: fx.Node) -> bool:
        """Whether the value of `node` is on a grid, or can be once later nodes were visited."""
        if is_quantizer(self.graph, node) or node.target in self.layers:
            return True
        if is_add(node) or is_cat(node) or is_product(node):
            return all(self._may_be_on_grid(n) for n in operands(node))
        if not node.all_input_nodes:
            return False
        source = node.all_input_nodes[0]
        if is_batch_norm(self.graph, node, after=source):
            return source.target in self.layers
        passes_on = keeps_values(self.graph, node) or relu_form(self.graph, node) is not None
        passes_on |= curve(self.graph, node) is not None
        return bool(passes_on or average_pool(self.graph, node)) and self._may_be_on_grid(source)


def _widen(quantizer: nn.Module | None, bits: int) -> None:
    if isinstance(quantizer, ActivationQuantizer):
        quantizer.bits = max(quantizer.bits, bits)


def _is_output(node: fx.Node) -> bool:
    """Whether the model returns this value and nothing else uses it."""
    return all(user.op == "output" for user in node.users)
