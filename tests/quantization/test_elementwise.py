"""Products and curves on integers: what onnxruntime computes, bit for bit."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.export.onnx import export_onnx
from modelzip.quantization import elementwise
from modelzip.quantization.integer import Grid, Quantize, QuantizedAveragePool


def grid(scale: float, zero_point: int, top: int = 255) -> Grid:
    return Grid(torch.tensor(scale), zero_point, top)


class Rounded(nn.Module):
    """A module of one or two values that are first rounded to grids."""

    def __init__(self, module: nn.Module, *grids: Grid) -> None:
        super().__init__()
        self.module = module
        self.inputs = nn.ModuleList(map(Quantize, grids))

    def forward(self, *values: Tensor) -> Tensor:
        return self.module(*[q(v) for q, v in zip(self.inputs, values, strict=True)])


def every(source: Grid) -> Tensor:
    """Every value of a grid, shape [16, 16]."""
    return ((torch.arange(256.0) - source.zero_point) * source.scale).view(16, 16)


def served(model: nn.Module, values: tuple[Tensor, ...], folder: Path) -> tuple[Tensor, set[str]]:
    """The outputs of the exported file, and the operators that onnxruntime made of it."""
    path = export_onnx(model, values, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    names = [node.name for node in session.get_inputs()]
    (out,) = session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})
    kinds = {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}
    return torch.from_numpy(out), kinds


CURVES = {
    "QLinearSigmoid": lambda source, out: elementwise.QuantizedSigmoid(out),
    "QLinearLeakyRelu": lambda source, out: elementwise.QuantizedLeakyRelu(out, slope=0.1),
    "QLinearAdd": elementwise.QuantizedHardsigmoid,
}
TRUTH = {
    "QLinearSigmoid": torch.sigmoid,
    "QLinearLeakyRelu": lambda x: F.leaky_relu(x, 0.1),
    "QLinearAdd": F.hardsigmoid,
}
GRIDS = [  # source and, but for the leaky ReLU, which needs a range of its own, out
    (grid(0.0473, 128), elementwise.unit_grid()),
    (grid(0.031, 0), grid(0.00391, 0)),
    (grid(0.0625, 77), grid(1 / 256, 0)),
    (grid(0.05, 200), grid(1 / 15, 0, 15)),
]


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize(("source", "out"), GRIDS)
def test_curves_are_those_of_the_runtime(
    kind: str, source: Grid, out: Grid, tmp_path: Path
) -> None:
    if kind == "QLinearLeakyRelu":
        out = grid(float(source.scale) * 255 / out.top, 40 % out.top, out.top)
    model = Rounded(CURVES[kind](source, out), source).eval()
    x = every(source)
    ours = model(x)
    runtime, kinds = served(model, (x,), tmp_path)
    assert torch.equal(ours, runtime)
    assert kind in kinds or out.top < 255
    low, high = -out.zero_point * out.scale, (out.top - out.zero_point) * out.scale
    wanted = TRUTH[kind](x).clamp(low, high)
    assert float((ours - wanted).abs().max()) <= 0.51 * float(out.scale)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_products_are_those_of_the_runtime(relu: bool, ties: bool, tmp_path: Path) -> None:
    # powers of two put many products just between two integers
    a, b = (grid(0.25, 128), grid(0.125, 100)) if ties else (grid(0.031, 128), grid(0.0173, 9))
    out = grid(0.0625 if ties else 0.0571, 0 if relu else 120)
    model = Rounded(elementwise.QuantizedMultiply(a, b, out, relu=relu), a, b).eval()
    x, y = every(a).reshape(256, 1), every(b).reshape(1, 256).expand(256, 256).contiguous()
    ours = model(x, y)
    runtime, kinds = served(model, (x, y), tmp_path)
    assert torch.equal(ours, runtime)
    assert "QLinearMul" in kinds
    product = (x * y).relu() if relu else x * y
    low, high = -out.zero_point * out.scale, (255 - out.zero_point) * out.scale
    assert float((ours - product.clamp(low, high)).abs().max()) <= 0.51 * float(out.scale)


def test_a_gate_is_broadcast_over_an_image(tmp_path: Path) -> None:
    a, b, out = grid(0.04, 131), elementwise.unit_grid(), grid(0.03, 131)
    model = Rounded(elementwise.QuantizedMultiply(a, b, out, relu=False), a, b).eval()
    generator = torch.Generator().manual_seed(0)
    image = 3 * torch.randn(2, 8, 5, 5, generator=generator)
    gate = torch.rand(2, 8, 1, 1, generator=generator)
    assert torch.equal(model(image, gate), served(model, (image, gate), tmp_path)[0])


class Pool(nn.Module):
    """An average pool from grid to grid, its window given as keywords."""

    def __init__(self, source: Grid, out: Grid, **window: object) -> None:
        super().__init__()
        self.pool = QuantizedAveragePool(source, out)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x, **self.window)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (5, 2, 3), (7, 4, None)])
def test_average_pools_count_their_padding_but_nothing_beyond(
    size: int, kernel: int, stride: int | None, tmp_path: Path
) -> None:
    source, out = grid(0.02, 100), grid(0.02, 100)
    window = {"kernel_size": kernel, "stride": stride, "padding": 1, "ceil_mode": True}
    model = nn.Sequential(Quantize(source), Pool(source, out, count_include_pad=True, **window))
    x = torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(0))
    ours = model.eval()(x)
    wanted = F.avg_pool2d(model[0](x), **window)
    assert ours.shape == wanted.shape
    assert float((ours - wanted).abs().max()) <= 0.51 * 0.02
    runtime, kinds = served(model, (x,), tmp_path)
    assert torch.equal(ours, runtime)
    assert "QLinearAveragePool" in kinds
