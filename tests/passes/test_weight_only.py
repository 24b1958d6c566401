"""Weights alone in few bits: what is stored, files, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip import zoo
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import ModelError, SelectionError, SettingError
from modelzip.runtime import session
from tests.architectures import MODELS, build

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def convert(model: nn.Module, **settings: Any) -> nn.Module:
    return mz.prepare(model, [mz.WeightOnly(**settings)]).convert()


def test_weights_become_codes_and_everything_else_stays() -> None:
    small = convert(net())
    state, plain = small.state_dict(), net().state_dict()
    assert {n for n, t in state.items() if t.dtype is torch.int8} == {"0.weight", "3.weight"}
    assert [n for n in state if not n.endswith("weight_scale")] != []
    for name in plain:
        if name not in ("0.weight", "3.weight"):
            assert torch.equal(state[name], plain[name])
    assert small[0].weight.dtype is torch.float32


def test_eight_bits_err_by_half_a_step_at_most() -> None:
    small, plain = convert(net()), net()
    for index in (0, 3):
        step = plain[index].weight.abs().amax(1, keepdim=True) / 127
        error = (small[index].weight - plain[index].weight).abs()
        assert bool((error <= 0.5001 * step).all())


def test_blocks_and_normal_float_come_closer_than_whole_channels() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 32)
    with torch.no_grad():
        plain = layer.weight.normal_().detach()
    error = {
        name: float((convert(layer, bits=4, **settings).weight - plain).square().mean())
        for name, settings in {
            "channel": {},
            "block": {"block_size": 32},
            "nf4": {"block_size": 32, "codebook": "nf4"},
        }.items()
    }
    assert error["block"] < 0.8 * error["channel"]
    assert error["nf4"] < 0.8 * error["channel"]


def test_report_says_bits_with_and_without_scales() -> None:
    zipped = mz.prepare(net(), [mz.WeightOnly(bits=4, block_size=8)])
    zipped.convert()
    rows = {row.name: row for row in zipped.reports[0].layers}
    assert [(r.kind, r.bits, r.note) for r in rows.values()] == [
        ("Linear", 4.0, "8.00 bits a weight with its scales")
    ] * 2
    assert rows["0"].parameters_before == rows["0"].parameters_after == 8 * 16 + 16


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("parametrized", "tied")])
def test_every_architecture_comes_close(name: str) -> None:
    model, x = build(name)
    with evaluating(model):
        expected = next(tensors(call(model, x)))
    small = convert(model)
    with evaluating(small):
        found = next(tensors(call(small, x)))
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


# files


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 0.27),
        ({"bits": 4}, 0.15),
        ({"bits": 4, "block_size": 64}, 0.16),
        ({"bits": 4, "block_size": 64, "codebook": "nf4"}, 0.16),
    ],
    ids=str,
)
def test_file_is_as_small_as_its_bits_and_equals_the_module(
    settings: dict[str, Any], most: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 100))
    x = torch.randn(2, 16, 8, 8)
    small = convert(model, **settings)
    plain = mz.export_onnx(model, x, tmp_path / "plain.onnx")
    path = mz.export_onnx(small, x, tmp_path / "small.onnx")
    assert path.stat().st_size < most * plain.stat().st_size
    kinds = {i.name: i.data_type for i in onnx.load(path).graph.initializer}
    expected = onnx.TensorProto.INT4 if "bits" in settings else onnx.TensorProto.INT8
    assert {kinds["0.weight"], kinds["3.weight"]} == {expected}
    (served,) = session.load(path).run(x)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(served), small(x), rtol=1e-5, atol=1e-5)


def test_encoder_with_its_embedding_runs_from_four_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.encoder(vocabulary=200, length=8, width=32, heads=2, layers=1)
    small = convert(model, bits=4, block_size=32)
    assert small.get_submodule("embed").state_dict()["weight"].dtype is torch.int8
    x = torch.randint(0, 200, (3, 8))
    path = mz.export_onnx(small, x, tmp_path / "encoder.onnx")
    (served,) = session.load(path).run(x)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(served), small(x), rtol=1e-4, atol=1e-5)


# multiplied in int8


@pytest.mark.parametrize("bits", [8, 4])
def test_int8_products_of_module_and_file_are_the_same(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 64), nn.GELU(), nn.Linear(64, 30), nn.Linear(30, 8))
    zipped = mz.prepare(model, [mz.WeightOnly(bits=bits, block_size=32, compute="int8")])
    small = zipped.convert()
    notes = {row.name: row.note for row in zipped.reports[0].layers}
    assert [name for name, note in notes.items() if note.endswith("multiplied in int8")] == [
        "0",
        "2",
    ]
    x = torch.randn(7, 100)
    path = mz.export_onnx(small, x, tmp_path / "small.onnx")
    assert sum(n.op_type == "MatMulNBits" for n in onnx.load(path).graph.node) == 2
    (served,) = session.load(path).run(x)
    with torch.no_grad():
        expected = small(x)
        torch.testing.assert_close(torch.from_numpy(served), expected, rtol=1e-4, atol=1e-5)
        rounded = float((expected - convert(model, bits=bits, block_size=32)(x)).abs().max())
    assert 1e-4 < rounded < 0.05 * float(expected.abs().max())


def test_encoder_layers_of_torch_run_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    zipped = mz.prepare(model, [mz.WeightOnly(bits=8, block_size=32, compute="int8")])
    small, x = zipped.convert(), torch.randn(2, 5, 32)
    path = mz.export_onnx(small, x, tmp_path / "small.onnx")
    assert sum(n.op_type == "MatMulNBits" for n in onnx.load(path).graph.node) == 2
    (served,) = session.load(path).run(x)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(served), small(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(zipped.model(x), small(x), rtol=1e-3, atol=1e-4)


def test_a_users_hook_stays() -> None:
    model, calls = nn.Linear(32, 4), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    small = convert(model, block_size=32, compute="int8")
    small(torch.ones(1, 32))
    assert calls == [1]
    assert len(small._forward_pre_hooks) == 1


def test_int8_without_a_layer_that_is_large_enough_is_refused() -> None:
    with pytest.raises(ModelError, match="int8' is for linear layers of at least 64 inputs, and"):
        convert(net(), block_size=64, compute="int8")


# with other passes


def test_pruned_zeros_stay_zero() -> None:
    passes = [mz.MagnitudePrune(sparsity=0.5), mz.WeightOnly(bits=4, block_size=8)]
    zipped = mz.prepare(net(), passes)
    small = zipped.convert()
    zeros = zipped.model[0].weight == 0
    assert int(zeros.sum()) > 20
    assert bool((small.state_dict()["0.weight"][zeros] == 0).all())


def test_cast_leaves_codes_and_scales_alone() -> None:
    zipped = mz.prepare(net(), [mz.WeightOnly(skip=("3",)), mz.Cast()])
    state = zipped.convert().state_dict()
    assert state["0.weight"].dtype is torch.int8
    assert state["0.weight_scale"].dtype is torch.float32
    assert state["3.weight"].dtype is torch.float16


# refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 6}, "bits must be 4 or 8, got 6"),
        ({"bits": 2}, "bits must be 4 or 8, got 2"),
        ({"block_size": 4}, "block_size must be an integer of at least 8, got 4"),
        ({"codebook": "fp4"}, "codebook has no choice 'fp4'"),
        ({"compute": "int4"}, "compute has no choice 'int4'"),
        ({"compute": "int8"}, "compute='int8' has kernels for blocks of 16, .*, got block_size=N"),
        (
            {"compute": "int8", "block_size": 32, "codebook": "nf4", "bits": 4},
            "compute='int8' multiplies integers; set codebook: uniform",
        ),
        ({"codebook": "nf4"}, r"codebook='nf4' has 16 values, got bits=8; set bits: 4"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        mz.WeightOnly(**settings)


def test_quantizing_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="weight_only: the model is quantized already"):
        mz.prepare(net(), [mz.Int8(), mz.WeightOnly()], calibration=[torch.randn(4, 8)])
    with pytest.raises(SettingError, match="int8: the model is quantized already"):
        mz.prepare(net(), [mz.WeightOnly(), mz.Int8()], calibration=[torch.randn(4, 8)])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.half(), "0.weight is float16; weight_only works on float32"),
        (lambda w: w * float("nan"), "0.weight holds NaN or infinity; nothing was quantized"),
    ],
)
def test_weights_that_cannot_be_rounded_are_named(change: Any, text: str) -> None:
    model = net()
    model[0].weight = nn.Parameter(change(model[0].weight.detach()))
    with pytest.raises(ModelError, match=text):
        convert(model)


def test_tied_weights_are_refused() -> None:
    model = net()
    model.append(nn.Linear(16, 4))
    model[4].weight = model[3].weight
    with pytest.raises(ModelError, match=r"weight_only would untie 3.weight and 4.weight"):
        convert(model)


def test_model_without_weights_is_refused() -> None:
    with pytest.raises(SelectionError, match="the model has no Conv1d/Conv2d/Conv3d/Linear"):
        convert(nn.Sequential(nn.ReLU()))
