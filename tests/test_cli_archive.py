"""`modelzip pack | list | test | unpack`, as subprocesses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


def modelzip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelzip", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weight = torch.randn(40, 30)
    state = {"fc.weight": weight, "fc.int8": (weight * 40).clamp(-127, 127).to(torch.int8)}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_is_packed_listed_tested_and_unpacked(source: Path) -> None:
    archive = source.with_suffix(".mzip")
    packed = modelzip("pack", source)
    assert packed.returncode == 0, packed.stderr
    assert f"of {source.stat().st_size / 1000:.1f} KB" in packed.stdout
    listed = modelzip("list", archive).stdout
    assert "fc.weight" in listed
    assert "float32" in listed
    assert "2 tensors; the file has" in listed
    assert "2 tensors, all as they were packed" in modelzip("test", archive).stdout
    (out := source.parent / "out").mkdir()
    assert modelzip("unpack", archive, "-o", out).returncode == 0
    assert (out / "model.safetensors").read_bytes() == source.read_bytes()


def test_mistakes_are_told_in_a_line(source: Path) -> None:
    (text := source.parent / "notes.txt").write_text("no model at all")
    for arguments, message in (
        (("pack", text), "error: cannot pack"),
        (("pack", source, "--codec", "zsdt"), "did you mean 'zstd'?"),
        (("unpack", source), "is no modelzip archive"),
        (("test", source.parent / "missing.mzip"), "missing.mzip"),
    ):
        done = modelzip(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not text.with_suffix(".mzip").exists()
