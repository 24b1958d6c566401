"""An ONNX graph in the making: its nodes, its constants, and how they are named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]


class NoRuleError(Exception):
    """There is no rule for a part of the model; the exporter of torch may have one."""


@dataclass(frozen=True)
class Value:
    """A float32 tensor of the graph: its name, and its shape, None where a batch size shows."""

    name: str
    shape: Shape


class Graph:
    """Nodes and constants. Equal constants are stored once; names nobody asks for are short.

    >>> graph = Graph(["x"])
    >>> graph.node("Add", "x", graph.constant(1.0)), graph.constant(1.0)
    ('1', '0')
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._taken = set(reserved)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def name(self, wanted: str = "") -> str:
        """A name that is not taken yet: `wanted`, or that with a number; else a number."""
        found = wanted
        while not found or found in self._taken:
            found = f"{wanted}_{self._count}" if wanted else str(self._count)
            self._count += 1
        self._taken.add(found)
        return found

    def constant(self, values: Tensor | npt.ArrayLike, name: str = "") -> str:
        """The name of a constant that holds `values`; Python floats are float32, integers int64."""
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        array = np.array(values, order="C")
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            stored = self.name(name)
            self._constants[key] = stored
            self.initializers[stored] = numpy_helper.from_array(array, stored)
        return self._constants[key]

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, called `name` if that is free, and return what it is called.

        Attributes that are None are left out.
        """
        return self.nodes_outputs(op, *inputs, names=[name], **attributes)[0]

    def nodes_outputs(
        self, op: str, *inputs: str, names: Iterable[str], **attributes: Any
    ) -> list[str]:
        """Add a node with an output for each of `names`, and return what they are called."""
        outputs = [self.name(name) for name in names]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, inputs, outputs, **given))
        return outputs

    def rename(self, old: str, new: str) -> None:
        """Call the value `old` of a node `new`."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new


@dataclass(frozen=True)
class Call:
    """One call of an operation: where it is written, what it yields and what it is called.

    `outs` holds the shape of each result, `label` the module's name or the node's.
    """

    graph: Graph
    label: str
    outs: tuple[Shape, ...]
    module: nn.Module | None = None

    @property
    def out(self) -> Shape:
        if len(self.outs) != 1:
            raise NoRuleError(f"{self.label} has {len(self.outs)} results")
        return self.outs[0]

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        return self.graph.node(op, *inputs, name=name, **attributes)

    def layer(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add the node that does a layer's work: it has the layer's name, for who measures it."""
        output = self.graph.node(op, *inputs, **attributes)
        self.graph.nodes[-1].name = self.label
        return output

    def constant(self, values: Tensor | npt.ArrayLike, name: str = "") -> str:
        return self.graph.constant(values, name=name)

    def operand(self, value: Value | float) -> str:
        """The name of a tensor, or of a constant with the number `value`."""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise NoRuleError(f"{self.label} takes a {type(value).__name__}")
        return self.constant(np.float32(value))

    def reshape(self, name: str) -> str:
        """`name` in the shape of the result, of which one length may depend on the batch."""
        if self.out.count(None) > 1 or 0 in self.out:
            raise NoRuleError(f"{self.label} reshapes to {list(self.out)}")
        target = [-1 if length is None else length for length in self.out]
        return self.node("Reshape", name, self.constant(np.array(target, np.int64)))


def sizes(value: Any, count: int, name: str = "size") -> list[int]:
    """`value` for each of `count` dimensions.

    >>> sizes(3, 2), sizes((1, 2), 2)
    ([3, 3], [1, 2])
    """
    found = [value] * count if isinstance(value, int) else list(value)
    if len(found) == 1:
        found = found * count
    if len(found) != count or not all(isinstance(v, int) for v in found):
        raise NoRuleError(f"a {name} of {value} for {count} dimensions")
    return found


def unless(default: int, values: list[int]) -> list[int] | None:
    """`values`, or None where all of them are the operator's default."""
    return None if all(value == default for value in values) else values


def float32(value: Any, name: str) -> Tensor:
    """`value`, which must be a float32 tensor."""
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        raise NoRuleError(f"{name} is not a float32 tensor")
    return value
