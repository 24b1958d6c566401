"""Tracing: a graph that shares its layers, or a reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from modelzip.core.graph import trace
from modelzip.errors import ModelError


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
    text = (
        rf"{type(model).__name__} cannot be traced: .*Move data-dependent branches out of forward"
    )
    with pytest.raises(ModelError, match=text):
        trace(model)


def test_traced_model_still_trains() -> None:
    graph = trace(nn.Sequential(nn.Linear(2, 2)))
    graph(torch.ones(1, 2)).sum().backward()
    assert graph.get_parameter("0.weight").grad is not None
