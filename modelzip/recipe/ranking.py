"""Ranking the layers of a recipe's model, or a finished run's, by what changing each costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from modelzip.core.prepare import load
from modelzip.errors import SettingError
from modelzip.export.onnx import export_onnx
from modelzip.recipe import loader, sources
from modelzip.recipe.schema import Recipe
from modelzip.recipe.workshop import Workshop, open_workshop
from modelzip.report.channels import LayerCuts, rank_channels
from modelzip.report.folder import RECIPE
from modelzip.report.record import SensitivityRow
from modelzip.report.sensitivity import rank


def ranking(path: str | Path, *, bits: int) -> tuple[SensitivityRow, ...]:
    """The layers of the float model, the most sensitive first; shares are of its float file.

    Args:
        path: a recipe, or the folder of a run, whose trained original is taken.
        bits: of the weights.

    Raises:
        SettingError: the recipe trains its model, so that there is none before a run.
    """
    model, shop, _ = _opened(path)
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(model.eval(), shop.example_inputs, Path(folder) / "float.onnx")
        return rank(model, file, shop.calibration, bits=bits, example_inputs=shop.example_inputs)


def channel_ranking(path: str | Path, *, importance: str) -> tuple[LayerCuts, ...]:
    """The layers of the float model that can lose channels, the dearest first.

    Args:
        path: a recipe, or the folder of a run, whose trained original is taken.
        importance: says which channels go first.

    Raises:
        SettingError: the recipe trains its model, so that there is none before a run; or there is
            no such importance.
        ModelError: no layer can lose channels.
    """
    model, shop, seed = _opened(path)
    return rank_channels(
        model.eval(),
        shop.calibration,
        example_inputs=shop.example_inputs,
        importance=importance,
        seed=seed,
    )


def _opened(path: str | Path) -> tuple[nn.Module, Workshop, int]:
    """The float model, the data and the seed of a recipe or a run."""
    path = Path(path)
    weights = path / "original.safetensors"
    recipe: Recipe = loader.load(path / RECIPE if path.is_dir() else path)
    sources.refuse_generator(recipe)
    if recipe.model.train is not None and not weights.is_file():
        raise SettingError(
            f"{path.name} trains its model first; run it, and give the folder of the run"
        )
    model = sources.build_model(recipe.at(Path.cwd()) if path.is_dir() else recipe)
    if weights.is_file():
        built = model
        model = load(lambda: built, weights)
    shop = open_workshop(
        sources.build_data(recipe),
        batch_size=recipe.data.batch_size,
        calibration=recipe.data.calibration,
        seed=recipe.seed,
        model=model,
    )
    return model, shop, recipe.seed
