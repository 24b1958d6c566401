"""The layers of a model with their channels numbered, and which of them a tensor belongs to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelzip.core.channels.labels import Labels, address, along
from modelzip.core.channels.resize import LAYERS, Slot, axes, groups, widths
from modelzip.core.channels.ties import Ties


class Layers:
    """Every slot of `model` with a range of channel numbers, and what the model does with it.

    Attributes:
        first: the first number of each slot; its other channels follow.
        width: channels of each slot.
        running: names of the modules in whose forward the model is, outermost first.
        reached: names of the modules that ran, or of which a tensor was used.
        applied: slots that were used as those of a layer.

    >>> layers = Layers(nn.Sequential(nn.Linear(2, 3)))
    >>> layers.numbers(Slot("0", "out")).tolist()
    [3.0, 4.0, 5.0]
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.running: list[str] = []
        self.reached: set[str] = set()
        self.applied: set[Slot] = set()
        self.first: dict[Slot, int] = {}
        self.width: dict[Slot, int] = {}
        self.count = 0
        for name, module in self.modules.items():
            for side, width in widths(module).items() if axes(module) else ():
                self.first[Slot(name, side)] = self.count + 1
                self.width[Slot(name, side)] = width
                self.count += width
        self._parameters = {address(p) for p in model.parameters()}
        self._owners: dict[int, list[tuple[str, str, Tensor]]] = {}
        for name in dict.fromkeys(slot.layer for slot in self.first):
            for tensor_name in axes(self.modules[name]):
                if (tensor := _own(self.modules[name], tensor_name)) is not None:
                    entry = (name, tensor_name, tensor)
                    self._owners.setdefault(address(tensor), []).append(entry)

    def numbers(self, slot: Slot) -> Tensor:
        """The channel numbers of `slot`."""
        first = self.first[slot]
        return torch.arange(first, first + self.width[slot], dtype=torch.float64)

    def prepare(self, labels: Labels, ties: Ties) -> None:
        """Label the tensors that lie along output channels, and tie the groups of convolutions."""
        for entries in self._owners.values():
            for name, tensor_name, tensor in entries:
                sides = axes(self.modules[name])[tensor_name]
                weight = tensor_name == "weight" and isinstance(self.modules[name], LAYERS)
                if not weight and "in" not in sides and self.width[Slot(name, "out")] > 1:
                    numbers = self.numbers(Slot(name, "out"))
                    labels.set(tensor, along(numbers, sides.index("out"), tensor.shape))
        for name in dict.fromkeys(slot.layer for slot in self.first):
            if (count := groups(self.modules[name])) > 1:
                into, out = (self.numbers(Slot(name, s)).view(count, -1) for s in ("in", "out"))
                ties.tie(out[:, :1], out)
                ties.tie(out[:, :1], into)

    def see(self, tensor: Tensor) -> None:
        """Note that the layers that `tensor` belongs to are used."""
        self.reached.update(name for name, _, _ in self._owners.get(address(tensor), ()))

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a parameter of the model, or a view of one."""
        return isinstance(tensor, nn.Parameter) or address(tensor) in self._parameters

    def of_weight(self, tensor: Tensor) -> str | None:
        """The convolution or Linear whose whole weight `tensor` is, as stored or transposed.

        A weight of no layer is that of the one running, if it has the size: a layer may compute it.
        """
        entries = self._owners.get(address(tensor), [])
        found = [
            name
            for name, tensor_name, weight in entries
            if tensor_name == "weight" and isinstance(self.modules[name], LAYERS)
            if weight.numel() == tensor.numel()
        ]
        inner = self.running[-1] if self.running else ""
        if inner in found:
            return inner
        if found:
            return found[0]
        module = self.modules[inner]
        if not entries and not self.is_parameter(tensor) and isinstance(module, LAYERS):
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.numel() == tensor.numel():
                return inner
        return None

    def inner(self) -> str:
        """The name of the innermost module running."""
        return self.running[-1] if self.running else ""

    def where(self) -> str:
        """The innermost module running, as where an op is."""
        return f"in the forward of {self.inner()!r}" if self.inner() else "in the model's forward"

    def blame(self, otherwise: str) -> str:
        """Why channels must stay: the module running, if it is a single layer, else `otherwise`."""
        name = self.inner()
        module = self.modules[name]
        if name and (isinstance(module, nn.MultiheadAttention) or not any(module.children())):
            return f"cannot be pruned through {type(module).__name__} {name!r}"
        return otherwise


def _own(module: nn.Module, name: str) -> Tensor | None:
    tensor = module._parameters.get(name)
    return module._buffers.get(name) if tensor is None else tensor
