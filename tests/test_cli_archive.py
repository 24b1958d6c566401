"""`modelzip pack | list | test | unpack | bundle`, as subprocesses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelzip.archive.pack import pack
from modelzip.runtime.session import load


def modelzip(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelzip", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


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


@pytest.fixture
def run(source: Path) -> Path:
    """A folder with what a run leaves, as far as a bundle has it."""
    (folder := source.parent / "digits").mkdir()
    for name in ("recipe.yaml", "report.json", "report.md"):
        (folder / name).write_text(name)
    shutil.copy(source, folder / "model.onnx")
    pack(source, folder / "model.mzip", codec="store")
    return folder


def test_a_run_is_bundled_listed_tested_and_unpacked(run: Path) -> None:
    bundled = modelzip("bundle", run)
    assert bundled.returncode == 0, bundled.stderr
    path = run.with_name("digits.zip")
    assert bundled.stdout.startswith(f"{path}: model.mzip, model.onnx, recipe.yaml, report.json, r")
    assert "5 files of " in modelzip("list", path).stdout
    assert modelzip("test", path).stdout == (
        f"{path}: 5 files, all as they were bundled; "
        "model.mzip unpacks to the bytes of model.onnx\n"
    )
    done = modelzip("unpack", path, "-o", run.with_name("out"))
    assert done.stdout == f"{run.with_name('out')}\n"
    for file in run.iterdir():
        assert (run.with_name("out") / file.name).read_bytes() == file.read_bytes()
    again = modelzip("unpack", path, "-o", run.with_name("out"))
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: {run.with_name('out')}/model.mzip exists already; ")
    shutil.rmtree(run)
    here = modelzip("unpack", "digits.zip", cwd=run.parent)
    assert here.returncode == 0, here.stderr
    assert (run / "model.onnx").is_file()


def test_a_bundle_of_what_is_no_run_is_refused_in_a_line(run: Path) -> None:
    small = modelzip("bundle", run, "--without-onnx", "-o", run.with_name("small.tar"))
    assert small.returncode == 0, small.stderr
    assert "model.onnx" not in small.stdout
    (run / "report.json").unlink()
    done = modelzip("bundle", run)
    assert done.returncode == 2
    assert done.stderr == (f"error: {run} has no report.json; give the folder of a finished run\n")
    assert not run.with_name("digits.zip").exists()


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


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (path := tmp_path / "small.yaml").write_text(
        """
        model: {build: "modelzip.zoo:digits_cnn", width: 8, train: {epochs: 2, lr: 0.1}}
        data: {build: "modelzip.data:digits", batch_size: 64, calibration: 128}
        steps: [int8]
        """
    )
    return path


def test_a_recipe_s_model_is_packed_with_loss_for_a_size(recipe: Path) -> None:
    out = recipe.with_name("lossy.mzip")
    packed = modelzip("pack", recipe, "--lossy", "size=0.2x", "-o", out)
    assert packed.returncode == 0, packed.stderr
    assert "archive     at most 0.2x" in packed.stdout
    assert f"archive: {out}" in packed.stdout
    onnx = recipe.with_name("lossy.onnx")
    assert modelzip("unpack", out, "-o", onnx).returncode == 0
    inputs = torch.rand(3, 1, 8, 8).numpy()
    assert np.isfinite(load(onnx).run(inputs)[0]).all()
    assert sorted(p.name for p in recipe.parent.iterdir()) == [
        *("lossy.mzip", "lossy.onnx", "small.yaml")
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("size=0.001x", "size=0.001x is out of reach: 0."),
        ("size=12", "size must be a ratio to the original such as 0.4x, got '12'"),
        ("kl=low", "--lossy takes size=0.06x or kl=0.05, got 'kl=low'"),
        ("0.06x", "--lossy takes size=0.06x or kl=0.05, got '0.06x'"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(recipe: Path, target: str, message: str) -> None:
    out = recipe.with_name("small.mzip")
    out.write_bytes(b"whole")
    packed = modelzip("pack", recipe, "--lossy", target)
    assert packed.returncode == 2
    assert message in packed.stderr
    assert out.read_bytes() == b"whole"


def test_a_loss_is_not_measured_without_data(source: Path) -> None:
    packed = modelzip("pack", source, "--lossy", "kl=0.05")
    assert packed.returncode == 2
    assert "give a recipe (.yaml), which names a model and its data" in packed.stderr
    packed = modelzip("pack", source.with_name("a.yaml"), "--lossy", "kl=0.05", "-o", "no/a.mzip")
    assert packed.returncode == 2
