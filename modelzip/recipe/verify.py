"""Checking a finished run again: its files, layer by layer, against the model they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn
from torch.utils.data import Subset

from modelzip.core import checks
from modelzip.core.prepare import load as load_checkpoint
from modelzip.data.base import Splits, length, loader
from modelzip.errors import SettingError
from modelzip.measure.accuracy import Accuracy, accuracy, predict, wilson
from modelzip.measure.layers import LayerComparison, compare_layers
from modelzip.measure.machine import describe as describe_machine
from modelzip.measure.machine import sha256
from modelzip.measure.promise import integer_promise
from modelzip.recipe import loader as recipes
from modelzip.recipe import sources
from modelzip.recipe.schema import Recipe
from modelzip.report.folder import RECIPE
from modelzip.report.layers import describe
from modelzip.report.record import Record, read
from modelzip.report.text import percent
from modelzip.report.verdict import PARITY_TOLERANCE
from modelzip.runtime.session import load

_CONFIDENCE = 0.999  # that a sample's accuracy is compatible with the report's


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found; `problems` are empty where the run still is what its report says.

    `accuracy` is the file's in onnxruntime on the samples that `layers` were compared on, `promise`
    where its integers are the module's; "" if it has none.
    """

    problems: tuple[str, ...]
    promise: str
    layers: LayerComparison
    accuracy: Accuracy


def verify(
    folder: str | Path,
    *,
    samples: int = 1000,
    make_model: Callable[[], nn.Module] | None = None,
    data: Splits | None = None,
) -> Verification:
    """Rebuild the model of a run from its checkpoint, and compare the file with it and the report.

    The files must have the hashes of the report. Where a layer follows the runtime's own
    arithmetic, the file must give the same values to the last bit; its answers must be the same on
    99.9 % of the samples, and its accuracy what the report says, within the interval of a sample.

    Args:
        folder: of a finished run.
        samples: of the test data, evenly spread; fewer where there are fewer.
        make_model, data: what the recipe builds, for the run of a recipe that names none.

    Raises:
        SettingError: no run, a damaged one, or one whose recipe names no model or data.
        ModelzipError: the model, the data or the file cannot be loaded.
    """
    checks.integer("samples", samples, low=1)
    folder = Path(folder)
    record = read(folder)
    if make_model is None or data is None:
        recipe = _recipe(folder)
        make_model = make_model or (lambda: sources.build_model(recipe))
        data = data or sources.build_data(recipe)
    module = load_checkpoint(make_model, folder / "checkpoint.safetensors")
    test = data.test
    spread = range(0, length(test), max(1, length(test) // samples))[:samples]
    batches = list(loader(Subset(test, spread), batch_size=64))
    file = folder / record.compressed.file
    layers = compare_layers(module, file, (inputs for inputs, _ in batches))
    found = accuracy(predict(load(file), batches))
    promise = integer_promise(file, describe_machine().isa)
    return Verification(
        problems=(*_files(folder, record), *_values(layers), *_figures(record, found)),
        promise=promise.text if promise else "",
        layers=layers,
        accuracy=found,
    )


def _recipe(folder: Path) -> Recipe:
    """The run's recipe, its weights aside: the checkpoint holds them."""
    path = folder / RECIPE
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingError(f"{path} is not a readable recipe: {error}") from error
    if not isinstance(written, dict) or not {"model", "data"} <= set(written):
        raise SettingError(
            f"{path} names no model and data, since compress() was given them; call "
            "modelzip.recipe.verify.verify(folder, make_model=..., data=...)"
        )
    recipe = recipes.load(path, overrides=["model.weights=null"])
    return recipe.at(Path.cwd())  # its own modules were beside the recipe, not in the run's folder


def _files(folder: Path, record: Record) -> list[str]:
    lines = []
    for name, expected in record.hashes.items():
        if not (folder / name).is_file():
            lines.append(f"{name} is missing")
        elif sha256(folder / name) != expected:
            lines.append(f"{name} is not the file of the report: its SHA-256 is another")
    return lines


def _values(layers: LayerComparison) -> list[str]:
    lines = []
    if layers.faulty is not None:
        lines.append(f"first differing layer: {describe(layers.faulty)}")
    differing = round(layers.n * (1 - layers.agreement))
    if differing > max(1, PARITY_TOLERANCE * layers.n):
        lines.append(f"file and module give other answers on {differing} of {layers.n} samples")
    return lines


def _figures(record: Record, found: Accuracy) -> list[str]:
    reported = record.compressed.accuracy
    low, high = wilson(found.correct, found.n, confidence=_CONFIDENCE)
    holds = low <= reported.top1 <= high
    if found.n == reported.n:
        holds = found.correct == reported.correct
    if holds:
        return []
    return [
        f"accuracy is {percent(found.top1)} on {found.n} samples; the report says "
        f"{percent(reported.top1)} on {reported.n}"
    ]
