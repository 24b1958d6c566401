"""Archives of every version of the format open, to the tensors that were packed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from modelzip.archive.unpack import open_archive

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("version_*/*.mzip"))


def tensors() -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tensors()


def test_there_are_files_of_every_version():
    assert {path.parent.name for path in FILES} == {"version_1"}
    assert len(FILES) == 16


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_old_archive_opens(path):
    with open_archive(path) as archive:
        archive.test()
        for name, tensor in tensors().items():
            if name in archive:  # others are too small to be listed
                found = archive[name]
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor)
