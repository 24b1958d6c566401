"""Running a model once while following the channels of its layers through every op."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from modelzip.core.channels.calls import Call, each
from modelzip.core.channels.cost import products
from modelzip.core.channels.labels import Labels, crossed
from modelzip.core.channels.layers import Layers
from modelzip.core.channels.rules import rule, starts
from modelzip.core.channels.ties import Ties
from modelzip.core.running import call, tensors


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, labels are kept beside all tensors, and `ties` tells what the ops make of them.

    Attributes:
        total: multiply-accumulates so far.
        macs: those of each module, with what is inside it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = Layers(model)
        self.ties = Ties(self.layers.count)
        self.total = 0
        self.macs: dict[str, int] = {}
        self._labels = Labels()
        self.layers.prepare(self._labels, self.ties)

    def label(self, tensor: Tensor) -> Tensor | None:
        """The label of a tensor that the model made."""
        return self._labels.get(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # by default the first op imports all of torch.compile, for some seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, arguments = _schema(func)
        given = dict(zip(arguments, args, strict=False)) | (kwargs or {})
        known = {id(t): self._see(t) for t in each(given.values())}
        result = func(*args, **(kwargs or {}))
        self.total += products(func, args, kwargs or {}, result)
        if starts(name) or any(label is not None for label in known.values()):
            outputs = list(each([result]))
            self._follow(Call(func, name, given, outputs, known, self.layers, self.ties))
        return result

    def _see(self, tensor: Tensor) -> Tensor | None:
        self.layers.see(tensor)
        return self._labels.get(tensor)

    def _follow(self, op: Call) -> None:
        follow = rule(op)
        try:
            found = None if follow is None else follow(op)
            labels = found if isinstance(found, list) else [found] * len(op.outputs)
            fits = all(
                label is None or label.shape == output.shape
                for output, label in zip(op.outputs, labels, strict=True)
            )
        except Exception:  # an op may be called in ways that its rule does not foresee
            fits = False
        if follow is None or not fits:
            labels = [None] * len(op.outputs)
            there = f"{op.name} {op.layers.where()}"
            reason = op.layers.blame(f"cannot be followed through {there}")
            for label in op.known.values():
                if label is not None:
                    op.ties.bar(label, reason)
        for output, label in zip(op.outputs, labels, strict=True):
            if id(output) in op.known:
                self._labels.write(output, label)
                self._note_mixed(op, output)
            else:
                self._labels.set(output, label)

    def _note_mixed(self, op: Call, written: Tensor) -> None:
        """Where a part of a tensor is written so that its axes hold channels unevenly, say so."""
        whole = written._base
        label = None if whole is None else self._labels.get(whole)
        if label is not None and crossed(label):
            reason = f"is mixed with other channels by {op.name}_ {op.layers.where()}"
            op.ties.mix(label, op.layers.blame(reason))


@functools.cache
def _schema(func: Any) -> tuple[str, tuple[str, ...]]:
    """The name of an op, without the underscore of one in place, and of its arguments."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    return name, tuple(argument.name for argument in func._schema.arguments)


def trace(model: nn.Module, inputs: Any) -> tuple[Trace, list[Tensor]]:
    """Run `model`, in the mode it is in; what was learnt, and the tensors it returned."""
    seen = Trace(model)
    with torch.no_grad(), _plain_attention(), _named(seen), seen:
        outputs = list(tensors(call(model, inputs)))
    return seen, outputs


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products, in modules and in functions."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _named(seen: Trace) -> Iterator[None]:
    """Keep `layers.running` and `macs` while the model runs."""
    handles = []
    layers, before = seen.layers, list[int]()
    for name, module in layers.modules.items():

        def enter(*_: Any, name: str = name) -> None:
            layers.running.append(name)
            layers.reached.add(name)
            before.append(seen.total)

        def leave(*_: Any) -> None:
            name = layers.running.pop()
            seen.macs[name] = seen.macs.get(name, 0) + seen.total - before.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
