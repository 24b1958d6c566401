"""What 2:4 zeros are worth on a GPU, in torch's own sparse kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured
from torch.utils._pytree import tree_map

from modelzip.core import surgery
from modelzip.core.running import call
from modelzip.errors import ExportError
from modelzip.measure.rounds import Latency, time_rounds
from modelzip.measure.sparsity import implies, patterns_of
from modelzip.numerics.patterns import parse
from modelzip.runtime.inputs import as_array

_ROWS, _COLUMNS = 32, 64  # sizes of float16 weights are multiples of these for any of its kernels


@dataclass(frozen=True, kw_only=True)
class SparseTime:
    """A module in float16 with `layers` of its Linear layers on 2:4 kernels of the GPU `device`.

    `latency` is of one batch; its ratio is to the same module in float16 with dense kernels.
    """

    layers: int
    device: str
    latency: Latency


def suitable(module: nn.Module) -> list[str]:
    """The Linear layers whose weights hold 2:4 and are of a size that the kernels take.

    >>> layer = nn.Linear(64, 32)
    >>> suitable(layer)
    []
    >>> _ = layer.weight.data.view(32, 16, 4)[:, :, 1:3].zero_()
    >>> suitable(nn.Sequential(layer))
    ['0']
    """
    return [
        name
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and _fits(layer.weight)
    ]


def time_semi_structured(
    module: nn.Module, example_inputs: Any, *, budget_s: float = 4.0, seed: int = 0
) -> SparseTime | None:
    """Time `module` on the first CUDA device with and without 2:4 kernels, in interleaved rounds.

    None where no layer is `suitable`. Mishra et al. 2021, https://arxiv.org/abs/2104.08378.

    Args:
        example_inputs: the batch to time, in tensors or arrays.
        budget_s, seed: as `time_rounds` takes them.

    Raises:
        ExportError: the module or the kernels do not run there in float16.
    """
    names = suitable(module)
    if not names:
        return None
    if not torch.cuda.is_available():
        raise ExportError("2:4 kernels need a CUDA device, and torch sees none here")
    device = torch.device("cuda", 0)
    try:
        dense = surgery.clone(module).eval().to(device, torch.float16)
        sparse = surgery.clone(dense)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the kernels are a prototype
            for name in names:
                layer = cast(nn.Linear, sparse.get_submodule(name))
                weight = to_sparse_semi_structured(layer.weight.detach())
                layer.weight = nn.Parameter(weight, requires_grad=False)
            inputs = tree_map(lambda value: _placed(value, device), example_inputs)
            runs = {"dense": _runner(dense, inputs), "sparse": _runner(sparse, inputs)}
            found = time_rounds(runs, budget_s=budget_s, seed=seed)
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"2:4 kernels cannot run {type(module).__name__}: {reason}") from error
    return SparseTime(
        layers=len(names),
        device=torch.cuda.get_device_name(device),
        latency=found.latency("sparse", "dense"),
    )


def _fits(weight: torch.Tensor) -> bool:
    rows, columns = weight.shape
    if rows % _ROWS or columns % _COLUMNS:
        return False
    found = patterns_of(weight.detach().cpu().numpy() != 0)
    return any(implies(parse(text), parse("2:4")) for text in found)


def _placed(value: Any, device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(as_array(value), device=device)
    return tensor.half() if tensor.is_floating_point() else tensor


def _runner(module: nn.Module, inputs: Any) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            call(module, inputs)
        torch.cuda.synchronize()

    return run
