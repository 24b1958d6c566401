"""PyTorch sessions, eager and compiled, on the CPU and on CUDA."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.running import call, tensors
from modelzip.errors import ExportError
from modelzip.runtime.inputs import Array, InputSpec, as_array, match


class TorchSession:
    """A copy of a module in eval mode, computing in `precision` on `device`.

    Every dimension but the first is fixed to the example's, as compiled code may be.
    """

    def __init__(
        self,
        module: nn.Module,
        example_inputs: Any,
        *,
        device: str = "cpu",
        threads: int = 1,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        self._device = torch.device(device)
        self._threads = threads
        self._dtype: torch.dtype = getattr(torch, precision)
        self._by_keyword = isinstance(example_inputs, Mapping)
        self.inputs = _specs(module, example_inputs)
        module = surgery.clone(module).eval().to(self._device)
        if self._dtype != torch.float32:
            module = module.to(self._dtype)
        # dynamic=False: one graph a shape, the fastest that torch.compile makes
        self._module: Any = torch.compile(module, dynamic=False) if compiled else module
        self._label = "torch.compile" if compiled else "torch"
        self._name = type(module).__name__
        self.run(example_inputs)  # compiles now, and fails now where it cannot

    def run(self, inputs: Any, /) -> list[Array]:
        """Every tensor the module returns, flattened in order, floats as float32."""
        outputs = tensors(self._call(self._placed(inputs)))
        return [as_array(t.float() if t.is_floating_point() else t) for t in outputs]

    def bind(self, inputs: Any, /) -> Callable[[], object]:
        """A function that runs the module once on `inputs`, which are put on the device now."""
        placed = self._placed(inputs)
        if self._device.type == "cpu":
            return lambda: self._call(placed)

        def run_once() -> None:
            self._call(placed)
            torch.cuda.synchronize(self._device)

        return run_once

    def _placed(self, inputs: Any) -> Any:
        arrays = match(self.inputs, inputs)
        placed = {name: self._to_device(array) for name, array in arrays.items()}
        return placed if self._by_keyword else tuple(placed.values())

    def _to_device(self, array: Array) -> Tensor:
        tensor = torch.tensor(array, device=self._device)  # a copy: the array may be read-only
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _call(self, placed: Any) -> Any:
        try:
            with _threads(self._threads), torch.inference_mode():
                return call(self._module, placed)
        except Exception as error:  # the user's module and torch's compiler raise what they like
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"{self._label} cannot run {self._name}: {reason}") from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _specs(module: nn.Module, example_inputs: Any) -> tuple[InputSpec, ...]:
    if isinstance(example_inputs, Mapping):
        named = dict(example_inputs)
    else:
        given = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        parameters = list(inspect.signature(module.forward).parameters)
        fallback = [f"input{i}" for i in range(len(given))]  # forward(*args) names nothing
        names = parameters[: len(given)] if len(parameters) >= len(given) else fallback
        named = dict(zip(names, given, strict=True))
    specs = []
    for name, value in named.items():
        array = as_array(value)
        shape = (None, *array.shape[1:]) if array.ndim else ()
        specs.append(InputSpec(name=name, dtype=array.dtype.name, shape=shape))
    return tuple(specs)
