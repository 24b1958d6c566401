"""Building any model from "module:function" and a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from modelzip.core import imports
from modelzip.core.wrapped import refuse_wrapped
from modelzip.errors import ModelError, SettingError

_SHOWN = 300  # characters of the keys that do not fit


def build(
    target: str,
    /,
    *,
    weights: str | Path | None = None,
    beside: str | Path | None = None,
    **arguments: Any,
) -> nn.Module:
    """The model that the function `target`, "module:function", returns for `arguments`.

    Args:
        weights: a .safetensors file, or a .pt or .pth file of plain tensors (loaded with
            `weights_only=True`, so no code in it runs); every key must fit.
        beside: a folder in which the module is looked for first, such as a recipe's own.

    Raises:
        SettingError: no such module, function, argument or file, or the weights do not fit.
        ModelError: a weight is NaN or infinite; names it. Or the model is compiled, scripted,
            exported, or wrapped for several devices.

    >>> type(build("modelzip.zoo:digits_cnn", width=8)).__name__
    'Sequential'
    >>> build("modelzip.zoo:encoder", heds=2)
    Traceback (most recent call last):
    modelzip.errors.SettingError: modelzip.zoo:encoder has no argument 'heds'; did you mean 'heads'?
    """
    model = imports.call(target, arguments, beside=beside)
    if not isinstance(model, nn.Module):
        raise SettingError(f"{target} returned {type(model).__name__}; it must return a Module")
    refuse_wrapped(model, source=f"what {target} returned")
    if weights is not None:
        load_weights(model, weights)
    refuse_nan(model)
    return model


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` from a .safetensors, .pt or .pth file; SettingError where keys do not fit."""
    path = Path(path)
    if not path.is_file():
        raise SettingError(f"there is no weights file {path}")
    state = _read_state(path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:  # torch lists missing, unexpected and misshapen keys, a line each
        reasons = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise SettingError(f"{path} does not fit the model: {reasons:.{_SHOWN}}") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SettingError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pt", ".pth"):
        raise SettingError(f"weights must be .safetensors, .pt or .pth, got {path.name}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler fails on damaged files with whatever comes
        raise SettingError(
            f"{path} holds something other than tensors, or is damaged; only a state dict is "
            "loaded: torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SettingError(f"{path} is not a state dict: names and tensors alone")
    return state


def refuse_nan(model: nn.Module) -> None:
    """ModelError naming the first parameter or buffer that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name} of {type(model).__name__} holds NaN or infinity; retrain the model or "
                "mend its weights file"
            )
