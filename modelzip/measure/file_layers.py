"""The layers of an ONNX file: which node belongs to which, and where their values are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import inliner, shape_inference

from modelzip.runtime import onnx_file

_STORED = (".weight", ".weight_scale", ".bias")  # endings of the names of a layer's tensors
_QUANTIZED = "_quantized"
# operators of a layer: its weight is their second input, whatever that is called
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "ConvInteger"}
_WEIGHTED |= {"MatMulNBits", "MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul"}
# what follows a layer and is part of it, where its other inputs are constant
_FOLLOWS = {"Add", "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Mul"}
_FOLLOWS |= {"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "QuantizeLinear", "Relu"}
_FOLLOWS |= {"Sigmoid", "Softplus", "Tanh"}
# of those, what comes before the value that the module of the layer returns
_INSIDE = {
    "Conv": {"BatchNormalization"},
    "Gemm": {"BatchNormalization"},
    "MatMul": {"Add"},
    "MatMulInteger": {"Add", "Cast", "Mul"},
    "MatMulNBits": {"Add"},
}


@dataclass(frozen=True)
class Place:
    """A value of the file: the tensor, the node it comes from, and the layer it is named after.

    `layer` is "" where the file does not say.
    """

    layer: str
    tensor: str
    node: int


class FileLayers:
    """The graph of a file, with the layer that each node belongs to.

    Layers are called what their stored tensors are: "conv1" owns "conv1.weight". Where those have
    names of another kind, the node's name stands for the layer's.

    Attributes:
        model: the file, its weights loaded and its local functions inlined.
        owner: the layer of each node, in the file's order; "" where it belongs to none.
        makers, users: for each tensor, the node it comes from and those that take it.
        constant: tensors that do not depend on the inputs, and scales found at run time.
        known: type and shape of every tensor between inputs and outputs that they follow for.
    """

    def __init__(self, path: Path) -> None:
        self.model = inliner.inline_local_functions(onnx_file.read(path, weights=True))
        self.nodes = list(self.model.graph.node)
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self.users: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self.users.setdefault(name, []).append(index)
        self._dimensions = {t.name: len(t.dims) for t in self.model.graph.initializer}
        self.constant = set(self._dimensions)
        for node in self.nodes:
            if all(name in self.constant for name in node.input if name):
                self.constant.update(node.output)
            elif node.op_type == "DynamicQuantizeLinear":
                self.constant.update(node.output[1:])
        inferred = shape_inference.infer_shapes(self.model).graph.value_info
        self.known = {value.name: value for value in inferred}
        self.owner = [self._named(index) for index in range(len(self.nodes))]
        self._follow()

    def varying(self, index: int) -> list[str]:
        """Inputs of a node that depend on the file's inputs."""
        return [name for name in self.nodes[index].input if name and name not in self.constant]

    def op(self, tensor: str) -> str:
        """The operator that `tensor` comes from; "" for an input or a stored tensor."""
        return str(self.nodes[self.makers[tensor]].op_type) if tensor in self.makers else ""

    def only_user(self, tensor: str) -> int | None:
        """The one node that takes `tensor`, or None."""
        found = self.users.get(tensor, [])
        return found[0] if len(found) == 1 else None

    def integers(self) -> list[Place]:
        """Every activation on its grid, before it is dequantized, in the file's order."""
        found = []
        for index, node in enumerate(self.nodes):
            if node.op_type != "QuantizeLinear" or not self.varying(index):
                continue
            tensor, last = node.output[0], index
            user = self.only_user(tensor)
            if user is not None and self.nodes[user].op_type == "Clip":  # fewer bits than 8
                tensor, last = self.nodes[user].output[0], user
            named = {self.nodes[user].output[0] for user in self.users.get(tensor, [])}
            layer = next((name for name in named if name.endswith(_QUANTIZED)), "")
            found.append(Place(layer.removesuffix(_QUANTIZED), tensor, last))
        return found

    def floats(self) -> list[Place]:
        """What layers with a weight return in float, before any activation, in the file's order.

        Those rounded to a grid at once are left out: seen as floats, they would be computed so.
        """
        found = []
        inner: set[int] = set()
        for index in range(len(self.nodes)):
            layer = self._named(index)
            if not layer or index in inner or not self.varying(index):
                continue
            chain = [index, *self._inside(index)]
            inner.update(chain)
            if not self.rounded(chain[-1]):
                found.append(Place(layer, self.nodes[chain[-1]].output[0], chain[-1]))
        return found

    def rounded(self, index: int) -> bool:
        """Whether what a node gives goes to a grid alone, at once or after a clamp."""
        user = self.only_user(self.nodes[index].output[0])
        while user is not None and self.nodes[user].op_type in ("Relu", "Clip"):
            user = self.only_user(self.nodes[user].output[0])
        return user is not None and self.nodes[user].op_type == "QuantizeLinear"

    def showing(self, tensors: list[str]) -> onnx.ModelProto:
        """The file with `tensors`, whose shapes must be `known`, as outputs after its own."""
        shown = onnx.ModelProto()
        shown.CopyFrom(self.model)
        shown.graph.output.extend(self.known[name] for name in tensors)
        return shown

    def _named(self, index: int) -> str:
        """The layer whose stored tensors a node takes."""
        node = self.nodes[index]
        found = self._label(index)
        if found or node.op_type not in _WEIGHTED:
            return found
        fixed = [name for name in node.input if name in self.constant]
        if not any(self._dimensions[n] > 1 for name in fixed for n in self._stored(name)):
            return ""
        labels = (self._label(follower) for follower in self._inside(index))
        return next(filter(None, labels), node.name or node.output[0])

    def _label(self, index: int) -> str:
        """The layer that the names of a node's constants tell, or ""."""
        fixed = [name for name in self.nodes[index].input if name in self.constant]
        stored = [*fixed, *(name for tensor in fixed for name in self._stored(tensor))]
        hits = (n.removesuffix(e) for e in _STORED for n in stored if n.endswith(e))
        return next(hits, "")

    def _inside(self, index: int) -> list[int]:
        """Nodes behind one that has a weight, up to what the module of the layer returns."""
        followers = _INSIDE.get(self.nodes[index].op_type, set())
        found: list[int] = []
        while (user := self.only_user(self.nodes[[index, *found][-1]].output[0])) is not None:
            node = self.nodes[user]
            if node.op_type not in followers or len(self.varying(user)) != 1:
                break
            if node.op_type == "Add" and not self._adds_bias(user):
                break
            found.append(user)
        return found

    def _stored(self, tensor: str) -> Iterator[str]:
        """The stored tensors that a constant is made from."""
        if tensor in self._dimensions:
            yield tensor
        elif tensor in self.makers and self.op(tensor) != "DynamicQuantizeLinear":
            for name in self.nodes[self.makers[tensor]].input:
                yield from self._stored(name)

    def _adds_bias(self, index: int) -> bool:
        fixed = [name for name in self.nodes[index].input if name in self.constant]
        return all(self._dimensions.get(n) == 1 for name in fixed for n in self._stored(name))

    def _follow(self) -> None:
        """Nodes behind a layer, and those that quantize what a layer takes, belong to it."""
        for index, node in enumerate(self.nodes):
            inputs = self.varying(index)
            free = not self.owner[index] or node.op_type == "BatchNormalization"
            if free and node.op_type in _FOLLOWS and len(inputs) == 1 and inputs[0] in self.makers:
                before = self.owner[self.makers[inputs[0]]]
                self.owner[index] = before or self.owner[index]
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            if not self.owner[index] and "QuantizeLinear" in node.op_type.replace("Deq", "Q"):
                users = (user for name in node.output for user in self.users.get(name, []))
                self.owner[index] = next((self.owner[u] for u in users if self.owner[u]), "")
