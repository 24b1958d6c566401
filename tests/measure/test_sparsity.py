"""Zeros and their patterns, read from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import modelzip as mz
from modelzip.measure.sparsity import PATTERNS, file_zeros, holding, implies, patterns_of
from modelzip.numerics.patterns import parse

DIAGONAL = np.eye(4, dtype=np.float32)  # 1:4 along both axes
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]


def written(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    """A file from x to y; its shapes are of no interest."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["a", "b"]) for n in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=10), path)
    return path


def rows_in_blocks() -> np.ndarray:
    """[8 outputs, 4 inputs], zero in blocks of 4 outputs by 1 input."""
    weight = np.ones((8, 4), np.float32)
    weight[:4, 1] = weight[4:, 3] = weight[4:, 0] = 0
    return weight


@pytest.mark.parametrize(
    ("weight", "patterns"),
    [
        (np.ones((4, 4)), ()),
        (DIAGONAL, ("1:4",)),
        (DIAGONAL[:, :2], ("1:2",)),
        (DIAGONAL[:, :3], ()),  # 3 inputs take no pattern
        (np.kron(DIAGONAL, np.ones((1, 2))), ("2:8", "1x2")),
        (rows_in_blocks(), ("4x1",)),
        (np.kron(np.eye(2), np.ones((8, 8))), ("8x8",)),
        (np.array([[1, 1, 1, 0]]), ()),
        (np.array([[0, 0, 1, 1, 0, 1, 0, 1]]), ("2:4",)),
        (np.array([[1, 1, 1, 1, 0, 0, 0, 0]]), ("4:8", "1x4")),
    ],
)
def test_patterns_are_the_strictest_that_hold(
    weight: np.ndarray, patterns: tuple[str, ...]
) -> None:
    assert patterns_of(weight != 0) == patterns


def test_every_tap_of_a_kernel_has_its_own_groups() -> None:
    weight = np.ones((1, 4, 2), bool)
    weight[0, :2, 0] = weight[0, 1:3, 1] = False
    assert patterns_of(weight) == ("2:4",)
    weight[0, 3, 1] = weight[0, 0, 1] = True
    weight[0, 1, 1] = True  # three in one tap
    assert patterns_of(weight) == ()


def test_no_block_straddles_two_groups() -> None:
    weight = np.ones((4, 2), bool)
    weight[:2] = False
    assert patterns_of(weight) == ("2x2",)
    assert patterns_of(weight, groups=4) == ("1x2",)


def test_integers_rounded_to_zero_do_not_break_blocks() -> None:
    weight = np.ones((40, 20), bool)
    weight[:4] = False
    weight[20, ::7] = False  # 3 of the 720 left
    assert patterns_of(weight) == ()
    assert patterns_of(weight, rounded=True) == ("4x4",)
    alone = np.ones((40, 20), bool)
    alone[::10, 3] = False
    assert patterns_of(alone, rounded=True) == ()


@given(
    arrays.arrays(bool, st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([4, 8, 16]))),
)
def test_what_follows_from_a_pattern_that_holds_does_hold(mask: np.ndarray) -> None:
    for text in patterns_of(mask):
        stronger = parse(text)
        for weaker in map(parse, PATTERNS):
            if implies(stronger, weaker) and weaker.keep is not None:
                if mask.shape[1] % weaker.columns == 0:
                    groups = mask.reshape(mask.shape[0], -1, weaker.columns)
                    assert groups.sum(-1).max() <= weaker.keep
            elif implies(stronger, weaker):
                blocks = mask.reshape(
                    -1, weaker.rows, mask.shape[1] // weaker.columns, weaker.columns
                ).sum(axis=(1, 3))
                assert set(np.unique(blocks)) <= {0, weaker.rows * weaker.columns}


GEMM = {"transB": 1}
LAYOUTS = {
    "gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], **GEMM)], rows_in_blocks()),
    "gemm, stored the other way": (
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        rows_in_blocks().T,
    ),
    "product": ([helper.make_node("MatMul", ["x", "w"], ["y"])], rows_in_blocks().T),
    "product, transposed in the file": (
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        rows_in_blocks(),
    ),
    "convolution, reshaped in the file": (
        [
            helper.make_node("Reshape", ["w", "shape"], ["r"]),
            helper.make_node("Conv", ["x", "r"], ["y"]),
        ],
        rows_in_blocks(),
    ),
    "transposed convolution": (
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"])],
        rows_in_blocks().T[:, :, None, None],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_turned_to_outputs_by_inputs(name: str, tmp_path: Path) -> None:
    nodes, weight = LAYOUTS[name]
    weights = {"w": np.ascontiguousarray(weight), "shape": np.array([8, 0, 1, 1])}
    (row,) = file_zeros(written(tmp_path / "m.onnx", nodes, weights))
    assert (row.weight, row.elements, row.zeros, row.patterns) == ("w", 32, 12, ("4x1",))
    assert row.sparsity == 12 / 32


def test_integers_are_zero_at_their_zero_point(tmp_path: Path) -> None:
    stored = np.where(DIAGONAL == 0, 7, 100).astype(np.uint8)
    scale, zero = np.ones(4, np.float32), np.full(4, 7, np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
        helper.make_node("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    path = written(tmp_path / "m.onnx", nodes, {"w": stored, "s": scale, "z": zero})
    assert [(row.zeros, row.patterns) for row in file_zeros(path)] == [(12, ("1:4",))]


def test_operators_on_integers_are_read(tmp_path: Path) -> None:
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    node = helper.make_node("QLinearMatMul", names, ["y"])
    weights = dict.fromkeys(("xs", "ws", "ys"), np.ones((), np.float32))
    weights |= dict.fromkeys(("xz", "wz", "yz"), np.zeros((), np.int8))
    weights["w"] = DIAGONAL.astype(np.int8)
    path = written(tmp_path / "m.onnx", [node], weights)
    assert [row.patterns for row in file_zeros(path)] == [("1:4",)]


def test_what_has_no_stored_weight_or_no_layout_is_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"]),
        helper.make_node("MatMul", ["a", "batch"], ["b"]),
        helper.make_node("Reshape", ["w", "x"], ["r"]),
        helper.make_node("MatMul", ["b", "r"], ["c"]),
        helper.make_node("MatMul", ["c", "vector"], ["d"]),
        helper.make_node("Add", ["d", "w"], ["y"]),
    ]
    weights = {"w": DIAGONAL, "batch": np.ones((2, 4, 4), np.float32), "vector": DIAGONAL[0]}
    assert file_zeros(written(tmp_path / "m.onnx", nodes, weights)) == ()


@pytest.mark.parametrize("precision", ["float", "int8"])
@pytest.mark.parametrize("pattern", ["2:4", "4x1"])
def test_what_was_pruned_holds_in_the_file(pattern: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(), nn.Linear(16, 8)),
    )
    x = torch.randn(4, 8, 4, 4)
    sparsity = None if ":" in pattern else 0.5
    passes = [mz.MagnitudePrune(pattern=pattern, sparsity=sparsity)]
    passes += [mz.Int8()] if precision == "int8" else []
    small = mz.prepare(model, passes, example_inputs=x, calibration=[x]).convert()
    rows = file_zeros(mz.export_onnx(small, x, tmp_path / "m.onnx"))
    assert len(rows) == 4
    assert dict(holding(rows))[pattern] == 4
    assert sum(row.zeros for row in rows) >= sum(row.elements for row in rows) / 2


@pytest.mark.parametrize("row", [0, 199])
def test_one_weight_out_of_place_in_a_large_layer_is_found(row: int) -> None:
    weight = np.zeros((200, 8), bool)
    weight[:, ::2] = True
    assert patterns_of(weight)[0] == "1:2"
    weight[row, 1] = True
    assert patterns_of(weight) == ()
