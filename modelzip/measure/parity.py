"""Whether the saved file computes what the converted module computes, on real samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import nn

from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import DataError, ModelzipError
from modelzip.measure.accuracy import Accuracy
from modelzip.runtime.inputs import Array, as_array
from modelzip.runtime.session import Session

K = TypeVar("K", bound=Hashable)


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


@dataclass(frozen=True, kw_only=True)
class ParityRow(Parity):
    """The answers of model `name`, served in this way: beside its module's, and beside labels."""

    name: str
    runtime: str
    device: str
    precision: str
    accuracy: Accuracy


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
    return parities(module, {"": session}, batches)[""]


def parities(
    module: nn.Module,
    sessions: Mapping[K, Session],
    batches: Iterable[Any],
    *,
    failed: Callable[[K, ModelzipError], object] | None = None,
) -> dict[K, Parity]:
    """`parity` of several sessions with `module`, which is run once.

    A session that cannot be compared is handed to `failed`, with the reason, and left out; without
    `failed` that is an error.
    """
    tallies = {key: _Tally() for key in sessions}
    n = 0
    with evaluating(module):
        for inputs in batches:
            ours = [as_array(t) for t in tensors(call(module, inputs))]
            _check(ours, "module", first=n)
            for key in list(tallies):
                try:
                    tallies[key].add(ours, _answers(sessions[key], inputs, ours, first=n))
                except ModelzipError as error:
                    if failed is None:
                        raise
                    failed(key, error)
                    del tallies[key]
            n += len(ours[0])
    if not n:
        raise DataError("there are no samples to compare on; give at least one batch")
    return {key: tally.parity() for key, tally in tallies.items()}


class _Tally:
    """What `Parity` needs, added up batch by batch."""

    def __init__(self) -> None:
        self.n, self.agree, self.identical, self.count = 0, 0, 0, 0
        self.total = self.largest = self.scale = 0.0

    def add(self, ours: list[Array], theirs: list[Array]) -> None:
        size = len(ours[0])
        same, equal = np.ones(size, dtype=bool), np.ones(size, dtype=bool)
        for mine, other in zip(ours, theirs, strict=True):
            difference = np.abs(mine.astype(np.float64) - other.astype(np.float64))
            if difference.size:
                self.largest = max(self.largest, float(difference.max()))
                self.scale = max(self.scale, float(np.abs(mine).max()))
            self.total += float(difference.sum())
            self.count += difference.size
            equal &= (difference.reshape(size, -1) == 0).all(axis=1)
            if mine.ndim > 1:
                hits = mine.argmax(axis=-1) == other.argmax(axis=-1)
                same &= hits.reshape(size, -1).all(axis=1)
        self.n += size
        self.agree += int(same.sum())
        self.identical += int(equal.sum())

    def parity(self) -> Parity:
        return Parity(
            n=self.n,
            agreement=self.agree / self.n,
            identical=self.identical / self.n,
            max_difference=self.largest,
            mean_difference=self.total / max(self.count, 1),
            scale=self.scale,
        )


def _answers(session: Session, inputs: Any, ours: list[Array], *, first: int) -> list[Array]:
    theirs = session.run(inputs)
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        raise DataError(
            f"the module's outputs have shapes {[list(a.shape) for a in ours]}, the file's "
            f"{[list(b.shape) for b in theirs]}"
        )
    _check(theirs, "file", first=first)
    return theirs


def _check(arrays: list[Array], whose: str, *, first: int) -> None:
    if not arrays or any(a.ndim == 0 or len(a) != len(arrays[0]) for a in arrays):
        raise DataError(
            f"outputs of shapes {[list(a.shape) for a in arrays]} cannot be compared sample by "
            "sample; each needs the batch as its first dimension"
        )
    for index, array in enumerate(arrays):
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            sample = first + int(finite.argmin())
            raise DataError(
                f"the {whose}'s output {index} for sample {sample} holds NaN or infinity"
            )
