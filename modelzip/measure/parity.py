"""Whether the saved file computes what the converted module computes, on real samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import DataError
from modelzip.runtime.inputs import Array, as_array
from modelzip.runtime.session import Session


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How close a file's outputs are to its module's.

    Attributes:
        n: samples compared.
        agreement: fraction of them whose largest value along the last axis is at the same place
            in every output.
        identical: fraction of them equal to the last bit in every output.
        max_difference, mean_difference: absolute, over all values of all outputs.
        scale: the largest absolute value among the module's outputs, to judge those by.
    """

    n: int
    agreement: float
    identical: float
    max_difference: float
    mean_difference: float
    scale: float


def parity(module: nn.Module, session: Session, batches: Iterable[Any]) -> Parity:
    """Run `module` and `session` on every batch of inputs and compare every output.

    Args:
        module: the converted module; run in eval mode, on the CPU.
        session: the file made from it.
        batches: inputs alone, in batches: a tensor, a tuple, or a dict by name.

    Raises:
        DataError: there are no batches, outputs differ in number or shape, or one of them
            holds a value that is not finite.
    """
    n, agree, identical, total, count = 0, 0, 0, 0.0, 0
    largest = scale = 0.0
    with evaluating(module):
        for inputs in batches:
            pairs = _outputs(module, session, inputs, first=n)
            size = len(pairs[0][0])
            same = np.ones(size, dtype=bool)
            equal = np.ones(size, dtype=bool)
            for ours, theirs in pairs:
                difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
                if difference.size:
                    largest = max(largest, float(difference.max()))
                    scale = max(scale, float(np.abs(ours).max()))
                total += float(difference.sum())
                count += difference.size
                equal &= (difference.reshape(size, -1) == 0).all(axis=1)
                if ours.ndim > 1:
                    hits = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
                    same &= hits.reshape(size, -1).all(axis=1)
            n += size
            agree += int(same.sum())
            identical += int(equal.sum())
    if not n:
        raise DataError("there are no samples to compare on; give at least one batch")
    return Parity(
        n=n,
        agreement=agree / n,
        identical=identical / n,
        max_difference=largest,
        mean_difference=total / max(count, 1),
        scale=scale,
    )


def _outputs(
    module: nn.Module, session: Session, inputs: Any, *, first: int
) -> list[tuple[Array, Array]]:
    ours = [as_array(t) for t in tensors(call(module, inputs))]
    theirs = session.run(inputs)
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        raise DataError(
            f"the module's outputs have shapes {[list(a.shape) for a in ours]}, the file's "
            f"{[list(b.shape) for b in theirs]}"
        )
    if not ours or any(a.ndim == 0 or len(a) != len(ours[0]) for a in ours):
        raise DataError(
            f"outputs of shapes {[list(a.shape) for a in ours]} cannot be compared sample by "
            "sample; each needs the batch as its first dimension"
        )
    for whose, arrays in (("module", ours), ("file", theirs)):
        for index, array in enumerate(arrays):
            finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if not finite.all():
                sample = first + int(finite.argmin())
                raise DataError(
                    f"the {whose}'s output {index} for sample {sample} holds NaN or infinity"
                )
    return list(zip(ours, theirs, strict=True))
