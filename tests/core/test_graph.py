"""Tracing: a graph that shares its layers, or a reason."""

from __future__ import annotations

import copy
import json
import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from modelzip.core.base import Batch, Context
from modelzip.core.graph import notes_of, trace
from modelzip.errors import ModelError, SettingError


def test_graph_shares_the_layers_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    graph = trace(model)
    assert graph.get_submodule("0") is model[0]
    assert trace(graph) is graph


def test_subclasses_of_layers_stay_whole() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x  # type: ignore[no-any-return]

    graph = trace(nn.Sequential(Own(2, 2)))
    assert [n.op for n in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    assert isinstance(graph, fx.GraphModule)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError


@pytest.mark.parametrize("model", [Branches(), Silent()], ids=lambda m: type(m).__name__)
def test_models_that_cannot_be_traced_say_why(model: nn.Module) -> None:
    with pytest.raises(
        ModelError, match=rf"{type(model).__name__} cannot be .*Give example_inputs"
    ):
        trace(model)


def test_models_that_do_not_run_say_why() -> None:
    text = r"Silent cannot be traced: RuntimeError\(\); nor captured .*: RuntimeError\(\)\. Mark"
    with pytest.raises(ModelError, match=text):
        trace(Silent(), Context(example_inputs=torch.ones(1)))


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"inputs given do not fit Branches.forward: too many"):
        trace(Branches(), Context(example_inputs=(torch.ones(1), torch.ones(1))))


def test_capture_takes_the_path_of_the_example_inputs_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = Context(example_inputs=-torch.ones(2))
    with caplog.at_level(logging.INFO, logger="modelzip"):
        graph = trace(Branches(), context)
    assert graph(torch.ones(3)).tolist() == [-1.0, -1.0, -1.0]
    assert [n.op for n in graph.graph.nodes] == ["placeholder", "call_function", "output"]
    (note,) = notes_of(context.record)
    assert note in caplog.text
    assert "branches on values" in note
    assert "(return x if x.sum() > 0 else -x at test_graph.py:" in note


def test_a_recorded_path_is_followed_without_the_inputs() -> None:
    context = Context(example_inputs=torch.ones(2))
    first = trace(Branches(), context)
    record = json.loads(json.dumps(context.record))
    assert trace(Branches(), Context(record=record)).code == first.code
    against = Context(record=record, example_inputs=-torch.ones(2))
    assert trace(Branches(), against).code == first.code


def test_a_record_that_no_longer_fits_says_what_to_do() -> None:
    context = Context(example_inputs=torch.ones(2))
    trace(Branches(), context)
    context.record["capture"]["answers"].clear()
    text = r"Branches cannot be captured again .*; use load_prepared\(..., example_inputs=...\)"
    with pytest.raises(ModelError, match=text):
        trace(Branches(), Context(record=context.record))


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        return scale * (x if mask is None else x * mask)


def test_arguments_that_are_not_given_keep_their_defaults() -> None:
    x, mask = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    plain = Context(example_inputs=x)
    assert trace(Masked(), plain)(x).tolist() == [2.0, 4.0]
    assert notes_of(plain.record) == ()
    masked = Context(example_inputs={"x": x, "mask": mask})
    assert trace(Masked(), masked)(x=x, mask=mask).tolist() == [0.0, 4.0]
    scaled = Context(example_inputs={"x": x, "scale": 3.0})
    assert trace(Masked(), scaled)(x=x, scale=3.0).tolist() == [3.0, 6.0]


def test_the_first_calibration_batch_serves_as_example() -> None:
    x = torch.tensor([1.0, 2.0])
    assert trace(Masked(), Context(calibration=[Batch(x, None)]))(x).tolist() == [2.0, 4.0]


class Python(nn.Module):
    """What plain Python asks of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.dropout = nn.Dropout(0.5)

    def forward(
        self, x: Tensor, *rest: Tensor, weight: Tensor, **more: Tensor
    ) -> dict[str, Tensor]:
        assert isinstance(x, Tensor)
        assert x.dtype == torch.float32
        batch, length = x.shape
        total = torch.zeros(batch, device=x.device)
        for t, column in enumerate(x.unbind(1)):
            total = total + column * (t + 1)
        steps = torch.arange(length, dtype=x.dtype)
        total = total + (x * steps).sum(1) * float(weight) / len(x) * batch
        for other in rest:
            total = total + other.view(len(x))
        if "bias" in more:
            total = total + more["bias"]
        x[:, 0] = 5.0
        total = F.dropout(self.dropout(total), 0.5, self.training)
        return {"total": total * self.scale, "x": x, "last": x[:, int(x.size(1)) - 1]}


def test_what_python_asks_of_tensors_is_answered() -> None:
    def inputs(count: int) -> dict[str, Tensor]:
        return {"x": torch.randn(count, 3), "weight": torch.tensor(0.5), "bias": torch.ones(1)}

    given = inputs(4)
    before = given["x"].clone()
    graph = trace(Python().eval(), Context(example_inputs=given))
    assert torch.equal(given["x"], before)
    for count in (1, 7):
        x = inputs(count)
        ours, theirs = graph(**copy.deepcopy(x)), Python().eval()(**copy.deepcopy(x))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {type(m).__name__ for m in graph.modules()} >= {"Dropout"}
    assert "len" not in vars(sys.modules[__name__])  # nothing is left behind


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(int(x.shape[0]), -1).repeat(1, len(x.shape))


class Fixed(nn.Module):
    """Works at one batch size itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(int(x.shape[0]), -1) + torch.ones(2, 1)


class Remembers(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls if x.sum() > 0 else x


def test_a_graph_of_one_batch_size_is_refused() -> None:
    text = r"Sizes was captured .* their batch size alone \(return x.view\(int\(x.shape\[0\]\)"
    with pytest.raises(ModelError, match=text):
        trace(Sizes(), Context(example_inputs=torch.ones(2, 3)))
    x = torch.ones(2, 3)
    assert torch.equal(trace(Fixed(), Context(example_inputs=x))(x), x + 1)


def test_a_model_that_depends_on_more_than_its_inputs_is_refused() -> None:
    with pytest.raises(ModelError, match="the graph has other outputs than the model; it changes"):
        trace(Remembers(), Context(example_inputs=torch.ones(2)))


def test_traced_model_still_trains() -> None:
    graph = trace(nn.Sequential(nn.Linear(2, 2)))
    graph(torch.ones(1, 2)).sum().backward()
    assert graph.get_parameter("0.weight").grad is not None
