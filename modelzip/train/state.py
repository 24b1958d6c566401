"""What a killed fine-tuning needs to go on: one safetensors file with JSON in its header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from modelzip.core import checkpoint
from modelzip.errors import SettingError
from modelzip.train.source import Source

_KIND = "finetune"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One point of the learning curve; accuracies are fractions. Number 0 is before training.

    `settled` says whether every pass had ended its schedule, so that the epoch may be kept.
    """

    number: int
    step: int
    train_loss: float | None
    validation_accuracy: float
    lr: float
    seconds: float
    settled: bool


@dataclass(kw_only=True)
class State:
    """Where a fine-tuning stands after an epoch. `run` identifies the run it belongs to."""

    run: dict[str, Any]
    curve: list[Epoch]
    best: dict[str, Tensor] | None = None  # the model at the best settled epoch
    kept: int | None = None  # its number

    @property
    def done(self) -> int:
        """Epochs that are over."""
        return self.curve[-1].number if self.curve else 0


def save(
    path: Path,
    state: State,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    source: Source | None = None,
) -> None:
    """Write everything to `path` at once or not at all; OutputError where it cannot be."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in (state.best or {}).items()}
    if source is not None:
        tensors |= {f"source.{k}": v for k, v in source.tensors().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    header = {
        "kind": _KIND,
        "run": state.run,
        "curve": [asdict(epoch) for epoch in state.curve],
        "kept": state.kept,
    }
    checkpoint.write(path, tensors, header)


def load(
    path: Path,
    *,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    source: Source | None = None,
) -> State:
    """Fill model, optimizer and source from `path`; SettingError if damaged or of another run."""
    header = checkpoint.read_json(path)
    if header.get("kind") != _KIND:
        raise SettingError(f"{path} is no checkpoint of fine-tuning")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors |= {name: tensors[source] for name, source in header["aliases"].items()}
        curve = [Epoch(**epoch) for epoch in header["curve"]]
        before, kept = dict(header["run"]), header["kept"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} is no checkpoint of fine-tuning, or is damaged") from error
    if before != run:
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in run.items() if before.get(k) != v]
        raise SettingError(
            f"{path} belongs to a run with other settings ({'; '.join(changed)}); "
            "delete it, or resume with the settings it was started with"
        )
    _restore(path, tensors, model=model, optimizer=optimizer)
    if source is not None:
        source.restore(_part(tensors, "source"))
    return State(run=run, curve=curve, best=_part(tensors, "best") or None, kept=kept)


def _restore(
    path: Path, tensors: Mapping[str, Tensor], *, model: nn.Module, optimizer: Optimizer
) -> None:
    try:
        model.load_state_dict(_part(tensors, "model"), strict=True)
    except RuntimeError as error:
        reasons = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise SettingError(f"{path} does not fit the model: {reasons:.300}") from error
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer").items():
        index, _, key = name.partition(".")
        values.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
