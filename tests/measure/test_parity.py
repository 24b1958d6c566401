from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from modelzip.errors import DataError, ModelzipError
from modelzip.measure.parity import parities, parity
from modelzip.runtime import onnx_file
from modelzip.runtime.inputs import InputSpec
from modelzip.runtime.session import load


class Fixed:
    """A session that returns the same outputs whatever it is given."""

    inputs: tuple[InputSpec, ...] = ()

    def __init__(self, *outputs: Any) -> None:
        self.outputs = [np.asarray(output, np.float32) for output in outputs]

    def run(self, inputs: object) -> list[np.ndarray]:
        return self.outputs

    def bind(self, inputs: object) -> object:
        raise NotImplementedError


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"out": (a, b)}


def twin(path: Path) -> nn.Module:
    """The float file in torch."""
    arrays = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in onnx_file.read(path).graph.initializer
    }
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    net[0].load_state_dict({k: arrays[f"conv.{k}"] for k in ("weight", "bias")})
    net[3].load_state_dict({k: arrays[f"fc.{k}"] for k in ("weight", "bias")})
    return net


def test_a_file_and_its_module_agree(float_file: Path, images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    found = parity(twin(float_file), load(float_file), [x[:2], x[2:]])
    assert (found.n, found.agreement) == (5, 1)
    assert found.max_difference < 1e-5
    with torch.no_grad():
        assert found.scale == pytest.approx(twin(float_file)(x).abs().max().item())


def test_the_figures_by_hand() -> None:
    ours = torch.tensor([[1.0, 2.0], [3.0, 4.0], [6.0, 5.0], [7.0, 8.0]])
    theirs = [[1.0, 2.0], [3.0, 4.5], [6.0, 7.0], [7.0, 8.0]]
    found = parity(nn.Identity(), Fixed(theirs), [ours])
    assert found.n == 4
    assert (found.agreement, found.identical) == (0.75, 0.5)
    assert (found.max_difference, found.mean_difference, found.scale) == (2, 2.5 / 8, 8)


def test_every_output_counts() -> None:
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 2.0])
    session = Fixed([[1, 0], [1, 0]], [1, 3])
    for inputs in ((a, b), {"b": b, "a": a}):
        found = parity(Pair(), session, [inputs])
        assert (found.agreement, found.identical, found.max_difference) == (1, 0.5, 1)


def test_the_module_is_run_in_eval_mode_and_left_as_it_was() -> None:
    net = nn.Dropout(0.9).train()
    assert parity(net, Fixed(np.ones((1, 50))), [torch.ones(1, 50)]).identical == 1
    assert net.training


def test_no_batches_is_an_error() -> None:
    with pytest.raises(DataError, match="there are no samples to compare on; give at least one"):
        parity(nn.Identity(), Fixed([1]), [])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            ([[1, 2]], [1]),
            r"the module's outputs have shapes \[\[1, 2\]\], the file's \[\[1, 2\], ",
        ),
        (([[1, 2, 3]],), r"shapes \[\[1, 2\]\], the file's \[\[1, 3\]\]"),
    ],
)
def test_other_shapes_are_refused(outputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parity(nn.Identity(), Fixed(*outputs), [torch.ones(1, 2)])


def test_outputs_without_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"shapes \[\[2, 1\], \[3\]\] cannot be compared sample by"):
        parity(Pair(), Fixed([[1], [1]], [1, 1, 1]), [(torch.ones(2, 1), torch.ones(3))])


@pytest.mark.parametrize("whose", ["module", "file"])
def test_nan_names_whose_it_is_and_the_sample(whose: str) -> None:
    good, bad = [[1.0], [1.0]], [[1.0], [np.nan]]
    ours, theirs = (bad, good) if whose == "module" else (good, bad)
    message = f"the {whose}'s output 0 for sample 1 holds NaN or infinity"
    with pytest.raises(DataError, match=message):
        parity(nn.Identity(), Fixed(theirs), [torch.tensor(ours)])


def test_several_sessions_are_compared_with_one_run_of_the_module() -> None:
    calls = []

    class Counted(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sessions = {"same": Fixed(x), "other": Fixed([[1.0, 2.0], [4.0, 3.0]])}
    found = parities(Counted(), sessions, [x, x])
    assert calls == [2, 2]
    assert [found[key].agreement for key in sessions] == [1, 0.5]
    assert found["other"].n == 4


def test_a_session_that_cannot_be_compared_is_left_out() -> None:
    x = torch.ones(2, 3)
    failures: list[tuple[str, ModelzipError]] = []
    sessions = {"good": Fixed(x), "bad": Fixed(np.full((2, 3), np.nan))}
    found = parities(
        nn.Identity(), sessions, [x, x], failed=lambda key, error: failures.append((key, error))
    )
    assert list(found) == ["good"]
    assert found["good"].n == 4
    assert [key for key, _ in failures] == ["bad"]
    assert "the file's output 0 for sample 0 holds NaN or infinity" in str(failures[0][1])
    with pytest.raises(DataError, match="holds NaN"):
        parities(nn.Identity(), sessions, [x])
