from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch

from modelzip.archive.bundle import bundle
from modelzip.archive.container import Writer
from modelzip.archive.pack import pack
from modelzip.archive.unpack import unpack
from modelzip.errors import ArchiveError
from modelzip.report.archive import checked, listing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of a run without an archive."""
    (found := tmp_path / "run").mkdir()
    for name in ("recipe.yaml", "report.json", "report.md", "model.onnx"):
        (found / name).write_text("text")
    return found


def test_the_files_of_a_bundle_are_listed(folder: Path) -> None:
    path = bundle(folder, folder / "a.tar").path
    header, _, *rows, _, total = listing(path).splitlines()
    assert header.split() == ["file", "bytes", "SHA-256"]
    sha256 = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"  # sha256sum's
    assert [row.split() for row in rows] == [
        [name, "4", sha256] for name in ("model.onnx", "recipe.yaml", "report.json", "report.md")
    ]
    assert total == "4 files of 16 bytes; the bundle has 10,240: 640.000x"


def test_a_name_is_listed_as_what_a_terminal_can_show(tmp_path: Path) -> None:
    pack({"\x1b[2Jw": torch.ones(100), "w": torch.ones(100)}, tmp_path / "a.mzip")
    lines = listing(tmp_path / "a.mzip").splitlines()
    assert lines[2].startswith(r"'\x1b[2Jw'")
    assert lines[3].startswith("w ")


def test_an_archive_of_no_bytes_is_listed(tmp_path: Path) -> None:
    index = {"kind": "onnx", "skeleton": [0, ["store", 0]], "gaps": [], "tensors": [], "pieces": []}
    text = json.dumps(index).encode()
    with Writer(tmp_path / "a.mzip") as writer:
        writer.add("skeleton", b"")
        writer.add("index", zlib.compress(text))
        writer.finish({"index": len(text)})
    assert "0 tensors; the file has 0 bytes" in listing(tmp_path / "a.mzip")


def test_a_bundle_is_tested_with_what_is_in_it(folder: Path) -> None:
    path = folder / "a.zip"
    bundle(folder, path)
    assert checked(path) == f"{path}: 4 files, all as they were bundled"
    pack({"w": torch.ones(100)}, folder / "model.mzip")
    bundle(folder, path, onnx=False)
    assert checked(path).endswith("model.mzip unpacks as it was packed")
    bundle(folder, path)
    with pytest.raises(ArchiveError, match=r"model\.mzip does not unpack to the bytes of model\.o"):
        checked(path)
    unpack(folder / "model.mzip", folder / "model.onnx")
    bundle(folder, path)
    assert checked(path).endswith("model.mzip unpacks to the bytes of model.onnx")
