"""Whether a file that was written repeats the trial runs of its model."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from modelzip.errors import ModelzipError
from modelzip.export.direct import Written
from modelzip.export.writer import NoRuleError
from modelzip.runtime.session import Session

# largest difference allowed, as a fraction of the largest output
_FLOAT = 1e-4
_ROUNDED = 2e-2  # a value that falls to the other side of a rounding moves the output by a step


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
