"""Whole nets in int8: the exported file computes what the converted module does."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.core.running import tensors
from modelzip.export.onnx import export_onnx
from modelzip.measure.machine import describe
from modelzip.quantization.calibration import CALIBRATORS

EXACT = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(describe().isa))


def block(i, o, kernel=3, activation=nn.ReLU, **geometry):
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, bias=False, **geometry), nn.BatchNorm2d(o), activation()
    )


class Residual(nn.Module):
    """A ResNet of one block, with an option-A shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 8, padding=1)
        self.one = block(8, 16, padding=1, stride=2)
        self.two = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.two(self.one(x))
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        y = F.relu(y)
        return self.head(F.avg_pool2d(y, y.size(3)).flatten(1))


class Depthwise(nn.Module):
    """An inverted bottleneck: depthwise, ReLU6, and dropout as a function."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 8, activation=nn.ReLU6, stride=2)
        self.inner = nn.Sequential(
            block(8, 16, 1, nn.ReLU6),
            block(16, 16, 3, lambda: nn.ReLU6(inplace=True), padding=1, groups=16),
            nn.Conv2d(16, 8, 1),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.inner(x)).mean([2, 3])
        return self.head(F.dropout(x, 0.5, self.training))


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = block(3, 8, padding=1), block(8, 8, stride=2)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x * F.hardsigmoid(self.up(F.relu(self.down(self.pool(x)))))
        return self.head(torch.flatten(self.pool(self.last(x)), 1))


class Branches(nn.Module):
    """Concatenation, maximum and average pools."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = block(3, 8, padding=1), block(8, 8, 1), block(8, 4, padding=1)
        self.pool, self.smooth = nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)
        self.last = block(28, 8)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = torch.cat([self.a(x), self.b(x), self.smooth(x), F.max_pool2d(x, 3, 1, 1)], 1)
        x = F.avg_pool2d(self.last(x), 2)
        return self.head(x.view(x.size(0), -1))


class Outputs(nn.Module):
    """Values that are used and returned, x + x, a shared layer, an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = block(3, 6, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.one(self.conv(x)), inplace=True)
        y = self.two(self.conv(y))
        z = (y + y).relu_()
        return {"y": y, "inner": (x, [z]), "logits": self.head(z.mean((-1, -2)))}


def mlp():
    return nn.Sequential(
        *(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)),
    )


def signal():
    return nn.Sequential(
        *(nn.Conv1d(4, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


class Zoo(nn.Module):
    """All of the nets side by side, since an export takes seconds."""

    def __init__(self):
        super().__init__()
        images = (Residual(), Depthwise(), Squeeze(), Branches(), Outputs())
        self.images = nn.ModuleList(images)
        self.mlp, self.signal = mlp(), signal()

    def forward(self, image, rows, wave):
        return [net(image) for net in self.images], self.mlp(rows), self.signal(wave)


NAMES = ["residual", "depthwise", "squeeze", "branches", "y", "x", "z", "logits", "mlp", "signal"]


def inputs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 12, 12), (20,), (4, 40))
    return tuple(torch.randn(count, *shape, generator=generator).clamp(-2, 2) for shape in shapes)


def settled(model, *x):
    """`model` with batch norms as training leaves them, gamma of both signs."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(*x)
    return model.eval()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """By net: float outputs, converted outputs, outputs in onnxruntime; and its operators."""
    torch.manual_seed(0)
    model = settled(Zoo(), *inputs(64, 1))
    converted = mz.prepare(model, [mz.Int8()], calibration=[(inputs(256, 4), None)]).convert()
    folder = tmp_path_factory.mktemp("zoo")
    path = export_onnx(converted, inputs(1, 2), folder / "zoo.onnx")
    x = inputs(33, 3)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    feeds = {node.name: value.numpy() for node, value in zip(session.get_inputs(), x, strict=True)}
    with torch.no_grad():
        rows = zip(
            NAMES, tensors(model(*x)), tensors(converted(*x)), session.run(None, feeds), strict=True
        )
        outputs = {n: (f, c, torch.from_numpy(r)) for n, f, c, r in rows}
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return outputs, Counter(node.op_type for node in nodes)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_computes_what_the_converted_module_does(zoo, name):
    _, converted, runtime = zoo[0][name]
    if EXACT:
        assert torch.equal(converted, runtime)
    else:
        agreement = (converted.argmax(1) == runtime.argmax(1)).float().mean()
        assert agreement > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_quantization_changes_little(zoo, name):
    floats, converted, _ = zoo[0][name]
    assert float((converted - floats).norm() / floats.norm()) < 0.05


def test_the_runtime_finds_integers_everywhere(zoo):
    operators = zoo[1]
    left = {"Conv", "Gemm", "MatMul", "Relu", "Clip", "Add", "AveragePool", "Concat", "ReduceMean"}
    left |= {"Mul", "HardSigmoid"}
    assert not left & set(operators)
    assert operators["QLinearConv"] == 3 + 4 + 4 + 4 + 3 + 2
    assert operators["QGemm"] == 5 + 3 + 1
    assert operators["QLinearAdd"] == 3 + 1  # the last makes the gate
    assert operators["QLinearGlobalAveragePool"] == 6
    assert operators["QLinearAveragePool"] == 2
    assert operators["QLinearConcat"] == 1
    assert operators["QLinearMul"] == 1  # the gate of squeeze and excite


class Encoder(nn.Module):
    """A hand-written transformer encoder layer."""

    def __init__(self, width=16):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        n, t, width = x.shape
        parts = self.qkv(self.first(x)).view(n, t, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(y.transpose(1, 2).reshape(n, t, width))
        return self.head((x + self.down(F.gelu(self.up(self.second(x))))).mean(1))


@pytest.mark.parametrize("mode", ["linear", "dynamic", "static"])
def test_encoders_agree_closely(mode, tmp_path):
    # layer norm and GELU differ by an ulp in the runtime, so not every row can be identical
    torch.manual_seed(0)
    model = Encoder().eval()
    x = torch.randn(64, 7, 16)
    converted = mz.prepare(model, [mz.Int8(mode=mode)], calibration=[x]).convert()
    path = export_onnx(converted, x[:1], tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(str(path))
    runtime = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    with torch.no_grad():
        ours, floats = converted(x), model(x)
    assert (ours.argmax(1) == runtime.argmax(1)).all()
    assert float((ours - runtime).abs().max() / ours.abs().max()) < 0.02
    assert float((ours - floats).norm() / floats.norm()) < 0.05


class Patches(nn.Module):
    """A convolution that makes patches, and the encoder of a vision transformer behind it."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.encoder = Encoder()

    def forward(self, x):
        return self.encoder(self.patch(x).flatten(2).transpose(1, 2))


def test_auto_is_dynamic_for_layer_norms_and_mostly_linear_layers():
    def kinds(model, x):
        converted = mz.prepare(model.eval(), [mz.Int8()], calibration=[x]).convert()
        return {type(m).__name__ for m in converted.modules() if "Quantized" in type(m).__name__}

    assert kinds(Encoder(), torch.randn(4, 7, 16)) == {"DynamicQuantizedLinear"}
    assert kinds(Patches(), torch.randn(4, 3, 12, 12)) == {"DynamicQuantizedLinear"}
    assert kinds(mlp(), torch.randn(4, 20)) == {"QuantizedLinear"}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_calibrators_all_work(calibrator):
    torch.manual_seed(0)
    x = torch.randn(64, 20)
    model = mlp().eval()
    pass_ = mz.Int8(calibrator=calibrator, percentile=99.9)
    with torch.no_grad():
        result = mz.prepare(model, [pass_], calibration=[x]).convert()(x)
        assert float((result - model(x)).norm() / model(x).norm()) < 0.1
