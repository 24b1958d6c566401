"""Checking data before a run, and picking calibration batches."""

from __future__ import annotations

import logging
import numbers
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from modelzip.core.running import call, evaluating, tensors
from modelzip.data.arrays import ArrayDataset
from modelzip.data.base import Splits, length, loader
from modelzip.data.pipeline import Pipeline
from modelzip.errors import DataError, ModelError, SettingError

log = logging.getLogger(__name__)

_SAMPLED = 256  # items looked at in a dataset that may be slow to read
_CHUNK = 4096


def check(splits: Splits, *, model: nn.Module | None = None) -> None:
    """Raise DataError, naming split and item, for data that cannot be right.

    Empty splits, values that are not finite, items of differing shapes or types, labels that are
    not integers in [0, classes); and, given a `model`, inputs that it does not take (ModelError
    where its output is not [N, classes]). Data in memory are checked whole, others at about 256
    spread items; of packed data all labels.

    >>> pairs = [(torch.ones(2), 0), (torch.ones(2), 7)]
    >>> check(Splits(train=pairs, validation=pairs, test=pairs, classes=2))
    Traceback (most recent call last):
    modelzip.errors.DataError: the label of train item 1 is 7; with 2 classes it must be 0 to 1
    """
    forms: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        dataset = getattr(splits, name)
        if length(dataset) == 0:
            raise DataError(f"the {name} data are empty")
        forms[name] = _check_items(dataset, name, splits.classes)
        if forms[name] != forms["train"]:
            raise DataError(f"{name} items are {forms[name]}, and train items {forms['train']}")
    if model is not None:
        check_model(model, splits.validation, classes=splits.classes)


def calibration_batches(
    splits: Splits, *, samples: int = 512, batch_size: int = 128, seed: int = 0
) -> list[tuple[Any, Tensor]]:
    """(inputs, targets) batches of `samples` training items, chosen by `seed`, un-augmented.

    All of the training data where there are fewer, with a warning where they do not fill one batch.
    A dataset that is not a `Pipeline` is taken as it is, with any augmentation of its own.

    >>> from modelzip.data import digits
    >>> [len(targets) for _, targets in calibration_batches(digits(), samples=200)]
    [128, 72]
    """
    if samples < 1:
        raise SettingError(f"samples must be at least 1, got {samples}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(length(splits.train), generator=generator)[:samples]
    if len(order) < batch_size:
        log.warning(
            "the calibration data are %d samples, fewer than a batch of %d; ranges from so few may "
            "clip what comes later",
            len(order),
            batch_size,
        )
    if isinstance(splits.train, Pipeline):  # at once: a packed dataset decodes each chunk once
        inputs, targets = splits.train.plain().__getitems__(order.tolist())
        return list(
            zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True)
        )
    return list(loader(Subset(splits.train, order.tolist()), batch_size=batch_size))


def _check_items(dataset: Dataset[Any], name: str, classes: int) -> str:
    """Check the items of one split and return their form, which all share."""
    if isinstance(dataset, ArrayDataset):
        for start in range(0, len(dataset), _CHUNK):
            _check_finite(dataset.inputs[start : start + _CHUNK], name, start)
        _check_targets(dataset.targets, name, classes)
        return _form(dataset[0][0])
    if isinstance(dataset, Pipeline):
        _check_targets(dataset.targets, name, classes)
        dataset = dataset.plain()
    form = ""
    size = length(dataset)
    for index in range(0, size, max(1, size // _SAMPLED)):
        item = dataset[index]
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise DataError(f"{name} item {index} is not a pair (inputs, label)")
        inputs, label = item
        _check_label(label, name, index, classes)
        for tensor in tensors(inputs):
            _check_finite(tensor[None], name, index)
        if form not in ("", _form(inputs)):
            raise DataError(f"{name} item {index} is {_form(inputs)}, and those before it {form}")
        form = _form(inputs)
    return form


def _check_targets(targets: Tensor, name: str, classes: int) -> None:
    outside = (targets < 0) | (targets >= classes)
    if bool(outside.any()):
        index = int(outside.nonzero()[0])
        _check_label(targets[index], name, index, classes)


def _check_label(label: Any, name: str, index: int, classes: int) -> None:
    value = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    if not isinstance(value, numbers.Integral):  # numpy's integers are Integral too
        raise DataError(f"the label of {name} item {index} is {value!r}; it must be an integer")
    if not 0 <= int(value) < classes:
        raise DataError(
            f"the label of {name} item {index} is {value}; with {classes} classes it must be "
            f"0 to {classes - 1}"
        )


def _check_finite(items: Tensor, name: str, start: int) -> None:
    if not items.is_floating_point():
        return
    bad = ~torch.isfinite(items).flatten(1).all(dim=1) if items.ndim > 1 else ~items.isfinite()
    if bool(bad.any()):
        raise DataError(f"{name} item {start + int(bad.nonzero()[0])} holds NaN or infinity")


def _form(inputs: Any) -> str:
    """The types and shapes of an item, such as "float32 [3, 32, 32]"."""
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    if isinstance(inputs, dict):
        return "{" + ", ".join(f"{k}: {_form(v)}" for k, v in inputs.items()) + "}"
    if isinstance(inputs, (tuple, list)):
        return "(" + ", ".join(_form(v) for v in inputs) + ")"
    raise DataError(f"inputs must be tensors, or tuples or dicts of them, got {inputs!r:.80}")


def check_model(model: nn.Module, dataset: Dataset[Any], *, classes: int) -> None:
    """DataError where `model` does not take the items of `dataset`, ModelError if its output is
    not [N, classes].
    """
    pair = Subset(dataset, [0, min(1, length(dataset) - 1)])
    inputs, _ = next(iter(loader(pair, batch_size=2)))
    try:
        with evaluating(model):
            output = call(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{type(model).__name__} does not take the data's items, "
            f"{_form(dataset[0][0])}: {reason}"
        ) from error
    logits(output, model=model, classes=classes)


def logits(output: Any, *, model: nn.Module, classes: int) -> Tensor:
    """The model's `output`, once it is known to be a tensor [N, classes]; else ModelError."""
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{type(model).__name__} returns {type(output).__name__}; wrap it so that it returns "
            "one tensor, N x classes"
        )
    if output.ndim != 2 or output.shape[1] != classes:
        raise ModelError(
            f"{type(model).__name__} returns shape {list(output.shape)}; with {classes} classes "
            f"in the data it must be [N, {classes}]"
        )
    return output
