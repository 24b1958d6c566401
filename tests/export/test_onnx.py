"""Exporting modules to files, and failing without leaving anything behind."""

import copy
import resource

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.errors import ExportError, ModelError, OutputError, SettingError
from modelzip.export import onnx as export
from modelzip.export.onnx import export_onnx
from modelzip.runtime import session


class Run(nn.Module):
    """A model whose forward is a function of no state."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def int8_file(folder):
    x = torch.randn(8, 3, 8, 8)
    model = mz.prepare(net().eval(), [mz.Int8()], calibration=[x]).convert()
    return model, export_onnx(model, x[:1], folder / "int8.onnx")


def test_a_batch_of_one_exports_for_any_batch_and_leaves_the_model_alone(folder, compare):
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    path = export_onnx(model, torch.randn(1, 3, 8, 8), folder / "net.onnx")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    compare(model.eval(), path, (torch.randn(7, 3, 8, 8),))


def test_a_fixed_batch_is_kept_where_asked_for(folder):
    path = export_onnx(nn.Linear(4, 2), torch.zeros(3, 4), folder / "f.onnx", dynamic_batch=False)
    assert session.load(path).inputs[0].shape == (3, 4)


def test_integers_are_stored_as_integers_and_nothing_else_is_left(int8_file):
    model, path = int8_file
    stored = onnx.load(path)
    weights = [t for t in stored.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sum(int(np.prod(t.dims)) for t in weights) >= 3 * 8 * 9 + 8 * 36 * 10
    count = sum(m.weight.numel() for m in model.modules() if "weight" in dict(m.named_buffers()))
    assert path.stat().st_size < count + 4000
    assert not stored.graph.value_info
    assert not stored.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in stored.graph.node)
    assert not [t for t in stored.graph.initializer if t.data_location]


def test_the_same_model_gives_the_same_bytes(int8_file, folder):
    model, path = int8_file
    again = export_onnx(model, torch.randn(1, 3, 8, 8), folder / "again.onnx")
    assert again.read_bytes() == path.read_bytes()


def test_a_later_opset(int8_file, folder, compare):
    model, _ = int8_file
    path = export_onnx(model, torch.randn(1, 3, 8, 8), folder / "later.onnx", opset=23)
    assert onnx.load(path).opset_import[0].version == 23
    compare(model, path, (torch.randn(5, 3, 8, 8),))


def test_weights_past_the_limit_go_beside_the_file(tmp_path, monkeypatch, compare):
    monkeypatch.setattr(export, "_ONE_FILE", 1000)
    model = net().eval()
    path = export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "large.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert path.stat().st_size < 6000
    compare(model, path, (torch.randn(3, 3, 8, 8),))
    path.rename(moved := tmp_path / "moved.onnx")  # the reference is to a file beside it
    compare(model, moved, (torch.randn(3, 3, 8, 8),))


@pytest.fixture
def full_disk():
    """Nothing that this process writes may be longer than 4 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [1000, 10**9])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_earlier_file_whole_and_nothing_else(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(export, "_ONE_FILE", limit)
    files = {"a.onnx": b"earlier", "a.onnx.data": b"its weights"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputError, match=r"cannot write .*a\.onnx: "):
        export_onnx(net(), torch.randn(1, 3, 8, 8), tmp_path / "a.onnx")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_a_failing_export_leaves_the_earlier_file_whole(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ExportError):
        export_onnx(Run(torch.linalg.svd), torch.randn(2, 3, 3), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model.onnx", b"earlier")]


def test_refuses_a_folder_that_is_not_there_or_in_the_way(tmp_path):
    model, x = nn.Linear(4, 2), torch.zeros(1, 4)
    with pytest.raises(OutputError, match=r"there is no folder .*/nowhere"):
        export_onnx(model, x, tmp_path / "nowhere" / "model.onnx")
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*taken\.onnx: Is a directory"):
        export_onnx(model, x, tmp_path / "taken.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.onnx"]


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        (torch.linalg.svd, (2, 3, 3), "No ONNX function found .*svd"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 3, 4), "only 4D query"),
        (lambda x: x @ x, (2, 3), "mat1 and mat2 shapes cannot be multiplied"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), (2, 1, 4, 4), "divisor_override=3"),
        (lambda x: F.dropout(x, 0.5), (2, 3), "its dropout works in eval mode too"),
        (lambda x: torch.stack([x[0], x[1]]) if len(x) == 2 else x, (2, 3), "of input is always 2"),
    ],
)
def test_refuses_what_cannot_be_exported_and_says_why(tmp_path, capfd, function, shape, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(Run(function), torch.randn(shape), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")  # the exporter talks a lot


def test_refuses_opsets_that_are_too_low_or_unknown(tmp_path):
    x = torch.zeros(1, 4)
    with pytest.raises(SettingError, match="opset must be at least 21, got 17"):
        export_onnx(nn.Linear(4, 2), x, tmp_path / "model.onnx", opset=17)
    with pytest.raises(SettingError, match="the exporter does not know opset 99; it wrote"):
        export_onnx(nn.Linear(4, 2), x, tmp_path / "model.onnx", opset=99)


def test_refuses_a_model_that_is_still_being_compressed(tmp_path):
    zipped = mz.prepare(nn.Sequential(nn.Linear(4, 2)), [mz.MagnitudePrune(sparsity=0.5)])
    with pytest.raises(SettingError, match=r"0 is still being compressed; convert\(\) first"):
        export_onnx(zipped.model, torch.zeros(1, 4), tmp_path / "model.onnx")


def test_says_how_to_make_a_users_own_parametrization_plain(tmp_path):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.raises(SettingError, match=r"make plain what you parametrized with torch\.nn"):
        export_onnx(model, torch.zeros(1, 4), tmp_path / "model.onnx")


def test_refuses_nan_weights(tmp_path):
    model = nn.Linear(4, 2)
    nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(ModelError, match="bias holds NaN; nothing was exported"):
        export_onnx(model, torch.zeros(1, 4), tmp_path / "model.onnx")
