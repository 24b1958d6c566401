"""What the recipe of a generator may say: all that a recipe may, and a companion."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from modelzip.core import imports
from modelzip.core.base import Pass
from modelzip.errors import SettingError
from modelzip.generation.companion import Companion
from modelzip.generation.finetune import check_settings
from modelzip.recipe.schema import Recipe
from modelzip.recipe.settling import untimed

REQUIRED = ("archive", "latency", "macs", "parameters", "score", "size")


class CompanionSource(BaseModel):
    """Where the companion comes from; further keys are arguments of `build`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    build: str


class GenerationRecipe(Recipe):
    """The recipe of a generator, which its `companion` trains and judges."""

    generates: ClassVar[bool] = True
    companion: CompanionSource

    @model_validator(mode="after")
    def _of_a_generator(self) -> GenerationRecipe:
        if self.model.train is not None or self.model.weights is not None:
            raise SettingError("model: the companion trains it; leave out train and weights")
        if not isinstance(self.data.calibration, int):
            raise SettingError(
                "data: codes are all that a generator is calibrated with; give a "
                "number of samples as calibration"
            )
        if self.data.store is not None:
            raise SettingError("data: store is for classifiers; leave it out")
        if self.robustness is not None:
            raise SettingError("robustness is of classifiers; leave it out")
        if self.measure.sensitivity:
            raise SettingError("measure: sensitivity is of classifiers; leave it out")
        for requirement in self.require:
            if requirement.name not in REQUIRED:
                raise SettingError(
                    f"require: {requirement.name} is of classifiers; a generator can have "
                    f"{', '.join(REQUIRED)}"
                )
        for step in self.steps:
            if not isinstance(step, Pass):
                check_settings(step)
            elif untimed(step) is not step:
                raise SettingError(f"{step.name}: nothing is timed for a generator; give widths")
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data that YAML and `load` take back."""
        found = super().resolved()
        seed = found.pop("seed")
        return {"seed": seed, "companion": self.companion.model_dump(), **found}


def build_companion(recipe: GenerationRecipe) -> Companion:
    """The companion that `recipe` builds."""
    source = recipe.companion
    folder: Path | None = recipe.folder
    found = imports.call(source.build, source.model_extra or {}, beside=folder)
    if not isinstance(found, Companion):
        raise SettingError(
            f"{source.build} returned {type(found).__name__}; it must return a Companion"
        )
    return found
