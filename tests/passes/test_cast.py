"""Casting: types, ranges found beforehand, layers left out, and files that run."""

from __future__ import annotations

import re
from collections.abc import Callable
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
    state = small.state_dict()
    assert {n: state[n].dtype for n in ("0.weight", "3.weight", "0.bias", "1.running_var")} == {
        "0.weight": getattr(torch, dtype),
        "3.weight": getattr(torch, dtype),
        "0.bias": torch.float32,
        "1.running_var": torch.float32,
    }
    rounded = net()
    with torch.no_grad():
        for tensor in rounded.state_dict().values():
            if tensor.dim() > 1:
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
    state = model.state_dict()
    rounded.load_state_dict({n: t.half().float() if t.dim() > 1 else t for n, t in state.items()})
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
    assert list(rows) == ["0", "3"]
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


# what does not fit stays float32


def protected(model: nn.Module, inputs: Any = X, **settings: Any) -> dict[str, str]:
    zipped = mz.prepare(model, [mz.Cast(**settings)], example_inputs=inputs)
    zipped.convert()
    return dict(zipped.reports[0].protected)


def test_weights_that_do_not_fit_stay_float32() -> None:
    model = net()
    model.append(nn.Linear(4, 4))
    model[0].weight.data[0, 0] = -1e5
    model[3].weight.data.fill_(2e-7)
    assert protected(model) == {
        "0": "kept float32: weight reaches 1e+05, float16 holds 65504",
        "3": "kept float32: weight is at most 2e-07, float16 loses digits below 6.1e-05",
    }
    state = cast(model).state_dict()
    assert [state[f"{i}.weight"].dtype for i in (0, 3, 4)] == [
        torch.float32,
        torch.float32,
        torch.float16,
    ]
    assert protected(model, dtype="bfloat16") == {}


def test_model_of_which_nothing_fits_is_refused() -> None:
    model = nn.Linear(8, 8)
    model.weight.data[0, 0] = 1e5
    text = r"float16 can hold none of the selected layers \(the model: kept float32: weight reaches"
    with pytest.raises(ModelError, match=text + r" 1e\+05, .*\); use dtype: bfloat16"):
        cast(model)
    with pytest.raises(ModelError, match=r"\); use weights_only: true"):
        cast(model, weights_only=False)


def test_weights_that_grew_in_training_stay_float32() -> None:
    zipped = mz.prepare(net(), [mz.Cast()])
    zipped.model[3].weight.data[0, 0] = 1e6
    assert zipped.convert().state_dict()["3.weight"].dtype is torch.float32
    assert list(zipped.reports[0].protected) == ["3"]


def tall() -> nn.Sequential:
    """A net whose middle goes far beyond 65504 and comes back."""
    model = nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU()),
        *(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)),
        *(nn.ReLU(), nn.Linear(16, 4)),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        model[2].weight.mul_(5e5 / 8).clamp_(-6e4, 6e4)
        model[4].weight.mul_(2e-4)
    return model


def test_overflowing_middle_is_kept_and_the_file_equals_float(tmp_path: Path) -> None:
    model, x = tall(), torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    expected = outputs(model, x)
    assert not bool(torch.isfinite(outputs(tall().half(), x.half())).all())
    assert set(protected(model, x, weights_only=False)) == {"2", "3", "4"}
    small = cast(model, x, weights_only=False)
    assert {n: t.dtype for n, t in small.state_dict().items() if "weight" in n} == {
        "0.weight": torch.float16,
        "2.weight": torch.float32,
        "4.weight": torch.float32,
        "6.weight": torch.float16,
    }
    (served,) = session.load(mz.export_onnx(small, x, tmp_path / "tall.onnx")).run(x)
    for found in (outputs(small, x), torch.from_numpy(served)):
        assert float((found - expected).abs().max()) < 3e-3 * float(expected.abs().max())


class Between(nn.Module):
    """Overflows between its layers."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.compute = nn.Linear(8, 8), nn.Linear(8, 8), compute

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.compute(self.a(x)))


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x: (x + 300).square() / 9e4, "activations reach 9.* float16 holds 65504"),
        (lambda x: x * 1e-6 / 1e-6, "a tensor is at most .*e-07, float16 loses digits below"),
        (lambda x: x + (30 + x.repeat(1, 512)).mean(1, keepdim=True), "sums reach 1.*e\\+05"),
        (lambda x: nn.functional.layer_norm(x + 90 * X[:1], (8,)), "sums reach .*"),
    ],
)
def test_overflow_between_layers_is_kept_out(
    compute: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = Between(compute)
    found = protected(model, weights_only=False)
    assert list(found) == ["the model"]
    assert re.fullmatch(f"kept float32: {reason}.*", found["the model"])
    small = cast(model, weights_only=False)
    assert types(small) == {torch.float16}
    torch.testing.assert_close(outputs(small), outputs(model), rtol=5e-3, atol=5e-3)


def test_calibration_data_are_watched_as_well() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    batches = [X, torch.full((1, 8), 1e5)]
    zipped = mz.prepare(model, [mz.Cast(weights_only=False)], example_inputs=X, calibration=batches)
    zipped.convert()
    assert list(zipped.reports[0].protected) == ["0", "1"]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_attention_is_kept_whole_and_its_scores_are_seen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SelfAttention(), nn.Linear(8, 8))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        model[0].attention.in_proj_weight[:16].mul_(150)
    found = protected(model, x, weights_only=False)
    assert {"0.attention", "0.attention.out_proj"} <= set(found)
    small = cast(model, x, weights_only=False)
    torch.testing.assert_close(outputs(small, x), outputs(model, x), rtol=5e-3, atol=5e-3)


def test_protection_survives_a_checkpoint(tmp_path: Path) -> None:
    zipped = mz.prepare(tall(), [mz.Cast(weights_only=False)], example_inputs=X)
    small = zipped.convert()
    zipped.save(tmp_path / "tall.safetensors")
    again = mz.load(tall, tmp_path / "tall.safetensors")
    assert torch.equal(outputs(again), outputs(small))
    assert again.state_dict()["2.weight"].dtype is torch.float32


def test_layer_tied_to_a_protected_one_stays_float32_too() -> None:
    a, b, c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    with torch.no_grad():
        a.weight[0, 0] = 1e5
    found = protected(nn.Sequential(a, b, c))
    assert set(found) == {"0", "1"}


def test_activations_that_grew_in_training_are_refused_on_converting() -> None:
    zipped = mz.prepare(net(), [mz.Cast(weights_only=False)], example_inputs=X)
    zipped.model[0].weight.data.fill_(6e4)
    with pytest.raises(ModelError, match="Sequential gives NaN or infinity in float16; set"):
        zipped.convert()


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
