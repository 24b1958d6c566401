"""Scales move from norms into the layers that read them, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip import zoo
from modelzip.core.running import evaluating
from modelzip.errors import ModelError, SelectionError, SettingError

CHANNELS = (3, 11)  # made 60 times as large as the others


def ids(seed: int, count: int = 16) -> Tensor:
    found = torch.randint(2, 40, (count, 12), generator=torch.Generator().manual_seed(seed))
    found[:, 9:] = 0
    return found


def outlier_encoder() -> nn.Module:
    """An encoder whose norms give a few channels large values, as those of large models do."""
    torch.manual_seed(0)
    model = zoo.text_encoder(vocabulary=40, length=12, width=32, heads=2, layers=2).eval()
    with torch.no_grad():
        for layer in model.layers:
            for norm, linears in (
                (layer.norm1, [layer.attention.q, layer.attention.k, layer.attention.v]),
                (layer.norm2, [layer.up]),
            ):
                nn.init.normal_(norm.bias, std=0.1)
                norm.weight[list(CHANNELS)] *= 60
                norm.bias[list(CHANNELS)] *= 60
                for linear in linears:
                    linear.weight[:, list(CHANNELS)] /= 60
    return model


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        return model(x)


def smoothed(model: nn.Module, **settings) -> nn.Module:
    return mz.prepare(model, [mz.SmoothQuant(**settings)], calibration=[ids(1)]).convert()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays(alpha):
    model = outlier_encoder()
    expected, found = outputs(model, ids(2)), outputs(smoothed(model, alpha=alpha), ids(2))
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_scales_by_hand():
    model = nn.Sequential(nn.LayerNorm(2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([8.0, 1.0]))
        model[1].weight.copy_(torch.tensor([[2.0, -4.0]]))
    # two features are normalised to -1 and 1, so the norm's outputs are at most 8 and 1
    found = mz.prepare(model, [mz.SmoothQuant()], calibration=[torch.tensor([[5.0, -5.0]])]).model
    torch.testing.assert_close(found[0].weight, torch.tensor([4.0, 2.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1].weight, torch.tensor([[4.0, -2.0]]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["linear", "static", "dynamic"])
def test_integers_lose_far_less_with_outliers(mode):
    model, x = outlier_encoder(), ids(2, 64)
    expected = outputs(model, x)

    def error(*passes: mz.Pass) -> float:
        small = mz.prepare(model, passes, calibration=[ids(1, 64)]).convert()
        return float((outputs(small, x) - expected).square().mean().sqrt())

    int8 = mz.Int8(mode=mode)
    assert error(mz.SmoothQuant(), int8) < error(int8) / 3


def test_alpha_one_evens_the_activations_out():
    found = smoothed(outlier_encoder(), alpha=1.0)
    seen = []
    found.layers[0].norm1.register_forward_hook(lambda _, __, y: seen.append(y.abs()))
    outputs(found, ids(1))
    assert torch.allclose(seen[0].flatten(0, 1).amax(dim=0), torch.ones(32), rtol=1e-4)


def test_norms_that_linear_layers_do_not_read_are_named():
    prepared = mz.prepare(outlier_encoder(), [mz.SmoothQuant()], calibration=[ids(1)])
    prepared.convert()
    (report,) = prepared.reports
    assert [row.name for row in report.layers] == [
        f"layers.{i}.norm{j}" for i in (0, 1) for j in (1, 2)
    ]
    assert "moved into layers.0.attention.q, layers.0.attention.k" in report.layers[0].note
    assert report.protected == {"norm": "its output is read by mul_1"}


def test_targets_name_norms():
    model = outlier_encoder()
    found = smoothed(model, targets=("layers.0.norm2",))
    changed = [
        name
        for (name, a), b in zip(model.named_parameters(), found.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed == ["layers.0.norm2.weight", "layers.0.norm2.bias", "layers.0.up.weight"]


def test_dropout_in_between_is_passed():
    model = nn.Sequential(nn.RMSNorm(4), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight[0] = 9.0
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    found = mz.prepare(model, [mz.SmoothQuant()], calibration=[x]).model
    assert found[0].weight[0].item() < 9
    torch.testing.assert_close(outputs(found, x), outputs(model, x))


def test_a_channel_of_zeros_is_left_alone():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[1].weight[:, 1] = 0.0
    found = mz.prepare(model, [mz.SmoothQuant()], calibration=[torch.randn(8, 4)]).model
    assert torch.equal(found[1].weight[:, :2], model[1].weight[:, :2])
    assert torch.equal(found[0].weight[:2], model[0].weight[:2])


def test_pruned_weights_stay_pruned():
    passes = [mz.MagnitudePrune(sparsity=0.5), mz.SmoothQuant()]
    prepared = mz.prepare(outlier_encoder(), passes, calibration=[ids(1)])
    alone = mz.prepare(outlier_encoder(), passes[:1])
    torch.testing.assert_close(
        outputs(prepared.model, ids(2)), outputs(alone.model, ids(2)), rtol=1e-4, atol=1e-5
    )
    one, other = prepared.convert().layers[0].up.weight, alone.convert().layers[0].up.weight
    assert torch.equal(one == 0, other == 0)


def test_a_checkpoint_brings_the_smoothed_weights_back(tmp_path):
    prepared = mz.prepare(
        outlier_encoder(), [mz.SmoothQuant(), mz.Int8(mode="linear")], calibration=[ids(1)]
    )
    prepared.save(tmp_path / "smooth.safetensors")
    again = mz.load(outlier_encoder, tmp_path / "smooth.safetensors")
    assert torch.equal(outputs(again, ids(2)), outputs(prepared.convert(), ids(2)))


class Wired(nn.Module):
    """A norm and layers around it, called as `wiring` says."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4, elementwise_affine=wiring != "plain")
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        if wiring == "tied":
            self.two.weight = self.one.weight
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        if self.wiring == "twice":
            return self.one(self.norm(self.norm(x)))
        y = self.norm(x)
        if self.wiring == "residual":
            return y + self.one(y)
        if self.wiring == "relu":
            return self.one(torch.relu(y))
        if self.wiring == "dead":
            return self.one(x)
        if self.wiring == "shared":
            return self.one(y) + self.one(x)
        if self.wiring == "tied":
            return self.one(y) + self.two(x)
        if self.wiring == "own":
            return self.one(y) @ self.one.weight
        return self.one(y)


@pytest.mark.parametrize(
    ("wiring", "reason"),
    [
        ("twice", "norm: it is called 2 times"),
        ("residual", "norm: its output is read by add"),
        ("relu", "norm: its output is read by relu"),
        ("dead", "norm: nothing reads its output"),
        ("shared", "norm: one reads other values too"),
        ("tied", r"norm: one\.weight and two\.weight are one tensor"),
        ("own", r"norm: one\.weight is used by itself too"),
        ("plain", "norm: it has no weight for each channel of the last dimension"),
    ],
)
def test_norms_that_cannot_be_smoothed_are_refused(wiring, reason):
    message = rf"smooth_quant finds no norm that linear layers read \({reason}"
    with pytest.raises(SelectionError, match=message):
        mz.prepare(Wired(wiring), [mz.SmoothQuant()], calibration=[torch.randn(2, 4)])


def test_a_model_without_norms_is_refused():
    with pytest.raises(SelectionError, match="the model has no LayerNorm/RMSNorm layer"):
        mz.prepare(nn.Linear(4, 4), [mz.SmoothQuant()], calibration=[torch.randn(2, 4)])


def test_outputs_that_are_not_finite_are_refused():
    model = Wired("one")
    with torch.no_grad():
        model.norm.bias[1] = torch.inf
    with pytest.raises(ModelError, match="the output of norm is NaN or infinite, or was never"):
        mz.prepare(model, [mz.SmoothQuant()], calibration=[torch.randn(2, 4)])


def test_alpha_is_checked():
    with pytest.raises(SettingError, match=r"alpha must be a fraction in \[0, 1\], got 2"):
        mz.SmoothQuant(alpha=2)
