"""Casting: types, ranges found beforehand, layers left out, and files that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import ModelError, SettingError
from modelzip.runtime import session
from tests.architectures import MODELS, build

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def cast(model: nn.Module, inputs: Any = X, **settings: Any) -> nn.Module:
    return mz.prepare(model, [mz.Cast(**settings)], example_inputs=inputs).convert()


def outputs(model: nn.Module, inputs: Any = X) -> Tensor:
    with evaluating(model):
        return model(inputs)


def types(model: nn.Module) -> set[torch.dtype]:
    return {t.dtype for t in model.state_dict().values() if t.dim()}


# what is stored, and what is computed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_only_rounds_weights_and_computes_in_float32(dtype: str) -> None:
    model = net()
    small = cast(model, dtype=dtype)
    assert types(small) == {getattr(torch, dtype)}
    rounded = net()
    with torch.no_grad():
        for tensor in rounded.state_dict().values():
            if tensor.dim():
                tensor.copy_(tensor.to(getattr(torch, dtype)))
    assert torch.equal(outputs(small), outputs(rounded))


def test_computing_in_float16_keeps_the_outputs_float32() -> None:
    small = cast(net(), weights_only=False)
    assert types(small) == {torch.float16}
    assert outputs(small).dtype is torch.float32
    assert torch.equal(outputs(small), outputs(net().half(), X.half()).float())


def test_outputs_are_float16_without_keep_io() -> None:
    assert outputs(cast(net(), weights_only=False, keep_io=False)).dtype is torch.float16


def test_names_and_classes_stay() -> None:
    small = cast(net())
    assert list(small.state_dict()) == list(net().state_dict())
    assert isinstance(small[0], nn.Linear)
    assert small[0].weight.dtype is torch.float32


def test_skipped_layers_stay_float32() -> None:
    small = cast(net(), skip=("3",))
    assert small.state_dict()["3.weight"].dtype is torch.float32
    half = cast(net(), skip=("0", "1"), weights_only=False)
    assert {half.state_dict()[n].dtype for n in ("0.weight", "1.running_var")} == {torch.float32}
    reference = outputs(net()[:3])
    assert torch.equal(outputs(half), outputs(net()[3].half(), reference.half()).float())


def test_recurrent_layers_use_their_rounded_weights() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    rounded = nn.LSTM(3, 4)
    rounded.load_state_dict({n: t.half().float() for n, t in model.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(cast(model)(x)[0], rounded(x)[0])


def test_attention_runs_in_both_ways() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    for settings in ({}, {"weights_only": False}):
        small = cast(layer, x, **settings)
        assert float((outputs(small, x) - outputs(layer, x)).abs().max()) < 0.02


def test_tied_weights_stay_tied() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    small = cast(nn.Sequential(a, b))
    assert small[0]._parameters["weight"] is small[1]._parameters["weight"]


def test_report_says_bits_and_what_became_zero() -> None:
    model = net()
    model[3].weight.data[0, :3] = 1e-9
    zipped = mz.prepare(model, [mz.Cast()])
    zipped.convert()
    rows = {row.name: row for row in zipped.reports[0].layers}
    assert list(rows) == ["0", "1", "3"]
    assert {row.bits for row in rows.values()} == {16.0}
    assert (rows["3"].note, rows["3"].nonzero) == ("3 values became zero", 16 * 4 + 4 - 3)


def test_integer_layers_keep_their_scales() -> None:
    x = torch.randn(4, 8)
    zipped = mz.prepare(net(), [mz.Int8(skip=("3",)), mz.Cast()], calibration=[x])
    state = zipped.convert().state_dict()
    assert state["0.weight"].dtype is torch.int8
    assert state["0.weight_scale"].dtype is torch.float32
    assert state["3.weight"].dtype is torch.float16


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("parametrized", "unregistered")])
def test_every_architecture_comes_close(name: str) -> None:
    model, x = build(name)
    with evaluating(model):
        expected = next(tensors(call(model, x)))
    for settings in ({}, {"weights_only": False}):
        small = cast(model, x, **settings)
        with evaluating(small):
            found = next(tensors(call(small, x)))
        assert float((found - expected).abs().max()) < 5e-3 * float(expected.abs().max())


# files


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"weights_only": False}], ids=str)
def test_file_holds_the_narrow_type_and_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 16, 3))
    x = torch.randn(2, 16, 8, 8)
    small = cast(model, x, **settings)
    plain = mz.export_onnx(model, x, tmp_path / "plain.onnx")
    path = mz.export_onnx(small, x, tmp_path / "small.onnx")
    assert path.stat().st_size < 0.55 * plain.stat().st_size
    narrow = onnx.TensorProto.BFLOAT16 if settings.get("dtype") else onnx.TensorProto.FLOAT16
    large = [i for i in onnx.load(path).graph.initializer if np.prod(i.dims) > 64]
    assert [i.data_type for i in large] == [narrow, narrow]
    (served,) = session.load(path).run(x)
    assert served.dtype == np.float32
    np.testing.assert_allclose(
        served, outputs(small, x), atol=2e-3 if "weights_only" in settings else 1e-5
    )


# ranges


def test_weights_that_overflow_are_named_before_anything_changes() -> None:
    model = net()
    model[0].weight.data[0, 0] = -1e5
    model[1].running_var[2] = 7e4
    with pytest.raises(ModelError) as error:
        cast(model)
    assert str(error.value) == (
        "float16 ends at 65504, and these go beyond: 0: weight 1e+05; 1: running_var 7e+04. "
        "Add skip: [0, 1], or use dtype: bfloat16"
    )
    assert types(model) == {torch.float32}
    cast(model, skip=("0", "1"))
    cast(model, dtype="bfloat16")


def test_activations_that_overflow_are_named_when_computing() -> None:
    model = net()
    model[0].weight.data.mul_(3e5)
    model[0].weight.data.clamp_(-6e4, 6e4)
    model[1].running_var.fill_(4e4)
    model[1].weight.data.fill_(0.01)
    text = r"these go beyond: 0: activations [^;]*; 1: activations [^;]*\. Add skip: \[0, 1\]"
    with pytest.raises(ModelError, match=text):
        cast(model, weights_only=False)
    assert bool(torch.isfinite(outputs(cast(model, weights_only=False, skip=("0", "1")))).all())
    cast(model)  # computing in float32 is safe


def test_calibration_data_are_watched_as_well() -> None:
    passes = [mz.Cast(weights_only=False)]
    with pytest.raises(ModelError, match="0: activations 1e"):
        mz.prepare(net(), passes, example_inputs=X, calibration=[X, torch.full((1, 8), 1e5)])


def test_weights_that_grew_in_training_are_named_on_converting() -> None:
    zipped = mz.prepare(net(), [mz.Cast()])
    zipped.model[3].weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"these go beyond: 3: weight 1e\+06"):
        zipped.convert()


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + 300).square() * 2 / 2


def test_overflow_between_layers_is_found_by_running() -> None:
    with pytest.raises(ModelError, match="Overflowing gives NaN or infinity in float16"):
        cast(Overflowing(), weights_only=False)


class Float32Only(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.a(x), torch.eye(8))


def test_model_that_mixes_types_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"Float32Only does not run in float16: .*weights_only=True"
    ):
        cast(Float32Only(), weights_only=False)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Sequential does not run in float32: .*give inputs that"):
        cast(net(), torch.ones(1, 3), weights_only=False)


# other refusals


def test_architectures_that_cannot_be_cast_are_refused_by_name() -> None:
    for name, settings, text in [
        ("parametrized", {}, r"cast cannot change 0.weight, which _WeightNorm computes"),
        ("unregistered", {"weights_only": False}, "Unregistered does not run in float16"),
    ]:
        model, x = build(name)
        with pytest.raises(ModelError, match=text):
            cast(model, x, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"dtype": "fp16"}, "dtype has no choice 'fp16'; there are: bfloat16, float16"),
        ({"weights_only": 1}, "weights_only must be true or false, got 1"),
        ({"keep_io": "no"}, "keep_io must be true or false, got 'no'"),
        ({"keep_io": False}, "keep_io=False needs weights_only=False"),
        ({"dtype": "bfloat16", "weights_only": False}, "onnxruntime has no bfloat16 convolution"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        mz.Cast(**settings)


def test_nothing_left_to_cast_is_refused() -> None:
    with pytest.raises(ModelError, match="cast finds nothing left in float32"):
        cast(net().half())
    with pytest.raises(ModelError, match="cast finds nothing left in float32"):
        mz.prepare(net(), [mz.Int8(), mz.Cast()], calibration=[torch.randn(4, 8)])


def test_computing_after_quantization_is_refused() -> None:
    with pytest.raises(
        ModelError, match="weights_only=False cannot follow quantization or tracing"
    ):
        mz.prepare(
            net(),
            [mz.Int8(skip=("3",)), mz.Cast(weights_only=False)],
            example_inputs=X,
            calibration=[X],
        )


def test_tied_weights_of_which_one_is_skipped_are_refused() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    with pytest.raises(
        ModelError, match=r"cast would untie 0.weight and 1.weight; skip all or none"
    ):
        cast(nn.Sequential(a, b), skip=("1",))
