import hashlib
import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.data import Splits, digits
from modelzip.errors import DataError, ModelError, OutputError, SettingError
from modelzip.recipe.loader import load
from modelzip.report.record import read
from modelzip.run import rehearse, run
from modelzip.zoo import digits_cnn
from tests.stopping import Stopped, stop_after

RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 4, train: {epochs: 1, lr: 0.1}}
data: {build: "modelzip.data:digits", batch_size: 64, calibration: 128}
steps:
  - prune_channels: {sparsity: 0.25, round_to: 1}
  - finetune: {epochs: 1, lr: 0.05}
  - int8
archive: {codec: auto}
measure: {batch_sizes: [2]}
robustness: {samples: 60, attack_samples: 20, jpeg: [50], fgsm: [16/255], bit_flips: [1.0e-4]}
require: {archive: 0.8x, accuracy: 99.9 %}
"""
QUICK = {"batch_sizes": [2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    (path / "small.yaml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def record(folder):
    return run(load(folder / "small.yaml"), out=folder / "out", progress=False)


def test_the_folder_holds_everything(folder, record):
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "baseline.onnx",
        "checkpoint.safetensors",
        "model.mzip",
        "model.onnx",
        "original.safetensors",
        "recipe.yaml",
        "report.json",
        "report.md",
    ]
    assert read(folder / "out") == record
    assert (folder / "out" / "report.md").read_text().startswith("# FAIL: out, 1 of 2")
    for name, digest in record.hashes.items():
        assert hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() == digest


def test_figures_are_those_of_the_files(folder, record):
    for figures in (record.baseline, record.compressed):
        path = folder / "out" / figures.file
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        test = digits().test
        images = np.stack([np.asarray(test[i][0]) for i in range(len(test))])
        labels = np.array([int(test[i][1]) for i in range(len(test))])
        (outputs,) = session.run(None, {session.get_inputs()[0].name: images})
        assert figures.accuracy.correct == int((outputs.argmax(1) == labels).sum())
        assert figures.size_bytes == path.stat().st_size


def test_the_archive_unpacks_to_the_file(folder, record, tmp_path):
    archive = folder / "out" / "model.mzip"
    assert record.compressed.archive_bytes == archive.stat().st_size
    assert record.compressed.archive_bytes < record.compressed.size_bytes
    again = mz.unpack(archive, tmp_path / "model.onnx")
    assert again.read_bytes() == (folder / "out" / "model.onnx").read_bytes()
    assert "file, archived" in (folder / "out" / "report.md").read_text()
    assert next(o for o in record.requirements if o.name == "archive").met


def test_file_and_module_agree(record):
    assert record.parity.n == record.baseline.accuracy.n
    assert record.parity.agreement == 1.0


def test_a_missed_requirement_fails_the_run(record):
    assert not record.passed
    assert [o.met for o in record.requirements] == [True, False]
    assert any(note.startswith("accuracy: ") for note in record.notes)


def test_steps_and_layers_are_recorded(record):
    assert [s.name for s in record.steps] == ["prune_channels", "finetune", "int8"]
    assert [row.name for row in record.layers if row.bits == 8] != []
    assert record.compressed.parameters < record.baseline.parameters
    assert {row.batch_size for row in record.latency} == {2}


def test_the_checkpoint_rebuilds_the_compressed_model(folder, record):
    small = mz.load(lambda: digits_cnn(width=4), folder / "out" / "checkpoint.safetensors")
    session = onnxruntime.InferenceSession(str(folder / "out" / "model.onnx"))
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        expected = small(x).numpy()
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.array_equal(outputs.argmax(1), expected.argmax(1))


def test_the_resolved_recipe_stopped_and_resumed_ends_the_same(folder, record, tmp_path):
    recipe = load(folder / "out" / "recipe.yaml")
    with pytest.raises(Stopped), stop_after(1):
        run(recipe, out=tmp_path / "out", progress=False)
    resumed = run(recipe, out=tmp_path / "out", resume=True, progress=False)
    assert resumed.hashes["model.onnx"] == record.hashes["model.onnx"]
    assert resumed.hashes["original.safetensors"] == record.hashes["original.safetensors"]
    assert resumed.compressed.accuracy == record.compressed.accuracy


def test_a_finished_folder_is_refused(folder, record):
    with pytest.raises(OutputError, match="exists already"):
        run(load(folder / "small.yaml"), out=folder / "out", progress=False)


def test_a_rehearsal_writes_nothing(folder, record):
    before = sorted(folder.iterdir())
    assert [r.name for r in rehearse(load(folder / "small.yaml"))] == ["prune_channels", "int8"]
    assert sorted(folder.iterdir()) == before


def test_compress_takes_a_model_and_steps(tmp_path):
    torch.manual_seed(0)
    model = digits_cnn(width=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = mz.compress(
        model,
        [mz.MagnitudePrune(sparsity=0.5), mz.FineTune(steps=5), mz.Cast(dtype="float16")],
        data=digits(),
        out=tmp_path / "out",
        batch_size=64,
        measure=QUICK,
        require={"size": "0.8x"},
        progress=False,
    )
    assert record.passed
    assert record == read(tmp_path / "out")
    assert record.compressed.size_bytes < 0.8 * record.baseline.size_bytes
    assert json.loads((tmp_path / "out" / "report.json").read_text())["name"] == "out"
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_names_and_files_of_the_data_are_left_with_the_model(tmp_path):
    data = replace(digits(), names=tuple("0123456789"), files={"digits.txt": "0 to 9\n"})
    record = mz.compress(
        digits_cnn(width=4), [mz.Int8()], data=data, out=tmp_path / "out", measure=QUICK
    )
    assert (tmp_path / "out" / "digits.txt").read_text() == "0 to 9\n"
    assert "digits.txt" in record.hashes
    rows = record.compressed.classes
    assert [row.name for row in rows] == list("0123456789")
    assert sum(row.answers[i] for i, row in enumerate(rows)) == record.compressed.accuracy.correct


class Branching(nn.Module):
    """A model that fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(x if x.sum() > 0 else -x)


def test_a_captured_model_is_served_and_the_report_says_so(tmp_path):
    torch.manual_seed(0)
    steps = [mz.Int8(mode="static")]
    record = mz.compress(Branching(), steps, data=digits(), out=tmp_path / "out", measure=QUICK)
    assert "Branching.forward branches on values: captured along the path" in record.notes[-1]
    assert record.notes[-1] in (tmp_path / "out" / "report.md").read_text()


def with_nan():
    model = digits_cnn(width=4)
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    return model


def relabelled():
    splits = digits()
    return Splits(train=splits.train, validation=splits.validation, test=splits.test, classes=9)


def wrong_shape():
    pair = [(torch.zeros(3, 8, 8), 1)] * 64
    return Splits(train=pair, validation=pair, test=pair, classes=10)


@pytest.mark.parametrize(
    ("model", "data", "steps", "error", "message"),
    [
        (with_nan, digits, [mz.Int8()], ModelError, "0.weight of .* holds NaN"),
        (digits_cnn, relabelled, [mz.Int8()], DataError, "label"),
        (digits_cnn, wrong_shape, [mz.Int8()], DataError, r"\[\d+, 3, 8, 8\]"),
        (
            digits_cnn,
            digits,
            [mz.PruneChannels(macs="0.001x")],
            (ModelError, SettingError),
            "0.001",
        ),
        (
            digits_cnn,
            digits,
            [mz.FineTune(steps=40, lr=1e30)],
            ModelError,
            r"(?i)nan|inf",
        ),
    ],
)
def test_what_cannot_work_leaves_nothing(tmp_path, model, data, steps, error, message):
    torch.manual_seed(0)
    with pytest.raises(error, match=message):
        mz.compress(
            model(),
            steps,
            data=data(),
            out=tmp_path / "out",
            batch_size=64,
            measure=QUICK,
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_robustness_of_both_files_is_in_the_report(folder, record):
    assert [str(row) for row in record.robustness] == [
        "clean",
        "jpeg 50",
        "fgsm 16/255",
        "fgsm transfer 16/255",
        "bit flips 0.0001",
    ]
    assert "## Robustness" in (folder / "out" / "report.md").read_text()


def test_conditions_that_the_data_cannot_meet_are_told_before_anything_is_done(tmp_path):
    pairs = [(torch.full((4,), float(i % 2)), i % 2) for i in range(20)]
    data = Splits(train=pairs, validation=pairs, test=pairs, classes=2)
    with pytest.raises(DataError, match="corruptions are for images"):
        mz.compress(
            nn.Linear(4, 2),
            [mz.MagnitudePrune(sparsity=0.5)],
            data=data,
            out=tmp_path / "out",
            robustness={"jpeg": [50]},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_tries_conditions_too(folder):
    recipe = load(folder / "small.yaml", overrides=["robustness={typos: [0.1]}"])
    with pytest.raises(DataError, match=r"typos 0.1 is for texts, which ArrayDataset does not"):
        rehearse(recipe)
