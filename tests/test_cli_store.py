"""`data: {store: ...}` of a recipe, as a subprocess on handwritten digits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelzip import cli
from modelzip.data import PackedDataset, digits
from modelzip.report.record import read

RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 4, train: {epochs: 4, lr: 0.1}}
data:
  build: "modelzip.data:digits"
  batch_size: 64
  calibration: 128
  store: {dtype: uint8, chunk: 64, duplicates: exact, coreset: 0.5, by: random}
steps:
  - finetune: {epochs: 1, lr: 0.02}
  - int8
measure: {runtimes: [onnxruntime], batch_sizes: [2]}
"""


def modelzip(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelzip", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    (path / "small.yaml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    done = modelzip(folder, "run", "small.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr
    return done


def test_the_report_says_what_storing_saves_and_costs(folder, finished):
    record = read(folder / "out")
    data = record.data
    assert data is not None
    assert data.settings["dtype"] == "uint8"
    train = digits().train
    assert data.samples_before == len(train)
    assert data.samples + data.left_out + data.duplicates == len(train)
    assert abs(data.samples - len(train) / 2) <= 5
    assert data.bytes_before == len(train) * (64 * 4 + 8)
    assert data.bytes_after == (folder / "out" / "train.mzd").stat().st_size
    assert data.bytes_after < 0.15 * data.bytes_before
    assert data.shuffled_per_s > 0 < data.random_per_s
    assert data.original is not None
    assert data.original.n == record.compressed.accuracy.n
    assert data.comparison is not None
    assert 100 * (data.original.top1 - record.compressed.accuracy.top1) == pytest.approx(
        data.comparison.drop
    )
    page = (folder / "out" / "report.md").read_text()
    assert "## Data" in page
    for text in (page, finished.stdout):
        assert "accuracy, trained on them" in text
        assert "training data in train.mzd, with loss" in text
        assert "that are not in the coreset" in text


def test_the_file_is_that_of_the_training_data_and_nothing_else_is_left(folder, finished):
    packed = PackedDataset(folder / "out" / "train.mzd")
    kept = {
        tuple(x.flatten().tolist()) for x in packed.batch(range(len(packed)))[0].mul(16).round()
    }
    images = {tuple(x.flatten().tolist()) for x in torch.as_tensor(digits().train.inputs) * 16}
    assert kept <= images
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "baseline.onnx",
        "checkpoint.safetensors",
        "model.onnx",
        "original.safetensors",
        "recipe.yaml",
        "report.json",
        "report.md",
        "train.mzd",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("bit=5", "data.store: store has no setting 'bit'; did you mean 'bits'?"),
        ("bits=5", "bits and dtype are two ways to lose; choose one"),
        ("bits=5 dtype=null", "bits rounds uint8 images, and samples are float32"),
        ("codec=jepg", "codec has no choice 'jepg'"),
        ("coreset=50", "data.store: coreset must be a fraction in (0, 1], got 50"),
        ("duplicates=all", "data.store: duplicates has no choice 'all'"),
        ("by=loss", "data.store: a coreset by loss is chosen with the model"),
        ("compare=maybe", "data.store: compare must be true or false"),
        ("path=[]", "data.store: path must be the path of a file"),
        ("path=small.yaml", "store: small.yaml is there, and no packed dataset; give another"),
        ("path=none/a.mzd", "store: cannot write none/a.mzd: it is a folder, or in one that is"),
    ],
)
def test_settings_that_cannot_be_are_one_line_before_anything_runs(
    folder, settings, message, monkeypatch, capsys
):
    chosen = [p for s in settings.split() for p in ("--set", f"data.store.{s}")]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["modelzip", "run", "small.yaml", "--out", "wrong", *chosen])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(folder.glob("wrong*"))
