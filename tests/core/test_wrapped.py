"""Models that must be unwrapped first, wherever they come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations

import modelzip as mz
from modelzip.core.wrapped import refuse_wrapped
from modelzip.errors import ModelError
from modelzip.zoo import build

X = torch.ones(2, 4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


class Distributed:
    """A model wrapped for one process of one, over files instead of a network."""

    def __init__(self, folder: Path) -> None:
        self.store = torch.distributed.FileStore(str(folder / "store"), 1)

    def __enter__(self) -> nn.Module:
        torch.distributed.init_process_group("gloo", store=self.store, rank=0, world_size=1)
        return nn.parallel.DistributedDataParallel(net())

    def __exit__(self, *_: object) -> None:
        torch.distributed.destroy_process_group()


EAGER = "give the eager model"
WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "parallel": (lambda: nn.DataParallel(net()), r"is wrapped in DataParallel; give model\.module"),
    "compiled": (
        lambda: torch.compile(net(), backend="eager"),
        r"is compiled; give model\._orig_mod instead",
    ),
    "scripted": (lambda: torch.jit.script(net()), f"is TorchScript; {EAGER}"),
    "traced": (lambda: torch.jit.trace(net(), X), f"is TorchScript; {EAGER}"),
    "function": (lambda: torch.jit.trace(torch.relu, X), f"is TorchScript; {EAGER}"),
    "program": (lambda: torch.export.export(net(), (X,)), f"is an ExportedProgram; {EAGER}"),
    "exported": (
        lambda: torch.export.export(net(), (X,)).module(),
        rf"is a graph of torch\.export's operators; {EAGER}",
    ),
    "builder": (lambda: net, r"is of class function; give a torch\.nn\.Module"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", WRAPPED)
def test_says_what_to_give_instead(name: str) -> None:
    make, text = WRAPPED[name]
    with pytest.raises(ModelError, match=f"the model {text}"):
        mz.prepare(make(), [mz.PruneChannels(sparsity=0.5)], example_inputs=X)


def test_a_distributed_model_is_refused(tmp_path: Path) -> None:
    with (
        Distributed(tmp_path) as model,
        pytest.raises(ModelError, match=r"wrapped in DistributedDataParallel; give model\.mod"),
    ):
        refuse_wrapped(model)


def test_what_was_traced_symbolically_still_has_layers() -> None:
    refuse_wrapped(fx.symbolic_trace(net()))


def test_a_model_compiled_in_place_is_eager_in_the_copy() -> None:
    model = net()
    model.compile(backend="eager")
    zipped = mz.prepare(model, [mz.PruneChannels(sparsity=0.5, round_to=1)], example_inputs=X)
    assert zipped.convert()[0].out_features == 4


def test_a_parametrized_model_says_what_to_do() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 2))
    with pytest.raises(ModelError, match="'0' computes its weight; prune channels before that is"):
        mz.prepare(model, [mz.PruneChannels(sparsity=0.5)], example_inputs=X)


def test_a_run_refuses_before_it_looks_at_the_data(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model is wrapped in DataParallel"):
        mz.compress(nn.DataParallel(net()), [mz.Int8()], data=None, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_builder_that_returns_a_wrapped_model_is_named() -> None:
    target = "torch.nn:DataParallel"
    with pytest.raises(ModelError, match=f"what {target} returned is wrapped in DataParallel"):
        build(target, module=net())
