"""Running a traced model to see the shape of every value, and which values never change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from modelzip.core.running import tensors
from modelzip.export.writer import NoRuleError

Inputs = tuple[Tensor, ...]


class Trial(fx.Interpreter):
    """One run of `traced` on `inputs`; ask it for what each node gave."""

    def __init__(self, traced: fx.GraphModule, inputs: Inputs) -> None:
        super().__init__(traced)
        self.results: dict[fx.Node, Any] = {}  # shapes in place of tensors
        self.outputs: Inputs = tuple(tensors(self.run(*[tensor.clone() for tensor in inputs])))

    def run_node(self, n: fx.Node) -> Any:
        operands = [self.env[source] for source in n.all_input_nodes]
        versions = [[t._version for t in tensors(operand)] for operand in operands]
        result = super().run_node(n)
        for source, operand, before in zip(n.all_input_nodes, operands, versions, strict=True):
            if [t._version for t in tensors(operand)] != before:
                self._check_overwritten(n, source, operand)
        self.results[n] = _described(result)
        return result

    def _check_overwritten(self, node: fx.Node, source: fx.Node, value: Tensor) -> None:
        """A graph has no values that change: nobody else may look at what `node` wrote over."""
        last = set(self.user_to_last_uses.get(node, ()))
        memory = value.untyped_storage().data_ptr()
        for other, known in self.env.items():
            shares = any(t.untyped_storage().data_ptr() == memory for t in tensors(known))
            if shares and (other not in last or other.op == "get_attr"):
                raise NoRuleError(f"{node.name} writes over {source.name}, which is used again")


class Shaped(tuple[int, ...]):
    """The shape of a tensor."""


def _described(result: Any) -> Any:
    if isinstance(result, Tensor):
        if result.dtype is not torch.float32:
            raise NoRuleError(f"a value is {result.dtype}")
        return Shaped(result.shape)
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return [_described(value) for value in result]
    return result


def trial_inputs(inputs: Inputs, *, dynamic_batch: bool) -> tuple[Inputs, ...]:
    """The inputs themselves, or batches of two and three made from them, the second with noise."""
    if not dynamic_batch:
        return (inputs,)
    if any(tensor.dim() == 0 or len(tensor) != len(inputs[0]) for tensor in inputs):
        raise NoRuleError("the inputs are not of one batch")
    generator = torch.Generator().manual_seed(0)
    three = [torch.cat([tensor[:3]] * 3)[:3].cpu() for tensor in inputs]
    noisy = []
    for tensor in three:
        spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
        noise = torch.randn(tensor.shape, generator=generator)
        noisy.append(tensor + noise * (spread or 1.0))
    return tuple(tensor[:2] for tensor in three), tuple(noisy)
