"""A file in parts is the file again, byte for byte, and the parts are its tensors."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

import modelzip as mz
from modelzip.archive import nibbles
from modelzip.archive.header import MAX_HEADER
from modelzip.archive.segments import Segments, join, split
from modelzip.errors import ArchiveError

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
random = np.random.default_rng(0)


def joined(segments: Segments) -> bytes:
    out = io.BytesIO()
    lengths = json.loads(json.dumps(segments.lengths))  # as an archive keeps them
    join(segments.skeleton(), lengths, map(segments.data, segments.tensors), out)
    return out.getvalue()


def arrays(path: Path, *, smallest: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that split finds, as arrays; joining them again gives the file."""
    with split(path, smallest=smallest) as segments:
        assert joined(segments) == path.read_bytes()
        found = {}
        for tensor in segments.tensors:
            data = bytes(segments.data(tensor))
            if tensor.dtype in nibbles.TYPES:
                halves = np.frombuffer(data, np.uint8)
                found[tensor.name] = nibbles.from_bytes(halves, tensor.dtype, tensor.shape)
                continue
            dtype = ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype)
            found[tensor.name] = np.frombuffer(data, dtype).reshape(tensor.shape)
    return found


def saved(path: Path, graph: onnx.GraphProto, **others: Any) -> Path:
    onnx.save(helper.make_model(graph, **others), path)
    return path


def graph(
    *tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = (), name: str = "g"
) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [], list(tensors))


def tensor(name: str, shape: tuple[int, ...] = (4, 5), dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(random.normal(size=shape).astype(dtype), name)


def field(number: int, payload: bytes) -> bytes:
    """A protobuf field of up to 2 MB, in bytes: tag, length in three bytes, payload."""
    size = len(payload)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    return bytes([number << 3 | 2]) + length + payload


def sample() -> onnx.GraphProto:
    """Tensors in all places that hold some: the graph, its nodes, their graphs, and sparse ones."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor("inner"))
    unnamed = helper.make_node("Constant", [], ["u"], name="Nameless", value=tensor(""))
    then, other = graph(tensor("w"), name="then"), graph(nodes=(constant,), name="else")
    choice = helper.make_node("If", ["x"], ["y"], "choice", then_branch=then, else_branch=other)
    loop = helper.make_node(
        "Loop", ["n"], ["z"], name="loop", body=graph(tensor("w"), nodes=(choice,), name="body")
    )
    sparse = helper.make_sparse_tensor(tensor("s", (9,)), tensor("i", (9,), np.int64), [100])
    made = graph(tensor("w"), tensor("w"), nodes=(constant, unnamed, loop))
    made.sparse_initializer.append(sparse)
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 6 * 6, 4)).eval()  # fmt: skip
    x = torch.randn(8, 3, 8, 8)
    models = {
        "float": net,
        "int8": mz.prepare(net, [mz.Int8()], calibration=[x]).convert(),
        "weights": mz.prepare(net, [mz.WeightOnly()]).convert(),
    }
    return {n: mz.export_onnx(m, (x,), folder / f"{n}.onnx") for n, m in models.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model"


# ONNX


@pytest.mark.parametrize("name", ["float", "int8", "weights"])
def test_tensors_of_an_exported_file_are_what_onnx_loads(
    exported: dict[str, Path], name: str
) -> None:
    found = arrays(exported[name])
    model = onnx.load(exported[name])
    expected = {t.name: t for t in model.graph.initializer if t.raw_data}
    assert len(expected) > 3
    for key, proto in expected.items():
        value = numpy_helper.to_array(proto)
        if proto.data_type in (TensorProto.INT4, TensorProto.UINT4):
            assert found[key].tobytes() == proto.raw_data
        else:
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)


def test_int8_weights_are_found_as_int8(exported: dict[str, Path]) -> None:
    shapes = {value.shape for value in arrays(exported["int8"]).values() if value.dtype == np.int8}
    assert (8, 3, 3, 3) in shapes


def test_tensors_are_found_wherever_they_are(path: Path) -> None:
    proto = sample()
    found = arrays(saved(path, proto))
    assert set(found) == {
        "w", "w#2", "c/inner", "Nameless", "s", "i",
        "loop/w", "loop/choice/w", "loop/choice/c/inner",
    }  # fmt: skip
    body = proto.node[2].attribute[0].g
    then = next(a.g for a in body.node[0].attribute if a.name == "then_branch")
    for key, expected in {
        "w": proto.initializer[0],
        "w#2": proto.initializer[1],
        "c/inner": proto.node[0].attribute[0].t,
        "Nameless": proto.node[1].attribute[0].t,
        "loop/w": body.initializer[0],
        "loop/choice/w": then.initializer[0],
        "s": proto.sparse_initializer[0].values,
        "i": proto.sparse_initializer[0].indices,
    }.items():
        np.testing.assert_array_equal(found[key], numpy_helper.to_array(expected))


def test_tensors_of_functions_and_training_are_found(path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=tensor("t"))
    opset = [helper.make_opsetid("", 21)]
    function = helper.make_function("mine", "F", [], ["c"], [constant], opset)
    training = helper.make_training_info(graph(tensor("a")), [], graph(tensor("b")), [])
    proto = helper.make_model(graph(tensor("w")), functions=[function])
    proto.training_info.append(training)
    path.write_bytes(proto.SerializeToString())
    assert set(arrays(path)) == {"w", "a", "b", "c/t"}


DTYPES = [np.float32, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.bool_,
          np.float16, np.float64, np.uint32, np.uint64, np.complex64, np.complex128,
          ml_dtypes.bfloat16]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_found(path: Path, dtype: Any) -> None:
    value = random.integers(0, 2, (3, 5)).astype(dtype)
    found = arrays(saved(path, graph(numpy_helper.from_array(value, "w"))))["w"]
    assert found.dtype == value.dtype
    assert found.shape == (3, 5)
    assert found.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("data_type", "size", "shape"),
    [
        (TensorProto.FLOAT8E4M3FN, 15, (3, 5)),
        (TensorProto.FLOAT, 59, (59,)),  # not what the shape asks for
        (99, 60, (60,)),
    ],
)
def test_other_tensors_are_bytes(
    path: Path, data_type: int, size: int, shape: tuple[int, ...]
) -> None:
    proto = TensorProto(dims=[3, 5], data_type=data_type, raw_data=bytes(range(size)), name="w")
    found = arrays(saved(path, graph(proto)))["w"]
    assert (found.dtype, found.shape) == (np.uint8, shape)


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (1,)])
def test_integers_of_four_bits_are_found(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    value = random.integers(0, 8, shape).astype(dtype)
    found = arrays(saved(path, graph(numpy_helper.from_array(value, "w"))))["w"]
    np.testing.assert_array_equal(found, value.astype(found.dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_packed_floats_are_found(path: Path, dtype: Any) -> None:
    value = random.normal(size=(5, 7)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    proto = helper.make_tensor("w", kind, value.shape, value.ravel())
    assert not proto.raw_data
    np.testing.assert_array_equal(arrays(saved(path, graph(proto)))["w"], value)


def test_packed_integers_stay_in_the_skeleton(path: Path) -> None:
    proto = helper.make_tensor("w", TensorProto.INT64, (50,), range(50))
    assert arrays(saved(path, graph(proto))) == {}


def test_data_in_two_pieces_stays_in_the_skeleton(path: Path) -> None:
    piece = field(9, b"x" * 100)
    path.write_bytes(b"\x08\x0a" + field(7, field(5, piece + piece)))
    assert onnx.load(path, format="protobuf").graph.initializer[0].raw_data == b"x" * 100
    assert arrays(path) == {}


def test_small_tensors_stay_in_the_skeleton(path: Path) -> None:
    saved(path, graph(tensor("15", (15,)), tensor("16", (16,)), tensor("none", (0,))))
    assert set(arrays(path, smallest=64)) == {"16"}
    with split(path) as segments:
        assert [t.name for t in segments.tensors] == ["16"]


def test_long_names_and_shapes_are_cut(path: Path) -> None:
    proto = TensorProto(dims=[1] * 1000, data_type=1, raw_data=b"1234", name="n" * 2000)
    (found,) = arrays(saved(path, graph(proto))).items()
    assert found[0] == "n" * 1000
    assert found[1].shape == (4,)


def test_unpacked_shape_is_read_too(path: Path) -> None:
    content = saved(path, graph(tensor("w", (2, 3)))).read_bytes()
    assert b"\x08\x02\x08\x03" in content or b"\x0a\x02\x02\x03" in content
    other = content.replace(b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03")
    path.write_bytes(other)
    assert arrays(path)["w"].shape == (2, 3)


def test_weights_in_another_file_are_refused(path: Path) -> None:
    model = helper.make_model(graph(tensor("big", (40, 40))))
    onnx.save(model, path, save_as_external_data=True, location="other", size_threshold=0)
    with pytest.raises(ArchiveError, match=r"tensor 'big' lies in another file; save the model in "
                       r"one file: onnx.save_model\(onnx.load\(path\), new_path\)"):  # fmt: skip
        split(path)
    onnx.save_model(onnx.load(path), path.with_name("new"))  # and that is a way
    assert set(arrays(path.with_name("new"))) == {"big"}


# safetensors


@one_folder
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200).filter(
            lambda n: n != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.int64,
                             torch.float8_e4m3fn, torch.uint16, torch.complex64]),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        max_size=4,
    ),
    st.sampled_from([1, 8, 64]),
)  # fmt: skip
def test_any_safetensors_file_comes_back(
    path: Path, tensors: dict[str, tuple[torch.dtype, list[int]]], smallest: int
) -> None:
    path.unlink(missing_ok=True)
    made = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    save_file(made, path)
    found = arrays(path, smallest=smallest)
    assert set(found) == {n for n, t in made.items() if t.numel() * t.itemsize >= smallest}
    for name, value in found.items():
        assert value.shape == tuple(made[name].shape)
        expected = str(made[name].dtype).removeprefix("torch.").replace("float8_e4m3fn", "uint8")
        assert str(value.dtype) == expected
        assert value.tobytes() == made[name].flatten().view(torch.uint8).numpy().tobytes()


def test_checkpoint_comes_back(path: Path) -> None:
    zipped = mz.prepare(nn.Linear(30, 20), [mz.MagnitudePrune(sparsity=0.5)])
    zipped.save(path)
    assert len(arrays(path)) > 1
    with split(path) as segments:
        assert segments.kind == "safetensors"
        assert segments.tensors[0].size == sum(n for _, n in segments.lengths[:1])


def header(entries: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(first: Any, end: Any, shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": "U8", "shape": shape, "data_offsets": [first, end]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (header({"a": entry(0, 9)}, b"1234"), r"tensor 'a' claims bytes 0 to 9 of data that has 4"),
        (header({"a": entry(-1, 1)}, b"1234"), r"tensor 'a' claims bytes -1 to 1"),
        (header({"a": entry(2, 1)}, b"1234"), r"tensor 'a' claims bytes 2 to 1"),
        (header({"a": entry(0, 3), "b": entry(2, 4)}, b"1234"), r"'b' overlaps another at byte"),
        (header({"a": entry(0, 2, [-2])}, b"1234"), r"tensor 'a' has no shape of sizes from 0"),
        (header({"a": entry(0, 2, [1] * 99)}, b"1234"), r"tensor 'a' has no shape"),
        (header({"a": entry(0, 2, 7)}, b"1234"), r"tensor 'a' lacks a dtype, a shape or two"),
        (header({"a": 7}, b"1234"), r"tensor 'a' lacks a dtype, a shape or two offsets"),
        (b"\x10\0\0\0\0\0\0\0{'a': entry(0,9)}", r"its header is no readable JSON"),
        (struct.pack("<Q", MAX_HEADER + 1) + b"{" * (MAX_HEADER + 1), r"at most 33554432 are read"),
    ],
    ids=range(10),
)
def test_damaged_safetensors_file_is_refused(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=rf"cannot pack .*model as safetensors .*: .*{match}"):
        split(path)


def test_gaps_stay_in_the_skeleton(path: Path) -> None:
    path.write_bytes(header({"b": entry(5, 7), "a": entry(1, 3)}, b"-aa--bb--"))
    assert {k: v.tobytes() for k, v in arrays(path).items()} == {"a": b"aa", "b": b"bb"}


# what is neither


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"model is empty"),
        (b"hello, world", r"cannot pack .* as onnx \(ONNX models, safetensors files and modelzip's "
         r"checkpoints can be\): byte \d+ has wire type 4"),
        (b"\x08\x0a", r"it has no ONNX version and graph"),
        (b"\x3a\x00", r"it has no ONNX version and graph"),
        (b"\x08\x0a\x3a\x05", r"the field at byte 2 ends 5 bytes past its message"),
        (b"\x08" + b"\xff" * 20, r"the number at byte 1 does not end"),
        (b"\x08\x0a\x00\x00", r"byte 2 has field number 0"),
        (b"\x08\x0a\x0d\x00", r"the field at byte 2 ends 3 bytes past its message"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_said(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=match):
        split(path)


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"there is no file .*model"):
        split(path)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_model_is_refused_with_a_way(path: Path, zipped: bool) -> None:
    torch.save({"w": torch.ones(100)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArchiveError, match=r"torch.save's.*safetensors.torch.save_file"):
        split(path)


def test_deep_nesting_is_refused(path: Path) -> None:
    made = b""
    for _ in range(34):
        made = field(1, field(5, field(6, made)))  # a graph in an attribute of a node in a graph
    path.write_bytes(b"\x08\x0a" + field(7, made))
    with pytest.raises(ArchiveError, match=r"byte \d+ is nested more than 100 deep"):
        split(path)


# damage


def split_or_refused(path: Path, content: bytes) -> None:
    """What splits is whole when joined, with little memory; all else is an ArchiveError."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with suppress(ArchiveError), split(path, smallest=1) as segments:
            assert joined(segments) == content
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 + 20 * len(content)


CONTENTS: dict[str, Callable[[], bytes]] = {
    "onnx": lambda: helper.make_model(sample()).SerializeToString(),
    "safetensors": lambda: header({"a": entry(0, 2), "b": entry(2, 4)}, b"1234"),
}


@pytest.mark.parametrize("kind", CONTENTS)
@one_folder
@given(data=st.data())
def test_changed_files_split_whole_or_are_refused(
    path: Path, kind: str, data: st.DataObject
) -> None:
    content = CONTENTS[kind]()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 8, len(content))))
        content = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    split_or_refused(path, content)


@pytest.mark.parametrize("kind", CONTENTS)
def test_truncated_files_split_whole_or_are_refused(path: Path, kind: str) -> None:
    content = CONTENTS[kind]()
    for size in range(1, len(content)):
        split_or_refused(path, content[:size])


@one_folder
@given(st.binary(min_size=1, max_size=100).map(lambda end: b"\x08\x0a\x3a" + end))
def test_random_bytes_split_whole_or_are_refused(path: Path, content: bytes) -> None:
    split_or_refused(path, content)


# joining


@pytest.mark.parametrize(
    ("lengths", "tensors", "match"),
    [
        ([(1, 2)], [], r"tensor 0 of 1 lacks 2 bytes"),
        ([(1, 2)], [b"ab", b"c"], r"there are 1 bytes more than the 1 tensors need"),
        ([(1, 2)], [b"abc"], r"tensor 0 has 1 bytes too many"),
        ([(3, 2), (2, 2)], [b"ab", b"cd"], r"the skeleton has 4 bytes, and its lengths ask for"),
        ([(1, 2), 7], [b"ab"], r"lengths\[1\] is not two sizes from 0, of a gap and of a tensor"),
        ([(-1, 2)], [b"ab"], r"lengths\[0\] is not two sizes"),
        ([(1, True)], [b"a"], r"lengths\[0\] is not two sizes"),
        ([(1, 2.0)], [b"ab"], r"lengths\[0\] is not two sizes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    lengths: list[Any], tensors: list[bytes], match: str
) -> None:
    with pytest.raises(ArchiveError, match=match):
        join(b"()[]", lengths, tensors, io.BytesIO())
