import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modelzip.errors import ExportError, SettingError
from modelzip.measure.latency import latency_table
from modelzip.runtime.session import Serving, missing

needs_openvino = pytest.mark.skipif(
    bool(missing("openvino", "cpu")), reason="openvino is not installed"
)


def test_the_table_goes_through_every_combination(
    float_file: Path, int8_file: Path, images: np.ndarray
) -> None:
    rows = latency_table(
        {"float": float_file, "int8": int8_file},
        images,
        batch_sizes=(1, 7),
        threads=(1, 2),
        rounds=5,
    )
    assert [(r.threads, r.batch_size, r.name) for r in rows] == [
        (threads, batch, name)
        for threads in (1, 2)
        for batch in (1, 7)
        for name in ("float", "int8")
    ]
    assert all(r.ratio == 1 for r in rows if r.name == "float")
    assert all((r.overall, r.overall_low) == (r.ratio, r.ratio_low) for r in rows)
    assert all(r.median_ms > 0 and r.rounds == 5 for r in rows)
    assert json.loads(json.dumps([asdict(r) for r in rows]))[0]["device"] == "cpu"


def test_modules_are_timed_too() -> None:
    rows = latency_table(
        {},
        torch.ones(1, 3),
        modules={"net": nn.Linear(3, 2)},
        servings=[Serving(runtime="torch", precision="bfloat16")],
        batch_sizes=(4,),
        rounds=5,
    )
    assert [(r.runtime, r.precision, r.batch_size) for r in rows] == [("torch", "bfloat16", 4)]


def test_a_batch_of_none_is_refused(float_file: Path, images: np.ndarray) -> None:
    with pytest.raises(SettingError, match="batch size must be an integer of at least 1, got 0"):
        latency_table({"a": float_file}, images, batch_sizes=(0,))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("runtime", ["torch", "torch.compile"])
def test_cuda_has_one_row_for_all_thread_counts(runtime: str) -> None:
    rows = latency_table(
        {},
        torch.ones(1, 3),
        modules={"net": nn.Linear(3, 2)},
        servings=[Serving(runtime=runtime, precision="float16", device="cuda")],
        batch_sizes=(1, 4),
        threads=(1, 2),
        rounds=5,
    )
    assert [(r.device, r.batch_size) for r in rows] == [("cuda", 1), ("cuda", 4)]


@needs_openvino
def test_every_serving_has_its_own_ratio_and_one_to_the_first(
    float_file: Path, int8_file: Path, images: np.ndarray
) -> None:
    rows = latency_table(
        {"float": float_file, "int8": int8_file},
        images,
        modules={"float": nn.Flatten(), "int8": nn.Flatten()},
        servings=[Serving(), Serving(runtime="openvino"), Serving(runtime="torch")],
        batch_sizes=(2,),
        rounds=5,
    )
    assert [(r.name, r.runtime) for r in rows] == [
        (name, runtime)
        for runtime in ("onnxruntime", "openvino", "torch")
        for name in ("float", "int8")
    ]
    assert [r.ratio for r in rows if r.name == "float"] == [1, 1, 1]
    assert rows[0].overall == 1
    for row in rows:  # medians of ratios and ratios of medians differ, but are of one kind
        assert 0.02 < row.overall / (row.median_ms / rows[0].median_ms) < 50


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no luck")


def test_a_serving_that_fails_is_left_out_and_said(float_file: Path, images: np.ndarray) -> None:
    lines: list[str] = []
    settings = {"modules": {"net": Broken()}, "batch_sizes": (1,), "rounds": 5}
    servings = [Serving(), Serving(runtime="torch")]
    rows = latency_table(
        {"net": float_file}, images, servings=servings, failed=lines.append, **settings
    )
    assert [row.runtime for row in rows] == ["onnxruntime"]
    assert lines == ["torch on cpu in float32: torch cannot run Broken: no luck"]
    with pytest.raises(ExportError, match="torch cannot run Broken: no luck"):
        latency_table({"net": float_file}, images, servings=servings, **settings)


def test_nothing_that_can_be_served_has_no_rows(images: np.ndarray) -> None:
    lines: list[str] = []
    rows = latency_table(
        {},
        images,
        modules={"net": Broken()},
        servings=[Serving(runtime="torch")],
        batch_sizes=(1,),
        failed=lines.append,
    )
    assert (rows, len(lines)) == ([], 1)
