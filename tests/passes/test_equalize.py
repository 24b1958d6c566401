"""Cross-layer equalization: the same function, with even ranges."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import ModelError, SelectionError
from tests.architectures import MODELS, build, depthwise, resnet


def spread(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """`model` with channels of batch norms scaled by 0.05 to 20, and back in the layer behind."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for norm_name, next_name in pairs:
            norm, layer = model.get_submodule(norm_name), model.get_submodule(next_name)
            scale = 20 ** (2 * torch.rand(len(norm.weight), generator=generator) - 1)
            norm.weight.mul_(scale)
            norm.bias.mul_(scale)
            shape = (-1, 1, 1, 1) if layer.weight.shape[1] == 1 else (1, -1, 1, 1)
            layer.weight.div_(scale.view(shape))
    return model


def narrow_chain() -> nn.Module:
    """Convolution, depthwise convolution, convolution, head: a chain of three pairs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    model.train()
    for _ in range(20):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


def int8_error(model: nn.Module, passes: list[mz.Pass], x: Tensor) -> float:
    small = mz.prepare(model, [*passes, mz.Int8()], calibration=[x]).convert()
    with evaluating(model), evaluating(small):
        wanted = model(x)
        return float((small(x) - wanted).norm() / wanted.norm())


def test_uneven_channels_lose_less_after_equalization() -> None:
    model = spread(narrow_chain(), [("1", "3"), ("4", "6")])
    x = torch.randn(64, 3, 8, 8)
    plain, even = int8_error(model, [], x), int8_error(model, [mz.Equalize()], x)
    assert plain > 3 * even
    assert even < 0.02


def test_scales_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[4.0], [-1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([2.0, 1.0, 5.0]))
        model[2].weight.copy_(torch.tensor([[1.0, -9.0, 3.0], [0.5, 4.0, 3.0]]))
    zipped = mz.prepare(model, [mz.Equalize()])
    small = zipped.convert()
    # s = sqrt(4 / 1) and sqrt(1 / 9); the third channel is dead, and left alone
    torch.testing.assert_close(small[0].weight, torch.tensor([[2.0], [-3.0], [0.0]]))
    torch.testing.assert_close(small[0].bias, torch.tensor([1.0, 3.0, 5.0]))
    wanted = torch.tensor([[2.0, -3.0, 3.0], [1.0, 4 / 3, 3.0]])
    torch.testing.assert_close(small[2].weight, wanted)
    (report,) = zipped.reports
    assert [row.note for row in report.layers] == [
        "outputs divided by 0.333 to 2",
        "inputs multiplied by 0.333 to 2",
    ]
    assert report.protected == {}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_norm_takes_the_scale_and_ranges_become_equal(groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Conv2d(8, 4, 3, groups=groups)
    ).eval()
    nn.init.normal_(model[1].weight)
    model[1].running_var.uniform_(0.1, 2.0)
    before = copy.deepcopy(model[0].weight)
    small = mz.prepare(model, [mz.Equalize()], example_inputs=torch.randn(2, 3, 9, 9)).convert()
    assert torch.equal(small[0].weight, before)
    factor = small[1].weight.abs() / (small[1].running_var + small[1].eps).sqrt()
    outputs = small[0].weight.abs().amax((1, 2, 3)) * factor
    columns = small[3].weight.abs().amax((2, 3)).view(groups, 4 // groups, 8 // groups)
    torch.testing.assert_close(outputs, columns.amax(1).flatten())


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 6),
    size=st.integers(4, 6),
    leaky=st.floats(0, 1),
)
def test_the_function_stays(seed: int, width: int, size: int, leaky: float) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, width, 3),
        nn.LeakyReLU(leaky),
        nn.Conv2d(width, 2 * width, 1, groups=width),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(2 * width * ((size - 2) // 2) ** 2, 3),
    ).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(10 ** torch.rand(len(tensor), *[1] * (tensor.dim() - 1)))
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    zipped = mz.prepare(model.eval(), [mz.Equalize()])
    with torch.no_grad():
        torch.testing.assert_close(zipped.model(x), model(x), rtol=1e-9, atol=1e-9)


def test_every_architecture_keeps_its_outputs_or_is_refused_by_name() -> None:
    refused = {}
    for name in MODELS:
        model, x = build(name)
        try:
            zipped = mz.prepare(model, [mz.Equalize()], example_inputs=x)
        except (ModelError, SelectionError) as error:
            refused[name] = str(error)
            continue
        with evaluating(model), evaluating(zipped.model):
            for a, b in zip(tensors(call(zipped.model, x)), tensors(call(model, x)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert refused.keys() == {
        "dense", "squeeze_excite", "spatial_gate", "encoder", "encoder_torch", "shared", "tied",
        "transposed", "two_inputs", "gated", "unregistered", "parametrized",
    }  # fmt: skip
    assert "head.2: its output is the model's" in refused["squeeze_excite"]
    assert "down: it is followed by add" in refused["encoder"]
    assert "equalize would untie" in refused["tied"]
    assert "equalize cannot change 0.weight, which _WeightNorm computes" in refused["parametrized"]


def test_residual_nets_equalize_inside_their_blocks() -> None:
    zipped = mz.prepare(resnet("B").eval(), [mz.Equalize()])
    zipped.convert()
    (report,) = zipped.reports
    assert [row.name for row in report.layers] == ["1.conv1", "1.conv2", "2.conv1", "2.conv2"]
    assert report.protected["0.0"] == "its output is used in several places"


def test_a_depthwise_chain_is_equal_throughout() -> None:
    model, x = depthwise().eval(), torch.randn(2, 3, 8, 8)
    zipped = mz.prepare(model, [mz.Equalize()], example_inputs=x)
    zipped.convert()
    assert len(zipped.reports[0].layers) == 6
    assert "outputs" in zipped.reports[0].layers[1].note
    assert "inputs" in zipped.reports[0].layers[1].note


def test_checkpoints_keep_the_scaled_weights(tmp_path: Path) -> None:
    model = spread(narrow_chain(), [("1", "3")])
    zipped = mz.prepare(model, [mz.Equalize()])
    zipped.save(tmp_path / "even.safetensors")
    again = mz.load(narrow_chain, tmp_path / "even.safetensors")
    for key, value in zipped.convert().state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def net(between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), between, nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (net(nn.ReLU6()), r"0: it is followed by ReLU6 '1'; 2: its output is the model's"),
        (net(nn.Hardswish()), r"0: it is followed by Hardswish '1'"),
        (net(nn.BatchNorm2d(8, affine=False)), r"0: it is followed by BatchNorm2d '1'"),
        (net(nn.Flatten()), r"0: 2 mixes its output's positions"),
        (nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(8, 2)), r"followed by Flatten '1'"),
    ],
)
def test_a_model_without_pairs_is_refused_with_the_reasons(model: nn.Module, reason: str) -> None:
    with pytest.raises(SelectionError, match=rf"equalize finds no two layers .*{reason}"):
        mz.prepare(model, [mz.Equalize()])


def test_layers_that_are_skipped_or_shared_are_left() -> None:
    model = narrow_chain()
    zipped = mz.prepare(model, [mz.Equalize(skip=("3",))])
    zipped.convert()
    assert [row.name for row in zipped.reports[0].layers] == ["6", "11"]
    assert zipped.reports[0].protected["0"] == (
        "3, which follows, was not selected or is called twice"
    )
    model, _ = build("shared")
    with pytest.raises(SelectionError, match=r"shared.0: it is called 2 times"):
        mz.prepare(model, [mz.Equalize()])


class Normed(nn.Module):
    """A batch norm over positions, which are as many as the features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x))))


def test_a_norm_over_something_else_is_found_out() -> None:
    model = Normed().eval()
    nn.init.normal_(model.norm.bias)
    x = torch.randn(2, 4, 4)
    with pytest.raises(
        ModelError, match=r"equalizing a and b would change the outputs by .*: skip"
    ):
        mz.prepare(model, [mz.Equalize()], example_inputs=x)
    assert mz.prepare(model, [mz.Equalize()], example_inputs=x[:, :, 0])


def test_weights_that_are_not_finite_are_refused() -> None:
    model = narrow_chain()
    with torch.no_grad():
        model[3].weight[0] = torch.nan
    with pytest.raises(ModelError, match="3 holds NaN or infinity; nothing was equalized"):
        mz.prepare(model, [mz.Equalize()])
