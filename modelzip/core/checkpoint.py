"""Checkpoints: one safetensors file, with the passes as JSON in its header. No pickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modelzip.core import registry
from modelzip.core.base import Pass
from modelzip.errors import ModelzipError, OutputError, SettingError

FORMAT = 1
KEY = "modelzip"


@dataclass(frozen=True)
class Entry:
    """One pass of a checkpoint."""

    pass_: Pass
    record: dict[str, Any]
    training_steps: int | None
    since_step: int


@dataclass(frozen=True)
class Header:
    """What a checkpoint says besides its tensors."""

    step: int
    passes: tuple[Entry, ...]


def write(path: str | Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `state` and `header` to `path` at once or not at all. OutputError where it cannot.

    Names that share storage are stored once and listed as aliases.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = tensor.detach().cpu().clone().contiguous()
    about = {"format": FORMAT, **header, "aliases": aliases, "contents": _contents(tensors.items())}
    text = json.dumps(about, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    try:
        # one entry: safetensors writes several in an order that differs from time to time
        save_file(tensors, partial, metadata={KEY: f"{checksum(text)} {text}"})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}") from error


def read(path: str | Path) -> tuple[Header, Callable[[nn.Module], None]]:
    """The header of a checkpoint, and a function that loads its tensors into a model."""
    path = Path(path)
    data = read_json(path)
    try:
        aliases = {str(k): str(v) for k, v in data["aliases"].items()}
        header = Header(
            step=int(data["step"]),
            passes=tuple(_entry(entry) for entry in data["passes"]),
        )
    except ModelzipError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} has a damaged modelzip header: {error!r}") from error
    return header, lambda model: load_tensors(model, path, aliases=aliases)


def read_json(path: Path) -> Any:
    """What `write` was given as the header, besides "format", "aliases" and "contents".

    SettingError if the file is no checkpoint, or not the one that was written.
    """
    if not path.is_file():
        raise SettingError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise SettingError(f"{path} is not a readable safetensors file: {error}") from error
    if KEY not in metadata:
        raise SettingError(f"{path} has no modelzip header; load plain weights with safetensors")
    found, _, text = metadata[KEY].partition(" ")
    if found != checksum(text):  # safetensors checks sizes, and no contents
        raise SettingError(f"{path} has a damaged modelzip header: its checksum is wrong")
    try:
        data = json.loads(text)
        written, contents = data["format"], data.get("contents")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} has a damaged modelzip header: {error!r}") from error
    if written != FORMAT:
        raise SettingError(
            f"{path} has checkpoint format {written!r}, and this modelzip reads {FORMAT}; make "
            "it again, or read it with the modelzip that wrote it"
        )
    with safe_open(path, framework="pt") as file:
        tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - no dict
        if contents not in (None, _contents(tensors)):  # None: written before there were any
            raise SettingError(
                f"{path} has damaged tensors: their checksums are wrong; copy it again"
            )
    return data


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a safetensors file that modelzip wrote, damaged contents aside."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def checksum(text: str) -> str:
    """CRC-32 of `text`, as eight hexadecimal digits.

    >>> checksum("123456789")
    'cbf43926'
    """
    return f"{zlib.crc32(text.encode()):08x}"


def _contents(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The CRC-32 of each tensor's bytes, by name."""
    return {
        name: zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data)
        for name, tensor in tensors
    }


def load_tensors(
    model: nn.Module, path: str | Path, *, aliases: Mapping[str, str] | None = None
) -> None:
    """Fill `model` from a safetensors file; SettingError names keys and shapes that do not fit.

    Everything is compared before anything is copied, so `model` is whole after an error.
    """
    aliases = aliases or {}
    wanted = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            source = {name: aliases.get(name, name) for name in wanted}
            missing = sorted(name for name, key in source.items() if key not in there)
            extra = sorted(there - set(source.values()))
            shapes = {k: list(file.get_slice(k).get_shape()) for k in there & set(source.values())}
            wrong = [
                f"{name} is {shapes[key]} in the file and {list(wanted[name].shape)} in the model"
                for name, key in source.items()
                if key in shapes and shapes[key] != list(wanted[name].shape)
            ]
            problems = [
                *([f"missing {_some(missing)}"] if missing else []),
                *([f"unexpected {_some(extra)}"] if extra else []),
                *([_some(wrong)] if wrong else []),
            ]
            if problems:
                raise SettingError(f"{path} does not fit the model: {'; '.join(problems)}")
            state = {name: file.get_tensor(key) for name, key in source.items()}
    except (OSError, SafetensorError) as error:
        raise SettingError(f"{path} is not a readable safetensors file: {error}") from error
    with torch.no_grad():
        model.load_state_dict(state, strict=True)


def _entry(data: Mapping[str, Any]) -> Entry:
    steps = data["training_steps"]
    return Entry(
        pass_=registry.build(data["name"], data["settings"]),
        record=dict(data["record"]),
        training_steps=None if steps is None else int(steps),
        since_step=int(data["since_step"]),
    )


def _some(items: list[str], limit: int = 4) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
