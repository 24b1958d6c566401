"""What a recipe may say: every section, setting, type and default."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    Strict,
    model_validator,
)

from modelzip.archive.choose import check as check_codec
from modelzip.core import checks, registry
from modelzip.core.base import Need, Pass
from modelzip.core.prepare import check_order
from modelzip.data.store import Store
from modelzip.errors import SettingError, did_you_mean
from modelzip.measure.conditions import Robustness
from modelzip.report.requirements import Requirement, parse
from modelzip.runtime.session import DEVICES, PRECISIONS, RUNTIMES
from modelzip.train.finetune import FineTune
from modelzip.train.synthetic import Synthetic

FINETUNE = "finetune"
REPEAT = "repeat"
SYNTHETIC = "synthetic"


def step(value: object) -> Pass | FineTune:
    """One entry of `steps`: a name, or a mapping from one name to its settings.

    >>> step({"magnitude_prune": {"sparsity": 0.5}}).name
    'magnitude_prune'
    """
    if isinstance(value, (Pass, FineTune)):
        return value
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, dict) or len(value) != 1:
        raise SettingError(f"a step is one name with its settings, got {value!r}")
    ((name, settings),) = value.items()
    if name == REPEAT:
        raise SettingError(f"a {REPEAT} cannot stand in another; write out the inner one")
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise SettingError(f"{name} must have a mapping of settings, got {settings!r}")
    try:
        return _finetune(settings) if name == FINETUNE else registry.build(name, settings)
    except SettingError as error:
        text = str(error)
        known = name in text.split(":")[0]
        raise SettingError(text if known else f"{name}: {text}") from error


def _finetune(settings: object) -> FineTune:
    return (
        settings
        if isinstance(settings, FineTune)
        else FineTune(**_known(FINETUNE, settings, FineTune))
    )


def _robustness(settings: object) -> Robustness | None:
    if settings is None or isinstance(settings, Robustness):
        return settings
    return Robustness(**_known("robustness", settings, Robustness))


def parse_calibration(value: object) -> int | Synthetic:
    """What `calibration` says: a number of training samples, or that synthetic ones are made.

    >>> parse_calibration("synthetic") == parse_calibration({"synthetic": {"samples": 128}})
    True
    """
    if isinstance(value, Synthetic):
        return value
    if value == SYNTHETIC:
        return Synthetic()
    if isinstance(value, dict) and list(value) == [SYNTHETIC]:
        found = value[SYNTHETIC]
        return Synthetic(**_known(SYNTHETIC, {} if found is None else found, Synthetic))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(
            f"calibration must be a number of samples of at least 1, or {SYNTHETIC}, got {value!r}"
        )
    return value


def _as_written(found: int | Synthetic) -> Any:
    """What `parse_calibration` takes back."""
    return {SYNTHETIC: settings(found)} if isinstance(found, Synthetic) else found


def _known(what: str, found: object, kind: type[Any]) -> dict[str, Any]:
    """`found` as a mapping of settings, all of which the dataclass `kind` has."""
    if not isinstance(found, dict):
        raise SettingError(f"{what} must have a mapping of settings, got {found!r}")
    known = [f.name for f in dataclasses.fields(kind)]
    for name in found:
        if name not in known:
            raise SettingError(f"{what} has no setting {name!r}{did_you_mean(name, known)}")
    return found


def parse_store(found: object) -> Store | None:
    """What `store` says: how training data are kept, or that they are used as they are."""
    if found is None or isinstance(found, Store):
        return found
    return Store(**_known("store", found, Store))


def refuse_both(store: Store | None, calibration: int | Synthetic) -> None:
    """SettingError where training data are to be stored and not to be read."""
    if store is not None and isinstance(calibration, Synthetic):
        raise SettingError(
            "store keeps training data, of which calibration: synthetic reads none; choose one"
        )


def _requirements(value: object) -> tuple[Requirement, ...]:
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise SettingError(f"must be a mapping such as {{size: 0.2x}}, got {value!r}")
    return tuple(parse(str(name), limit) for name, limit in value.items())


def _training(value: object) -> FineTune:
    found = _finetune(value)
    if found.distill:
        raise SettingError("distill needs a teacher, and there is none yet; leave it out")
    return found


def _one_of(name: str, choices: tuple[str, ...]) -> AfterValidator:
    return AfterValidator(lambda value: checks.choice(name, value, choices))


Runtimes = Annotated[
    tuple[Annotated[str, _one_of("runtime", RUNTIMES)], ...], Strict(False), Field(min_length=1)
]
Precisions = Annotated[
    tuple[Annotated[str, _one_of("precision", PRECISIONS)], ...], Strict(False), Field(min_length=1)
]
Devices = Annotated[
    tuple[Annotated[str, _one_of("device", DEVICES)], ...], Strict(False), Field(min_length=1)
]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSource(_Section):
    """Where the model comes from; further keys are arguments of `build`.

    `weights` is a safetensors or `.pt` file; `train` fine-tune settings to train it first.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    build: str
    weights: str | None = None
    train: Annotated[FineTune, PlainValidator(_training)] | None = None


class DataSource(_Section):
    """Where the data come from; further keys are arguments of `build`.

    `calibration` is the number of training samples that passes may look at, or "synthetic", or
    {"synthetic": settings}: then samples are made from the model, and of the data the test set
    alone is read. `store` keeps the training data compressed, and trains and calibrates on that.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    build: str
    batch_size: Annotated[int, Field(ge=1)] = 128
    calibration: Annotated[
        int | Synthetic, PlainValidator(parse_calibration), PlainSerializer(_as_written)
    ] = 512
    store: Annotated[
        Store | None, PlainValidator(parse_store), PlainSerializer(lambda v: v and settings(v))
    ] = None

    @model_validator(mode="after")
    def _there_to_store(self) -> DataSource:
        refuse_both(self.store, self.calibration)
        return self


class Export(_Section):
    """How the ONNX file is written."""

    opset: Annotated[int, Field(ge=21, le=23)] = 21


class Measure(_Section):
    """What is measured: each runtime and device, at each batch size and number of threads.

    `precisions` are for runtimes that can be asked for one; onnxruntime computes as the file says.
    `sensitivity` asks for what quantizing each layer alone costs: a run of the model for each.
    """

    runtimes: Runtimes = ("onnxruntime", "openvino")
    precisions: Precisions = ("float32",)
    devices: Devices = ("cpu",)
    batch_sizes: Counts = (1, 32)
    threads: Counts = (1,)
    sensitivity: bool = False


class Archived(_Section):
    """That the file is packed too, into model.mzip, and how: by one codec, or the best of all."""

    codec: Annotated[str, AfterValidator(check_codec)] = "auto"


Step = Annotated[Pass | FineTune, PlainValidator(step)]
Times = Annotated[int, Field(ge=2, le=100)]


class Repeat(_Section):
    """Steps carried out `times` times in a row, each time on the model as the last left it.

    What a pass takes a part of is the model of that moment: `prune_channels: {macs: 0.8x}` four
    times leaves 0.8**4 = 0.41 of the multiply-accumulates. Two things do not multiply, so that the
    second time is refused: a latency is one of the original file's, and a sparsity of single
    weights counts the zeros there are. Give those steps one by one.
    """

    times: Times
    steps: Annotated[tuple[Step, ...], Strict(False), Field(min_length=1)]


class _Repeated(_Section):
    repeat: Repeat


def _entry(value: object) -> tuple[Pass | FineTune, ...]:
    """The steps that one entry of `steps` stands for."""
    if value == REPEAT:
        value = {REPEAT: None}
    if isinstance(value, dict) and list(value) == [REPEAT]:
        found = _Repeated.model_validate(value).repeat
        return found.steps * found.times
    return (step(value),)


def _written_out(entries: tuple[Any, ...]) -> tuple[Pass | FineTune, ...]:
    return tuple(itertools.chain.from_iterable(entries))


class Plan(_Section):
    """All of a recipe but model and data; a `repeat` is written out in `steps`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Annotated[
        tuple[Annotated[Pass | FineTune, PlainValidator(_entry)], ...],
        Strict(False),
        Field(min_length=1),
        AfterValidator(_written_out),
    ]
    export: Export = Export()
    archive: Archived | None = None
    measure: Measure = Measure()
    robustness: Annotated[Robustness | None, PlainValidator(_robustness)] = None
    require: Annotated[tuple[Requirement, ...], PlainValidator(_requirements)] = ()

    @model_validator(mode="after")
    def _order(self) -> Plan:
        check_order([s for s in self.steps if isinstance(s, Pass)])
        for found in itertools.takewhile(lambda s: isinstance(s, Pass), reversed(self.steps)):
            if isinstance(found, Pass) and Need.TRAINING in found.requires:
                raise SettingError(
                    f"steps: the last {found.name} needs training with these settings; "
                    f"add a {FINETUNE} step after it"
                )
        if self.archive is None and any(r.name == "archive" for r in self.require):
            raise SettingError("require: archive needs one; add archive: {codec: auto}")
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data that YAML and `load` take back."""
        return {
            "seed": self.seed,
            "steps": [{step_name(s): settings(s)} for s in self.steps],
            "export": self.export.model_dump(),
            "archive": None if self.archive is None else self.archive.model_dump(),
            "measure": _plain(self.measure.model_dump()),
            "robustness": None if self.robustness is None else settings(self.robustness),
            "require": {r.name: r.value for r in self.require},
        }


class Recipe(Plan):
    """A whole recipe, validated and frozen. `loader.load` reads one from a file."""

    generates: ClassVar[bool] = False  # whether it is a `GenerationRecipe`
    model: ModelSource
    data: DataSource

    @model_validator(mode="after")
    def _trained(self) -> Recipe:
        if self.model.train is not None and isinstance(self.data.calibration, Synthetic):
            raise SettingError(
                "model.train reads training data, of which calibration: synthetic reads none; give "
                "weights, or a number of samples"
            )
        store = self.data.store
        if self.model.train is not None and store is not None and store.uses_model:
            raise SettingError(
                f"data.store: a coreset by {store.by} is chosen with the model, which model.train "
                "only trains later; give model.weights, or by: random"
            )
        return self

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """Where the recipe's file is, in which its own modules are looked for first."""
        return self._folder

    def at(self, folder: Path) -> Recipe:
        """This recipe as one whose file is in `folder`."""
        found = self.model_copy()
        found._folder = folder
        return found

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data that YAML and `load` take back."""
        model = self.model.model_dump(exclude={"train"}, exclude_none=True)
        train = self.model.train
        sources = {
            "model": model if train is None else {**model, "train": settings(train)},
            "data": self.data.model_dump(),
        }
        plan = super().resolved()
        return {"seed": plan.pop("seed"), **sources, **plan}


def step_name(found: Pass | FineTune) -> str:
    """The name a recipe calls this step by."""
    return found.name if isinstance(found, Pass) else FINETUNE


def settings(found: Pass | FineTune | Robustness | Store | Synthetic) -> dict[str, Any]:
    """Every setting of a step or section, defaults included, as plain data."""
    return {f.name: _plain(getattr(found, f.name)) for f in dataclasses.fields(found)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
