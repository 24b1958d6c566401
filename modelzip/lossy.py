"""A recipe's model in few bytes, without its training."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from modelzip.core.checks import ratio
from modelzip.errors import OutputError
from modelzip.passes.rate_quantize import RateQuantize
from modelzip.recipe.schema import Archived, Measure, Recipe
from modelzip.report.record import Record
from modelzip.report.requirements import parse
from modelzip.run import run

log = logging.getLogger(__name__)

_TURNS = 3  # what is in no weight is known once it is there
_NEAR = 0.01  # of a target


def pack_lossy(
    recipe: Recipe,
    path: str | Path,
    *,
    size: str | None = None,
    kl: float | None = None,
    codec: str = "auto",
    progress: bool = True,
) -> Record:
    """Pack the model of `recipe`, its weights rounded for that; the record of what it then is.

    Only the recipe's model and data are used, not its steps: nothing is trained.

    Args:
        path: of the archive; what is there stays until it is whole.
        size, kl: the target, one of them, as in `RateQuantize`.
        codec, progress: as for `pack` and `run`.

    Raises:
        ModelzipError: as `run` does.
    """
    path = Path(path)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder, or in one that is not there")
    target = None if size is None else ratio("size", size)
    step = RateQuantize(size=size, kl=kl)
    plan = recipe.model_copy(
        update={
            "archive": Archived(codec=codec),
            "data": recipe.data.model_copy(update={"store": None}),
            "measure": Measure(runtimes=("onnxruntime",)),
            "robustness": None,
            "require": () if size is None else (parse("archive", size),),
        }
    )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".modelzip-") as scratch:
        for turn in range(_TURNS):
            folder = Path(scratch) / str(turn) / path.stem
            folder.parent.mkdir()
            tried = plan.model_copy(update={"steps": (step,)})
            record = run(tried, out=folder, progress=progress)
            if record.passed or target is None:
                break
            found = (record.compressed.archive_bytes or 0) / record.baseline.size_bytes
            left = ratio("size", step.size) - (found - target)  # for the weights, of all else
            if left <= 0:
                break
            step = RateQuantize(size=f"{(1 - _NEAR) * left:.5g}x")
            log.info("once more: the archive is over %s", size)
        (folder / "model.mzip").replace(path)
    return record
