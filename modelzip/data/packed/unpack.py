"""A packed dataset as arrays in an .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.aside import written_aside
from modelzip.data.packed.dataset import PackedDataset
from modelzip.errors import DataError


def unpack(data: PackedDataset, path: str | Path, *, keep_going: bool = False) -> list[str]:
    """Write inputs [N, ...] and labels [N] at once or not at all; why samples are left out.

    Of samples that differ in length `inputs` is one row of all, and `lengths` [N] cuts it.
    All of them have to fit in memory.

    Raises:
        DataError: samples are damaged; with `keep_going` only where none is left.
        OutputError: the file cannot be written.
    """
    lost = list(data.damaged())
    if lost and not keep_going:
        raise DataError(f"{lost[0][1]}; keep_going leaves what is lost out")
    gone = {number for samples, _ in lost for number in samples}
    kept = [number for number in range(len(data)) if number not in gone]
    if not kept:
        raise DataError(f"{data.path}: no sample of {len(data)} is whole")
    arrays = _arrays(data, kept)
    with written_aside(Path(path)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its flag is not among the names
    return [reason for _, reason in lost]


def _arrays(data: PackedDataset, kept: list[int]) -> dict[str, NDArray[Any]]:
    if data.form.shape is not None:
        inputs, labels = data.batch(kept)
        return {"inputs": inputs.numpy(), "labels": labels.numpy()}
    rows, targets = zip(*data.__getitems__(kept), strict=True)
    arrays = [np.frombuffer(r, np.uint8) if isinstance(r, bytes) else r.numpy() for r in rows]
    return {
        "inputs": np.concatenate(arrays),
        "lengths": np.array([len(row) for row in arrays], np.int64),
        "labels": np.array(targets, np.int64),
    }
