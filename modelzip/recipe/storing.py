"""A recipe's training data kept as its `store` says, and what that does to the model."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from modelzip.core import surgery
from modelzip.data.checking import calibration_batches
from modelzip.data.packed import PackedArrays, PackedDataset
from modelzip.data.packed.speed import speed
from modelzip.data.store import Store, keep, trainable
from modelzip.errors import SettingError
from modelzip.recipe.schema import settings
from modelzip.recipe.steps import carry_out, train_from_scratch
from modelzip.recipe.workshop import Step, Workshop
from modelzip.report.record import StoredData, decode, write
from modelzip.report.text import kilobytes
from modelzip.train.finetune import FineTune, training_steps
from modelzip.train.loop import epoch_steps

log = logging.getLogger(__name__)

FILE = "train.mzd"
ORIGINAL = "original-data"  # the folder of the steps on the original data, until a run is whole
_FOUND = "stored.json"


def stocked(
    shop: Workshop, store: Store, model: nn.Module, folder: Path, *, progress: bool
) -> tuple[Workshop, StoredData]:
    """`shop` with its training data stored and read from there, and what that took.

    What an earlier run into `folder` stored is taken up.
    """
    path, found_at = _place(store, folder), folder / _FOUND
    original = shop.splits.train
    if found_at.exists():
        found = _read(found_at)
        if found.settings != json.loads(json.dumps(settings(store))):
            raise SettingError(f"store: {folder} holds data stored otherwise; remove it")
        train = trainable(_as_noted(path, found, folder), original)
    else:
        log.info("storing the training data")
        kept = keep(original, path, store, model=model, seed=shop.seed, progress=progress)
        train, packed = kept.train, kept.packed
        total = packed.count + kept.duplicates + kept.left_out
        found = StoredData(
            file=str(store.path or FILE),
            settings=settings(store),
            samples_before=total,
            duplicates=kept.duplicates,
            left_out=kept.left_out,
            samples=packed.count,
            bytes_before=packed.before * total // packed.count,  # all are of one size
            bytes_after=packed.after,
            lossless=packed.form.lossless,
            shuffled_per_s=speed(path, "chunk-shuffled").wall,
            random_per_s=speed(path, "random").wall,
        )
        write(found_at, json.dumps(dataclasses.asdict(found)))
    before, after = kilobytes(found.bytes_before), kilobytes(found.bytes_after)
    log.info("  %d samples of %d, %s of %s", found.samples, found.samples_before, after, before)
    return _with(shop, train), found


def opened(shop: Workshop, store: Store, folder: Path) -> Workshop:
    """`shop` with the training data that another process has stored for the run in `folder`."""
    train = trainable(PackedDataset(_place(store, folder)), shop.splits.train)
    return _with(shop, train)


def on_original(
    steps: Sequence[Step],
    model: nn.Module,
    shop: Workshop,
    folder: Path,
    *,
    train: FineTune | None,
    stored: Workshop,
    progress: bool,
) -> nn.Module:
    """What the steps make of `model` with the original data of `shop`, in a folder in `folder`.

    Each fine-tuning takes as many optimizer steps as it does with those of `stored`.
    """
    log.info("carrying out the steps on the original data, to compare")
    path, model = folder / ORIGINAL, surgery.clone(model)
    path.mkdir(exist_ok=True)
    if train is not None:
        how = _as_long(train, stored, shop)
        model = train_from_scratch(model, how, shop, path, progress=progress)
    steps = [_as_long(s, stored, shop) if isinstance(s, FineTune) else s for s in steps]
    return carry_out(steps, model, shop, path, progress=progress)[0].convert()


def clean(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    (folder / _FOUND).unlink(missing_ok=True)
    shutil.rmtree(folder / ORIGINAL, ignore_errors=True)


def _as_long(step: FineTune, stored: Workshop, original: Workshop) -> FineTune:
    size = stored.batch_size
    here, there = (epoch_steps(shop.splits, size) for shop in (stored, original))
    if step.steps is not None or here == there:
        return step
    return dataclasses.replace(
        step,
        epochs=None,
        steps=training_steps(step, stored.splits, batch_size=size),
        save_at=None if step.save_at is None else round(step.save_at * here),
    )


def _place(store: Store, folder: Path) -> Path:
    return folder / FILE if store.path is None else Path(store.path)


def _with(shop: Workshop, train: PackedArrays) -> Workshop:
    splits = dataclasses.replace(shop.splits, train=train)
    samples = sum(len(targets) for _, targets in shop.calibration)
    calibration = calibration_batches(
        splits, samples=samples, batch_size=shop.batch_size, seed=shop.seed
    )
    return dataclasses.replace(shop, splits=splits, calibration=calibration)


def _as_noted(path: Path, found: StoredData, folder: Path) -> PackedDataset:
    """The file at `path`; SettingError unless it is the one that was `found` before."""
    data, size = PackedDataset(path), path.stat().st_size
    if (len(data), size) != (found.samples, found.bytes_after):
        raise SettingError(
            f"{path} is not what this run stored: {len(data)} samples in {size} bytes, not "
            f"{found.samples} in {found.bytes_after}; remove {folder}"
        )
    return data


def _read(path: Path) -> StoredData:
    try:
        return decode(StoredData, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SettingError(f"{path} is damaged ({error}); remove {path.parent}") from error
