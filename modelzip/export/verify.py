"""Whether a file that was written computes what its model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from modelzip.errors import ExportError, ModelzipError
from modelzip.export.direct import Written
from modelzip.export.writer import NoRuleError
from modelzip.runtime.inputs import as_array
from modelzip.runtime.session import Session

# largest difference allowed, as a fraction of the largest output
_FLOAT = 1e-4
_ROUNDED = 2e-2  # a value that falls to the other side of a rounding moves the output by a step
_PLAINLY_OTHER = 0.1  # beyond what many such steps, or 16-bit floats, add up to


def verify(session: Session, written: Written) -> None:
    """NoRuleError unless the file in `session` gives what the model gave in its trial runs."""
    tolerance = 0.0 if written.exact else _ROUNDED if written.rounds else _FLOAT
    for inputs, expected in written.cases:
        try:
            results = session.run(inputs)
        except ModelzipError as error:
            raise NoRuleError(f"the file does not run: {error}") from error
        for result, tensor in zip(results, expected, strict=True):
            if not _equal(result, tensor, tolerance):
                raise NoRuleError("the file gives other outputs than the model")


def refuse_other(
    session: Session, inputs: Mapping[str, Tensor], expected: Sequence[Tensor]
) -> None:
    """ExportError if the file in `session` plainly computes something else on `inputs`, by name.

    Not every file need round as its model does; `verify` is stricter where it can be.
    """
    taken = {spec.name for spec in session.inputs}  # what no output depends on is left out
    results = session.run({name: value for name, value in inputs.items() if name in taken})
    for index, (result, tensor) in enumerate(zip(results, expected, strict=True)):
        wanted = as_array(tensor).astype(np.float64)
        if result.shape != wanted.shape:
            raise ExportError(
                f"the file's output {index} has shape {list(result.shape)}, and the model's "
                f"{list(wanted.shape)}"
            )
        finite = np.isfinite(wanted)
        apart = np.abs(result.astype(np.float64)[finite] - wanted[finite])
        largest, scale = apart.max(initial=0.0), np.abs(wanted[finite]).max(initial=0.0)
        if not largest <= _PLAINLY_OTHER * max(scale, 1e-6):
            raise ExportError(
                f"the file computes something else than the model: output {index} differs by up to "
                f"{largest:.3g} where the largest is {scale:.3g}, on the example inputs; look for "
                "branches on values, or on whether it is being exported, in forward"
            )


def _equal(result: np.ndarray, tensor: Tensor, tolerance: float) -> bool:
    expected = tensor.detach().cpu().numpy()
    if result.shape != expected.shape:
        return False
    if tolerance == 0:
        return np.array_equal(result, expected, equal_nan=True)
    allowed = tolerance * np.abs(
        expected, where=np.isfinite(expected), out=np.zeros_like(expected)
    ).max(initial=0)
    return np.allclose(result, expected, rtol=0, atol=allowed, equal_nan=True)
