"""What an exporter is given: a model's arguments by position, with names and shapes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from modelzip.core.running import tensors
from modelzip.errors import SettingError


class Positional(nn.Module):
    """A model with its keyword arguments given by position, behind the others.

    The exporter loses keywords on the way, and takes a weight without a dot in its name for an
    input, output or constant of the same name: here every weight's name has one.
    """

    def __init__(self, model: nn.Module, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.keywords = keywords

    def forward(self, *values: Any) -> tuple[Tensor, ...]:
        count = len(values) - len(self.keywords)
        keywords = dict(zip(self.keywords, values[count:], strict=True))
        # the exporter knows no classes of a user's own
        return tuple(tensors(self.model(*values[:count], **keywords)))


def batch_of_two(inputs: Any) -> Any:
    """Batches of one are doubled: the exporter takes a size of 1 for a constant."""
    found = [tensor for tensor in tensors(inputs) if tensor.dim()]
    if any(len(tensor) != 1 for tensor in found):
        return inputs
    return tree_map_only(
        Tensor, lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor, inputs
    )


def arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments as `call` gives them, keywords in the model's order."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        kwargs = inputs
    else:
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise SettingError(
            f"example_inputs do not fit {type(model).__name__}.forward: {error}"
        ) from error
    return args, {name: kwargs[name] for name in (*bound, *kwargs) if name in kwargs}


def numbered(name: str, count: int) -> list[str]:
    """`count` names that start with `name`.

    >>> numbered("output", 1), numbered("output", 2)
    (['output'], ['output_0', 'output_1'])
    """
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


def input_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each tensor: its key in the innermost dict it is in, else a number."""
    alone = len(list(tensors(args))) == 1
    roots = ["input"] * len(args) if alone else numbered("input", len(args))
    short, full = [], []
    for root, value in (*zip(roots, args, strict=True), *kwargs.items()):
        for path in _paths(value, root):
            short.append(path[-1])
            full.append("_".join(path))
    return short if len(set(short)) == len(short) else full


def _paths(value: Any, name: str) -> Iterator[tuple[str, ...]]:
    if isinstance(value, Tensor):
        yield (name,)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ((name, *path) for path in _paths(item, str(key)))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _paths(item, f"{name}_{index}")


def dynamic_shapes(inputs: Any) -> Any:
    """In the structure of `inputs`: the first dimension of every tensor is the batch."""
    batch = torch.export.Dim("batch")
    return tree_map(
        lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None, inputs
    )
