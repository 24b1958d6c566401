"""What a session takes, and matching what a user gives against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from modelzip.errors import DataError, did_you_mean

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of a session: its name, numpy dtype name, and shape with None for any length."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        lengths = ", ".join("any" if n is None else str(n) for n in self.shape)
        return f"{self.name}: {self.dtype} [{lengths}]"


def as_array(value: Any) -> Array:
    """A numpy array from a tensor or an array; bfloat16, which numpy lacks, becomes float32.

    >>> as_array(torch.ones(2)).dtype
    dtype('float32')
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        plain: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return plain
    return np.asarray(value)


def match(specs: Sequence[InputSpec], inputs: Any) -> dict[str, Array]:
    """The arrays of `inputs` by input name, checked against `specs`.

    Args:
        specs: what the session takes.
        inputs: one array or tensor, a tuple or list of them in order, or a dict by name.

    Raises:
        DataError: an input is missing, unknown, or of another type or shape.

    >>> spec = InputSpec(name="x", dtype="float32", shape=(None, 3))
    >>> list(match([spec], np.zeros((2, 3), np.float32)))
    ['x']
    >>> match([spec], np.zeros((2, 4), np.float32))
    Traceback (most recent call last):
    modelzip.errors.DataError: input x has shape [2, 4]; the model takes x: float32 [any, 3]
    """
    given = _by_name(specs, inputs)
    arrays = {}
    for spec in specs:
        array = as_array(given[spec.name])
        if array.dtype.name != spec.dtype:
            raise DataError(f"input {spec.name} is {array.dtype.name}; the model takes {spec}")
        fits = array.ndim == len(spec.shape) and all(
            want in (None, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"input {spec.name} has shape {list(array.shape)}; the model takes {spec}"
            )
        arrays[spec.name] = np.asarray(array, order="C")  # runtimes read memory as it lies
    return arrays


def resized(inputs: Any, batch_size: int) -> Any:
    """`inputs` in the same structure, their first dimension repeated or cut to `batch_size`.

    >>> resized((np.arange(3),), 5)[0].tolist()
    [0, 1, 2, 0, 1]
    """
    if isinstance(inputs, Mapping):
        return {name: resized(value, batch_size) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(resized(value, batch_size) for value in inputs)
    array = as_array(inputs)
    if array.ndim == 0 or len(array) == 0:
        raise DataError(
            f"an input of shape {list(array.shape)} has no samples to make a batch of; "
            "give at least one sample, with the batch as the first dimension"
        )
    return array[np.arange(batch_size) % len(array)]


def _by_name(specs: Sequence[InputSpec], inputs: Any) -> Mapping[str, Any]:
    names = [spec.name for spec in specs]
    if isinstance(inputs, Mapping):
        for name in inputs:
            if name not in names:
                raise DataError(f"the model has no input {name!r}{did_you_mean(str(name), names)}")
        for name in names:
            if name not in inputs:
                raise DataError(f"input {name!r} is missing; the model takes {', '.join(names)}")
        return inputs
    given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    if len(given) != len(names):
        raise DataError(
            f"{len(given)} inputs given; the model takes {len(names)}: {', '.join(names)}"
        )
    return dict(zip(names, given, strict=True))
