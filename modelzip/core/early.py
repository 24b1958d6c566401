"""Weights of an earlier state of a model, fitted to what passes have left of it since."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from modelzip.core import checkpoint, surgery
from modelzip.core.channels import pressure
from modelzip.core.channels.resize import axes
from modelzip.errors import SettingError

_ORIGINAL = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.original$")
_SHOWN = 4  # names listed in an error


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` by the names that a model without passes has, and nothing that passes added.

    >>> names = ["0.bias", "0.parametrizations.weight.original", "0.parametrizations.weight.0.mask"]
    >>> list(plain(dict.fromkeys(names, torch.ones(1))))
    ['0.bias', '0.weight']
    """
    renamed = {_ORIGINAL.sub(r"\1", name): tensor for name, tensor in state.items()}
    return {
        name: tensor
        for name, tensor in renamed.items()
        if name != pressure.STEP and "parametrizations" not in name.split(".")
    }


def read(path: str | Path) -> dict[str, Tensor]:
    """The plain tensors of a safetensors file or a checkpoint; SettingError if it is not one."""
    path = Path(path)
    if not path.is_file():
        raise SettingError(f"there is no weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            names = {name: name for name in file.keys()}  # noqa: SIM118 - not a dict
            if checkpoint.KEY in (file.metadata() or {}):
                names |= dict(checkpoint.read_json(path)["aliases"])
            return plain({name: file.get_tensor(key) for name, key in names.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} has a damaged modelzip header: {error!r}") from error
    except (OSError, SafetensorError) as error:
        raise SettingError(f"{path} is not a readable safetensors file: {error}") from error


def fit(
    state: Mapping[str, Tensor],
    model: nn.Module,
    earlier: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    path: str,
) -> dict[str, Tensor]:
    """For each plain tensor of `model` the one of `state`, of its shape.

    Channels and blocks that prune_channels removed, by the records in `earlier`, are removed here.
    Names of tied weights may be missing but for one.

    Raises:
        SettingError: names or shapes do not fit, or a value is NaN or infinite.
    """
    found = dict(state)
    records = [record for name, record in earlier if name == "prune_channels"]
    for record in records:
        _narrow(found, model, record["layers"])
    for group in surgery.tied_parameters(model):
        there = [name for name in group if name in found]
        found |= {name: found[there[0]] for name in group if there and name not in found}
    gone = tuple(f"{block}." for record in records for block in record.get("dropped", {}))
    found = {name: tensor for name, tensor in found.items() if not name.startswith(gone or "\0")}
    _refuse_misfits(found, plain(model.state_dict()), path)
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SettingError(f"{name} in {path} holds NaN or infinity")
    return found


def _narrow(state: dict[str, Tensor], model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Cut the tensors in `state` that are as wide as the layers were before."""
    modules = dict(model.named_modules())
    for name, entry in layers.items():
        for tensor_name, along in axes(modules[name]).items() if name in modules else ():
            key = f"{name}.{tensor_name}"
            for axis, side in enumerate(along):
                cut = entry.get(side) if key in state else None
                if cut is not None and state[key].shape[axis] == cut["of"]:
                    state[key] = state[key].index_select(axis, torch.tensor(cut["kept"]))


def _refuse_misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str) -> None:
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    told = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        raise SettingError(
            f"{path} does not fit the model: {'; '.join(told)}. It must hold the same model, as it "
            "was before or after its channels were pruned"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
