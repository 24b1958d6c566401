"""Running a model on the kinds of input a user's batches hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.errors import DataError


def call(model: nn.Module, inputs: Any) -> Any:
    """Run `model`: a tensor is its only argument, a tuple its arguments, a dict its keywords.

    >>> call(nn.Identity(), torch.ones(1))
    tensor([1.])
    """
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients inside; each as it was again afterwards.

    PyTorch's counter of operations fails on views of parameters that do, with gradients off.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def tensors(inputs: Any) -> Iterator[Tensor]:
    """Every tensor in a tensor, or in nested tuples, lists, dicts and dataclasses of them."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, dict):
        for value in inputs.values():
            yield from tensors(value)
    elif isinstance(inputs, (tuple, list)):
        for value in inputs:
            yield from tensors(value)
    elif is_dataclass(inputs) and not isinstance(inputs, type):
        for item in fields(inputs):
            yield from tensors(getattr(inputs, item.name))


def convert(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`inputs` with every tensor in its dicts, tuples and lists changed; lists become tuples.

    >>> convert({"x": [torch.ones(1)]}, torch.neg)
    {'x': (tensor([-1.]),)}
    """
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: convert(value, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(convert(value, change) for value in inputs)
    return inputs


def rows(inputs: Any, count: int) -> Any:
    """`inputs` cut or repeated to `count` rows: tensors as long as the first one.

    >>> rows((torch.tensor([1, 2]), torch.tensor(3)), 3)
    (tensor([1, 2, 1]), tensor(3))
    """
    first = next((t for t in tensors(inputs) if t.dim()), None)
    if first is None:
        return inputs
    index = torch.arange(count) % len(first) if len(first) else torch.arange(0)

    def cut(tensor: Tensor) -> Tensor:
        fits = tensor.dim() and len(tensor) == len(first)
        return tensor[index.to(tensor.device)] if fits else tensor

    return convert(inputs, cut)


def forked_rng(model: nn.Module) -> AbstractContextManager[None]:
    """Random states as they were afterwards, on the CPU and the GPUs that `model` uses."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return torch.random.fork_rng(sorted(devices))  # all GPUs by default, with a warning


def as_batches(data: Iterable[Any]) -> tuple[Batch, ...]:
    """Batches as a loader yields them, (inputs, targets), or bare inputs: a tensor or a dict.

    DataError if there are none, or one is empty or holds a value that is not finite.

    >>> as_batches([torch.ones(1)])
    (Batch(inputs=tensor([1.]), targets=None),)
    """
    batches = []
    for index, item in enumerate(data):
        pair = isinstance(item, (tuple, list))
        if pair and len(item) != 2:
            raise DataError(
                f"calibration batch {index} has {len(item)} parts; give (inputs, targets), "
                "with several inputs as ((a, b), targets)"
            )
        batch = Batch(*item) if pair else Batch(item, None)
        for tensor in tensors(batch.inputs):
            if not tensor.numel():
                raise DataError(f"calibration batch {index} holds no samples")
            if not bool(torch.isfinite(tensor).all()):
                raise DataError(f"calibration batch {index} holds NaN or infinity")
        batches.append(batch)
    if not batches:
        raise DataError("the calibration data are empty; give at least one batch")
    return tuple(batches)
