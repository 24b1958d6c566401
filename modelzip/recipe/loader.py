"""Reading a recipe file, with errors of one line that name the file, the place and the remedy."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from modelzip.errors import SettingError, did_you_mean
from modelzip.recipe.schema import REPEAT, Plan, Recipe, Repeat

MAX_BYTES = 1_000_000  # a recipe is a page; anything larger is some other file


def load(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, with `overrides` such as "steps.0.prune_channels.sparsity=0.3".

    `model.weights` is looked up beside the recipe, in the current folder, and in the folder that
    the environment variable MODELZIP_MODELS names, and is absolute in the result. It is a
    `GenerationRecipe` where it names a companion.

    Raises:
        SettingError: the file is missing, not YAML, or says something that is not in the schema.
    """
    path = Path(path)
    raw = _read(path)
    try:
        for override in overrides:
            _override(raw, override)
        if isinstance(raw.get("model"), dict) and isinstance(raw["model"].get("weights"), str):
            raw["model"]["weights"] = str(_find(raw["model"]["weights"], beside=path.parent))
        recipe: Recipe = validate(_kind(raw), raw)
    except SettingError as error:
        raise SettingError(f"{path.name}: {error}") from error
    return recipe.at(path.resolve().parent)


def _kind(raw: dict[str, Any]) -> type[Recipe]:
    """What the settings of `raw` are of: a generator has a companion."""
    if "companion" not in raw:
        return Recipe
    from modelzip.recipe.generation import GenerationRecipe  # for those who generate

    return GenerationRecipe


def dump(plan: Plan) -> str:
    """The YAML text of `plan` with every default filled in; `load` reads that of a recipe."""
    return yaml.safe_dump(plan.resolved(), sort_keys=False, allow_unicode=True, width=100)


def validate(kind: type[Any], raw: object) -> Any:
    """`raw` as a section of a recipe; SettingError says the first thing that is wrong with it.

    >>> from modelzip.recipe.schema import Export
    >>> validate(Export, {"opsett": 21})
    Traceback (most recent call last):
    modelzip.errors.SettingError: there is no setting 'opsett'; did you mean 'opset'?
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # a misspelt key is also a missing one: name what was written, not what was not
        first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
        raise SettingError(_sentence(kind, dict(first))) from error


def _sentence(kind: type[BaseModel], detail: dict[str, Any]) -> str:
    location = tuple(detail["loc"])
    place = _place(location)
    if detail["type"] == "extra_forbidden":
        owner = _place(location[:-1])
        known = _fields(kind, location[:-1])
        hint = did_you_mean(str(location[-1]), known)
        return f"{owner + ' has' if owner else 'there is'} no setting {str(location[-1])!r}{hint}"
    if detail["type"] == "missing":
        return f"{place} is missing"
    if detail["type"] == "value_error":
        return f"{place}: {detail['ctx']['error']}" if place else str(detail["ctx"]["error"])
    if detail["type"] in ("model_type", "dict_type"):
        return f"{place or 'a recipe'} must be a mapping of settings, got {detail['input']!r}"
    if detail["type"] == "tuple_type":
        return f"{place} must be a list, got {detail['input']!r}"
    if detail["type"] == "too_short":
        return f"{place} is empty; give at least one"
    message = str(detail["msg"]).replace("Input should be a valid", "must be a")
    message = message.replace("Input should be", "must be").replace("a integer", "an integer")
    return f"{place} {message}, got {detail['input']!r}"


def _place(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _fields(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if part == REPEAT:  # an entry of `steps`, which has no field of its own
            kind = Repeat
            continue
        field = kind.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return list(kind.model_fields)


def _find(weights: str, *, beside: Path) -> Path:
    folders = [beside, Path.cwd()]
    if os.environ.get("MODELZIP_MODELS"):
        folders.append(Path(os.environ["MODELZIP_MODELS"]))
    for folder in folders:
        if (folder / weights).is_file():
            return (folder / weights).resolve()
    looked = ", ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    raise SettingError(
        f"model.weights: there is no file {weights!r} in {looked}; give its path, or name its "
        "folder in the environment variable MODELZIP_MODELS"
    )


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SettingError(f"--set takes key=value such as seed=1, got {override!r}")
    keys = path.split(".")
    if keys[0] in Plan.model_fields and keys[0] not in raw and len(keys) > 1:
        raw[keys[0]] = {}
    node: Any = raw
    for depth, key in enumerate(keys[:-1]):
        node = node[_key(node, key, keys[:depth], override)]
    if isinstance(node, dict):
        node[keys[-1]] = _parse(text, f"--set {override}")
    else:
        node[_key(node, keys[-1], keys[:-1], override)] = _parse(text, f"--set {override}")


def _key(node: Any, key: str, before: list[str], override: str) -> Any:
    place = ".".join(before) or "the recipe"
    if isinstance(node, list):
        if key.isdecimal() and int(key) < len(node):
            return int(key)
        raise SettingError(f"--set {override}: {place} has entries 0 to {len(node) - 1}, not {key}")
    if not isinstance(node, dict):
        raise SettingError(f"--set {override}: {place} is {node!r}, which has no settings")
    if key not in node:
        raise SettingError(
            f"--set {override}: there is no {key!r} in {place}{did_you_mean(key, map(str, node))}"
        )
    return key


def _read(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SettingError(f"{path} has {size} bytes; a recipe has at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingError(f"there is no recipe {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot read the recipe {path}: {error}") from error
    raw = _parse(text, path.name)
    if not isinstance(raw, dict):
        raise SettingError(f"{path.name}: a recipe must be a mapping of settings, got {raw!r:.80}")
    return raw


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader, made stricter below
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SettingError(f"{name}: {line}{error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error


class _Loader(yaml.SafeLoader):
    """YAML's safe subset without duplicate keys and aliases, and with 1e-3 as the number it is."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # an alias of an alias of an alias expands without bound
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed; write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{name!r} is set twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _number_resolver() -> None:
    import re

    _Loader.yaml_implicit_resolvers = {
        key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
    )


_number_resolver()
