import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import modelzip as mz


def net():
    """Three convolutions with batch norms; the second's per-tensor int8 form would be poor."""
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()]
    with torch.no_grad():
        layers[3].weight[0] *= 1000  # one channel takes up the whole range of the tensor
        layers[4].weight[0] /= 1000
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("pooled", [False, True])
def test_a_skipped_layer_runs_in_float_and_gives_what_the_module_gives(tmp_path, pooled):
    model = net()
    if pooled:
        model.insert(6, nn.MaxPool2d(2))
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    module = mz.prepare(model, [mz.Int8(skip=("3",))], calibration=[x]).convert()
    path = mz.export_onnx(module, (x,), tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    ran = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ran.count("QLinearConv") == 2
    assert "LeakyRelu" not in ran  # fused into the layer
    with torch.no_grad():
        expected = module(x).numpy()
    assert abs(output - expected).max() < 0.02 * abs(expected).max()


def test_files_without_float_layers_among_integers_stay_as_they_are(tmp_path):
    model, x = net(), torch.randn(4, 3, 16, 16)
    whole = mz.prepare(model, [mz.Int8()], calibration=[x]).convert()
    for name, module in (("int8", whole), ("float", model)):
        path = mz.export_onnx(module, (x,), tmp_path / f"{name}.onnx")
        assert "LeakyRelu" not in {node.op_type for node in onnx.load(path).graph.node}
