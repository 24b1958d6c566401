"""The model and the data that a recipe names."""

from __future__ import annotations

import torch
from torch import nn

from modelzip import data, zoo
from modelzip.data.base import Splits
from modelzip.errors import SettingError
from modelzip.recipe.schema import Recipe


def build_model(recipe: Recipe) -> nn.Module:
    """The model that `recipe` builds, its weights loaded, or initialised by its seed."""
    source = recipe.model
    torch.manual_seed(recipe.seed)
    return zoo.build(
        source.build, weights=source.weights, beside=recipe.folder, **(source.model_extra or {})
    )


def refuse_generator(recipe: Recipe) -> None:
    """SettingError for the recipe of a generator, where a classifier's is needed."""
    if recipe.generates:
        raise SettingError(
            "the recipe has a companion, so it is a generator's, which modelzip run and check take "
            "(modelzip.generate in Python) and nothing else"
        )


def build_data(recipe: Recipe) -> Splits:
    """The splits that `recipe` builds."""
    source = recipe.data
    return data.build(source.build, beside=recipe.folder, **(source.model_extra or {}))
