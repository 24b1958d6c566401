import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelzip.errors import ExportError
from modelzip.runtime import onnx_file
from modelzip.runtime.session import load


def test_a_valid_file_is_read(linear_file: Path) -> None:
    assert onnx_file.read(linear_file).graph.node[0].op_type == "MatMul"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"there is no file .*none\.onnx"):
        onnx_file.read(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"\x08\x0a", b"not an onnx file at all, but text"])
def test_a_file_that_is_not_onnx_is_refused_on_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx is not an ONNX file") as caught:
        onnx_file.read(path)
    assert "\n" not in str(caught.value)


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["nowhere"], ["y"])],
        "broken",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "broken.onnx"
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(ExportError, match=r"broken\.onnx is not a valid ONNX model: .*nowhere"):
        onnx_file.read(path)


def test_a_file_past_the_limit_is_refused(
    linear_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 10)
    with pytest.raises(ExportError, match="over the 10 that protobuf reads; save its weights as"):
        onnx_file.read(linear_file)


def test_external_data_beside_the_file_are_read(external_file: Callable[..., Path]) -> None:
    path = external_file()
    model = onnx_file.read(path)
    assert onnx_file.external_files(model) == {"weights.bin"}
    assert not model.graph.initializer[0].raw_data
    with_weights = onnx_file.read(path, weights=True)
    stored = numpy_helper.to_array(with_weights.graph.initializer[0])
    assert stored.tolist() == np.arange(12).reshape(4, 3).tolist()
    assert load(path).run(np.ones((1, 4), np.float32))[0].tolist() == [[18, 22, 26]]


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "a/../../b", "..\\b", "C:\\b", "\\\\h\\b", ""]
)
def test_external_data_outside_the_folder_are_refused(
    external_file: Callable[..., Path], location: str
) -> None:
    message = f"tensor w reads {location!r}, which is not a file in its folder"
    with pytest.raises(ExportError, match=re.escape(message)):
        load(external_file(location))


def test_a_link_out_of_the_folder_is_refused(
    external_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(bytes(48))
    path = external_file("link")
    (path.parent / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ExportError, match="reads 'link', a link out of its folder"):
        onnx_file.read(path)


def test_missing_external_data_are_named(external_file: Callable[..., Path]) -> None:
    with pytest.raises(ExportError, match=r"its external data 'weights\.bin' are missing"):
        onnx_file.read(external_file(data=False))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "8", "length": "48"}, r"reads bytes 8 to 56 of 'weights\.bin', which has 48"),
        ({"offset": "-1"}, "reads bytes -1 to -1"),
        ({"offset": "x"}, "tensor w has a broken offset or length"),
    ],
)
def test_external_data_past_their_file_are_refused(
    external_file: Callable[..., Path], entries: dict[str, str], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        onnx_file.read(external_file(**entries))


def test_an_unknown_data_type_is_refused(tmp_path: Path, linear_model: onnx.ModelProto) -> None:
    linear_model.graph.initializer[0].data_type = 99
    path = tmp_path / "odd.onnx"
    path.write_bytes(linear_model.SerializeToString())
    with pytest.raises(ExportError, match=r"odd\.onnx: tensor w has the unknown data type 99"):
        onnx_file.read(path)


def test_tensors_are_found_at_every_depth() -> None:
    def constant(name: str) -> onnx.NodeProto:
        value = numpy_helper.from_array(np.ones(1, np.float32), name)
        return helper.make_node("Constant", [], [f"{name}_out"], value=value)

    out = helper.make_tensor_value_info("t_out", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("e_out", TensorProto.FLOAT, [1])
    branch = helper.make_node(
        "If",
        ["condition"],
        ["y"],
        then_branch=helper.make_graph([constant("t")], "then", [], [out]),
        else_branch=helper.make_graph([constant("e")], "else", [], [other]),
    )
    function = helper.make_function(
        "own", "f", [], ["f_out"], [constant("f")], [helper.make_opsetid("", 21)]
    )
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
        [4],
    )
    graph = helper.make_graph([branch, constant("c")], "g", [], [], sparse_initializer=[sparse])
    model = helper.make_model(graph, functions=[function])
    assert {tensor.name for tensor in onnx_file.tensors(model)} == set("tecfsi")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_refused_or_harmless(linear_file: Path, data: st.DataObject) -> None:
    content = bytearray(linear_file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] = data.draw(st.integers(0, 255))
    damaged = linear_file.with_name("damaged.onnx")
    damaged.write_bytes(content)
    with contextlib.suppress(ExportError):  # and nothing else: no crash, no other error
        load(damaged)
