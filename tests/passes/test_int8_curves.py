"""Nets with squeeze and excite, SiLU, hard-swish and leaky ReLU are integer throughout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modelzip as mz
from modelzip.export.onnx import export_onnx
from modelzip.measure.machine import describe

EXACT = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(describe().isa))
Make = Callable[[], nn.Module]


def conv(inputs: int, outputs: int, kernel: int, act: Make, **geometry: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **geometry)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), act())


class Block(nn.Module):
    """An inverted residual with squeeze and excite, as in MobileNetV3 and EfficientNet."""

    def __init__(self, act: Make, gate: Make) -> None:
        super().__init__()
        self.expand, self.depth = conv(8, 16, 1, act), conv(16, 16, 3, act, groups=16)
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), gate()
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = conv(16, 8, 1, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        y = y * self.gate(self.up(F.relu(self.down(self.pool(y)))))
        return x + self.project(y)


def net(act: Make, gate: Make) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(conv(3, 8, 3, act, stride=2), Block(act, gate), conv(8, 16, 1, act)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), act(), nn.Linear(12, 5)),
    )
    for _ in range(10):  # batch norms as training leaves them
        model(torch.randn(32, 3, 10, 10))
    return model.eval()


NETS: dict[str, tuple[Make, Make, dict[str, int]]] = {
    "mobile": (nn.Hardswish, nn.Hardsigmoid, {"QLinearMul": 6, "QLinearAdd": 7}),
    "efficient": (nn.SiLU, nn.Sigmoid, {"QLinearMul": 6, "QLinearSigmoid": 6, "QLinearAdd": 1}),
    "leaky": (
        lambda: nn.LeakyReLU(0.1),
        nn.Sigmoid,
        {"QLinearLeakyRelu": 5, "QLinearMul": 1, "QLinearSigmoid": 1, "QLinearAdd": 1},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_runtime_computes_the_same_integers(name: str, tmp_path: Path) -> None:
    act, gate, wanted = NETS[name]
    model, x = net(act, gate), torch.randn(64, 3, 10, 10)
    small = mz.prepare(model, [mz.Int8()], calibration=[x]).convert()
    path = export_onnx(small, x[:2], tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    (served,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        ours, floats = small(x), model(x)
    assert float((ours - floats).norm() / floats.norm()) < 0.05
    if EXACT:
        assert torch.equal(ours, torch.from_numpy(served))
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert {kind: kinds[kind] for kind in wanted} == wanted
    floating = {"Conv", "Gemm", "Mul", "Add", "Sigmoid", "HardSigmoid", "LeakyRelu", "ReduceMean"}
    assert not floating & set(kinds)


@pytest.mark.parametrize("method", ["straight_through", "lsq"])
def test_gates_train_with_rounding_and_convert(method: str) -> None:
    model, x = net(nn.Hardswish, nn.Hardsigmoid), torch.randn(16, 3, 10, 10)
    pass_ = mz.FakeQuantize(bits=8, method=method)  # type: ignore[arg-type]
    zipped = mz.prepare(model, [pass_], example_inputs=x)
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=0.01)
    for _ in range(3):
        zipped.model.train()
        zipped.model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    small = zipped.convert()
    with torch.no_grad():
        trained, ours = zipped.model.eval()(x), small(x)
    assert float((ours - trained).norm() / trained.norm()) < 0.05
