from pathlib import Path

import onnx

from modelzip.measure.file_layers import FileLayers


def test_nodes_belong_to_the_layer_whose_tensors_they_take(int8_file: Path) -> None:
    file = FileLayers(int8_file)
    owners = dict(zip((node.output[0] for node in file.nodes), file.owner, strict=True))
    assert owners["c"] == "conv"
    assert owners["xq"] == owners["xd"] == "conv"  # they quantize what it takes
    assert owners["y"] == "fc"
    assert owners["p"] == owners["f"] == ""


def test_values_are_found_by_layer(int8_file: Path) -> None:
    file = FileLayers(int8_file)
    assert [place.tensor for place in file.integers()] == ["xq"]
    assert [(place.layer, place.tensor) for place in file.floats()] == [("conv", "c"), ("fc", "y")]
    assert not file.rounded(file.makers["c"])


def test_a_layer_without_names_is_called_as_its_node(float_file: Path, tmp_path: Path) -> None:
    model = onnx.load(float_file)
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("conv.weight", "w0").replace("conv.bias", "b0")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("conv.weight", "w0").replace("conv.bias", "b0")
    onnx.save(model, tmp_path / "plain.onnx")
    file = FileLayers(tmp_path / "plain.onnx")
    model.graph.node[0].name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    nameless = FileLayers(tmp_path / "nameless.onnx")
    assert file.owner[0] == "conv"
    assert nameless.owner[0] == "c"
