"""How large and how small the values get that a model computes, operation by operation."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from modelzip.core.running import call, evaluating, tensors
from modelzip.numerics.floats import largest_magnitude

_MEANS = {"mean", "var", "_adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
_NORMS = {"native_layer_norm", "native_group_norm"}


@dataclass
class Reach:
    """Extremes of what one module takes, computes and returns.

    Attributes:
        largest: the largest finite |value|.
        total: the largest sum behind a mean, a variance or a norm, of squares for the latter two.
        faintest: the smallest peak: the largest |value| of the tensor where that is least.
    """

    largest: float = 0.0
    total: float = 0.0
    faintest: float = float("inf")


def reaches(model: nn.Module, inputs: Iterable[Any]) -> dict[str, Reach]:
    """The extremes of each module by name, over runs in eval mode.

    An operation counts for the module whose forward calls it; what a module returns also for the
    one around it, and what it is given also for itself.

    >>> reaches(nn.Sequential(nn.ReLU()), [torch.tensor([-8.0, 2.0])])["0"]
    Reach(largest=8.0, total=0.0, faintest=2.0)
    """
    found = {name: Reach() for name, _ in model.named_modules()}
    watch = _Watch(found)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(
                module.register_forward_pre_hook(watch.enter(name), with_kwargs=True).remove
            )
            stack.callback(module.register_forward_hook(watch.leave).remove)
        fused = torch.backends.mha.get_fastpath_enabled()
        # fused attention would hide its scores
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with evaluating(model), watch:
            for one in inputs:
                watch.inside = []
                call(model, one)
    return found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Files every tensor that an operation returns under the module that is running."""

    def __init__(self, found: dict[str, Reach]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.inside: list[Reach] = []

    def enter(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.inside.append(self.found[name])
            self._meet((args, kwargs))

        return hook

    def leave(self, _: nn.Module, __: Any, outputs: Any) -> None:
        self.inside.pop()
        self._meet(outputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if self.inside and not func.is_view:
            self._compute(func.overloadpacket.__name__, args, outputs)
        return outputs

    def _meet(self, values: Any) -> None:
        if self.inside:
            here = self.inside[-1]
            here.largest = max([here.largest, *map(largest_magnitude, _floats(values))])

    def _compute(self, op: str, args: Any, outputs: Any) -> None:
        here = self.inside[-1]
        results = list(_floats(outputs))
        for result in results:
            peak = largest_magnitude(result)
            here.largest = max(here.largest, peak)
            if peak and result.dim():  # a number by itself is a setting, such as epsilon
                here.faintest = min(here.faintest, peak)
        if op in _MEANS and results:
            (given, *_) = _floats(args)
            summed = given.numel() / max(results[0].numel(), 1)
            here.total = max(here.total, largest_magnitude(results[0]) * summed)
        elif op in _NORMS:
            (given, *_) = _floats(args)
            groups = results[1].numel()  # of which each has a mean
            here.total = max(here.total, float(given.square().sum()) / groups)


def _floats(values: Any) -> list[Tensor]:
    return [t for t in tensors(values) if t.is_floating_point() and t.numel()]
