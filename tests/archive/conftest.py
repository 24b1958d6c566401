"""What tests of archives share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import modelzip as mz

TEXTS = {"recipe.yaml": b"seed: 0\n", "report.json": b"{}\n", "report.md": b"# PASS\n" * 500}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with what a run leaves."""
    folder = tmp_path / "runs" / "digits"
    folder.mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text)
    weights = torch.arange(3000, dtype=torch.int16)
    mz.pack({"w": weights}, folder / "model.mzip", codec="lanes")
    mz.unpack(folder / "model.mzip", folder / "model.onnx")
    for name in ("checkpoint.safetensors", "original.safetensors", "baseline.onnx"):
        (folder / name).write_bytes(b"left out")
    return folder
